// Package shell is sh: mvdan.cc/sh's parser and interpreter in a process of their own, with jobs, traps and a prompt.
package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"

	"wasilet.dev/toolbox/internal/applets"
	"wasilet.dev/toolbox/internal/interp"
)

// invocation is what the arguments ask for.
type invocation struct {
	name        string
	options     []string
	params      []string
	command     string
	hasCommand  bool
	stdin       bool
	interactive bool
	login       bool
	file        string
}

// Main is sh.
func Main(c *applets.Ctx) int {
	inv, err := parseArgs(c.Args)
	if err != nil {
		fmt.Fprintf(c.Err, "%s: %v\n", path.Base(c.Args[0]), err)
		return 2
	}
	s := &shell{c: c, signals: newSignals()}
	dir := c.Dir
	if pwd := getenv(c.Env, "PWD"); pwd != "" {
		dir = pwd
	}
	env, pid := shellPid(c.Env)
	if getenv(env, "PATH") == "" {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	s.pid = pid
	host := interp.Host{
		Pid:     pid,
		Builtin: s.builtin, LookPath: lookPath, Pending: s.signals.take, Arrived: s.signals.arrived, Trap: s.signals.trap,
		Signal: applets.ParseSignal, SignalName: applets.SignalName, Start: s.start,
	}
	r, err := interp.New(
		interp.WithHost(host, inv.name), interp.Env(expand.ListEnviron(env...)), interp.Dir(dir),
		interp.StdIO(c.In, applets.Unwrap(c.Out), applets.Unwrap(c.Err)), interp.Params(append(append(inv.options, "--"), inv.params...)...),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
		interp.OpenHandler(s.open),
	)
	if err != nil {
		fmt.Fprintf(c.Err, "%s: %v\n", inv.name, err)
		return 2
	}
	s.r = r
	r.Reset()
	switch {
	case inv.hasCommand:
		return s.text(inv.command, inv.name)
	case inv.file != "":
		text, err := os.ReadFile(abs(dir, inv.file))
		if err != nil {
			fmt.Fprintf(c.Err, "%s: can't open '%s': %s\n", path.Base(c.Args[0]), inv.file, interp.Reason(err))
			return 2
		}
		return s.text(string(text), inv.file)
	case inv.interactive || (!inv.stdin || len(c.Args) > 0) && isTerminal(c.In):
		return s.interact()
	default:
		return s.lines()
	}
}

// pidVariable hands $$ down to a process that is a subshell; no program sees it.
const pidVariable = "__WASILET_SHELL_PID"

func shellPid(env []string) ([]string, int) {
	for i, item := range env {
		if text, ok := strings.CutPrefix(item, pidVariable+"="); ok {
			if pid, err := strconv.Atoi(text); err == nil {
				return slices.Delete(slices.Clone(env), i, i+1), pid
			}
		}
	}
	return env, os.Getpid()
}

func parseArgs(args []string) (invocation, error) {
	inv := invocation{name: strings.TrimPrefix(args[0], "-"), login: strings.HasPrefix(args[0], "-")}
	rest := args[1:]
	for len(rest) > 0 {
		arg := rest[0]
		if arg == "--" || arg == "-" {
			rest = rest[1:]
			break
		}
		if len(arg) < 2 || arg[0] != '-' && arg[0] != '+' {
			break
		}
		rest = rest[1:]
		if strings.HasPrefix(arg, "--") {
			continue // --login and the like
		}
		for _, letter := range arg[1:] {
			switch letter {
			case 'c':
				inv.hasCommand = true
			case 's':
				inv.stdin = true
			case 'i':
				inv.interactive = true
			case 'l':
				inv.login = true
			case 'o':
				if len(rest) == 0 {
					return inv, errors.New("-o requires an argument")
				}
				inv.options = append(inv.options, arg[:1]+"o", rest[0])
				rest = rest[1:]
			default:
				if !strings.ContainsRune("abCefhmnuvx", letter) {
					return inv, fmt.Errorf("unrecognized option: %c", letter)
				}
				inv.options = append(inv.options, arg[:1]+string(letter))
			}
		}
	}
	switch {
	case inv.hasCommand:
		if len(rest) == 0 {
			return inv, errors.New("-c requires an argument")
		}
		inv.command = rest[0]
		if len(rest) > 1 {
			inv.name = rest[1]
			rest = rest[1:]
		}
		inv.params = rest[1:]
	case inv.stdin || len(rest) == 0:
		inv.params = rest
	default:
		inv.file, inv.name, inv.params = rest[0], rest[0], rest[1:]
	}
	return inv, nil
}

type shell struct {
	c       *applets.Ctx
	r       *interp.Runner
	signals *signals
	pid     int
	// replaced: this process stands for the command it runs, as after exec; signals are that one's.
	replaced atomic.Bool
	// interactive: signals of the terminal end the command, not the shell.
	interactive bool
}

func parser() *syntax.Parser { return syntax.NewParser(syntax.Variant(syntax.LangBash)) }

// text runs a whole script.
func (s *shell) text(text, name string) int {
	file, err := parser().Parse(strings.NewReader(text), "")
	if err != nil {
		s.syntaxError(err, name)
		return 2
	}
	if len(file.Stmts) == 1 && !file.Stmts[0].Background && !file.Stmts[0].Negated {
		if _, simple := file.Stmts[0].Cmd.(*syntax.CallExpr); simple {
			s.replaced.Store(true)
		}
	}
	return s.status(s.r.Run(s.c.Context, file))
}

func (s *shell) syntaxError(err error, name string) {
	var parse syntax.ParseError
	if errors.As(err, &parse) {
		fmt.Fprintf(s.c.Err, "%s: line %d: syntax error: %s\n", name, parse.Pos.Line(), parse.Text)
		return
	}
	fmt.Fprintf(s.c.Err, "%s: syntax error: %v\n", name, err)
}

func (s *shell) status(err error) int {
	var status interp.ExitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, context.Canceled):
		return 130
	}
	fmt.Fprintf(s.c.Err, "%s: %v\n", s.r.Name(), err)
	return 1
}

// lines runs a script that comes on standard input, statement by statement: what its commands read is the rest of it.
func (s *shell) lines() int {
	input := &lineReader{in: s.c.In}
	last := error(nil)
	for {
		stmts, err := input.statements(func(bool) {})
		if err != nil && !errors.Is(err, io.EOF) {
			s.syntaxError(err, s.r.Name())
			return 2
		}
		for _, stmt := range stmts {
			last = s.r.Run(s.c.Context, stmt)
			if s.r.Exited() {
				return s.status(last)
			}
		}
		if err != nil {
			return s.end(last)
		}
	}
}

// end runs the EXIT trap.
func (s *shell) end(last error) int {
	code := s.status(last)
	err := s.r.Run(s.c.Context, &syntax.File{})
	if s.r.Exited() {
		return s.status(err)
	}
	return code
}

// interact is the loop with a prompt.
func (s *shell) interact() int {
	s.interactive = true
	s.signals.forTerminal()
	input := &lineReader{in: s.c.In}
	last := error(nil)
	for {
		// ^C at the prompt begins a new line; at a command it ends that.
		ctx, cancel := context.WithCancel(s.c.Context)
		s.signals.onInterrupt(cancel)
		stmts, err := input.interruptible(ctx, s.c.Out, s.prompt)
		switch {
		case ctx.Err() != nil: // the terminal has shown ^C and begun a new line
			last = s.interrupted()
			cancel()
			continue
		case errors.Is(err, io.EOF) && len(stmts) == 0:
			cancel()
			fmt.Fprintln(s.c.Err)
			return s.end(last)
		case err != nil && !errors.Is(err, io.EOF):
			s.syntaxError(err, s.r.Name())
			last = interp.ExitStatus(2)
		}
		for _, stmt := range stmts {
			last = s.r.Run(ctx, stmt)
			if ctx.Err() != nil {
				last = s.interrupted()
				break
			}
			if s.r.Exited() {
				cancel()
				return s.status(last)
			}
		}
		cancel()
		if err != nil && errors.Is(err, io.EOF) {
			return s.end(last)
		}
	}
}

func (s *shell) interrupted() error {
	const status = 128 + uint8(syscall.SIGINT)
	s.r.SetStatus(status)
	return interp.ExitStatus(status)
}

// prompt is PS1 as busybox has it, or PS2 in the middle of a command.
func (s *shell) prompt(more bool) string {
	get := func(name, otherwise string) string {
		if value := s.r.Get(name); value != "" {
			return value
		}
		return otherwise
	}
	if more {
		return get("PS2", "> ")
	}
	sign := "$"
	if os.Geteuid() == 0 {
		sign = "#"
	}
	host, _ := os.Hostname()
	dir := s.r.Dir
	if home := s.r.Get("HOME"); len(home) > 1 && (dir == home || strings.HasPrefix(dir, home+"/")) {
		dir = "~" + strings.TrimPrefix(dir, home)
	}
	text := get("PS1", `\w \$ `)
	return strings.NewReplacer(
		`\w`, dir, `\W`, path.Base(dir), `\$`, sign, `\h`, host, `\H`, host, `\u`, s.r.Get("USER"), `\n`, "\n", `\[`, "", `\]`, "",
		`\e`, "\x1b",
	).Replace(text)
}

// lineReader reads a byte at a time, to leave the rest to whom it belongs.
type lineReader struct {
	in      *os.File
	pending bytes.Buffer
	ended   bool
}

// statements reads until there is a whole command; io.EOF with the last ones.
func (l *lineReader) statements(prompt func(more bool)) ([]*syntax.Stmt, error) {
	l.pending.Reset()
	for {
		if l.ended {
			return nil, io.EOF
		}
		prompt(l.pending.Len() > 0)
		if err := l.line(); err != nil {
			l.ended = true
			if !errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
		}
		file, err := parser().Parse(bytes.NewReader(l.pending.Bytes()), "")
		if err != nil && syntax.IsIncomplete(err) && !l.ended {
			continue
		}
		if err == nil && bytes.HasSuffix(l.pending.Bytes(), []byte("\\\n")) && !l.ended {
			continue
		}
		if err != nil {
			return nil, err
		}
		if l.ended {
			return file.Stmts, io.EOF
		}
		return file.Stmts, nil
	}
}

func (l *lineReader) line() error {
	if l.in == nil {
		return io.EOF
	}
	var b [1]byte
	for {
		n, err := l.in.Read(b[:])
		if n > 0 {
			l.pending.WriteByte(b[0])
			if b[0] == '\n' {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
	}
}

// interruptible is statements with prompts, ended by ctx.
func (l *lineReader) interruptible(ctx context.Context, out io.Writer, prompt func(bool) string) ([]*syntax.Stmt, error) {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.in.SetReadDeadline(applets.Past)
		close(stopped)
	})
	stmts, err := l.statements(func(more bool) { io.WriteString(out, prompt(more)) })
	if !stop() {
		<-stopped
		l.in.SetReadDeadline(applets.Never)
		l.ended = false
	}
	return stmts, err
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && applets.IsTerminal(f)
}

func lookPath(dir string, env expand.Environ, name string) (string, bool) {
	found, err := applets.Resolve(name, dir, []string{"PATH=" + env.Get("PATH").String()})
	switch {
	case err != nil:
		return "", false
	case found.Path != "":
		return found.Path, true
	case strings.Contains(name, "/"):
		return name, true
	}
	return "/bin/" + found.Name, true
}

func abs(dir, p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	return strings.TrimSuffix(dir, "/") + "/" + p
}

func getenv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// exec runs a program or an applet.
func (s *shell) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	cmd := applets.Command{Args: args, Env: exported(hc.Env), Dir: hc.Dir, Stdout: hc.Stdout, Stderr: hc.Stderr, Who: s.r.Name()}
	if in, ok := hc.Stdin.(*os.File); ok {
		cmd.Stdin = in
	}
	var forwarded func()
	cmd.Started = func(process *os.Process) { forwarded = s.signals.forward(process, s.replaced.Load()) }
	code := cmd.Run(ctx)
	if forwarded != nil {
		forwarded()
	}
	if ctx.Err() == nil && code != 0 {
		return interp.ExitStatus(code)
	}
	return ctx.Err()
}

func exported(env expand.Environ) []string {
	values := map[string]string{}
	var names []string
	for name, variable := range env.Each {
		if _, known := values[name]; !known {
			names = append(names, name)
		}
		if variable.Exported && variable.Kind == expand.String && variable.IsSet() {
			values[name] = variable.Str
		} else {
			delete(values, name)
		}
	}
	list := make([]string, 0, len(names))
	for _, name := range names {
		if value, ok := values[name]; ok {
			list = append(list, name+"="+value)
			delete(values, name)
		}
	}
	return list
}

// open opens what a redirection names.
func (s *shell) open(ctx context.Context, name string, flag int, mode os.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	// The process's own descriptors may not be the command's.
	switch name {
	case "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
		return borrowed(hc.Stdout, name, flag)
	case "/dev/stderr", "/dev/fd/2", "/proc/self/fd/2":
		return borrowed(hc.Stderr, name, flag)
	}
	if name == "" {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	return os.OpenFile(abs(hc.Dir, name), flag, mode)
}

// borrowed gives a descriptor of its own for an output.
func borrowed(w io.Writer, name string, flag int) (io.ReadWriteCloser, error) {
	f, ok := applets.Unwrap(w).(*os.File)
	if !ok {
		return nopCloser{w}, nil
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		if fd, err := syscall.Dup(int(f.Fd())); err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Read([]byte) (int, error) { return 0, syscall.EBADF }
func (nopCloser) Close() error             { return nil }

// start starts a background job as a process of its own.
func (s *shell) start(_ context.Context, job interp.Job) (int, <-chan struct{}, *uint8, error) {
	args := job.Args
	if args == nil {
		args = []string{"sh", "-c", job.Script, job.Name}
		job.Env = applets.Environment(job.Env, pidVariable+"="+strconv.Itoa(s.pid))
	}
	cmd := applets.Command{Args: args, Env: job.Env, Dir: job.Dir, Stdin: job.Stdin, Stdout: job.Stdout, Stderr: job.Stderr, Who: s.r.Name()}
	// Its life is its own: ^C at this shell's prompt leaves it alone.
	process, err := cmd.Start(context.Background())
	if err != nil {
		return 0, nil, nil, err
	}
	done, status := make(chan struct{}), new(uint8)
	go func() {
		*status = uint8(applets.ExitCode(process.Wait()))
		close(done)
	}()
	return process.Process.Pid, done, status, nil
}

// signals of the process: those that have traps wait for the shell to take them.
type signals struct {
	arrived chan struct{}
	pending [65]atomic.Bool
	trapped [65]atomic.Bool
	// child is the process that signals go on to.
	child     atomic.Pointer[os.Process]
	all       atomic.Bool
	interrupt atomic.Pointer[func()]
	queue     chan os.Signal
	started   atomic.Bool
}

func newSignals() *signals {
	return &signals{arrived: make(chan struct{}, 1), queue: make(chan os.Signal, 16)}
}

func (s *signals) listen(numbers ...int) {
	if s.started.CompareAndSwap(false, true) {
		go s.loop()
	}
	for _, number := range numbers {
		signal.Notify(s.queue, syscall.Signal(number))
	}
}

func (s *signals) loop() {
	for received := range s.queue {
		number, ok := received.(syscall.Signal)
		if !ok || number <= 0 || int(number) >= len(s.pending) {
			continue
		}
		if child := s.child.Load(); child != nil && (number == syscall.SIGINT || s.all.Load()) {
			child.Signal(number)
		}
		if s.trapped[number].Load() {
			s.pending[number].Store(true)
			select {
			case s.arrived <- struct{}{}:
			default:
			}
		}
		if number == syscall.SIGINT {
			if interrupt := s.interrupt.Load(); interrupt != nil {
				(*interrupt)()
			}
		}
	}
}

func (s *signals) take() []int {
	var numbers []int
	for number := range s.pending {
		if s.pending[number].Swap(false) {
			numbers = append(numbers, number)
		}
	}
	return numbers
}

func (s *signals) trap(number int, action interp.TrapAction) {
	sig := syscall.Signal(number)
	switch action {
	case interp.TrapRun:
		s.trapped[number].Store(true)
		s.listen(number)
	case interp.TrapIgnore:
		s.trapped[number].Store(false)
		signal.Ignore(sig)
	default:
		s.trapped[number].Store(false)
		signal.Reset(sig)
	}
}

// forTerminal makes a shell with a prompt survive the keys.
func (s *signals) forTerminal() {
	s.listen(int(syscall.SIGINT))
	signal.Ignore(syscall.SIGQUIT, syscall.SIGTERM)
}

func (s *signals) onInterrupt(cancel context.CancelFunc) {
	f := func() { cancel() }
	s.interrupt.Store(&f)
}

// forward hands signals to a process in the foreground, until the function it gives is called: ^C, or all of them where
// that process takes this one's place.
func (s *signals) forward(child *os.Process, all bool) func() {
	wasTrapped := s.trapped[syscall.SIGINT].Load() || s.interrupt.Load() != nil
	s.all.Store(all)
	s.child.Store(child)
	numbers := []int{int(syscall.SIGINT)}
	if all {
		numbers = append(numbers, int(syscall.SIGTERM), int(syscall.SIGHUP), int(syscall.SIGQUIT), int(syscall.SIGUSR1), int(syscall.SIGUSR2))
	}
	s.listen(numbers...)
	return func() {
		s.child.Store(nil)
		for _, number := range numbers {
			if !s.trapped[number].Load() && !(number == int(syscall.SIGINT) && wasTrapped) {
				signal.Reset(syscall.Signal(number))
			}
		}
	}
}
