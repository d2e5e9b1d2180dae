package applets

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"mvdan.cc/sh/v3/pattern"
	"regexp"
)

func init() {
	for name, applet := range map[string]Applet{
		"env": env, "printenv": printenv, "id": id, "whoami": whoami, "groups": groups, "logname": whoami, "hostname": hostname, "sysctl": sysctl,
		"uname": uname, "date": date, "true": func(*Ctx) int { return 0 }, "false": func(*Ctx) int { return 1 }, "pwd": pwd,
		"tty": tty, "which": which, "xargs": xargs, "find": find, "printf": printf, "test": test, "[": test, "expr": expr,
	} {
		Register(name, applet)
	}
}

func env(c *Ctx) int {
	f := c.opts("+iu:0-", "ignore-environment=i", "unset:=u", "null=0")
	variables := c.Env
	args := f.args
	if f.has("i") || f.has("-") {
		variables = []string{}
	}
	if len(args) > 0 && args[0] == "-" {
		variables, args = []string{}, args[1:]
	}
	for _, name := range f.values["u"] {
		variables = Environment(variables, name+"=")
		variables = variables[:len(variables)-1]
	}
	for len(args) > 0 && strings.Contains(args[0], "=") {
		variables = Environment(variables, args[0])
		args = args[1:]
	}
	if len(args) > 0 {
		cmd := c.command(args)
		cmd.Env = variables
		return cmd.failsAs("can't execute").Run(c.Context)
	}
	ending := "\n"
	if f.has("0") {
		ending = "\x00"
	}
	for _, variable := range variables {
		c.printf("%s%s", variable, ending)
	}
	return 0
}

// failsAs lets an applet say "env: can't execute 'x': No such file or directory".
func (cmd Command) failsAs(string) Command {
	cmd.cannot = true
	return cmd
}

func printenv(c *Ctx) int {
	names := c.Args[1:]
	if len(names) == 0 {
		for _, variable := range c.Env {
			c.printf("%s\n", variable)
		}
		return 0
	}
	code := 0
	for _, name := range names {
		found := false
		for _, variable := range c.Env {
			if value, ok := strings.CutPrefix(variable, name+"="); ok {
				c.printf("%s\n", value)
				found = true
			}
		}
		if !found {
			code = 1
		}
	}
	return code
}

func userName(uid int) string { return idNames("/etc/passwd")[strconv.Itoa(uid)] }

func id(c *Ctx) int {
	f := c.opts("gGnur", "user=u", "group=g", "groups=G", "name=n")
	users, groups := idNames("/etc/passwd"), idNames("/etc/group")
	uid, gid := os.Geteuid(), os.Getegid()
	list, _ := os.Getgroups()
	if len(f.args) > 0 {
		n, err := idNumber("/etc/passwd", f.args[0])
		if err != nil {
			c.die("unknown user %s", f.args[0])
		}
		uid = n
		text, _ := os.ReadFile("/etc/passwd")
		for _, line := range strings.Split(string(text), "\n") {
			if fields := strings.Split(line, ":"); len(fields) > 3 && fields[2] == strconv.Itoa(uid) {
				gid, _ = strconv.Atoi(fields[3])
			}
		}
		list = nil
	}
	all := []int{gid}
	for _, group := range list {
		known := false
		for _, other := range all {
			known = known || other == group
		}
		if !known {
			all = append(all, group)
		}
	}
	one := func(n int, names map[string]string) string {
		if f.has("n") {
			if name := names[strconv.Itoa(n)]; name != "" {
				return name
			}
			c.errf("unknown ID %d", n)
		}
		return strconv.Itoa(n)
	}
	both := func(n int, names map[string]string) string {
		if name := names[strconv.Itoa(n)]; name != "" {
			return fmt.Sprintf("%d(%s)", n, name)
		}
		return strconv.Itoa(n)
	}
	switch {
	case f.has("u"):
		c.printf("%s\n", one(uid, users))
	case f.has("g"):
		c.printf("%s\n", one(gid, groups))
	case f.has("G"):
		var parts []string
		for _, group := range all {
			parts = append(parts, one(group, groups))
		}
		c.printf("%s\n", strings.Join(parts, " "))
	default:
		var parts []string
		for _, group := range all {
			parts = append(parts, both(group, groups))
		}
		c.printf("uid=%s gid=%s groups=%s\n", both(uid, users), both(gid, groups), strings.Join(parts, ","))
	}
	return 0
}

func whoami(c *Ctx) int {
	name := userName(os.Geteuid())
	if name == "" {
		c.die("unknown uid %d", os.Geteuid())
	}
	c.printf("%s\n", name)
	return 0
}

func groups(c *Ctx) int {
	c.Args = []string{"id", "-Gn"}
	return id(c)
}

func hostname(c *Ctx) int {
	f := c.opts("sfdiF:")
	name, err := os.Hostname()
	if err != nil || name == "" {
		text, _ := os.ReadFile("/etc/hostname")
		name = strings.TrimSpace(string(text))
	}
	if len(f.args) > 0 || f.has("F") {
		c.die("sethostname: Operation not permitted")
	}
	short, domain, _ := strings.Cut(name, ".")
	switch {
	case f.has("s"):
		name = short
	case f.has("f"):
		name = longName(name)
	case f.has("d"):
		if domain == "" {
			_, domain, _ = strings.Cut(longName(name), ".")
		}
		name = domain
	case f.has("i"):
		name = strings.Join(hostsAddresses(name), " ")
	}
	c.printf("%s\n", name)
	return 0
}

// hostsLines are the entries of /etc/hosts.
func hostsLines() [][]string {
	text, _ := os.ReadFile("/etc/hosts")
	var lines [][]string
	for _, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 {
			lines = append(lines, fields)
		}
	}
	return lines
}

// longName is the first name of the hosts file's line that has this one.
func longName(name string) string {
	for _, fields := range hostsLines() {
		for _, alias := range fields[1:] {
			if alias == name {
				return fields[1]
			}
		}
	}
	return name
}

func hostsAddresses(name string) []string {
	var list []string
	for _, fields := range hostsLines() {
		for _, alias := range fields[1:] {
			if alias == name {
				list = append(list, fields[0])
				break
			}
		}
	}
	return list
}

func uname(c *Ctx) int {
	f := c.opts("amnrsvpio", "all=a", "machine=m", "nodename=n", "kernel-release=r", "kernel-name=s", "kernel-version=v")
	node, _ := os.Hostname()
	release := "0.0.0"
	if text, err := os.ReadFile("/proc/version"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 2 {
			release = fields[2]
		}
	}
	system, machine := "WASI", "wasm32"
	all := f.has("a")
	var parts []string
	add := func(flag, text string) {
		if all || f.has(flag) {
			parts = append(parts, text)
		}
	}
	if len(f.set) == 0 {
		parts = append(parts, system)
	}
	add("s", system)
	add("n", node)
	add("r", release)
	add("v", "Wasilet")
	add("m", machine)
	if f.has("p") || f.has("i") {
		parts = append(parts, "unknown")
	}
	add("o", system)
	c.printf("%s\n", strings.Join(parts, " "))
	return 0
}

// strftime is strftime(3).
func strftime(format string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		unpadded := false
		if format[i] == '-' && i+1 < len(format) {
			unpadded = true
			i++
		}
		number := func(n, width int, pad string) {
			if unpadded {
				b.WriteString(strconv.Itoa(n))
			} else {
				fmt.Fprintf(&b, "%"+pad+strconv.Itoa(width)+"d", n)
			}
		}
		switch format[i] {
		case 'Y':
			number(t.Year(), 1, "")
		case 'C':
			number(t.Year()/100, 2, "0")
		case 'y':
			number(t.Year()%100, 2, "0")
		case 'm':
			number(int(t.Month()), 2, "0")
		case 'd':
			number(t.Day(), 2, "0")
		case 'e':
			number(t.Day(), 2, " ")
		case 'H':
			number(t.Hour(), 2, "0")
		case 'k':
			number(t.Hour(), 2, " ")
		case 'I':
			number((t.Hour()+11)%12+1, 2, "0")
		case 'l':
			number((t.Hour()+11)%12+1, 2, " ")
		case 'M':
			number(t.Minute(), 2, "0")
		case 'S':
			number(t.Second(), 2, "0")
		case 'j':
			number(t.YearDay(), 3, "0")
		case 'N':
			number(t.Nanosecond(), 9, "0")
		case 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		case 'u':
			number((int(t.Weekday())+6)%7+1, 1, "")
		case 'w':
			number(int(t.Weekday()), 1, "")
		case 'V':
			_, week := t.ISOWeek()
			number(week, 2, "0")
		case 'G':
			year, _ := t.ISOWeek()
			number(year, 1, "")
		case 'U':
			number((t.YearDay()+6-int(t.Weekday()))/7, 2, "0")
		case 'W':
			number((t.YearDay()+6-(int(t.Weekday())+6)%7)/7, 2, "0")
		case 'a':
			b.WriteString(t.Format("Mon"))
		case 'A':
			b.WriteString(t.Format("Monday"))
		case 'b', 'h':
			b.WriteString(t.Format("Jan"))
		case 'B':
			b.WriteString(t.Format("January"))
		case 'p':
			b.WriteString(t.Format("PM"))
		case 'P':
			b.WriteString(t.Format("pm"))
		case 'Z':
			b.WriteString(t.Format("MST"))
		case 'z':
			b.WriteString(t.Format("-0700"))
		case ':':
			b.WriteString(t.Format("-07:00"))
			i++
		case 'F':
			b.WriteString(t.Format("2006-01-02"))
		case 'T', 'X':
			b.WriteString(t.Format("15:04:05"))
		case 'R':
			b.WriteString(t.Format("15:04"))
		case 'r':
			b.WriteString(t.Format("03:04:05 PM"))
		case 'D', 'x':
			b.WriteString(t.Format("01/02/06"))
		case 'c':
			b.WriteString(t.Format("Mon Jan _2 15:04:05 2006"))
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '%':
			b.WriteByte('%')
		default:
			b.WriteByte('%')
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

// parseDate takes what busybox's date -d takes, and what people write.
func parseDate(text string, now time.Time) (time.Time, error) {
	if seconds, ok := strings.CutPrefix(text, "@"); ok {
		n, err := strconv.ParseFloat(seconds, 64)
		return time.Unix(int64(n), int64((n-float64(int64(n)))*1e9)).In(now.Location()), err
	}
	if text == "now" {
		return now, nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02 15:04:05.999999999 -0700", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04", "2006-01-02",
		"2006.01.02-15:04:05", "2006-01-02T15:04:05", "Mon Jan _2 15:04:05 MST 2006", "Mon, 02 Jan 2006 15:04:05 MST", "200601021504.05",
		"200601021504", "2 Jan 2006", "Jan 2 2006",
	} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
		}
	}
	if t, err := time.ParseInLocation("01021504", text, now.Location()); err == nil {
		return time.Date(now.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), 0, 0, now.Location()), nil
	}
	return now, fmt.Errorf("invalid date '%s'", text)
}

func date(c *Ctx) int {
	f := c.opts("uRd:D:r:I::s:", "utc=u", "date:=d", "reference:=r", "rfc-2822=R", "iso-8601=I", "set:=s")
	now := time.Now()
	if zone := c.getenv("TZ"); zone != "" {
		if location, err := time.LoadLocation(strings.TrimPrefix(zone, ":")); err == nil {
			now = now.In(location)
		}
	}
	if f.has("u") {
		now = now.UTC()
	}
	if f.has("s") {
		c.die("can't set date: Operation not permitted")
	}
	var err error
	if text := f.val("d", ""); text != "" {
		if now, err = parseDate(text, now); err != nil {
			c.die("%v", err)
		}
		if f.has("u") {
			now = now.UTC()
		}
	}
	if name := f.val("r", ""); name != "" {
		info, err := os.Stat(c.path(name))
		if err != nil {
			c.die("can't stat '%s': %s", name, reason(err))
		}
		now = info.ModTime().In(now.Location())
	}
	format := "%a %b %e %H:%M:%S %Z %Y"
	switch {
	case f.has("R"):
		format = "%a, %d %b %Y %H:%M:%S %z"
	case f.has("I"):
		switch strings.TrimPrefix(f.val("I", "date"), "=") {
		case "seconds", "s":
			format = "%FT%T%z"
		case "minutes", "m":
			format = "%FT%R%z"
		case "hours":
			format = "%FT%H%z"
		default:
			format = "%F"
		}
	}
	for _, arg := range f.args {
		if text, ok := strings.CutPrefix(arg, "+"); ok {
			format = text
		} else {
			c.die("invalid date '%s'", arg)
		}
	}
	c.printf("%s\n", strftime(format, now))
	return 0
}

func pwd(c *Ctx) int {
	f := c.opts("LP")
	dir := c.Dir
	if f.has("P") {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
	}
	c.printf("%s\n", dir)
	return 0
}

func tty(c *Ctx) int {
	f := c.opts("s")
	if c.In == nil || !IsTerminal(c.In) {
		if !f.has("s") {
			c.printf("not a tty\n")
		}
		return 1
	}
	if !f.has("s") {
		c.printf("/dev/tty\n")
	}
	return 0
}

func which(c *Ctx) int {
	f := c.opts("a")
	code := 0
	for _, name := range f.args {
		found, err := Resolve(name, c.Dir, c.Env)
		switch {
		case err != nil:
			code = 1
		case found.Path != "":
			c.printf("%s\n", found.Path)
		case strings.Contains(name, "/"):
			c.printf("%s\n", name)
		default:
			c.printf("/bin/%s\n", found.Name)
		}
	}
	return code
}

func xargs(c *Ctx) int {
	f := c.opts("+0rtn:I:s:P:L:xa:pE:", "null=0", "no-run-if-empty=r", "max-args:=n", "max-procs:=P", "replace:=I", "verbose=t", "arg-file:=a")
	command := f.args
	if len(command) == 0 {
		command = []string{"echo"}
	}
	text, code := "", 0
	source := f.val("a", "-")
	r, err := c.open(source)
	if err != nil {
		c.die("can't open '%s': %s", source, reason(err))
	}
	defer r.Close()
	var b strings.Builder
	if err := eachLine(r, func(line string) bool { b.WriteString(line); return true }); err != nil {
		c.die("%s", reason(err))
	}
	text = b.String()
	var items []string
	switch {
	case f.has("0"):
		for _, item := range strings.Split(strings.TrimSuffix(text, "\x00"), "\x00") {
			if text != "" {
				items = append(items, item)
			}
		}
	case f.has("I") || f.has("L"):
		for _, line := range strings.Split(text, "\n") {
			if line = strings.TrimLeft(line, " \t"); line != "" {
				items = append(items, line)
			}
		}
	default:
		if items, err = quotedWords(text); err != nil {
			c.die("%v", err)
		}
	}
	run := func(args []string) bool {
		if f.has("t") {
			fmt.Fprintln(c.Err, strings.Join(args, " "))
		}
		cmd := c.command(args)
		cmd.Stdin, _ = os.Open(os.DevNull)
		if cmd.Stdin != nil {
			defer cmd.Stdin.Close()
		}
		status := cmd.failsAs("").Run(c.Context)
		switch {
		case status == 127 || status == 126:
			code = status
			return false
		case status == 255:
			c.errf("%s: exited with status 255; aborting", args[0])
			code = 124
			return false
		case status > 128:
			c.errf("%s: terminated by signal %d", args[0], status-128)
			code = 125
			return false
		case status != 0:
			code = 123
		}
		return !c.done()
	}
	if placeholder := f.val("I", ""); f.has("I") {
		for _, item := range items {
			args := make([]string, len(command))
			for i, word := range command {
				args[i] = strings.ReplaceAll(word, placeholder, item)
			}
			if !run(args) {
				break
			}
		}
		return code
	}
	if len(items) == 0 {
		if !f.has("r") {
			run(command)
		}
		return code
	}
	most := len(items)
	if n, err := strconv.Atoi(f.val("n", f.val("L", ""))); err == nil && n > 0 {
		most = n
	}
	for len(items) > 0 {
		count, size := 0, 0
		for count < len(items) && count < most && count < 2000 && (count == 0 || size+len(items[count]) < 32*1024) {
			size += len(items[count]) + 1
			count++
		}
		if !run(append(append([]string{}, command...), items[:count]...)) {
			break
		}
		items = items[count:]
	}
	return code
}

// quotedWords splits as xargs does: blanks, quotes and backslashes.
func quotedWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false
	for i := 0; i < len(text); i++ {
		switch ch := text[i]; ch {
		case ' ', '\t', '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		case '\'', '"':
			end := strings.IndexByte(text[i+1:], ch)
			if end < 0 || strings.IndexByte(text[i+1:i+1+end], '\n') >= 0 {
				return nil, fmt.Errorf("unmatched %s quote", map[byte]string{'\'': "single", '"': "double"}[ch])
			}
			word.WriteString(text[i+1 : i+1+end])
			i += 1 + end
			in = true
		case '\\':
			if i+1 < len(text) {
				i++
				word.WriteByte(text[i])
				in = true
			}
		default:
			word.WriteByte(ch)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// globMatch is fnmatch(3) of a whole name.
func globMatch(glob, name string, ignoreCase bool) bool {
	if ignoreCase {
		glob, name = strings.ToLower(glob), strings.ToLower(name)
	}
	text, err := pattern.Regexp(glob, pattern.EntireString)
	if err != nil {
		return glob == name
	}
	re, err := regexp.Compile(text)
	return err == nil && re.MatchString(name)
}

// findNode is one step of find's expression.
type findNode func(p string, info fs.FileInfo) bool

type findParser struct {
	c                        *Ctx
	args                     []string
	acts, depthFirst, follow bool
	maxDepth, minDepth       int
	prune                    bool
	code                     int
	batches                  []func()
	quit                     bool
}

func find(c *Ctx) int {
	p := &findParser{c: c, maxDepth: -1}
	args := c.Args[1:]
	for len(args) > 0 && (args[0] == "-L" || args[0] == "-H" || args[0] == "-P") {
		p.follow = args[0] == "-L"
		args = args[1:]
	}
	var roots []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "(" && args[0] != "!" {
		roots = append(roots, args[0])
		args = args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	p.args = args
	node := findNode(func(string, fs.FileInfo) bool { return true })
	if len(args) > 0 {
		node = p.or()
		if len(p.args) > 0 {
			c.die("unrecognized: %s", p.args[0])
		}
	}
	if !p.acts {
		test := node
		node = func(at string, info fs.FileInfo) bool {
			if test(at, info) {
				c.printf("%s\n", at)
			}
			return true
		}
	}
	for _, root := range roots {
		p.walk(root, 0, node)
	}
	for _, finish := range p.batches {
		finish()
	}
	return p.code
}

func (p *findParser) walk(at string, depth int, node findNode) {
	if p.quit || p.c.done() {
		return
	}
	info, err := os.Lstat(p.c.path(at))
	if err == nil && p.follow {
		if resolved, statErr := os.Stat(p.c.path(at)); statErr == nil {
			info = resolved
		}
	}
	if err != nil {
		p.c.errf("%s: %s", at, reason(err))
		p.code = 1
		return
	}
	p.prune = false
	if !p.depthFirst && depth >= p.minDepth {
		node(at, info)
	}
	if info.IsDir() && !p.prune && (p.maxDepth < 0 || depth < p.maxDepth) {
		entries, err := os.ReadDir(p.c.path(at))
		if err != nil {
			p.c.errf("%s: %s", at, reason(err))
			p.code = 1
		}
		for _, e := range entries {
			p.walk(strings.TrimSuffix(at, "/")+"/"+e.Name(), depth+1, node)
		}
	}
	if p.depthFirst && depth >= p.minDepth {
		node(at, info)
	}
}

func (p *findParser) or() findNode {
	left := p.and()
	for len(p.args) > 0 && (p.args[0] == "-o" || p.args[0] == "-or") {
		p.args = p.args[1:]
		a, b := left, p.and()
		left = func(at string, info fs.FileInfo) bool { return a(at, info) || b(at, info) }
	}
	return left
}

func (p *findParser) and() findNode {
	left := p.not()
	for len(p.args) > 0 && p.args[0] != "-o" && p.args[0] != "-or" && p.args[0] != ")" {
		if p.args[0] == "-a" || p.args[0] == "-and" {
			p.args = p.args[1:]
		}
		a, b := left, p.not()
		left = func(at string, info fs.FileInfo) bool { return a(at, info) && b(at, info) }
	}
	return left
}

func (p *findParser) not() findNode {
	if len(p.args) > 0 && (p.args[0] == "!" || p.args[0] == "-not") {
		p.args = p.args[1:]
		node := p.not()
		return func(at string, info fs.FileInfo) bool { return !node(at, info) }
	}
	return p.primary()
}

func (p *findParser) next(option string) string {
	if len(p.args) == 0 {
		p.c.die("option requires an argument: %s", option)
	}
	arg := p.args[0]
	p.args = p.args[1:]
	return arg
}

// number parses +n, -n and n.
func (p *findParser) number(text string) func(int64) bool {
	n, err := strconv.ParseInt(strings.TrimLeft(text, "+-"), 10, 64)
	if err != nil {
		p.c.die("invalid number '%s'", text)
	}
	switch text[0] {
	case '+':
		return func(x int64) bool { return x > n }
	case '-':
		return func(x int64) bool { return x < n }
	}
	return func(x int64) bool { return x == n }
}

func (p *findParser) primary() findNode {
	c := p.c
	always := func(string, fs.FileInfo) bool { return true }
	if len(p.args) == 0 {
		c.die("bad expression")
	}
	option := p.next("")
	switch option {
	case "(":
		node := p.or()
		if p.next("(") != ")" {
			c.die("missing ')'")
		}
		return node
	case "-name", "-iname":
		glob := p.next(option)
		return func(at string, _ fs.FileInfo) bool { return globMatch(glob, path.Base(at), option == "-iname") }
	case "-path", "-wholename", "-ipath":
		glob := p.next(option)
		return func(at string, _ fs.FileInfo) bool { return globMatch(glob, at, option == "-ipath") }
	case "-regex":
		re, err := regexp.Compile("^(?:" + posixRegexp(p.next(option), false) + ")$")
		if err != nil {
			c.die("bad regex")
		}
		return func(at string, _ fs.FileInfo) bool { return re.MatchString(at) }
	case "-type":
		kinds := p.next(option)
		return func(_ string, info fs.FileInfo) bool {
			kind := modeString(info.Mode())[:1]
			if kind == "-" {
				kind = "f"
			}
			return strings.Contains(kinds, kind)
		}
	case "-size":
		text := p.next(option)
		unit := int64(512)
		switch text[len(text)-1] {
		case 'c':
			unit, text = 1, text[:len(text)-1]
		case 'k':
			unit, text = 1024, text[:len(text)-1]
		case 'M':
			unit, text = 1<<20, text[:len(text)-1]
		case 'G':
			unit, text = 1<<30, text[:len(text)-1]
		case 'b':
			text = text[:len(text)-1]
		}
		match := p.number(text)
		return func(_ string, info fs.FileInfo) bool { return match((info.Size() + unit - 1) / unit) }
	case "-empty":
		return func(at string, info fs.FileInfo) bool {
			if info.IsDir() {
				entries, err := os.ReadDir(c.path(at))
				return err == nil && len(entries) == 0
			}
			return info.Mode().IsRegular() && info.Size() == 0
		}
	case "-mtime", "-mmin", "-atime", "-ctime":
		match := p.number(p.next(option))
		unit := 24 * time.Hour
		if option == "-mmin" {
			unit = time.Minute
		}
		return func(_ string, info fs.FileInfo) bool {
			at := info.ModTime()
			switch option {
			case "-atime":
				at = time.Unix(0, ownerOf(info).atime)
			case "-ctime":
				at = time.Unix(0, ownerOf(info).ctime)
			}
			return match(int64(time.Since(at) / unit))
		}
	case "-newer":
		info, err := os.Stat(c.path(p.next(option)))
		if err != nil {
			c.die("%s", reason(err))
		}
		than := info.ModTime()
		return func(_ string, info fs.FileInfo) bool { return info.ModTime().After(than) }
	case "-perm":
		text := p.next(option)
		kind := byte(0)
		if text[0] == '-' || text[0] == '/' {
			kind, text = text[0], text[1:]
		}
		want, err := ParseMode(text, 0, false, 0)
		if err != nil {
			c.die("invalid mode '%s'", text)
		}
		return func(_ string, info fs.FileInfo) bool {
			have := permissions(info.Mode())
			switch kind {
			case '-':
				return have&want == want
			case '/':
				return want == 0 || have&want != 0
			}
			return have == want
		}
	case "-user", "-group", "-uid", "-gid":
		file := "/etc/passwd"
		if option == "-group" || option == "-gid" {
			file = "/etc/group"
		}
		n, err := idNumber(file, p.next(option))
		if err != nil {
			c.die("%v", err)
		}
		return func(_ string, info fs.FileInfo) bool {
			own := ownerOf(info)
			if file == "/etc/group" {
				return int(own.gid) == n
			}
			return int(own.uid) == n
		}
	case "-links":
		match := p.number(p.next(option))
		return func(_ string, info fs.FileInfo) bool { return match(int64(ownerOf(info).nlink)) }
	case "-inum":
		match := p.number(p.next(option))
		return func(_ string, info fs.FileInfo) bool { return match(int64(ownerOf(info).ino)) }
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(p.next(option))
		if err != nil {
			c.die("invalid number")
		}
		if option == "-maxdepth" {
			p.maxDepth = n
		} else {
			p.minDepth = n
		}
		return always
	case "-depth":
		p.depthFirst = true
		return always
	case "-follow", "-xdev", "-mount", "-daystart":
		p.follow = p.follow || option == "-follow"
		return always
	case "-true":
		return always
	case "-false":
		return func(string, fs.FileInfo) bool { return false }
	case "-prune":
		return func(string, fs.FileInfo) bool { p.prune = true; return true }
	case "-quit":
		p.acts = true
		return func(string, fs.FileInfo) bool { p.quit = true; return true }
	case "-print", "-print0":
		p.acts = true
		ending := map[string]string{"-print": "\n", "-print0": "\x00"}[option]
		return func(at string, _ fs.FileInfo) bool { c.printf("%s%s", at, ending); return true }
	case "-printf":
		p.acts = true
		format := p.next(option)
		return func(at string, info fs.FileInfo) bool { c.printf("%s", c.findFormat(format, at, info)); return true }
	case "-ls":
		p.acts = true
		return func(at string, info fs.FileInfo) bool {
			own := ownerOf(info)
			c.printf("%8d %6d %s %3d %-8d %-8d %9d %s %s\n", own.ino, own.blocks/2, modeString(info.Mode()), own.nlink, own.uid, own.gid, info.Size(), info.ModTime().Format("Jan _2 15:04"), at)
			return true
		}
	case "-delete":
		p.acts, p.depthFirst = true, true
		return func(at string, _ fs.FileInfo) bool {
			if err := os.Remove(c.path(at)); err != nil {
				c.errf("%s: %s", at, reason(err))
				p.code = 1
				return false
			}
			return true
		}
	case "-exec", "-ok", "-execdir":
		return p.exec()
	}
	c.die("unrecognized: %s", option)
	return nil
}

func (c *Ctx) findFormat(format, at string, info fs.FileInfo) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		switch {
		case format[i] == '\\' && i+1 < len(format):
			text, _ := unescape(format[i:i+2], false)
			b.WriteString(text)
			i++
		case format[i] == '%' && i+1 < len(format):
			i++
			switch format[i] {
			case 'p':
				b.WriteString(at)
			case 'f':
				b.WriteString(path.Base(at))
			case 'h':
				b.WriteString(path.Dir(at))
			case 's':
				b.WriteString(strconv.FormatInt(info.Size(), 10))
			case 'm':
				fmt.Fprintf(&b, "%o", permissions(info.Mode()))
			case 'M':
				b.WriteString(modeString(info.Mode()))
			case 'u', 'U':
				fmt.Fprint(&b, ownerOf(info).uid)
			case 'g', 'G':
				fmt.Fprint(&b, ownerOf(info).gid)
			case 'y':
				kind := modeString(info.Mode())[:1]
				b.WriteString(strings.Replace(kind, "-", "f", 1))
			case 'T':
				i++
				if i < len(format) && format[i] == '@' {
					fmt.Fprintf(&b, "%d.%09d", info.ModTime().Unix(), info.ModTime().Nanosecond())
				} else if i < len(format) {
					b.WriteString(strftime("%"+format[i:i+1], info.ModTime()))
				}
			case '%':
				b.WriteByte('%')
			}
		default:
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

func (p *findParser) exec() findNode {
	c := p.c
	p.acts = true
	var command []string
	batch := false
	for {
		if len(p.args) == 0 {
			c.die("-exec: missing ';'")
		}
		word := p.next("-exec")
		if word == ";" {
			break
		}
		if word == "+" && len(command) > 0 && command[len(command)-1] == "{}" {
			batch = true
			break
		}
		command = append(command, word)
	}
	if batch {
		var pending []string
		finish := func() {
			if len(pending) == 0 {
				return
			}
			args := append(append([]string{}, command[:len(command)-1]...), pending...)
			pending = nil
			if c.command(args).failsAs("").Run(c.Context) != 0 {
				p.code = 1
			}
		}
		p.batches = append(p.batches, finish)
		return func(at string, _ fs.FileInfo) bool {
			if pending = append(pending, at); len(pending) >= 500 {
				finish()
			}
			return true
		}
	}
	return func(at string, _ fs.FileInfo) bool {
		args := make([]string, len(command))
		for i, word := range command {
			args[i] = strings.ReplaceAll(word, "{}", at)
		}
		return c.command(args).failsAs("").Run(c.Context) == 0
	}
}

// printf is printf(1).
func printf(c *Ctx) int {
	args := c.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		c.usage("FORMAT [ARG]...")
	}
	format, args := args[0], args[1:]
	code := 0
	for {
		used := 0
		next := func() string {
			if used < len(args) {
				used++
				return args[used-1]
			}
			used++
			return ""
		}
		for i := 0; i < len(format); {
			switch {
			case format[i] == '\\':
				end := i + 2
				for end < len(format) && end < i+5 && (format[i+1] >= '0' && format[i+1] <= '7' || format[i+1] == 'x') {
					end++
				}
				// Only as much of it as is a sequence is taken.
				for end = min(end, len(format)); ; end-- {
					text, stop := unescape(format[i:end], false)
					if stop {
						return code
					}
					if len(text) == 1 || end <= i+2 {
						c.printf("%s", text)
						break
					}
				}
				i = end
			case format[i] == '%' && strings.HasPrefix(format[i:], "%%"):
				c.printf("%%")
				i += 2
			case format[i] == '%':
				j := i + 1
				spec := "%"
				for j < len(format) && strings.IndexByte("-+ #0", format[j]) >= 0 {
					spec += string(format[j])
					j++
				}
				star := func() {
					if j < len(format) && format[j] == '*' {
						spec += next()
						j++
						return
					}
					for j < len(format) && format[j] >= '0' && format[j] <= '9' {
						spec += string(format[j])
						j++
					}
				}
				star()
				if j < len(format) && format[j] == '.' {
					spec += "."
					j++
					star()
				}
				for j < len(format) && strings.IndexByte("hlLqjzt", format[j]) >= 0 {
					j++
				}
				if j == len(format) {
					c.errf("%s: invalid format", format)
					return 1
				}
				integer := func() int64 {
					text := next()
					n, err := shellInteger(text)
					if err != nil {
						c.flush()
						c.errf("invalid number '%s'", text)
						code = 1
					}
					return n
				}
				switch verb := format[j]; verb {
				case 'd', 'i':
					c.printf(spec+"d", integer())
				case 'u':
					c.printf(spec+"d", uint64(integer()))
				case 'o', 'x', 'X':
					c.printf(spec+string(verb), uint64(integer()))
				case 'e', 'E', 'f', 'F', 'g', 'G', 'a':
					text := next()
					n, err := strconv.ParseFloat(orElse(text, "0"), 64)
					if err != nil {
						c.errf("invalid number '%s'", text)
						code = 1
					}
					c.printf(spec+string(verb), n)
				case 'c':
					text := next()
					c.printf(strings.ReplaceAll(spec, "0", "")+"s", text[:min(1, len(text))])
				case 's':
					c.printf(spec+"s", next())
				case 'b':
					text, stop := unescape(next(), true)
					c.printf(spec+"s", text)
					if stop {
						return code
					}
				case 'q':
					c.printf("%s", strconv.Quote(next()))
				default:
					c.errf("%s: invalid format", format)
					return 1
				}
				i = j + 1
			default:
				c.w().WriteByte(format[i])
				i++
			}
		}
		if used == 0 || used >= len(args) {
			return code
		}
		args = args[used:]
	}
}

// shellInteger is a number as printf and test read it.
func shellInteger(text string) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, nil
	}
	if text[0] == '"' || text[0] == '\'' {
		for _, r := range text[1:] {
			return int64(r), nil
		}
		return 0, nil
	}
	if n, err := strconv.ParseInt(text, 0, 64); err == nil {
		return n, nil
	}
	n, err := strconv.ParseUint(text, 0, 64)
	return int64(n), err
}

// test is [ and test.
func test(c *Ctx) int {
	args := c.Args[1:]
	if c.name() == "[" {
		if len(args) == 0 || args[len(args)-1] != "]" {
			c.errf("missing ]")
			return 2
		}
		args = args[:len(args)-1]
	}
	t := &tester{c: c, args: args}
	if len(args) == 0 {
		return 1
	}
	result := t.or()
	if t.failed == "" && len(t.args) > 0 {
		t.failed = t.args[0] + ": unknown operand"
	}
	if t.failed != "" {
		c.errf("%s", t.failed)
		return 2
	}
	if result {
		return 0
	}
	return 1
}

type tester struct {
	c      *Ctx
	args   []string
	failed string
}

func (t *tester) or() bool {
	result := t.and()
	for len(t.args) > 0 && t.args[0] == "-o" {
		t.args = t.args[1:]
		right := t.and()
		result = result || right
	}
	return result
}

func (t *tester) and() bool {
	result := t.not()
	for len(t.args) > 0 && t.args[0] == "-a" {
		t.args = t.args[1:]
		right := t.not()
		result = result && right
	}
	return result
}

func (t *tester) not() bool {
	if len(t.args) > 1 && t.args[0] == "!" && !(len(t.args) >= 3 && isBinary(t.args[1])) {
		t.args = t.args[1:]
		return !t.not()
	}
	return t.primary()
}

func isBinary(op string) bool {
	switch op {
	case "=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef", "<", ">":
		return true
	}
	return false
}

func (t *tester) primary() bool {
	if len(t.args) == 0 {
		t.failed = "argument expected"
		return false
	}
	first := t.args[0]
	if len(t.args) >= 3 && isBinary(t.args[1]) {
		op, second := t.args[1], t.args[2]
		t.args = t.args[3:]
		return t.binary(first, op, second)
	}
	if first == "(" && len(t.args) > 1 {
		t.args = t.args[1:]
		result := t.or()
		if len(t.args) == 0 || t.args[0] != ")" {
			t.failed = "closing paren expected"
			return false
		}
		t.args = t.args[1:]
		return result
	}
	if len(t.args) >= 2 && len(first) == 2 && first[0] == '-' {
		operand := t.args[1]
		if result, ok := t.unary(first[1], operand); ok {
			t.args = t.args[2:]
			return result
		}
	}
	t.args = t.args[1:]
	return first != ""
}

func (t *tester) unary(op byte, operand string) (result, ok bool) {
	p := t.c.path(operand)
	info, err := os.Stat(p)
	is := func(f func() bool) (bool, bool) { return err == nil && f(), true }
	switch op {
	case 'n':
		return operand != "", true
	case 'z':
		return operand == "", true
	case 'e', 'a':
		return err == nil, true
	case 'f':
		return is(func() bool { return info.Mode().IsRegular() })
	case 'd':
		return is(func() bool { return info.IsDir() })
	case 's':
		return is(func() bool { return info.Size() > 0 })
	case 'h', 'L':
		link, err := os.Lstat(p)
		return err == nil && link.Mode()&fs.ModeSymlink != 0, true
	case 'p':
		return is(func() bool { return info.Mode()&fs.ModeNamedPipe != 0 })
	case 'S':
		return is(func() bool { return info.Mode()&fs.ModeSocket != 0 })
	case 'c':
		return is(func() bool { return info.Mode()&fs.ModeCharDevice != 0 })
	case 'b':
		return is(func() bool { return info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0 })
	case 'u':
		return is(func() bool { return info.Mode()&fs.ModeSetuid != 0 })
	case 'g':
		return is(func() bool { return info.Mode()&fs.ModeSetgid != 0 })
	case 'k':
		return is(func() bool { return info.Mode()&fs.ModeSticky != 0 })
	case 'r', 'w', 'x':
		return accessible(p, op), true
	case 'O':
		return is(func() bool { return int(ownerOf(info).uid) == os.Geteuid() })
	case 'G':
		return is(func() bool { return int(ownerOf(info).gid) == os.Getegid() })
	case 't':
		n, _ := strconv.Atoi(operand)
		file := map[int]any{0: t.c.In, 1: Unwrap(t.c.Out), 2: Unwrap(t.c.Err)}[n]
		f, isFile := file.(*os.File)
		return isFile && f != nil && IsTerminal(f), true
	}
	return false, false
}

func (t *tester) binary(a, op, b string) bool {
	switch op {
	case "=", "==":
		return a == b
	case "!=":
		return a != b
	case "<":
		return a < b
	case ">":
		return a > b
	case "-nt", "-ot", "-ef":
		x, errX := os.Stat(t.c.path(a))
		y, errY := os.Stat(t.c.path(b))
		switch op {
		case "-nt":
			return errX == nil && (errY != nil || x.ModTime().After(y.ModTime()))
		case "-ot":
			return errY == nil && (errX != nil || x.ModTime().Before(y.ModTime()))
		}
		return errX == nil && errY == nil && os.SameFile(x, y)
	}
	number := func(text string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil && t.failed == "" {
			t.failed = text + ": bad number"
		}
		return n
	}
	x, y := number(a), number(b)
	switch op {
	case "-eq":
		return x == y
	case "-ne":
		return x != y
	case "-lt":
		return x < y
	case "-le":
		return x <= y
	case "-gt":
		return x > y
	}
	return x >= y
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

var dotsAndSlashes = strings.NewReplacer(".", "/", "/", ".")

// sysctl shows kernel parameters, which are files below /proc/sys.
func sysctl(c *Ctx) int {
	f := c.opts("neN", "values=n", "ignore=e", "names=N")
	code := 0
	for _, name := range f.args {
		// With slashes, dots belong to the names of interfaces; shown is always the form with dots.
		file, shown := name, name
		if strings.Contains(name, "/") {
			shown = dotsAndSlashes.Replace(name)
		} else {
			file = dotsAndSlashes.Replace(name)
		}
		text, err := os.ReadFile("/proc/sys/" + file)
		switch {
		case err != nil:
			if !f.has("e") {
				fmt.Fprintf(c.Err, "sysctl: error: '%s': %s\n", name, reason(err))
				code = 1
			}
		case f.has("N"):
			fmt.Fprintln(c.Out, shown)
		case f.has("n"):
			fmt.Fprintln(c.Out, strings.TrimSpace(string(text)))
		default:
			fmt.Fprintf(c.Out, "%s = %s\n", shown, strings.TrimSpace(string(text)))
		}
	}
	return code
}
