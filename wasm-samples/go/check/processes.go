package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// children are what the program does under other names.
var children = map[string]func([]string) int{
	"exit": func(args []string) int {
		code, _ := strconv.Atoi(args[0])
		return code
	},
	"cat": func([]string) int {
		io.Copy(os.Stdout, os.Stdin)
		return 0
	},
	"upper": func([]string) int {
		text, _ := io.ReadAll(os.Stdin)
		os.Stdout.Write(bytes.ToUpper(text))
		return 0
	},
	"say": func(args []string) int {
		fmt.Println(strings.Join(args, " "))
		fmt.Fprintln(os.Stderr, "on stderr")
		return 0
	},
	"where": func([]string) int {
		dir, _ := os.Getwd()
		fmt.Printf("%s %s %d %t\n", dir, os.Getenv("COLOUR"), os.Getppid(), os.Getpid() > 1)
		return 0
	},
	"umask": func([]string) int {
		fmt.Printf("%03o\n", syscall.Umask(0))
		return 0
	},
	"sleep": func([]string) int {
		fmt.Println("ready")
		time.Sleep(time.Minute)
		return 0
	},
	"handle-hup": func([]string) int {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		fmt.Println("ready")
		<-hup
		return 42
	},
}

var processChecks = []check{
	{"pipe: bytes, end of file, and EPIPE", pipes},
	{"pipe: a read with a deadline", pipeDeadline},
	{"exec: output, error output and exit codes", execOutput},
	{"exec: exit codes up to 255", execCodes},
	{"exec: a pipeline of three", execPipeline},
	{"exec: a large input while its output is read", execLarge},
	{"exec: directory, environment, pids and umask", execInherits},
	{"exec: other goroutines run while one waits", execWaitIsNoBlock},
	{"exec: many at once", execMany},
	{"exec: ended with its context", execContext},
	{"exec: what is not there, and what is no program", execErrors},
	{"exec: LookPath", execLookPath},
	{"exec: signal 0 tells whether it lives", execAlive},
}

// self is this program as one of the children.
func self(child string, args ...string) *exec.Cmd {
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0]
	}
	cmd := exec.Command(path, append([]string{child}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

func pipes() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() {
		time.Sleep(10 * time.Millisecond)
		w.Write([]byte("through"))
		w.Close()
	}()
	got, err := io.ReadAll(r)
	if err := all(err, equal("what came through", string(got), "through")); err != nil {
		return err
	}
	r2, w2, err := os.Pipe()
	if err != nil {
		return err
	}
	r2.Close()
	_, err = w2.Write([]byte("x"))
	return isError("writing to nobody", err, syscall.EPIPE)
}

func pipeDeadline() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		return err
	}
	_, err = r.Read(make([]byte, 1))
	return isError("the read", err, os.ErrDeadlineExceeded)
}

func execOutput() error {
	cmd := self("say", "one", "two words", "")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	return all(err, equal("its output", string(out), "one two words \n"), equal("its errors", stderr.String(), "on stderr\n"))
}

func execCodes() error {
	for _, code := range []int{0, 1, 126, 127, 137, 255} {
		err := self("exit", strconv.Itoa(code)).Run()
		var exit *exec.ExitError
		switch {
		case code == 0 && err != nil:
			return err
		case code != 0 && !errors.As(err, &exit):
			return fmt.Errorf("exit %d gives %v", code, err)
		case code != 0 && (exit.ExitCode() != code || exit.Sys().(syscall.WaitStatus).Signaled()):
			return fmt.Errorf("exit %d gives %v", code, exit)
		}
	}
	return nil
}

func execPipeline() error {
	first, second, third := self("say", "quiet"), self("cat"), self("upper")
	first.Stderr = io.Discard
	var err error
	if second.Stdin, err = first.StdoutPipe(); err != nil {
		return err
	}
	if third.Stdin, err = second.StdoutPipe(); err != nil {
		return err
	}
	var out bytes.Buffer
	third.Stdout = &out
	for _, cmd := range []*exec.Cmd{third, second, first} {
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	for _, cmd := range []*exec.Cmd{first, second, third} {
		if err := cmd.Wait(); err != nil {
			return err
		}
	}
	return equal("the end of the pipeline", out.String(), "QUIET\n")
}

func execLarge() error {
	cmd := self("cat")
	text := strings.Repeat("0123456789abcdef", 64*1024)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	return all(err, equal("what came back is the same", string(out) == text, true))
}

func execInherits() error {
	cmd := self("where")
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "COLOUR=teal")
	out, err := cmd.Output()
	want := fmt.Sprintf("%s teal %d true\n", os.TempDir(), os.Getpid())
	if err := all(err, equal("the child", string(out), want)); err != nil {
		return err
	}
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	out, err = self("umask").Output()
	return all(err, equal("the child's umask", string(out), "027\n"))
}

func execWaitIsNoBlock() error {
	cmd := self("sleep")
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for range 10 {
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case err := <-ended:
		return fmt.Errorf("it ended by itself: %v", err)
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	return equal("its end", (<-ended).Error(), "signal: killed")
}

func execMany() error {
	errs := make(chan error)
	const count = 20
	for i := range count {
		go func() {
			cmd := self("upper")
			cmd.Stdin = strings.NewReader(fmt.Sprint("n", i))
			out, err := cmd.Output()
			errs <- all(err, equal("the output", string(out), fmt.Sprint("N", i)))
		}()
	}
	var first error
	for range count {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

func execContext() error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	path, _ := os.Executable()
	err := exec.CommandContext(ctx, path, "sleep").Run()
	return all(equal("its end", fmt.Sprint(err), "signal: killed"), isError("the context", ctx.Err(), context.DeadlineExceeded))
}

func execErrors() error {
	if err := isError("a missing program", exec.Command("/no/such/program").Run(), os.ErrNotExist); err != nil {
		return err
	}
	text := filepath.Join(os.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		return err
	}
	defer os.Remove(text)
	if err := isError("a text", exec.Command(text).Run(), syscall.ENOEXEC); err != nil {
		return err
	}
	cmd := self("exit", "0")
	cmd.Dir = "/no/such/directory"
	return isError("a missing directory", cmd.Run(), os.ErrNotExist)
}

func execLookPath() error {
	dir, err := os.MkdirTemp("", "path")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tool := filepath.Join(dir, "tool")
	if err := os.WriteFile(tool, nil, 0o644); err != nil {
		return err
	}
	old := os.Getenv("PATH")
	defer os.Setenv("PATH", old)
	os.Setenv("PATH", "/nowhere:"+dir)
	if _, err := exec.LookPath("tool"); err == nil {
		return errors.New("a file that may not be executed was found")
	}
	if err := os.Chmod(tool, 0o755); err != nil {
		return err
	}
	got, err := exec.LookPath("tool")
	return all(err, equal("the tool", got, tool))
}

func execAlive() error {
	cmd := self("sleep")
	if err := cmd.Start(); err != nil {
		return err
	}
	other, err := os.FindProcess(cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := other.Signal(syscall.Signal(0)); err != nil {
		return err
	}
	cmd.Process.Kill()
	cmd.Wait()
	return isError("a signal to the dead", syscall.Kill(cmd.Process.Pid, 0), syscall.ESRCH)
}
