package applets

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/benhoyt/goawk/interp"
	"github.com/benhoyt/goawk/parser"
)

func init() { Register("awk", awk) }

func awk(c *Ctx) int {
	f := c.opts("+F:v:f:e:bc", "field-separator:=F", "assign:=v", "file:=f")
	args := f.args
	var source strings.Builder
	for _, name := range f.values["f"] {
		r, err := c.open(name)
		if err != nil {
			c.die("can't open '%s': %s", name, reason(err))
		}
		text, _ := io.ReadAll(r)
		r.Close()
		source.Write(text)
		source.WriteByte('\n')
	}
	for _, text := range f.values["e"] {
		source.WriteString(text + "\n")
	}
	if !f.has("f") && !f.has("e") {
		if len(args) == 0 {
			c.usage("[-F SEP] [-v VAR=VAL] [-f FILE] ['PROGRAM'] [FILE]...")
		}
		source.WriteString(args[0])
		args = args[1:]
	}
	program, err := parser.ParseProgram([]byte(source.String()), nil)
	if err != nil {
		var parse *parser.ParseError
		if errors.As(err, &parse) {
			c.errf("cmd. line:%d: %s", parse.Position.Line, parse.Message)
		} else {
			c.errf("%v", err)
		}
		return 1
	}
	vars := []string{}
	if separator := f.val("F", ""); f.has("F") {
		if separator == "t" {
			separator = `\t`
		}
		vars = append(vars, "FS", unescaped(separator))
	}
	for _, assignment := range f.values["v"] {
		name, value, ok := strings.Cut(assignment, "=")
		if !ok {
			c.usage("[-F SEP] [-v VAR=VAL] [-f FILE] ['PROGRAM'] [FILE]...")
		}
		vars = append(vars, name, unescaped(value))
	}
	var environ []string
	for _, item := range c.Env {
		if name, value, ok := strings.Cut(item, "="); ok {
			environ = append(environ, name, value)
		}
	}
	config := &interp.Config{
		Stdin: c.in(), Output: c.w(), Error: c.Err, Argv0: "awk", Args: args, Vars: vars, Environ: environ,
		ShellCommand: []string{self(), "sh", "-c"},
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			return os.OpenFile(c.path(name), flag, perm)
		},
	}
	status, err := interp.ExecProgram(program, config)
	if err != nil {
		if errors.Is(err, io.ErrClosedPipe) {
			return 141
		}
		c.flush()
		fmt.Fprintf(c.Err, "awk: %v\n", err)
		return 2
	}
	return status
}

func unescaped(text string) string {
	text, _ = unescape(text, false)
	return text
}
