// What the shell of the toolbox has beyond mvdan.cc/sh's own interpreter: descriptors above 2, jobs that are processes,
// traps of signals.

package interp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// Host is the process that a [Runner] is the shell of.
type Host struct {
	// Pid is $$: in a shell that stands for a subshell of another one, that one's.
	Pid int
	// Builtin runs a builtin in place of the interpreter's own; false leaves it to that.
	Builtin func(r *Runner, ctx context.Context, name string, args []string) (status uint8, handled bool)
	// Start starts a process of its own for a job. Done is closed at its end, when status is set.
	Start func(ctx context.Context, job Job) (pid int, done <-chan struct{}, status *uint8, err error)
	// LookPath finds a program.
	LookPath func(dir string, env expand.Environ, name string) (path string, ok bool)
	// Pending takes the signals that have arrived and are trapped, in the order of their numbers.
	Pending func() []int
	// Arrived tells that Pending has something.
	Arrived <-chan struct{}
	// Trap says what to do with a signal from now on.
	Trap func(signal int, action TrapAction)
	// Signal parses a signal's name or number; 0 is EXIT.
	Signal func(name string) (number int, ok bool)
	// SignalName is the name without SIG.
	SignalName func(number int) string
}

// TrapAction is what a signal does.
type TrapAction int

// The actions.
const (
	TrapDefault TrapAction = iota
	TrapIgnore
	TrapRun
)

// Job is a command to run in the background.
type Job struct {
	// Args is set where it is one program and nothing of the shell is needed.
	Args []string
	// Script does the same anywhere else, in a new shell called Name.
	Script, Name   string
	Env            []string
	Dir            string
	Stdin          *os.File
	Stdout, Stderr io.Writer
}

// WithHost sets the process around the runner and what it is called.
func WithHost(host Host, name string) RunnerOption {
	return func(r *Runner) error {
		r.host, r.name, r.shell = host, name, true
		return nil
	}
}

// Reason is an error of a file operation in the words of strerror(3).
func Reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		text := errno.Error()
		switch errno {
		case syscall.ENOENT:
			return "No such file or directory"
		case syscall.EEXIST:
			return "File exists"
		case syscall.EACCES:
			return "Permission denied"
		}
		if text == "" {
			return fmt.Sprintf("Error %d", int(errno))
		}
		return strings.ToUpper(text[:1]) + text[1:]
	case errors.Is(err, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(err, fs.ErrExist):
		return "File exists"
	case errors.Is(err, fs.ErrPermission):
		return "Permission denied"
	case errors.Is(err, io.ErrClosedPipe), errors.Is(err, os.ErrClosed):
		return "Bad file descriptor"
	}
	return err.Error()
}

// Name is $0.
func (r *Runner) Name() string { return r.name }

// Files are the descriptors above 2.
func (r *Runner) Stdin() *os.File { return r.stdin }

// Out writes to the standard output of the command at hand.
func (r *Runner) Out() io.Writer { return r.stdout }

// Errf prints a message after the shell's name.
func (r *Runner) Errf(format string, a ...any) { r.errf(format, a...) }

// LastStatus is $?.
func (r *Runner) LastStatus() uint8 { return r.lastExit.code }

// SetStatus sets $?.
func (r *Runner) SetStatus(code uint8) { r.exit, r.lastExit = exitStatus{}, exitStatus{code: code} }

// IsShell tells the process's own runner from subshells.
func (r *Runner) IsShell() bool { return r.shell }

func (r *Runner) lookPath(name string) (string, error) {
	if r.host.LookPath != nil {
		if path, ok := r.host.LookPath(r.Dir, r.writeEnv, name); ok {
			return path, nil
		}
		return "", fmt.Errorf("%s: not found", name)
	}
	return LookPathDir(r.Dir, r.writeEnv, name)
}

// defaultDescriptor is the number a redirection is about.
func defaultDescriptor(rd *syntax.Redirect) int {
	if rd.N != nil {
		if n, err := strconv.Atoi(rd.N.Value); err == nil {
			return n
		}
	}
	switch rd.Op {
	case syntax.RdrIn, syntax.RdrInOut, syntax.DplIn, syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
		return 0
	}
	return 1
}

func (r *Runner) setDescriptor(n int, file *os.File) {
	switch n {
	case 0:
		r.stdin = file
	case 1:
		r.stdout = file
	case 2:
		r.stderr = file
	default:
		if r.files == nil {
			r.files = map[int]*os.File{}
		}
		r.files[n] = file
	}
}

// duplicate is N>&M and N<&M.
func (r *Runner) duplicate(n int, from string) error {
	if from == "-" {
		switch n {
		case 0:
			r.stdin = nil
		case 1:
			r.stdout = closed{}
		case 2:
			r.stderr = closed{}
		default:
			delete(r.files, n)
		}
		return nil
	}
	m, err := strconv.Atoi(from)
	if err != nil || m < 0 {
		return fmt.Errorf("%s: bad fd number", from)
	}
	var writer io.Writer
	switch m {
	case 0:
		if r.stdin != nil {
			writer = r.stdin
		}
	case 1:
		writer = r.stdout
	case 2:
		writer = r.stderr
	default:
		if file := r.files[m]; file != nil {
			writer = file
		}
	}
	if writer == nil {
		return fmt.Errorf("%d: Bad file descriptor", m)
	}
	switch n {
	case 1:
		r.stdout = writer
	case 2:
		r.stderr = writer
	default:
		file, ok := writer.(*os.File)
		if !ok {
			// The output of a substitution is no file; only a program of its own could tell.
			pr, pw, err := os.Pipe()
			if err != nil {
				return err
			}
			go func() {
				io.Copy(writer, pr)
				pr.Close()
			}()
			file = pw
		}
		r.setDescriptor(n, file)
	}
	return nil
}

// closed is a descriptor that was closed by >&-.
type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, syscall.EBADF }

// background starts a command without waiting for it.
func (r *Runner) background(ctx context.Context, st *syntax.Stmt) {
	foreground := *st
	foreground.Background, foreground.Disown = false, false
	job := bgProc{done: make(chan struct{}), exit: new(exitStatus)}
	var text strings.Builder
	syntax.NewPrinter(syntax.SingleLine(true)).Print(&text, &foreground)
	job.command = text.String()
	if r.host.Start != nil {
		r2 := r.subshell(false)
		var closers []io.Closer
		simple, ok := foreground.Cmd.(*syntax.CallExpr)
		ok = ok && !foreground.Negated && len(simple.Args) > 0 && len(simple.Assigns) == 0
		out := Job{Name: r.name, Dir: r.Dir}
		if ok && r.external(simple.Args[0]) {
			// What the redirections and the words are is decided here; then nothing of the shell is needed.
			if r2.stdin != nil && !hasInput(foreground.Redirs) {
				r2.stdin = nil
			}
			for _, rd := range foreground.Redirs {
				cls, err := r2.redir(ctx, rd)
				if err != nil {
					r.errf("%v\n", err)
					r.exit.code = 1
					return
				}
				if cls != nil {
					closers = append(closers, cls)
				}
			}
			out.Args = r2.fields(simple.Args...)
			if r2.exit.code != 0 || len(out.Args) == 0 {
				return
			}
		} else {
			r2.stdin = nil
			out.Script = r.script(&foreground)
		}
		out.Env = execEnv(r.writeEnv)
		out.Stdin, out.Stdout, out.Stderr = r2.stdin, r2.stdout, r2.stderr
		pid, done, status, err := r.host.Start(ctx, out)
		for _, closer := range closers {
			closer.Close()
		}
		if err == nil {
			job.pid = pid
			go func() {
				<-done
				job.exit.code = *status
				close(job.done)
			}()
			r.bgProcs = append(r.bgProcs, job)
			r.lastBg = pid
			return
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			r.errf("%s: %s\n", job.command, Reason(err))
			r.exit.code = 127
			return
		}
	}
	// Without processes it is a subshell that runs beside.
	job.pid = -1 - len(r.bgProcs)
	r.bgProcs = append(r.bgProcs, job)
	r.lastBg = job.pid
	r2 := r.subshell(true)
	go func() {
		r2.Run(ctx, &foreground)
		r2.exit.exiting = false
		*job.exit = r2.exit
		close(job.done)
	}()
}

// external tells whether a command's name, known before expansion, is a program's.
func (r *Runner) external(word *syntax.Word) bool {
	name := word.Lit()
	if name == "" || r.Funcs[name] != nil || IsBuiltin(name) {
		return false
	}
	_, alias := r.alias[name]
	return !alias
}

func hasInput(redirects []*syntax.Redirect) bool {
	return slices.ContainsFunc(redirects, func(rd *syntax.Redirect) bool { return defaultDescriptor(rd) == 0 })
}

// script is a program for a new shell that does what a subshell would.
func (r *Runner) script(st *syntax.Stmt) string {
	var text strings.Builder
	quote := func(s string) string {
		quoted, err := syntax.Quote(s, syntax.LangBash)
		if err != nil {
			return "''"
		}
		return quoted
	}
	printer := syntax.NewPrinter()
	variables := map[string]expand.Variable{}
	for name, variable := range r.writeEnv.Each {
		variables[name] = variable
	}
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		variable := variables[name]
		switch {
		case !variable.IsSet() || name == "PWD" || name == "OPTIND" || !syntax.ValidName(name):
		case variable.Kind == expand.Indexed:
			items := make([]string, len(variable.List))
			for i, item := range variable.List {
				items[i] = quote(item)
			}
			fmt.Fprintf(&text, "%s=(%s)\n", name, strings.Join(items, " "))
		case variable.Kind == expand.String && !variable.Exported:
			fmt.Fprintf(&text, "%s=%s\n", name, quote(variable.Str))
		}
	}
	for name, body := range r.Funcs {
		fmt.Fprintf(&text, "%s() ", name)
		printer.Print(&text, body)
		text.WriteString("\n")
	}
	for signal, command := range r.traps {
		if command == "" {
			fmt.Fprintf(&text, "trap '' %d\n", signal)
		}
	}
	if len(r.Params) > 0 {
		text.WriteString("set --")
		for _, param := range r.Params {
			text.WriteString(" " + quote(param))
		}
		text.WriteString("\n")
	}
	if flags := strings.Trim(r.posixOptFlags(), "ni"); flags != "" {
		fmt.Fprintf(&text, "set -%s\n", flags)
	}
	if r.opts[optPipeFail] {
		text.WriteString("set -o pipefail\n")
	}
	printer.Print(&text, st)
	text.WriteString("\n")
	return text.String()
}

// wait is the builtin.
func (r *Runner) wait(ctx context.Context, args []string) (exit exitStatus) {
	if len(args) == 0 {
		for i := range r.bgProcs {
			job := &r.bgProcs[i]
			if signal := r.await(ctx, job); signal != 0 {
				exit.code = uint8(128 + signal)
				return exit
			}
			job.waited = true
		}
		return exit
	}
	for _, arg := range args {
		job := r.job(arg)
		if job == nil {
			r.errf("wait: pid %s is not a child of this shell\n", arg)
			exit = exitStatus{code: 127}
			continue
		}
		if signal := r.await(ctx, job); signal != 0 {
			exit.code = uint8(128 + signal)
			return exit
		}
		job.waited = true
		exit = *job.exit
	}
	return exit
}

// await waits for a job, or for a signal that has a trap; its number then.
func (r *Runner) await(ctx context.Context, job *bgProc) int {
	select {
	case <-job.done:
		return 0
	default:
	}
	for {
		select {
		case <-job.done:
			return 0
		case <-ctx.Done():
			r.exit.fatal(ctx.Err())
			return 2
		case <-r.host.Arrived:
			if !r.shell {
				continue
			}
			if pending := r.host.Pending(); len(pending) > 0 {
				for _, signal := range pending {
					r.runTrap(ctx, signal)
				}
				return pending[0]
			}
		}
	}
}

// job finds a background job by pid or %number.
func (r *Runner) job(arg string) *bgProc {
	if number, ok := strings.CutPrefix(arg, "%"); ok {
		if number == "%" || number == "+" || number == "" {
			number = strconv.Itoa(len(r.bgProcs))
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > len(r.bgProcs) {
			return nil
		}
		return &r.bgProcs[n-1]
	}
	pid, err := strconv.Atoi(arg)
	if err != nil {
		return nil
	}
	for i := len(r.bgProcs) - 1; i >= 0; i-- {
		if r.bgProcs[i].pid == pid {
			return &r.bgProcs[i]
		}
	}
	return nil
}

// JobPid is the process of a job, for kill.
func (r *Runner) JobPid(arg string) (int, bool) {
	job := r.job(arg)
	if job == nil {
		return 0, false
	}
	return job.pid, true
}

// Jobs describes the background jobs that were not waited for.
func (r *Runner) Jobs(show func(number, pid int, done bool, status uint8, command string)) {
	for i, job := range r.bgProcs {
		if job.waited {
			continue
		}
		select {
		case <-job.done:
			r.bgProcs[i].waited = true
			show(i+1, job.pid, true, job.exit.code, job.command)
		default:
			show(i+1, job.pid, false, 0, job.command)
		}
	}
}

// trap is the builtin.
func (r *Runner) trap(args []string) (exit exitStatus) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 || args[0] == "-p" {
		r.printTraps()
		return exit
	}
	command, signals := args[0], args[1:]
	if len(signals) == 0 {
		// One word alone is a signal that gets its default back.
		command, signals = "-", args
	}
	if number, err := strconv.Atoi(command); err == nil && number >= 0 {
		command, signals = "-", args
	}
	for _, name := range signals {
		if name == "ERR" {
			r.callbackErr = strings.TrimPrefix(command, "-")
			continue
		}
		signal, ok := r.host.Signal(name)
		if !ok {
			r.errf("trap: %s: invalid signal specification\n", name)
			exit.code = 1
			continue
		}
		if signal == 0 {
			r.callbackExit = command
			if command == "-" {
				r.callbackExit = ""
			}
			continue
		}
		action := TrapRun
		switch command {
		case "-":
			delete(r.traps, signal)
			action = TrapDefault
		case "":
			r.traps[signal] = ""
			action = TrapIgnore
		default:
			r.traps[signal] = command
		}
		if r.shell {
			r.host.Trap(signal, action)
		}
	}
	return exit
}

func (r *Runner) printTraps() {
	show := func(command, name string) {
		r.outf("trap -- '%s' %s\n", strings.ReplaceAll(command, "'", `'\''`), name)
	}
	if r.callbackExit != "" {
		show(r.callbackExit, "EXIT")
	}
	signals := make([]int, 0, len(r.traps))
	for signal := range r.traps {
		signals = append(signals, signal)
	}
	sort.Ints(signals)
	for _, signal := range signals {
		show(r.traps[signal], r.host.SignalName(signal))
	}
}

// runTraps runs the traps of signals that have arrived.
func (r *Runner) runTraps(ctx context.Context) {
	if r.handlingTrap || r.host.Pending == nil || len(r.traps) == 0 || r.exit.exiting {
		return
	}
	for _, signal := range r.host.Pending() {
		r.runTrap(ctx, signal)
		if r.exit.exiting {
			return
		}
	}
}

func (r *Runner) runTrap(ctx context.Context, signal int) {
	if command := r.traps[signal]; command != "" {
		r.trapCallback(ctx, command, r.host.SignalName(signal))
	}
}

// Get is a variable's value, as $name would be.
func (r *Runner) Get(name string) string { return r.envGet(name) }

// Wait waits for a job and gives its status.
func (r *Runner) Wait(ctx context.Context, job string) uint8 {
	exit := r.wait(ctx, []string{job})
	return exit.code
}
