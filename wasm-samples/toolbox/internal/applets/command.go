package applets

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Stub is what a file says that is a program of the toolbox.
const Stub = "#!/.wasilet/toolbox"

// directories are where images have such programs as the toolbox's.
var directories = []string{"/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"}

// killDelay is what a program that is interrupted gets to end by itself.
const killDelay = 2 * time.Second

// Command is a program to run: an applet in this process, or another process.
type Command struct {
	Args           []string
	Env            []string
	Dir            string
	Stdin          *os.File
	Stdout, Stderr io.Writer
	// Who begins messages about a command that cannot be run.
	Who string
	// cannot says "can't execute" as the programs that run others do.
	cannot bool
	// Started is told of a process of its own.
	Started func(*os.Process)
}

// Resolved is what a name stands for.
type Resolved struct {
	// Path of a program that needs a process.
	Path string
	// Applet runs here; Name is the one it goes by.
	Applet Applet
	Name   string
}

// errDenied is a file that is there and is no program.
var errDenied = errors.New("Permission denied")

// Resolve finds what to run for a name, as a shell does: files first, the toolbox for what is not there.
func Resolve(name, dir string, env []string) (Resolved, error) {
	if name == "" {
		return Resolved{}, fs.ErrNotExist
	}
	abs := func(p string) string {
		if strings.HasPrefix(p, "/") {
			return p
		}
		return strings.TrimSuffix(dir, "/") + "/" + p
	}
	if strings.Contains(name, "/") {
		found, err := inspect(abs(name))
		if err == nil || !isNotExist(err) {
			return found, err
		}
		if base := path.Base(name); slices.Contains(directories, path.Dir(name)) {
			if applet, ok := Find(base); ok {
				return Resolved{Applet: applet, Name: base}, nil
			}
		}
		return Resolved{}, err
	}
	denied := false
	c := Ctx{Env: env}
	search := c.getenv("PATH")
	if search == "" {
		search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for _, directory := range strings.Split(search, ":") {
		if directory == "" {
			directory = "."
		}
		found, err := inspect(abs(strings.TrimSuffix(directory, "/") + "/" + name))
		if err == nil {
			return found, nil
		}
		denied = denied || errors.Is(err, errDenied)
	}
	if applet, ok := Find(name); ok && useApplets {
		return Resolved{Applet: applet, Name: name}, nil
	}
	if denied {
		return Resolved{}, errDenied
	}
	return Resolved{}, fs.ErrNotExist
}

// useApplets is off in the children of tests that look at real programs.
var useApplets = true

// inspect tells what the file at p is.
func inspect(p string) (Resolved, error) {
	var first error
	for _, candidate := range []string{p, p + ".wasm"} {
		info, err := os.Stat(candidate)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if !info.Mode().IsRegular() {
			return Resolved{}, errDenied
		}
		head := readHead(candidate)
		executable := info.Mode()&0o111 != 0
		switch {
		case bytes.HasPrefix(head, []byte(Stub)):
			if applet, ok := Find(path.Base(p)); ok {
				return Resolved{Applet: applet, Name: path.Base(p)}, nil
			}
			return Resolved{Path: candidate}, nil
		case bytes.HasPrefix(head, []byte("\x00asm")) || executable:
			// An image that has the toolbox itself, one file of many names, as busybox's has.
			if applet, ok := Find(path.Base(p)); ok && isSelf(info) {
				return Resolved{Applet: applet, Name: path.Base(p)}, nil
			}
			return Resolved{Path: candidate}, nil
		}
		return Resolved{}, errDenied
	}
	return Resolved{}, first
}

// isSelf tells this very program from others.
func isSelf(info os.FileInfo) bool {
	own := own()
	return own != nil && os.SameFile(own, info)
}

// own is this program's file, if it can be found.
var own = sync.OnceValue(func() os.FileInfo {
	info, err := os.Stat(self())
	if err != nil {
		return nil
	}
	return info
})

func readHead(p string) []byte {
	f, err := os.Open(p)
	if err != nil {
		return nil
	}
	defer f.Close()
	var head [64]byte
	n, _ := io.ReadFull(f, head[:])
	return head[:n]
}

// needsProcess are applets that are processes: a shell has signals and traps, and a pid that it shows.
var needsProcess = map[string]bool{"sh": true, "ash": true, "bash": true, "nohup": true}

// Run runs it and gives its exit code: 127 when there is none of that name, 126 when it is no program.
func (cmd Command) Run(ctx context.Context) int {
	found, err := Resolve(cmd.Args[0], cmd.Dir, cmd.Env)
	if err != nil {
		return cmd.failed(err)
	}
	if found.Applet != nil && !(needsProcess[found.Name] || found.Name == "busybox" && len(cmd.Args) > 1 && needsProcess[cmd.Args[1]]) {
		c := &Ctx{
			Context: ctx, Args: append([]string{found.Name}, cmd.Args[1:]...), Env: cmd.Env, Dir: cmd.Dir,
			In: cmd.Stdin, Out: cmd.Stdout, Err: cmd.Stderr,
		}
		return Run(found.Applet, c)
	}
	process, err := cmd.start(ctx, found)
	if err != nil {
		return cmd.failed(err)
	}
	if cmd.Started != nil {
		cmd.Started(process.Process)
	}
	return exitCode(process.Wait())
}

// Start starts it as a process of its own, also where it is an applet.
func (cmd Command) Start(ctx context.Context) (*exec.Cmd, error) {
	found, err := Resolve(cmd.Args[0], cmd.Dir, cmd.Env)
	if err != nil {
		return nil, err
	}
	return cmd.start(ctx, found)
}

func (cmd Command) start(ctx context.Context, found Resolved) (*exec.Cmd, error) {
	args := cmd.Args
	program := found.Path
	if found.Applet != nil {
		program = self() // which goes by the last part of argv[0]
	}
	process := cmd.process(ctx, program, args)
	err := process.Start()
	if errors.Is(err, syscall.ENOEXEC) && looksLikeText(program) {
		// A script that does not say for whom is the shell's.
		process = cmd.process(ctx, self(), append([]string{"sh", program}, args[1:]...))
		err = process.Start()
	}
	return process, err
}

func (cmd Command) process(ctx context.Context, program string, args []string) *exec.Cmd {
	process := exec.CommandContext(ctx, program)
	process.Args, process.Env, process.Dir = args, cmd.Env, cmd.Dir
	if cmd.Stdin != nil {
		process.Stdin = cmd.Stdin
	}
	process.Stdout, process.Stderr = Unwrap(cmd.Stdout), Unwrap(cmd.Stderr)
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGINT) }
	process.WaitDelay = killDelay
	return process
}

// failed says why a command did not run.
func (cmd Command) failed(err error) int {
	if cmd.cannot {
		fmt.Fprintf(cmd.Stderr, "%s: can't execute '%s': %s\n", cmd.Who, cmd.Args[0], reason(err))
		if isNotExist(err) {
			return 127
		}
		return 126
	}
	say := func(text string) { fmt.Fprintf(cmd.Stderr, "%s: %s: %s\n", cmd.Who, cmd.Args[0], text) }
	switch {
	case isNotExist(err):
		say("not found")
		return 127
	case errors.Is(err, errDenied) || errors.Is(err, fs.ErrPermission):
		say("Permission denied")
	case errors.Is(err, syscall.ENOEXEC):
		say("Exec format error")
	default:
		say(reason(err))
	}
	return 126
}

func looksLikeText(p string) bool {
	head := readHead(p)
	line, _, _ := bytes.Cut(head, []byte("\n"))
	return len(head) > 0 && bytes.IndexByte(line, 0) < 0 && !bytes.HasPrefix(head, []byte("\x7fELF"))
}

// ExitCode is a finished process's status as a shell shows it.
func ExitCode(err error) int { return exitCode(err) }

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return 0
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return exit.ExitCode()
	case errors.Is(err, context.Canceled):
		return 130
	case errors.Is(err, context.DeadlineExceeded):
		return 143
	}
	return 126
}

// command is a command of an applet that runs others, such as xargs.
func (c *Ctx) command(args []string) Command {
	c.flush()
	return Command{Args: args, Env: c.Env, Dir: c.Dir, Stdin: c.In, Stdout: c.Out, Stderr: c.Err, Who: c.name()}
}

// Environment sets variables over others.
func Environment(env []string, set ...string) []string {
	var all []string
	names := map[string]bool{}
	for _, item := range set {
		name, _, _ := strings.Cut(item, "=")
		names[name] = true
	}
	for _, item := range env {
		name, _, _ := strings.Cut(item, "=")
		if !names[name] {
			all = append(all, item)
		}
	}
	return append(all, set...)
}
