package applets

import (
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
)

func init() {
	Register("grep", grep)
	Register("egrep", grep)
	Register("fgrep", grep)
}

func grep(c *Ctx) int {
	contextArgs(c)
	f := c.opts("HhnlLoqvsrRiywxFEGPcm:A:B:C:e:f:az", "regexp:=e", "file:=f", "ignore-case=i", "invert-match=v", "word-regexp=w",
		"line-regexp=x", "count=c", "files-with-matches=l", "files-without-match=L", "max-count:=m", "only-matching=o", "quiet=q", "silent=q",
		"no-messages=s", "with-filename=H", "no-filename=h", "line-number=n", "recursive=r", "fixed-strings=F", "extended-regexp=E",
		"after-context:=A", "before-context:=B", "context:=C", "include:=include", "exclude:=exclude", "color=colour", "text=a", "perl-regexp=P")
	args := f.args
	var patterns []string
	for _, text := range f.values["e"] {
		patterns = append(patterns, strings.Split(text, "\n")...)
	}
	for _, name := range f.values["f"] {
		patterns = append(patterns, c.linesOf(name)...)
	}
	if !f.has("e") && !f.has("f") {
		if len(args) == 0 {
			c.usage("[-HhnlLoqvsrRiwxFEcz] [-m N] [-A|B|C N] PATTERN|-e PATTERN|-f FILE [FILE]...")
		}
		patterns = append(patterns, strings.Split(args[0], "\n")...)
		args = args[1:]
	}
	g := &grepper{c: c, f: f}
	extended := f.has("E") || c.name() == "egrep"
	for _, text := range patterns {
		var m *matcher
		var err error
		switch {
		case f.has("F") || c.name() == "fgrep":
			m = &matcher{re: regexp.MustCompile(foldFlag(f.has("i") || f.has("y")) + regexp.QuoteMeta(text))}
		case f.has("P"):
			var re *regexp.Regexp
			re, err = regexp.Compile(foldFlag(f.has("i")) + text)
			m = &matcher{re: re}
		default:
			m, err = compile(text, extended, f.has("i") || f.has("y"), false)
		}
		if err != nil {
			c.errf("bad regex '%s': %v", text, err)
			return 2
		}
		g.matchers = append(g.matchers, m)
	}
	number := func(name string) int {
		n, err := strconv.Atoi(f.val(name, "0"))
		if err != nil || n < 0 {
			c.die("invalid number '%s'", f.val(name, ""))
		}
		return n
	}
	g.after, g.before = number("A"), number("B")
	if f.has("C") {
		g.after, g.before = number("C"), number("C")
	}
	g.most = -1
	if f.has("m") {
		g.most = number("m")
	}
	recursive := f.has("r") || f.has("R")
	g.names = (len(args) > 1 || recursive || f.has("H")) && !f.has("h")
	if len(args) == 0 {
		args = []string{"-"}
		if recursive {
			args = []string{"."}
		}
	}
	for _, name := range args {
		if name != "-" && recursive {
			err := c.walk(name, func(p string, info fs.FileInfo) {
				if info.Mode().IsRegular() && g.wanted(path.Base(p)) {
					if name == "." && len(f.args) <= 1 {
						p = strings.TrimPrefix(p, "./")
					}
					g.file(p)
				}
			})
			if err != nil {
				g.unreadable(name, err)
			}
			continue
		}
		if info, err := os.Stat(c.path(name)); name != "-" && err == nil && info.IsDir() {
			if !f.has("s") {
				c.errf("%s: Is a directory", name)
			}
			continue
		}
		g.file(name)
		if g.found && f.has("q") {
			return 0
		}
	}
	switch {
	case g.found && f.has("q"):
		return 0
	case g.failed:
		return 2
	case g.found:
		return 0
	}
	return 1
}

func foldFlag(fold bool) string {
	if fold {
		return "(?i)"
	}
	return ""
}

// contextArgs turns -3 into -C 3.
func contextArgs(c *Ctx) {
	for i, arg := range c.Args[1:] {
		if len(arg) > 1 && arg[0] == '-' && strings.Trim(arg[1:], "0123456789") == "" {
			c.Args[i+1] = "-C" + arg[1:]
		}
	}
}

type grepper struct {
	c                   *Ctx
	f                   *flags
	matchers            []*matcher
	after, before, most int
	names               bool
	found, failed       bool
	printed             bool
}

func (g *grepper) wanted(name string) bool {
	if globs := g.f.values["include"]; len(globs) > 0 {
		any := false
		for _, glob := range globs {
			any = any || globMatch(glob, name, false)
		}
		if !any {
			return false
		}
	}
	for _, glob := range g.f.values["exclude"] {
		if globMatch(glob, name, false) {
			return false
		}
	}
	return true
}

func (g *grepper) unreadable(name string, err error) {
	g.failed = true
	if !g.f.has("s") {
		g.c.errf("%s: %s", name, reason(err))
	}
}

// spans are the matches in a line.
func (g *grepper) spans(line string) [][]int {
	var all [][]int
	for _, m := range g.matchers {
		for _, match := range m.all(line) {
			if g.f.has("x") && (match[0] != 0 || match[1] != len(line)) {
				continue
			}
			if g.f.has("w") && (isWordByte(line, match[0]-1) && isWordByte(line, match[0]) || isWordByte(line, match[1]) && isWordByte(line, match[1]-1)) {
				continue
			}
			all = append(all, match[:2])
		}
		if len(all) > 0 && !g.f.has("o") {
			return all
		}
	}
	return all
}

func isWordByte(line string, i int) bool {
	return i >= 0 && i < len(line) && (line[i] == '_' || line[i] >= '0' && line[i] <= '9' || line[i]|0x20 >= 'a' && line[i]|0x20 <= 'z')
}

func (g *grepper) file(name string) {
	c, f := g.c, g.f
	r, err := c.open(name)
	if err != nil {
		g.unreadable(name, err)
		return
	}
	defer r.Close()
	shown := name
	if name == "-" {
		shown = "(standard input)"
	}
	count, number, afterLeft, lastShown := 0, 0, 0, 0
	var before []string
	put := func(line string, n int, separator string) {
		if (g.after > 0 || g.before > 0) && lastShown > 0 && n > lastShown+1 || g.printed && lastShown == 0 && (g.after > 0 || g.before > 0) {
			c.printf("--\n")
		}
		lastShown = n
		g.printed = true
		if g.names {
			c.printf("%s%s", shown, separator)
		}
		if f.has("n") {
			c.printf("%d%s", n, separator)
		}
		c.printf("%s\n", line)
	}
	err = eachLine(r, func(line string) bool {
		number++
		line = strings.TrimSuffix(line, "\n")
		spans := g.spans(line)
		if (len(spans) > 0) == f.has("v") {
			if afterLeft > 0 {
				afterLeft--
				put(line, number, "-")
			} else if g.before > 0 {
				before = append(before, line)
				if len(before) > g.before {
					before = before[1:]
				}
			}
			return g.most < 0 || count < g.most || afterLeft > 0
		}
		if g.most >= 0 && count >= g.most {
			return false
		}
		count++
		g.found = true
		switch {
		case f.has("q"), f.has("l"), f.has("L"):
			return false
		case f.has("c"):
		case f.has("o"):
			if !f.has("v") {
				for _, span := range spans {
					if span[0] < span[1] {
						put(line[span[0]:span[1]], number, ":")
					}
				}
			}
		default:
			for i, old := range before {
				put(old, number-len(before)+i, "-")
			}
			before = before[:0]
			put(line, number, ":")
			afterLeft = g.after
		}
		if name == "-" {
			c.flush() // somebody may be looking at what arrives
		}
		return g.most < 0 || count < g.most || afterLeft > 0
	})
	if err != nil && err != io.EOF {
		g.unreadable(name, err)
	}
	switch {
	case f.has("q"):
	case f.has("c"):
		if g.names {
			c.printf("%s:", shown)
		}
		c.printf("%d\n", count)
	case f.has("l") && count > 0, f.has("L") && count == 0:
		c.printf("%s\n", shown)
	}
}
