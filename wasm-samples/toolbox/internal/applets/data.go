package applets

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
)

func init() {
	for name, applet := range map[string]Applet{
		"md5sum": sums(md5.New), "sha1sum": sums(sha1.New), "sha256sum": sums(sha256.New), "sha512sum": sums(sha512.New),
		"base64": base64Applet, "od": od, "hexdump": hexdump, "diff": diff,
	} {
		Register(name, applet)
	}
}

func sums(algorithm func() hash.Hash) Applet {
	return func(c *Ctx) int {
		f := c.opts("csbtw", "check=c", "status=s", "binary=b", "text=t", "warn=w")
		digest := func(r io.Reader) (string, error) {
			h := algorithm()
			_, err := io.Copy(h, r)
			return hex.EncodeToString(h.Sum(nil)), err
		}
		if !f.has("c") {
			return c.each(f.args, func(name string, r io.Reader) error {
				sum, err := digest(r)
				if err == nil {
					c.printf("%s  %s\n", sum, name)
				}
				return err
			})
		}
		failed, code := 0, 0
		code = c.each(f.args, func(_ string, r io.Reader) error {
			return eachLine(r, func(line string) bool {
				sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
				if !ok || len(name) < 2 {
					return true
				}
				name = name[1:]
				file, err := c.open(name)
				if err != nil {
					c.errf("can't open '%s': %s", name, reason(err))
					failed++
					return true
				}
				defer file.Close()
				if have, err := digest(file); err == nil && strings.EqualFold(have, sum) {
					if !f.has("s") {
						c.printf("%s: OK\n", name)
					}
				} else {
					failed++
					if !f.has("s") {
						c.printf("%s: FAILED\n", name)
					}
				}
				return true
			})
		})
		if failed > 0 {
			if !f.has("s") {
				c.errf("WARNING: %d of the computed checksums did NOT match", failed)
			}
			return 1
		}
		return code
	}
}

func base64Applet(c *Ctx) int {
	f := c.opts("dw:i", "decode=d", "wrap:=w")
	wrap, err := strconv.Atoi(f.val("w", "76"))
	if err != nil {
		c.die("invalid number '%s'", f.val("w", ""))
	}
	bad := false
	code := c.each(f.args, func(_ string, r io.Reader) error {
		all, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if f.has("d") {
			text := strings.Map(func(r rune) rune {
				if r == '\n' || r == '\r' || r == ' ' {
					return -1
				}
				return r
			}, string(all))
			decoded, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				decoded, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
			}
			c.w().Write(decoded)
			bad = err != nil
			return nil
		}
		text := base64.StdEncoding.EncodeToString(all)
		for wrap > 0 && len(text) > wrap {
			c.printf("%s\n", text[:wrap])
			text = text[wrap:]
		}
		if text != "" {
			c.printf("%s", text)
			if wrap > 0 {
				c.printf("\n")
			}
		}
		return nil
	})
	if bad {
		c.die("truncated input")
	}
	return code
}

// input joins all the files, skips and limits.
func (c *Ctx) input(names []string, skip, limit int64) []byte {
	var all []byte
	c.each(names, func(_ string, r io.Reader) error {
		if limit >= 0 {
			r = io.LimitReader(r, skip+limit-int64(len(all)))
		}
		more, err := io.ReadAll(r)
		all = append(all, more...)
		return err
	})
	return all[min(skip, int64(len(all))):]
}

func od(c *Ctx) int {
	f := c.opts("abcdDeFfhHiIlLoOsxXvA:t:N:j:w:", "address-radix:=A", "format:=t", "read-bytes:=N", "skip-bytes:=j", "width:=w")
	format := "o2"
	for letter, means := range map[string]string{"b": "o1", "c": "c", "x": "x2", "X": "x4", "d": "u2", "a": "a", "o": "o2", "i": "d4", "h": "x2", "H": "x4", "l": "d8", "s": "d2"} {
		if f.has(letter) {
			format = means
		}
	}
	format = f.val("t", format)
	format, ascii := strings.CutSuffix(format, "z")
	number := func(name string, otherwise int64) int64 {
		text := f.val(name, "")
		if text == "" {
			return otherwise
		}
		if n, err := strconv.ParseInt(text, 0, 64); err == nil {
			return n
		}
		n, err := sizeOf(text)
		if err != nil {
			c.die("%v", err)
		}
		return n
	}
	skip, limit, width := number("j", 0), number("N", -1), int(number("w", 16))
	data := c.input(f.args, skip, limit)
	address := func(at int64) string {
		switch f.val("A", "o") {
		case "n":
			return ""
		case "d":
			return fmt.Sprintf("%07d", at)
		case "x":
			return fmt.Sprintf("%06x", at)
		}
		return fmt.Sprintf("%07o", at)
	}
	size := 1
	if len(format) > 1 {
		if n, err := strconv.Atoi(format[1:]); err == nil {
			size = n
		} else {
			size = map[string]int{"C": 1, "S": 2, "I": 4, "L": 8}[format[1:]]
		}
	} else if strings.IndexByte("odux", format[0]) >= 0 {
		size = 4
	}
	if size == 0 || size > 8 || width <= 0 {
		c.die("invalid type string '%s'", format)
	}
	last, starred := "", false
	for at := 0; at < len(data); at += width {
		line := data[at:min(at+width, len(data))]
		if string(line) == last && len(line) == width && !f.has("v") {
			if !starred {
				c.printf("*\n")
			}
			starred = true
			continue
		}
		last, starred = string(line), false
		c.printf("%s", address(skip+int64(at)))
		for i := 0; i < len(line); i += size {
			value := uint64(0)
			for j := min(size, len(line)-i) - 1; j >= 0; j-- {
				value = value<<8 | uint64(line[i+j])
			}
			switch format[0] {
			case 'c', 'a':
				c.printf(" %3s", odChar(line[i]))
			case 'x':
				c.printf(" %0*x", 2*size, value)
			case 'u':
				c.printf(" %*d", []int{0, 3, 5, 8, 10, 0, 0, 0, 20}[size], value)
			case 'd':
				shift := 64 - 8*uint(size)
				c.printf(" %*d", []int{0, 4, 6, 9, 11, 0, 0, 0, 20}[size], int64(value<<shift)>>shift)
			default:
				c.printf(" %0*o", []int{0, 3, 6, 8, 11, 0, 0, 0, 22}[size], value)
			}
		}
		if ascii {
			c.printf("  >%s<", printable(line))
		}
		c.printf("\n")
	}
	if f.val("A", "o") != "n" {
		c.printf("%s\n", address(skip+int64(len(data))))
	}
	return 0
}

func odChar(b byte) string {
	if b == 0 {
		return `\0`
	}
	if at := strings.IndexByte("\a\b\f\n\r\t\v", b); at >= 0 {
		return `\` + string("abfnrtv"[at])
	}
	if b >= 32 && b < 127 {
		return string(b)
	}
	return fmt.Sprintf("%03o", b)
}

func printable(line []byte) string {
	out := make([]byte, len(line))
	for i, b := range line {
		if b < 32 || b >= 127 {
			b = '.'
		}
		out[i] = b
	}
	return string(out)
}

func hexdump(c *Ctx) int {
	f := c.opts("bcCdoxve:f:n:s:")
	skip, limit := int64(0), int64(-1)
	var err error
	if text := f.val("s", ""); text != "" {
		skip, err = sizeOf(text)
	}
	if text := f.val("n", ""); text != "" && err == nil {
		limit, err = sizeOf(text)
	}
	if err != nil {
		c.die("%v", err)
	}
	data := c.input(f.args, skip, limit)
	if text := f.val("e", ""); text != "" {
		return c.hexdumpFormat(text, data)
	}
	last, starred := "", false
	digits := 7
	if f.has("C") {
		digits = 8
	}
	for at := 0; at < len(data); at += 16 {
		line := data[at:min(at+16, len(data))]
		if string(line) == last && len(line) == 16 && !f.has("v") {
			if !starred {
				c.printf("*\n")
			}
			starred = true
			continue
		}
		last, starred = string(line), false
		c.printf("%0*x", digits, skip+int64(at))
		switch {
		case f.has("C"):
			for i := range 16 {
				if i%8 == 0 {
					c.printf(" ")
				}
				if i < len(line) {
					c.printf(" %02x", line[i])
				} else {
					c.printf("   ")
				}
			}
			c.printf("  |%s|", printable(line))
		case f.has("c"):
			for _, b := range line {
				c.printf(" %3s", odChar(b))
			}
		case f.has("b"):
			for _, b := range line {
				c.printf(" %03o", b)
			}
		default:
			for i := 0; i < len(line); i += 2 {
				value := int(line[i])
				if i+1 < len(line) {
					value |= int(line[i+1]) << 8
				}
				switch {
				case f.has("d"):
					c.printf("   %05d", value)
				case f.has("o"):
					c.printf("  %06o", value)
				case f.has("x"):
					c.printf("    %04x", value)
				default:
					c.printf(" %04x", value)
				}
			}
		}
		c.printf("\n")
	}
	c.printf("%0*x\n", digits, skip+int64(len(data)))
	return 0
}

var hexdumpUnit = regexp.MustCompile(`(\d+)?(?:/(\d+))?\s*"([^"]*)"`)

// hexdumpFormat has the formats scripts use: '16/1 "%02x "' and the like.
func (c *Ctx) hexdumpFormat(format string, data []byte) int {
	units := hexdumpUnit.FindAllStringSubmatch(format, -1)
	if units == nil {
		c.die("bad format '%s'", format)
	}
	for len(data) > 0 {
		for _, unit := range units {
			count, size := 1, 1
			if unit[1] != "" {
				count, _ = strconv.Atoi(unit[1])
			}
			if unit[2] != "" {
				size, _ = strconv.Atoi(unit[2])
			}
			text := unescaped(unit[3])
			if !strings.Contains(text, "%") {
				c.printf("%s", text)
				continue
			}
			for range count {
				if len(data) == 0 {
					break
				}
				value := uint64(0)
				n := min(max(size, 1), len(data))
				for j := n - 1; j >= 0; j-- {
					value = value<<8 | uint64(data[j])
				}
				data = data[n:]
				if strings.HasSuffix(strings.TrimSpace(text), "c") {
					c.printf(text, rune(value))
				} else {
					c.printf(strings.ReplaceAll(text, "%u", "%d"), value)
				}
			}
		}
	}
	return 0
}

// diff prints unified differences, as busybox's does.
func diff(c *Ctx) int {
	f := c.opts("abBdiL:NqrsS:tTuU:w", "unified=u", "brief=q", "recursive=r", "new-file=N", "ignore-case=i", "ignore-all-space=w", "ignore-space-change=b", "ignore-blank-lines=B")
	if len(f.args) != 2 {
		c.usage("[-abBdiNqrTstw] [-L LABEL] [-U LINES] FILE1 FILE2")
	}
	context, err := strconv.Atoi(f.val("U", "3"))
	if err != nil {
		c.die("invalid number '%s'", f.val("U", ""))
	}
	d := &differ{c: c, f: f, context: context}
	return d.compare(f.args[0], f.args[1])
}

type differ struct {
	c       *Ctx
	f       *flags
	context int
}

func (d *differ) read(name string) ([]string, error) {
	r, err := d.c.open(name)
	if err != nil {
		if d.f.has("N") && isNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	text, ended := strings.CutSuffix(string(all), "\n")
	lines := strings.Split(text, "\n")
	if !ended {
		lines[len(lines)-1] += "\n\\ No newline at end of file"
	}
	return lines, nil
}

func (d *differ) compare(a, b string) int {
	c := d.c
	infoA, errA := os.Stat(c.path(a))
	infoB, errB := os.Stat(c.path(b))
	isDir := func(info os.FileInfo, err error, name string) bool { return name != "-" && err == nil && info.IsDir() }
	dirA, dirB := isDir(infoA, errA, a), isDir(infoB, errB, b)
	switch {
	case dirA && dirB:
		return d.directories(a, b)
	case dirA:
		a += "/" + b[strings.LastIndexByte(b, '/')+1:]
	case dirB:
		b += "/" + a[strings.LastIndexByte(a, '/')+1:]
	}
	linesA, err := d.read(a)
	if err == nil {
		var linesB []string
		if linesB, err = d.read(b); err == nil {
			return d.files(a, b, linesA, linesB)
		}
		a = b
	}
	c.errf("can't stat '%s': %s", a, reason(err))
	return 2
}

func (d *differ) directories(a, b string) int {
	c := d.c
	names := map[string]int{}
	for i, dir := range []string{a, b} {
		entries, err := os.ReadDir(c.path(dir))
		if err != nil {
			c.errf("%s: %s", dir, reason(err))
			return 2
		}
		for _, e := range entries {
			names[e.Name()] |= 1 << i
		}
	}
	code := 0
	for _, name := range sortedKeys(names) {
		where := names[name]
		left, right := strings.TrimSuffix(a, "/")+"/"+name, strings.TrimSuffix(b, "/")+"/"+name
		if where != 3 && !d.f.has("N") {
			dir := a
			if where == 2 {
				dir = b
			}
			c.printf("Only in %s: %s\n", strings.TrimSuffix(dir, "/"), name)
			code = max(code, 1)
			continue
		}
		infoA, errA := os.Stat(c.path(left))
		infoB, errB := os.Stat(c.path(right))
		if errA == nil && errB == nil && infoA.IsDir() && infoB.IsDir() && !d.f.has("r") {
			c.printf("Common subdirectories: %s and %s\n", left, right)
			continue
		}
		code = max(code, d.compare(left, right))
	}
	return code
}

func (d *differ) same(a, b string) bool {
	normal := func(s string) string {
		if d.f.has("w") {
			s = strings.Join(strings.Fields(s), "")
		} else if d.f.has("b") {
			s = strings.Join(strings.Fields(s), " ")
		}
		if d.f.has("i") {
			s = strings.ToLower(s)
		}
		return s
	}
	return a == b || normal(a) == normal(b)
}

// maxDiffWork bounds the search for a shortest difference; above it the middle is one big change.
const maxDiffWork = 20_000_000

// script finds which lines stay: pairs of equal lines in order.
func (d *differ) script(a, b []string) ([][2]int, error) {
	head := 0
	for head < len(a) && head < len(b) && d.same(a[head], b[head]) {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && d.same(a[len(a)-1-tail], b[len(b)-1-tail]) {
		tail++
	}
	var pairs [][2]int
	for i := range head {
		pairs = append(pairs, [2]int{i, i})
	}
	midA, midB := a[head:len(a)-tail], b[head:len(b)-tail]
	if len(midA)*len(midB) > maxDiffWork {
		return nil, errors.New("files differ too much")
	}
	// The longest common subsequence by its table.
	table := make([][]int32, len(midA)+1)
	for i := range table {
		table[i] = make([]int32, len(midB)+1)
	}
	for i := len(midA) - 1; i >= 0; i-- {
		for j := len(midB) - 1; j >= 0; j-- {
			if d.same(midA[i], midB[j]) {
				table[i][j] = table[i+1][j+1] + 1
			} else {
				table[i][j] = max(table[i+1][j], table[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(midA) && j < len(midB); {
		switch {
		case d.same(midA[i], midB[j]):
			pairs = append(pairs, [2]int{head + i, head + j})
			i, j = i+1, j+1
		case table[i+1][j] >= table[i][j+1]:
			i++
		default:
			j++
		}
	}
	for i := tail; i > 0; i-- {
		pairs = append(pairs, [2]int{len(a) - i, len(b) - i})
	}
	return pairs, nil
}

func (d *differ) files(nameA, nameB string, a, b []string) int {
	c := d.c
	pairs, err := d.script(a, b)
	if err != nil {
		c.printf("Files %s and %s differ\n", nameA, nameB)
		return 1
	}
	if len(pairs) == len(a) && len(pairs) == len(b) {
		if d.f.has("s") {
			c.printf("Files %s and %s are identical\n", nameA, nameB)
		}
		return 0
	}
	if d.f.has("q") {
		c.printf("Files %s and %s differ\n", nameA, nameB)
		return 1
	}
	labels := append(append([]string{}, d.f.values["L"]...), nameA, nameB)
	if len(d.f.values["L"]) == 1 {
		labels[1] = nameB
	}
	c.printf("--- %s\n+++ %s\n", labels[0], labels[1])
	type line struct {
		kind byte
		text string
		a, b int
	}
	var lines []line
	i, j := 0, 0
	emit := func(toA, toB int) {
		for ; i < toA; i++ {
			lines = append(lines, line{'-', a[i], i, j})
		}
		for ; j < toB; j++ {
			lines = append(lines, line{'+', b[j], i, j})
		}
	}
	for _, pair := range pairs {
		emit(pair[0], pair[1])
		lines = append(lines, line{' ', a[i], i, j})
		i, j = i+1, j+1
	}
	emit(len(a), len(b))
	for at := 0; at < len(lines); {
		if lines[at].kind == ' ' {
			at++
			continue
		}
		from := max(0, at-d.context)
		to, quiet := at, 0
		for to < len(lines) && quiet <= 2*d.context {
			if lines[to].kind == ' ' {
				quiet++
			} else {
				quiet = 0
			}
			to++
		}
		to = to - quiet + min(quiet, d.context)
		countA, countB := 0, 0
		for _, l := range lines[from:to] {
			if l.kind != '+' {
				countA++
			}
			if l.kind != '-' {
				countB++
			}
		}
		position := func(start, count int) string {
			if count == 1 {
				return strconv.Itoa(start + 1)
			}
			if count == 0 {
				start--
			}
			return fmt.Sprintf("%d,%d", start+1, count)
		}
		c.printf("@@ -%s +%s @@\n", position(lines[from].a, countA), position(lines[from].b, countB))
		for _, l := range lines[from:to] {
			c.printf("%c%s\n", l.kind, l.text)
		}
		at = to
	}
	return 1
}

// expr evaluates what its arguments say.
func expr(c *Ctx) int {
	e := &evaluator{c: c, args: c.Args[1:]}
	if len(e.args) == 0 {
		c.errf("too few arguments")
		return 2
	}
	value := e.or()
	if len(e.args) > 0 && e.failed == "" {
		e.failed = "syntax error"
	}
	if e.failed != "" {
		c.errf("%s", e.failed)
		return 2
	}
	c.printf("%s\n", value)
	if isNull(value) {
		return 1
	}
	return 0
}

type evaluator struct {
	c      *Ctx
	args   []string
	failed string
}

func isNull(value string) bool {
	n, err := strconv.ParseInt(value, 10, 64)
	return value == "" || err == nil && n == 0
}

func (e *evaluator) take(ops ...string) string {
	if len(e.args) > 0 {
		for _, op := range ops {
			if e.args[0] == op {
				e.args = e.args[1:]
				return op
			}
		}
	}
	return ""
}

func (e *evaluator) integer(value string) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil && e.failed == "" {
		e.failed = "non-numeric argument"
	}
	return n
}

func (e *evaluator) or() string {
	left := e.and()
	for e.take("|") != "" {
		right := e.and()
		if isNull(left) {
			left = right
		}
	}
	return left
}

func (e *evaluator) and() string {
	left := e.comparison()
	for e.take("&") != "" {
		right := e.comparison()
		if isNull(left) || isNull(right) {
			left = "0"
		}
	}
	return left
}

func (e *evaluator) comparison() string {
	left := e.sum()
	for {
		op := e.take("=", "==", "!=", "<", "<=", ">", ">=")
		if op == "" {
			return left
		}
		right := e.sum()
		order := strings.Compare(left, right)
		a, errA := strconv.ParseInt(left, 10, 64)
		b, errB := strconv.ParseInt(right, 10, 64)
		if errA == nil && errB == nil {
			order = 0
			if a < b {
				order = -1
			} else if a > b {
				order = 1
			}
		}
		holds := map[string]bool{"=": order == 0, "==": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[op]
		left = map[bool]string{true: "1", false: "0"}[holds]
	}
}

func (e *evaluator) sum() string {
	left := e.product()
	for {
		op := e.take("+", "-")
		if op == "" {
			return left
		}
		a, b := e.integer(left), e.integer(e.product())
		if op == "-" {
			b = -b
		}
		left = strconv.FormatInt(a+b, 10)
	}
}

func (e *evaluator) product() string {
	left := e.match()
	for {
		op := e.take("*", "/", "%")
		if op == "" {
			return left
		}
		a, b := e.integer(left), e.integer(e.match())
		switch {
		case op == "*":
			a *= b
		case b == 0:
			if e.failed == "" {
				e.failed = "division by zero"
			}
		case op == "/":
			a /= b
		default:
			a %= b
		}
		left = strconv.FormatInt(a, 10)
	}
}

func (e *evaluator) match() string {
	left := e.primary()
	for e.take(":") != "" {
		left = e.regex(left, e.primary())
	}
	return left
}

func (e *evaluator) regex(text, pattern string) string {
	m, err := compile(`^\(`+strings.TrimPrefix(pattern, "^")+`\)`, false, false, false)
	if err != nil {
		e.failed = "bad regex"
		return ""
	}
	match := m.find(text, 0)
	group := strings.Contains(pattern, `\(`)
	switch {
	case match == nil && group:
		return ""
	case match == nil:
		return "0"
	case group && match[4] >= 0:
		return text[match[4]:match[5]]
	}
	return strconv.Itoa(len([]rune(text[match[0]:match[1]])))
}

func (e *evaluator) primary() string {
	if len(e.args) == 0 {
		if e.failed == "" {
			e.failed = "syntax error"
		}
		return ""
	}
	first := e.args[0]
	e.args = e.args[1:]
	switch {
	case first == "(":
		value := e.or()
		if e.take(")") == "" && e.failed == "" {
			e.failed = "syntax error"
		}
		return value
	case first == "length" && len(e.args) > 0:
		return strconv.Itoa(len([]rune(e.primary())))
	case first == "match" && len(e.args) > 1:
		text := e.primary()
		return e.regex(text, e.primary())
	case first == "index" && len(e.args) > 1:
		text := e.primary()
		return strconv.Itoa(strings.IndexAny(text, e.primary()) + 1)
	case first == "substr" && len(e.args) > 2:
		text := []rune(e.primary())
		from, length := int(e.integer(e.primary())), int(e.integer(e.primary()))
		if from < 1 || length < 1 || from > len(text) {
			return ""
		}
		return string(text[from-1 : min(from-1+length, len(text))])
	}
	return first
}
