// Package applets has the programs of the toolbox: small ones, as busybox has them, that run inside the process of the
// shell. An applet touches nothing of the process but what its Ctx gives it: its own streams, directory and environment.
package applets

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"wasilet.dev/toolbox/internal/interp"
)

// Ctx is all an applet sees of the world.
type Ctx struct {
	context.Context
	// Args begins with the applet's name.
	Args []string
	// Env holds NAME=value.
	Env []string
	// Dir is the current directory, absolute.
	Dir string
	// In is nil when it is closed.
	In       *os.File
	Out, Err io.Writer

	out *bufio.Writer
}

// Applet is one program; it gives its exit code.
type Applet func(*Ctx) int

var table = map[string]Applet{}

// Register adds a program that is made elsewhere.
func Register(name string, applet Applet) { table[name] = applet }

// Find gives the applet of this name.
func Find(name string) (Applet, bool) {
	applet, ok := table[name]
	return applet, ok
}

// Names are all the applets' names, in no order.
func Names() []string {
	names := make([]string, 0, len(table))
	for name := range table {
		names = append(names, name)
	}
	return names
}

// brokenPipe ends an applet whose reader is gone, as SIGPIPE would.
type brokenPipe struct{}

// quit ends an applet with this code.
type quit int

var (
	// Past and Never are deadlines that end reading, and let it go on.
	Past  = time.Unix(1, 0)
	Never time.Time
)

// pipeWriter turns EPIPE into the end of the applet.
type pipeWriter struct{ io.Writer }

func (w pipeWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil && (errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed)) {
		panic(brokenPipe{})
	}
	return n, err
}

// Unwrap gives the writer behind, for programs of their own.
func (w pipeWriter) Unwrap() io.Writer { return w.Writer }

// Unwrap gives the file behind an applet's output, if there is one.
func Unwrap(w io.Writer) io.Writer {
	for {
		wrapped, ok := w.(interface{ Unwrap() io.Writer })
		if !ok {
			return w
		}
		w = wrapped.Unwrap()
	}
}

// Run runs an applet.
func Run(applet Applet, c *Ctx) (code int) {
	out := c.Out
	c.Out = pipeWriter{Unwrap(out)}
	if c.In != nil {
		// A read that waits must end when the applet is to end.
		in, stopped := c.In, make(chan struct{})
		stop := context.AfterFunc(c.Context, func() {
			in.SetReadDeadline(Past)
			close(stopped)
		})
		defer func() {
			if !stop() {
				<-stopped
				in.SetReadDeadline(Never)
			}
		}()
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case brokenPipe:
			code = 128 + int(syscall.SIGPIPE)
		case quit:
			code = int(r)
			c.flush()
		default:
			panic(r)
		}
	}()
	code = applet(c)
	if err := c.flush(); err != nil && code == 0 {
		c.errf("write error: %s", reason(err))
		code = 1
	}
	return code
}

func (c *Ctx) flush() error {
	if c.out == nil {
		return nil
	}
	return c.out.Flush()
}

// w is the buffered standard output.
func (c *Ctx) w() *bufio.Writer {
	if c.out == nil {
		c.out = bufio.NewWriterSize(c.Out, 16*1024)
	}
	return c.out
}

func (c *Ctx) printf(format string, a ...any) { fmt.Fprintf(c.w(), format, a...) }

// errf prints "applet: message".
func (c *Ctx) errf(format string, a ...any) {
	c.flush()
	fmt.Fprintf(c.Err, "%s: %s\n", c.name(), fmt.Sprintf(format, a...))
}

// die prints a message and ends with 1.
func (c *Ctx) die(format string, a ...any) int {
	c.errf(format, a...)
	panic(quit(1))
}

func (c *Ctx) name() string { return path.Base(c.Args[0]) }

// usage says how, and ends with 1 as busybox does.
func (c *Ctx) usage(text string) int {
	c.flush()
	fmt.Fprintf(c.Err, "Usage: %s %s\n", c.name(), text)
	panic(quit(1))
}

// path is a path as the process has to open it.
func (c *Ctx) path(p string) string {
	if p == "" || strings.HasPrefix(p, "/") {
		return p
	}
	return strings.TrimSuffix(c.Dir, "/") + "/" + p
}

func (c *Ctx) getenv(name string) string {
	for i := len(c.Env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(c.Env[i], name+"="); ok {
			return value
		}
	}
	return ""
}

// in is standard input, at its end where it is closed.
func (c *Ctx) in() io.Reader {
	if c.In == nil {
		return strings.NewReader("")
	}
	return reader{c.In, c}
}

// reader ends an applet that is told to while it waits for input.
type reader struct {
	*os.File
	c *Ctx
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.File.Read(p)
	if err != nil && r.c.Err != nil && r.c.Context.Err() != nil {
		panic(quit(130))
	}
	return n, err
}

// done tells an applet in a long loop to end.
func (c *Ctx) done() bool { return c.Context.Err() != nil }

// open opens a file for reading; "-" is standard input.
func (c *Ctx) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.in()), nil
	}
	f, err := os.Open(c.path(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// each calls f for every input, standard input when there are no names; the result is 1 when one could not be opened.
func (c *Ctx) each(names []string, f func(name string, r io.Reader) error) int {
	code := 0
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, name := range names {
		r, err := c.open(name)
		if err != nil {
			c.errf("can't open '%s': %s", name, reason(err))
			code = 1
			continue
		}
		if err := f(name, r); err != nil {
			c.errf("read error: %s", reason(err))
			code = 1
		}
		r.Close()
	}
	return code
}

func reason(err error) string { return interp.Reason(err) }

func isNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// flags are parsed options.
type flags struct {
	set    map[string]int
	values map[string][]string
	args   []string
}

func (f *flags) has(name string) bool { return f.set[name] > 0 }
func (f *flags) val(name, otherwise string) string {
	if v := f.values[name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return otherwise
}

// opts parses options as getopt(3): spec has letters, those with a value followed by ':'; a leading '+' stops at the
// first argument that is none. long maps names to letters ("name=x" to a letter; "name:=x" has a value).
func (c *Ctx) opts(spec string, long ...string) *flags {
	f := &flags{set: map[string]int{}, values: map[string][]string{}}
	stop := strings.HasPrefix(spec, "+")
	spec = strings.TrimPrefix(spec, "+")
	names := map[string]string{}
	for _, l := range long {
		name, letter, _ := strings.Cut(l, "=")
		names[name] = letter
	}
	args := c.Args[1:]
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			f.args = append(f.args, args...)
			return f
		case strings.HasPrefix(arg, "--"):
			name, value, hasValue := strings.Cut(arg[2:], "=")
			letter, plain := names[name]
			withValue := false
			if !plain {
				letter, withValue = names[name+":"]
			}
			switch {
			case !plain && !withValue:
				c.errf("unrecognized option: %s", name)
				panic(quit(1))
			case withValue && !hasValue:
				if len(args) == 0 {
					c.errf("option requires an argument: %s", name)
					panic(quit(1))
				}
				value, args = args[0], args[1:]
			}
			f.set[letter]++
			if withValue || hasValue {
				f.values[letter] = append(f.values[letter], value)
			}
		case len(arg) > 1 && arg[0] == '-':
			for i := 1; i < len(arg); i++ {
				letter := arg[i : i+1]
				at := strings.Index(spec, letter)
				if at < 0 || letter == ":" {
					c.errf("unrecognized option: %s", letter)
					panic(quit(1))
				}
				f.set[letter]++
				if at+1 < len(spec) && spec[at+1] == ':' {
					value := arg[i+1:]
					if value == "" {
						if len(args) == 0 {
							c.errf("option requires an argument: %s", letter)
							panic(quit(1))
						}
						value, args = args[0], args[1:]
					}
					f.values[letter] = append(f.values[letter], value)
					break
				}
			}
		default:
			f.args = append(f.args, arg)
			if stop {
				f.args = append(f.args, args...)
				return f
			}
		}
	}
	return f
}
