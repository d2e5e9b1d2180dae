package applets

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func init() { Register("sed", sed) }

// sedAddress selects lines: a number, the last, every so often, or those that match.
type sedAddress struct {
	line, step int // step: first~step
	last       bool
	re         *matcher
	empty      bool // //: the last expression used
	plus       int  // addr,+N
	zero       bool
}

type sedCommand struct {
	first, second *sedAddress
	negated       bool
	name          byte
	text          string // a, i, c, labels, file names
	re            *matcher
	emptyRe       bool
	replacement   string
	global, print bool
	nth           int
	write         io.Writer
	from, to      []rune
	block         int // index after the matching }
	target        int // of branches
	// state of a range
	inRange bool
	endLine int
}

type sedder struct {
	c        *Ctx
	commands []*sedCommand
	labels   map[string]int
	extended bool
	quiet    bool
	lastRe   *matcher
	files    map[string]*bufio.Writer

	pattern, hold string
	number        int
	appends       []func()
	out           *bufio.Writer
	input         *sedInput
	replaced      bool
	exitCode      int
}

func sed(c *Ctx) int {
	// -i may have its suffix attached, and only so.
	inPlace, suffix := false, ""
	var rest []string
	for i, arg := range c.Args[1:] {
		if arg == "--" {
			rest = append(rest, c.Args[1+i:]...)
			break
		}
		if s, ok := strings.CutPrefix(arg, "--in-place"); ok {
			inPlace, suffix = true, strings.TrimPrefix(s, "=")
			continue
		}
		if len(arg) > 1 && arg[0] == '-' && arg[1] != '-' && arg[1] != 'e' && arg[1] != 'f' {
			if at := strings.IndexByte(arg, 'i'); at > 0 {
				inPlace, suffix = true, arg[at+1:]
				if strings.Trim(suffix, "nrEse") == "" {
					arg, suffix = arg[:at]+suffix, ""
				} else {
					arg = arg[:at]
				}
				if arg == "-" {
					continue
				}
			}
		}
		rest = append(rest, arg)
	}
	c.Args = append(c.Args[:1:1], rest...)
	f := c.opts("nrEse:f:uz", "quiet=n", "silent=n", "regexp-extended=E", "expression:=e", "file:=f", "separate=s")
	s := &sedder{c: c, labels: map[string]int{}, extended: f.has("r") || f.has("E"), quiet: f.has("n"), files: map[string]*bufio.Writer{}}
	args := f.args
	var script []string
	script = append(script, f.values["e"]...)
	for _, name := range f.values["f"] {
		script = append(script, strings.Join(c.linesOf(name), "\n"))
	}
	if !f.has("e") && !f.has("f") {
		if len(args) == 0 {
			c.usage("[-inrE] [-f FILE]... [-e CMD]... [FILE]...")
		}
		script, args = append(script, args[0]), args[1:]
	}
	if strings.HasPrefix(script[0], "#n\n") {
		s.quiet = true
	}
	if err := s.parse(strings.Join(script, "\n")); err != nil {
		c.die("%v", err)
	}
	defer func() {
		for _, file := range s.files {
			file.Flush()
		}
	}()
	if !inPlace {
		s.out = c.w()
		s.input = &sedInput{s: s, names: args}
		if len(args) == 0 {
			s.input.names = []string{"-"}
		}
		s.run()
		return max(s.exitCode, s.input.code)
	}
	code := 0
	for _, name := range args {
		if err := s.edit(name, suffix); err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
		}
	}
	return max(code, s.exitCode)
}

// edit runs the script on one file, in its place.
func (s *sedder) edit(name, suffix string) error {
	target := s.c.path(name)
	info, err := os.Stat(target)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(target), "sed")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	s.out = bufio.NewWriter(out)
	s.number, s.hold = 0, ""
	for _, command := range s.commands {
		command.inRange = false
	}
	s.input = &sedInput{s: s, names: []string{name}}
	s.run()
	if err := errors.Join(s.out.Flush(), out.Close()); err != nil {
		return err
	}
	own := ownerOf(info)
	os.Chown(out.Name(), int(own.uid), int(own.gid))
	os.Chmod(out.Name(), info.Mode().Perm())
	if suffix != "" {
		if err := os.Rename(target, target+suffix); err != nil {
			return err
		}
	}
	return os.Rename(out.Name(), target)
}

// sedInput gives lines over all files, and knows the last.
type sedInput struct {
	s       *sedder
	names   []string
	current *bufio.Reader
	closer  io.Closer
	ahead   *string
	code    int
	// newline: whether the line just given ended with one.
	newline, aheadNewline bool
}

func (in *sedInput) fill() bool {
	for in.ahead == nil {
		if in.current == nil {
			if len(in.names) == 0 {
				return false
			}
			name := in.names[0]
			in.names = in.names[1:]
			r, err := in.s.c.open(name)
			if err == nil {
				if file, ok := r.(*os.File); ok {
					if info, statErr := file.Stat(); statErr == nil && info.IsDir() {
						err = errors.New("Is a directory")
						in.s.c.errf("couldn't edit %s: not a regular file", name)
						in.code = 1
						continue
					}
				}
			}
			if err != nil {
				in.s.c.errf("%s: %s", name, reason(err))
				in.code = 1
				continue
			}
			in.current, in.closer = bufio.NewReaderSize(r, 32*1024), r
		}
		line, err := in.current.ReadString('\n')
		if line == "" && err != nil {
			in.closer.Close()
			in.current = nil
			continue
		}
		text, newline := strings.CutSuffix(line, "\n")
		in.ahead, in.aheadNewline = &text, newline
	}
	return true
}

func (in *sedInput) next() (string, bool) {
	if !in.fill() {
		return "", false
	}
	line := *in.ahead
	in.ahead, in.newline = nil, in.aheadNewline
	return line, true
}

func (in *sedInput) last() bool { return !in.fill() }

type sedParser struct {
	s    *sedder
	text string
	at   int
}

func (s *sedder) parse(script string) error {
	p := &sedParser{s: s, text: script}
	var blocks []int
	for {
		p.skip(" \t\n;")
		if p.at >= len(p.text) {
			break
		}
		if p.text[p.at] == '#' {
			p.line()
			continue
		}
		command := &sedCommand{}
		var err error
		if command.first, err = p.address(); err != nil {
			return err
		}
		p.skip(" \t")
		if command.first != nil && p.peek() == ',' {
			p.at++
			p.skip(" \t")
			if command.second, err = p.address(); err != nil {
				return err
			}
			if command.second == nil {
				return errors.New("unexpected ','")
			}
		}
		p.skip(" \t")
		for p.peek() == '!' {
			command.negated = true
			p.at++
			p.skip(" \t")
		}
		if p.at >= len(p.text) {
			return errors.New("missing command")
		}
		command.name = p.text[p.at]
		p.at++
		switch command.name {
		case '{':
			blocks = append(blocks, len(s.commands))
		case '}':
			if len(blocks) == 0 {
				return errors.New("unexpected '}'")
			}
			s.commands[blocks[len(blocks)-1]].block = len(s.commands)
			blocks = blocks[:len(blocks)-1]
			continue
		default:
			if err := p.command(command); err != nil {
				return err
			}
		}
		if command.name == ':' {
			s.labels[command.text] = len(s.commands)
			continue
		}
		s.commands = append(s.commands, command)
	}
	if len(blocks) > 0 {
		return errors.New("unmatched '{'")
	}
	for _, command := range s.commands {
		if strings.IndexByte("btT", command.name) < 0 {
			continue
		}
		command.target = len(s.commands)
		if command.text != "" {
			target, ok := s.labels[command.text]
			if !ok {
				return fmt.Errorf("can't find label for jump to '%s'", command.text)
			}
			command.target = target
		}
	}
	return nil
}

func (p *sedParser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *sedParser) skip(set string) {
	for p.at < len(p.text) && strings.IndexByte(set, p.text[p.at]) >= 0 {
		p.at++
	}
}

// line takes the rest of the line.
func (p *sedParser) line() string {
	rest := p.text[p.at:]
	line, _, _ := strings.Cut(rest, "\n")
	p.at += len(line)
	return line
}

func (p *sedParser) number() int {
	start := p.at
	for p.peek() >= '0' && p.peek() <= '9' {
		p.at++
	}
	n, _ := strconv.Atoi(p.text[start:p.at])
	return n
}

func (p *sedParser) address() (*sedAddress, error) {
	switch ch := p.peek(); {
	case ch == '$':
		p.at++
		return &sedAddress{last: true}, nil
	case ch == '+':
		p.at++
		return &sedAddress{plus: p.number(), zero: true}, nil
	case ch >= '0' && ch <= '9':
		address := &sedAddress{line: p.number()}
		if p.peek() == '~' {
			p.at++
			address.step = p.number()
		}
		return address, nil
	case ch == '/' || ch == '\\':
		delimiter := ch
		p.at++
		if ch == '\\' {
			delimiter = p.peek()
			p.at++
		}
		text, err := p.delimited(delimiter, true)
		if err != nil {
			return nil, err
		}
		fold := false
		for p.peek() == 'I' || p.peek() == 'M' {
			fold = fold || p.peek() == 'I'
			p.at++
		}
		if text == "" {
			return &sedAddress{empty: true}, nil
		}
		re, err := compile(text, p.s.extended, fold, false)
		if err != nil {
			return nil, fmt.Errorf("bad regex '%s': %w", text, err)
		}
		return &sedAddress{re: re}, nil
	}
	return nil, nil
}

// delimited takes text up to an unescaped delimiter outside brackets.
func (p *sedParser) delimited(delimiter byte, regex bool) (string, error) {
	var b strings.Builder
	for p.at < len(p.text) {
		ch := p.text[p.at]
		switch {
		case ch == '\\' && p.at+1 < len(p.text):
			next := p.text[p.at+1]
			p.at += 2
			switch {
			case next == delimiter:
				b.WriteByte(next)
				continue
			case next == 'n' && regex:
				b.WriteString(`\n`)
				continue
			}
			b.WriteByte('\\')
			b.WriteByte(next)
			continue
		case ch == '[' && regex:
			if end := bracketEnd(p.text, p.at); end > 0 && !strings.Contains(p.text[p.at:end], "\n") {
				b.WriteString(p.text[p.at:end])
				p.at = end
				continue
			}
		case ch == delimiter:
			p.at++
			return b.String(), nil
		}
		b.WriteByte(ch)
		p.at++
	}
	return "", errors.New("unmatched '" + string(delimiter) + "'")
}

// word takes a label or file name.
func (p *sedParser) word(stop string) string {
	p.skip(" \t")
	start := p.at
	for p.at < len(p.text) && strings.IndexByte(stop, p.text[p.at]) < 0 {
		p.at++
	}
	return strings.TrimSpace(p.text[start:p.at])
}

func (p *sedParser) command(command *sedCommand) error {
	s := p.s
	switch command.name {
	case 's':
		return p.substitute(command)
	case 'y':
		delimiter := p.peek()
		p.at++
		from, err := p.delimited(delimiter, false)
		if err != nil {
			return err
		}
		to, err := p.delimited(delimiter, false)
		if err != nil {
			return err
		}
		command.from, command.to = []rune(unescaped(from)), []rune(unescaped(to))
		if len(command.from) != len(command.to) {
			return errors.New("y command strings have different lengths")
		}
	case 'a', 'i', 'c':
		p.skip(" \t")
		if p.peek() == '\\' {
			p.at++
			p.skip(" \t")
			if p.peek() == '\n' {
				p.at++
			}
		}
		var b strings.Builder
		for p.at < len(p.text) && p.text[p.at] != '\n' {
			if p.text[p.at] == '\\' && p.at+1 < len(p.text) {
				p.at++
				if p.text[p.at] == 't' {
					b.WriteByte('\t')
					p.at++
					continue
				}
			}
			b.WriteByte(p.text[p.at])
			p.at++
		}
		command.text = b.String()
	case 'b', 't', 'T', ':':
		command.text = p.word("\n;}")
		if command.name == ':' && command.text == "" {
			return errors.New("\":\" lacks a label")
		}
	case 'r', 'w', 'R', 'W':
		command.text = p.word("\n")
		if command.name == 'w' {
			command.write = s.file(command.text)
		}
	case 'q', 'Q', 'l', 'L':
		p.skip(" \t")
		command.nth = p.number()
	case 'p', 'P', 'd', 'D', 'n', 'N', 'g', 'G', 'h', 'H', 'x', '=', 'z', 'F':
	default:
		return fmt.Errorf("unsupported command %c", command.name)
	}
	if strings.IndexByte("aicrwbtT:", command.name) >= 0 {
		return nil
	}
	p.skip(" \t")
	if ch := p.peek(); ch != 0 && ch != ';' && ch != '\n' && ch != '}' && ch != '#' {
		return errors.New("extra characters after command")
	}
	return nil
}

func (p *sedParser) substitute(command *sedCommand) error {
	delimiter := p.peek()
	p.at++
	text, err := p.delimited(delimiter, true)
	if err != nil {
		return err
	}
	if command.replacement, err = p.delimited(delimiter, false); err != nil {
		return err
	}
	fold, multiline := false, false
	for {
		switch ch := p.peek(); {
		case ch == 'g':
			command.global = true
		case ch == 'p':
			command.print = true
		case ch == 'i' || ch == 'I':
			fold = true
		case ch == 'm' || ch == 'M':
			multiline = true
		case ch >= '1' && ch <= '9':
			command.nth = p.number()
			continue
		case ch == 'w':
			p.at++
			command.write = p.s.file(p.word("\n"))
			continue
		default:
			if text == "" {
				command.emptyRe = true
				return nil
			}
			command.re, err = compile(text, p.s.extended, fold, multiline)
			if err != nil {
				return fmt.Errorf("bad regex '%s': %w", text, err)
			}
			return nil
		}
		p.at++
	}
}

// file opens what w writes to, once.
func (s *sedder) file(name string) io.Writer {
	switch name {
	case "/dev/stdout":
		return s.c.w()
	case "/dev/stderr":
		return s.c.Err
	}
	if known := s.files[name]; known != nil {
		return known
	}
	f, err := os.Create(s.c.path(name))
	if err != nil {
		s.c.die("%s: %s", name, reason(err))
	}
	s.files[name] = bufio.NewWriter(f)
	return s.files[name]
}

func (s *sedder) matches(address *sedAddress) bool {
	switch {
	case address.last:
		return s.input.last()
	case address.empty:
		return s.lastRe != nil && s.lastRe.matches(s.pattern)
	case address.re != nil:
		s.lastRe = address.re
		return address.re.matches(s.pattern)
	case address.step > 0:
		return s.number >= address.line && (s.number-address.line)%address.step == 0
	}
	return s.number == address.line
}

func (s *sedder) selected(command *sedCommand) bool {
	switch {
	case command.first == nil:
		return !command.negated
	case command.second == nil:
		return s.matches(command.first) != command.negated
	}
	second := command.second
	in := false
	switch {
	case command.inRange:
		in = true
		switch {
		case second.zero || second.line > 0 && second.re == nil && second.step == 0:
			if s.number >= command.endLine {
				command.inRange = false
				in = s.number == command.endLine || second.zero
			}
		case s.matches(second):
			command.inRange = false
		}
	case command.first.line == 0 && command.first.re == nil && !command.first.last && !command.first.empty && command.first.step == 0 && s.number == 1:
		// 0,/re/: the expression may match on the first line.
		in, command.inRange = true, !s.matches(second)
	case s.matches(command.first):
		in, command.inRange = true, true
		command.endLine = second.line
		if second.zero {
			command.endLine = s.number + second.plus
		}
		if (second.zero || second.line > 0 && second.step == 0) && command.endLine <= s.number || second.last && s.input.last() {
			command.inRange = false
		}
	}
	return in != command.negated
}

func (s *sedder) put(line string) {
	s.out.WriteString(line)
	// A last line without its newline stays so.
	if s.input.newline || !s.input.last() {
		s.out.WriteByte('\n')
	}
}

func (s *sedder) run() {
	for {
		line, ok := s.input.next()
		if !ok {
			return
		}
		s.pattern = line
		s.number++
		for s.cycle() {
		}
		if s.exitCode < 0 {
			s.exitCode = -s.exitCode - 1
			return
		}
		if s.c.done() {
			return
		}
	}
}

// endCycle prints what the end of a cycle does.
func (s *sedder) endCycle() {
	if !s.quiet {
		s.put(s.pattern)
	}
	s.flushAppends()
}

func (s *sedder) flushAppends() {
	for _, put := range s.appends {
		put()
	}
	s.appends = s.appends[:0]
}

// cycle runs the commands once; true begins again without a new line (D).
func (s *sedder) cycle() bool {
	s.replaced = false
	for i := 0; i < len(s.commands); i++ {
		command := s.commands[i]
		if !s.selected(command) {
			if command.name == '{' {
				i = command.block - 1
			}
			continue
		}
		switch command.name {
		case '{':
		case 's':
			s.substitute(command)
		case 'y':
			runes := []rune(s.pattern)
			for j, r := range runes {
				for k, from := range command.from {
					if r == from {
						runes[j] = command.to[k]
						break
					}
				}
			}
			s.pattern = string(runes)
		case 'p':
			s.put(s.pattern)
		case 'P':
			first, _, _ := strings.Cut(s.pattern, "\n")
			s.out.WriteString(first + "\n")
		case 'd':
			s.flushAppends()
			return false
		case 'D':
			first, rest, more := strings.Cut(s.pattern, "\n")
			_ = first
			s.flushAppends()
			if !more {
				return false
			}
			s.pattern = rest
			return true
		case 'n':
			if s.input.last() {
				s.endCycle()
				s.exitCode = -1
				return false
			}
			if !s.quiet {
				s.put(s.pattern)
			}
			s.flushAppends()
			s.pattern, _ = s.input.next()
			s.number++
		case 'N':
			if s.input.last() {
				s.endCycle()
				s.exitCode = -1
				return false
			}
			s.flushAppends()
			next, _ := s.input.next()
			s.pattern += "\n" + next
			s.number++
		case 'g':
			s.pattern = s.hold
		case 'G':
			s.pattern += "\n" + s.hold
		case 'h':
			s.hold = s.pattern
		case 'H':
			s.hold += "\n" + s.pattern
		case 'x':
			s.pattern, s.hold = s.hold, s.pattern
		case 'z':
			s.pattern = ""
		case '=':
			fmt.Fprintf(s.out, "%d\n", s.number)
		case 'a':
			text := command.text
			s.appends = append(s.appends, func() { s.out.WriteString(text + "\n") })
		case 'i':
			s.out.WriteString(command.text + "\n")
		case 'c':
			if command.second == nil || !command.inRange || command.negated {
				s.out.WriteString(command.text + "\n")
			}
			s.flushAppends()
			return false
		case 'r':
			name := command.text
			s.appends = append(s.appends, func() {
				if text, err := os.ReadFile(s.c.path(name)); err == nil {
					s.out.Write(text)
				}
			})
		case 'w':
			fmt.Fprintln(command.write, s.pattern)
		case 'l':
			s.out.WriteString(unambiguous(s.pattern) + "$\n")
		case 'b':
			i = command.target - 1
		case 't', 'T':
			if s.replaced == (command.name == 't') {
				i = command.target - 1
			}
			s.replaced = false
		case 'q', 'Q':
			if command.name == 'q' {
				s.endCycle()
			}
			s.exitCode = -command.nth - 1
			return false
		}
	}
	s.endCycle()
	return false
}

func unambiguous(text string) string {
	var b strings.Builder
	for i := range len(text) {
		switch ch := text[i]; {
		case strings.IndexByte("\a\b\f\n\r\t\v\\", ch) >= 0:
			b.WriteByte('\\')
			b.WriteByte(`abfnrtv\`[strings.IndexByte("\a\b\f\n\r\t\v\\", ch)])
		case ch < 32 || ch >= 127:
			fmt.Fprintf(&b, `\%03o`, ch)
		default:
			b.WriteByte(ch)
		}
	}
	return b.String()
}

func (s *sedder) substitute(command *sedCommand) {
	re := command.re
	if command.emptyRe {
		re = s.lastRe
	}
	if re == nil {
		s.c.die("no previous regex")
	}
	s.lastRe = re
	matches := re.all(s.pattern)
	if len(matches) == 0 {
		return
	}
	var b strings.Builder
	at, done := 0, false
	for n, match := range matches {
		if n+1 < command.nth || done {
			continue
		}
		b.WriteString(s.pattern[at:match[0]])
		b.WriteString(s.expand(command.replacement, match))
		at = match[1]
		s.replaced, done = true, !command.global
	}
	if !s.replaced && at == 0 {
		return
	}
	b.WriteString(s.pattern[at:])
	changed := len(matches) >= max(command.nth, 1)
	s.pattern = b.String()
	if changed && command.print {
		s.put(s.pattern)
	}
	if changed && command.write != nil {
		fmt.Fprintln(command.write, s.pattern)
	}
}

// expand is a replacement with its & and \1, and GNU's \u and friends.
func (s *sedder) expand(replacement string, match []int) string {
	var b strings.Builder
	mode, once := byte(0), byte(0)
	put := func(text string) {
		switch mode {
		case 'U':
			text = strings.ToUpper(text)
		case 'L':
			text = strings.ToLower(text)
		}
		if text != "" && once != 0 {
			if once == 'u' {
				text = strings.ToUpper(text[:1]) + text[1:]
			} else {
				text = strings.ToLower(text[:1]) + text[1:]
			}
			once = 0
		}
		b.WriteString(text)
	}
	group := func(n int) string {
		if 2*n+1 < len(match) && match[2*n] >= 0 {
			return s.pattern[match[2*n]:match[2*n+1]]
		}
		return ""
	}
	for i := 0; i < len(replacement); i++ {
		ch := replacement[i]
		switch {
		case ch == '&':
			put(group(0))
		case ch == '\\' && i+1 < len(replacement):
			i++
			switch next := replacement[i]; {
			case next >= '0' && next <= '9':
				put(group(int(next - '0')))
			case next == 'n':
				put("\n")
			case next == 't':
				put("\t")
			case next == 'r':
				put("\r")
			case next == 'U' || next == 'L':
				mode = next
			case next == 'E':
				mode = 0
			case next == 'u' || next == 'l':
				once = next
			default:
				put(string(next))
			}
		default:
			put(string(ch))
		}
	}
	return b.String()
}
