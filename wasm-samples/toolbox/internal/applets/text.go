package applets

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

func init() {
	for name, applet := range map[string]Applet{
		"head": head, "tail": tail, "wc": wc, "sort": sortLines, "uniq": uniq, "cut": cut, "tr": tr, "tee": tee, "nl": nl,
		"rev": rev, "tac": tac, "fold": fold, "paste": paste, "comm": comm, "split": split, "strings": stringsIn, "seq": seq,
		"yes": yes, "echo": echo, "basename": basename, "dirname": dirname, "clear": clearScreen, "cmp": cmp, "cksum": cksum,
	} {
		Register(name, applet)
	}
}

func randomN(n int) int { return rand.IntN(n) }

// eachLine gives lines with their newline; the last may lack one. It stops when f says so.
func eachLine(r io.Reader, f func(line string) bool) error {
	reader := bufio.NewReaderSize(r, 32*1024)
	for {
		line, err := reader.ReadString('\n')
		if line != "" && !f(line) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// countArgs turns -5 into -n 5.
func (c *Ctx) countArgs() {
	for i, arg := range c.Args[1:] {
		if value := c.Args[i]; i > 0 && (value == "-n" || value == "-c" || value == "-s") {
			continue
		}
		if len(arg) > 1 && (arg[0] == '-' || arg[0] == '+' && c.name() == "tail") && arg[1] >= '0' && arg[1] <= '9' {
			if arg[0] == '-' {
				arg = arg[1:]
			}
			c.Args = append(append(append([]string{}, c.Args[:i+1]...), "-n", arg), c.Args[i+2:]...)
			return
		}
	}
}

func head(c *Ctx) int {
	c.countArgs()
	f := c.opts("n:c:qv", "lines:=n", "bytes:=c", "quiet=q", "verbose=v")
	text := f.val("n", "10")
	bytesWanted := f.has("c")
	if bytesWanted {
		text = f.val("c", "")
	}
	fromEnd := strings.HasPrefix(text, "-")
	n, err := sizeOf(strings.TrimPrefix(text, "-"))
	if err != nil {
		c.die("%v", err)
	}
	first := true
	return c.each(f.args, func(name string, r io.Reader) error {
		c.title(f, name, len(f.args), &first)
		switch {
		case fromEnd:
			all, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if bytesWanted {
				c.w().Write(all[:max(0, int64(len(all))-n)])
				return nil
			}
			lines := bytes.SplitAfter(all, []byte("\n"))
			if len(lines) > 0 && len(lines[len(lines)-1]) == 0 {
				lines = lines[:len(lines)-1]
			}
			for _, line := range lines[:max(0, int64(len(lines))-n)] {
				c.w().Write(line)
			}
			return nil
		case bytesWanted:
			_, err := io.CopyN(c.w(), r, n)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		case n == 0:
			return nil
		}
		left := n
		return eachLine(r, func(line string) bool {
			c.w().WriteString(line)
			left--
			return left > 0
		})
	})
}

func (c *Ctx) title(f *flags, name string, count int, first *bool) {
	if (count < 2 || f.has("q")) && !f.has("v") {
		return
	}
	if !*first {
		c.printf("\n")
	}
	*first = false
	if name == "-" {
		name = "standard input"
	}
	c.printf("==> %s <==\n", name)
}

func tail(c *Ctx) int {
	c.countArgs()
	f := c.opts("n:c:fFqvs:", "lines:=n", "bytes:=c", "follow=f", "quiet=q", "verbose=v", "retry=F")
	text := f.val("n", "10")
	bytesWanted := f.has("c")
	if bytesWanted {
		text = f.val("c", "")
	}
	fromStart := strings.HasPrefix(text, "+")
	n, err := sizeOf(strings.TrimLeft(text, "+-"))
	if err != nil {
		c.die("%v", err)
	}
	first := true
	type followed struct {
		name string
		file *os.File
		info os.FileInfo
	}
	var files []*followed
	names := f.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	code := 0
	for _, name := range names {
		r, err := c.open(name)
		if err != nil {
			c.errf("can't open '%s': %s", name, reason(err))
			code = 1
			if f.has("F") {
				files = append(files, &followed{name: name})
			}
			continue
		}
		c.title(f, name, len(names), &first)
		if err := c.tailOf(r, n, fromStart, bytesWanted); err != nil {
			c.errf("error reading %s: %s", name, reason(err))
			code = 1
		}
		if file, ok := r.(*os.File); ok && (f.has("f") || f.has("F")) {
			info, _ := file.Stat()
			files = append(files, &followed{name, file, info})
		} else {
			r.Close()
		}
	}
	if len(files) == 0 {
		return code
	}
	c.flush()
	shown := len(files) - 1
	for !c.done() {
		for i, file := range files {
			if f.has("F") {
				// The file of that name may be another one by now.
				if info, err := os.Stat(c.path(file.name)); err == nil && (file.file == nil || !os.SameFile(info, file.info)) {
					if opened, err := os.Open(c.path(file.name)); err == nil {
						if file.file != nil {
							file.file.Close()
						}
						file.file, file.info = opened, info
					}
				}
			}
			if file.file == nil {
				continue
			}
			if info, err := file.file.Stat(); err == nil {
				if at, err := file.file.Seek(0, io.SeekCurrent); err == nil && info.Mode().IsRegular() && info.Size() < at {
					file.file.Seek(0, io.SeekStart)
				}
			}
			more, _ := io.ReadAll(file.file)
			if len(more) > 0 {
				if shown != i && len(names) > 1 {
					c.title(f, file.name, len(names), &first)
				}
				shown = i
				c.w().Write(more)
				c.flush()
			}
		}
		c.sleep(200 * time.Millisecond)
	}
	return code
}

// tailOf writes the end of a file and leaves it there.
func (c *Ctx) tailOf(r io.Reader, n int64, fromStart, bytesWanted bool) error {
	if fromStart {
		if n > 0 {
			n--
		}
		if bytesWanted {
			io.CopyN(io.Discard, r, n)
			_, err := io.Copy(c.w(), r)
			return err
		}
		return eachLine(r, func(line string) bool {
			if n > 0 {
				n--
			} else {
				c.w().WriteString(line)
			}
			return true
		})
	}
	if bytesWanted {
		all, err := io.ReadAll(r)
		c.w().Write(all[max(0, int64(len(all))-n):])
		return err
	}
	var ring []string
	err := eachLine(r, func(line string) bool {
		ring = append(ring, line)
		if int64(len(ring)) > 2*n+64 {
			ring = append(ring[:0], ring[int64(len(ring))-n:]...)
		}
		return true
	})
	for _, line := range ring[max(0, int64(len(ring))-n):] {
		c.w().WriteString(line)
	}
	return err
}

// sleep waits, or less when the applet is to end.
func (c *Ctx) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.Context.Done():
	}
}

func wc(c *Ctx) int {
	f := c.opts("clwLm", "bytes=c", "chars=m", "lines=l", "words=w")
	type counts struct{ lines, words, bytes, chars, longest int }
	var total counts
	all := !f.has("c") && !f.has("l") && !f.has("w") && !f.has("L") && !f.has("m")
	wanted := 0
	for _, letter := range []string{"c", "l", "w", "L", "m"} {
		if f.has(letter) {
			wanted++
		}
	}
	show := func(n counts, name string) {
		var parts []string
		add := func(n int) {
			if wanted == 1 {
				parts = append(parts, strconv.Itoa(n))
			} else {
				parts = append(parts, fmt.Sprintf("%9d", n))
			}
		}
		if f.has("l") || all {
			add(n.lines)
		}
		if f.has("w") || all {
			add(n.words)
		}
		if f.has("m") {
			add(n.chars)
		}
		if f.has("c") || all {
			add(n.bytes)
		}
		if f.has("L") {
			add(n.longest)
		}
		text := strings.Join(parts, " ")
		if name != "" {
			text += " " + name
		}
		c.printf("%s\n", text)
	}
	code := c.each(f.args, func(name string, r io.Reader) error {
		var n counts
		err := eachLine(r, func(line string) bool {
			if strings.HasSuffix(line, "\n") {
				n.lines++
			}
			n.words += len(strings.Fields(line))
			n.bytes += len(line)
			n.chars += utf8.RuneCountInString(line)
			n.longest = max(n.longest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
			return true
		})
		total.lines += n.lines
		total.words += n.words
		total.bytes += n.bytes
		total.chars += n.chars
		total.longest = max(total.longest, n.longest)
		if len(f.args) == 0 {
			name = ""
		}
		show(n, name)
		return err
	})
	if len(f.args) > 1 {
		show(total, "total")
	}
	return code
}

// sortKey is one -k of sort.
type sortKey struct {
	fromField, fromChar, toField, toChar                  int
	numeric, reverse, fold, blanks, human, month, version bool
}

func parseSortKey(text string) (sortKey, error) {
	var k sortKey
	position := func(part string) (field, char int, rest string, err error) {
		end := 0
		for end < len(part) && (part[end] >= '0' && part[end] <= '9' || part[end] == '.') {
			end++
		}
		a, b, _ := strings.Cut(part[:end], ".")
		if field, err = strconv.Atoi(a); err != nil || field == 0 {
			return 0, 0, "", fmt.Errorf("invalid key '%s'", text)
		}
		if b != "" {
			char, err = strconv.Atoi(b)
		}
		return field, char, part[end:], err
	}
	from, to, ranged := strings.Cut(text, ",")
	var rest string
	var err error
	if k.fromField, k.fromChar, rest, err = position(from); err != nil {
		return k, err
	}
	k.flags(rest)
	if ranged {
		if k.toField, k.toChar, rest, err = position(to); err != nil {
			return k, err
		}
		k.flags(rest)
	}
	return k, nil
}

func (k *sortKey) flags(letters string) {
	for _, letter := range letters {
		switch letter {
		case 'n', 'g':
			k.numeric = true
		case 'r':
			k.reverse = true
		case 'f':
			k.fold = true
		case 'b':
			k.blanks = true
		case 'h':
			k.human = true
		case 'M':
			k.month = true
		case 'V':
			k.version = true
		}
	}
}

// of cuts the key out of a line.
func (k *sortKey) of(line, separator string) string {
	if k.fromField == 0 {
		return line
	}
	var starts []int
	if separator != "" {
		starts = append(starts, 0)
		for i := 0; i < len(line); i++ {
			if line[i] == separator[0] {
				starts = append(starts, i+1)
			}
		}
	} else {
		// A field has the blanks before it.
		inBlank := true
		starts = append(starts, 0)
		for i := 0; i < len(line); i++ {
			blank := line[i] == ' ' || line[i] == '\t'
			if blank && !inBlank {
				starts = append(starts, i)
			}
			inBlank = blank
		}
	}
	end := func(field int) int {
		if field < len(starts) {
			if separator != "" {
				return starts[field] - 1
			}
			return starts[field]
		}
		return len(line)
	}
	if k.fromField > len(starts) {
		return ""
	}
	from := starts[k.fromField-1]
	if k.blanks || separator == "" && k.fromChar > 0 && k.blanks {
		for from < len(line) && (line[from] == ' ' || line[from] == '\t') {
			from++
		}
	}
	if k.fromChar > 1 {
		from = min(from+k.fromChar-1, len(line))
	}
	to := len(line)
	if k.toField > 0 {
		to = end(k.toField)
		if k.toChar > 0 && k.toField <= len(starts) {
			to = min(starts[k.toField-1]+k.toChar, to)
		}
	}
	if from >= to {
		return ""
	}
	return line[from:to]
}

func leadingNumber(text string) float64 {
	text = strings.TrimLeft(text, " \t")
	end := 0
	if end < len(text) && (text[end] == '-' || text[end] == '+') {
		end++
	}
	for end < len(text) && (text[end] >= '0' && text[end] <= '9' || text[end] == '.') {
		end++
	}
	n, _ := strconv.ParseFloat(text[:end], 64)
	return n
}

func humanNumber(text string) float64 {
	text = strings.TrimSpace(text)
	n := leadingNumber(text)
	trimmed := strings.TrimLeft(text, "+-0123456789.")
	if trimmed != "" {
		if power := strings.IndexByte("KMGTPE", trimmed[0]&^0x20); power >= 0 {
			for range power + 1 {
				n *= 1024
			}
		}
	}
	return n
}

func compareVersions(a, b string) int {
	for a != "" && b != "" {
		if unicode.IsDigit(rune(a[0])) && unicode.IsDigit(rune(b[0])) {
			i, j := 0, 0
			for i < len(a) && unicode.IsDigit(rune(a[i])) {
				i++
			}
			for j < len(b) && unicode.IsDigit(rune(b[j])) {
				j++
			}
			x, y := strings.TrimLeft(a[:i], "0"), strings.TrimLeft(b[:j], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if x != y {
				return strings.Compare(x, y)
			}
			a, b = a[i:], b[j:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func (k *sortKey) compare(a, b string) int {
	order := 0
	switch {
	case k.numeric:
		x, y := leadingNumber(a), leadingNumber(b)
		if x < y {
			order = -1
		} else if x > y {
			order = 1
		}
	case k.human:
		x, y := humanNumber(a), humanNumber(b)
		if x < y {
			order = -1
		} else if x > y {
			order = 1
		}
	case k.month:
		month := func(s string) int {
			s = strings.ToUpper(strings.TrimSpace(s))
			for m := time.January; m <= time.December; m++ {
				if strings.HasPrefix(s, strings.ToUpper(m.String()[:3])) {
					return int(m)
				}
			}
			return 0
		}
		order = month(a) - month(b)
	case k.version:
		order = compareVersions(a, b)
	default:
		if k.blanks {
			a, b = strings.TrimLeft(a, " \t"), strings.TrimLeft(b, " \t")
		}
		if k.fold {
			a, b = strings.ToUpper(a), strings.ToUpper(b)
		}
		order = strings.Compare(a, b)
	}
	if k.reverse {
		return -order
	}
	return order
}

func sortLines(c *Ctx) int {
	f := c.opts("nrugMcszbdfihVmt:k:o:T:S:", "numeric-sort=n", "reverse=r", "unique=u", "key:=k", "field-separator:=t", "output:=o", "stable=s", "version-sort=V", "human-numeric-sort=h", "ignore-case=f")
	var global sortKey
	for letter := range f.set {
		global.flags(letter)
	}
	var keys []sortKey
	for _, text := range f.values["k"] {
		key, err := parseSortKey(text)
		if err != nil {
			c.die("%v", err)
		}
		if !key.numeric && !key.reverse && !key.fold && !key.blanks && !key.human && !key.month && !key.version {
			from := key
			key = global
			key.fromField, key.fromChar, key.toField, key.toChar = from.fromField, from.fromChar, from.toField, from.toChar
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		keys = []sortKey{global}
	}
	separator := f.val("t", "")
	if separator == `\t` {
		separator = "\t"
	}
	ending := "\n"
	if f.has("z") {
		ending = "\x00"
	}
	var lines []string
	code := c.each(f.args, func(_ string, r io.Reader) error {
		all, err := io.ReadAll(r)
		if len(all) > 0 {
			lines = append(lines, strings.Split(strings.TrimSuffix(string(all), ending), ending)...)
		}
		return err
	})
	if code != 0 {
		return 2
	}
	byKeys := func(a, b string) int {
		for i := range keys {
			if order := keys[i].compare(keys[i].of(a, separator), keys[i].of(b, separator)); order != 0 {
				return order
			}
		}
		return 0
	}
	compare := func(a, b string) int {
		order := byKeys(a, b)
		if order == 0 && !f.has("s") && !f.has("u") {
			order = strings.Compare(a, b)
			if global.reverse {
				order = -order
			}
		}
		return order
	}
	if f.has("c") {
		for i := 1; i < len(lines); i++ {
			if order := byKeys(lines[i-1], lines[i]); order > 0 || order == 0 && f.has("u") {
				c.errf("%s:%d: disorder: %s", orElse(strings.Join(f.args, ""), "-"), i+1, lines[i])
				return 1
			}
		}
		return 0
	}
	sort.SliceStable(lines, func(i, j int) bool { return compare(lines[i], lines[j]) < 0 })
	out := io.Writer(c.w())
	if name := f.val("o", ""); name != "" {
		file, err := os.Create(c.path(name))
		if err != nil {
			c.die("%s: %s", name, reason(err))
		}
		defer file.Close()
		out = file
	}
	var b strings.Builder
	for i, line := range lines {
		if f.has("u") && i > 0 && byKeys(lines[i-1], line) == 0 {
			continue
		}
		b.WriteString(line)
		b.WriteString(ending)
	}
	io.WriteString(out, b.String())
	return 0
}

func uniq(c *Ctx) int {
	f := c.opts("cduif:s:w:z", "count=c", "repeated=d", "unique=u", "ignore-case=i")
	names := f.args
	if len(names) > 1 {
		names = names[:1]
		file, err := os.Create(c.path(f.args[1]))
		if err != nil {
			c.die("%s: %s", f.args[1], reason(err))
		}
		defer file.Close()
		c.out = bufio.NewWriter(file)
	}
	skipFields, _ := strconv.Atoi(f.val("f", "0"))
	skipChars, _ := strconv.Atoi(f.val("s", "0"))
	width, _ := strconv.Atoi(f.val("w", "-1"))
	key := func(line string) string {
		line = strings.TrimSuffix(line, "\n")
		for range skipFields {
			line = strings.TrimLeft(line, " \t")
			if end := strings.IndexAny(line, " \t"); end >= 0 {
				line = line[end:]
			} else {
				line = ""
			}
		}
		line = line[min(skipChars, len(line)):]
		if width >= 0 {
			line = line[:min(width, len(line))]
		}
		if f.has("i") {
			line = strings.ToLower(line)
		}
		return line
	}
	var last, lastKey string
	count := 0
	put := func() {
		if count == 0 || f.has("d") && count < 2 || f.has("u") && count > 1 {
			return
		}
		if f.has("c") {
			c.printf("%7d ", count)
		}
		c.printf("%s\n", strings.TrimSuffix(last, "\n"))
	}
	code := c.each(names, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			if k := key(line); count > 0 && k == lastKey {
				count++
				return true
			} else {
				put()
				last, lastKey, count = line, k, 1
			}
			return true
		})
	})
	put()
	return code
}

// ranges are cut's lists: 1-based, to 0 is the end.
type span struct{ from, to int }

func parseList(text string) ([]span, error) {
	var list []span
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		a, b, ranged := strings.Cut(part, "-")
		from, err := 1, error(nil)
		if a != "" {
			from, err = strconv.Atoi(a)
		}
		to := from
		if ranged {
			to = 0
			if b != "" && err == nil {
				to, err = strconv.Atoi(b)
			}
		}
		if err != nil || from < 1 || ranged && a == "" && b == "" || to != 0 && to < from {
			return nil, fmt.Errorf("invalid range %s", part)
		}
		list = append(list, span{from, to})
	}
	if len(list) == 0 {
		return nil, errors.New("expected a list of bytes, characters, or fields")
	}
	return list, nil
}

func inList(list []span, n int) bool {
	for _, s := range list {
		if n >= s.from && (s.to == 0 || n <= s.to) {
			return true
		}
	}
	return false
}

func cut(c *Ctx) int {
	f := c.opts("b:c:f:d:snO:", "delimiter:=d", "fields:=f", "characters:=c", "bytes:=b", "only-delimited=s", "complement=C", "output-delimiter:=O")
	text := orElse(f.val("f", ""), orElse(f.val("c", ""), f.val("b", "")))
	list, err := parseList(text)
	if err != nil {
		c.die("%v", err)
	}
	delimiter := f.val("d", "\t")
	output := f.val("O", delimiter)
	wanted := func(n int) bool { return inList(list, n) != f.has("C") }
	return c.each(f.args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			line = strings.TrimSuffix(line, "\n")
			if f.has("f") {
				if !strings.Contains(line, delimiter) {
					if !f.has("s") {
						c.printf("%s\n", line)
					}
					return true
				}
				var picked []string
				for i, field := range strings.Split(line, delimiter) {
					if wanted(i + 1) {
						picked = append(picked, field)
					}
				}
				c.printf("%s\n", strings.Join(picked, output))
				return true
			}
			var b strings.Builder
			if f.has("c") {
				n := 0
				for _, r := range line {
					if n++; wanted(n) {
						b.WriteRune(r)
					}
				}
			} else {
				for i := range len(line) {
					if wanted(i + 1) {
						b.WriteByte(line[i])
					}
				}
			}
			c.printf("%s\n", b.String())
			return true
		})
	})
}

// trSet expands what tr calls a string.
func trSet(text string) []byte {
	var set []byte
	classes := map[string]func(byte) bool{
		"alpha": func(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }, "digit": func(b byte) bool { return b >= '0' && b <= '9' },
		"lower": func(b byte) bool { return b >= 'a' && b <= 'z' }, "upper": func(b byte) bool { return b >= 'A' && b <= 'Z' },
		"alnum": func(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' || b >= '0' && b <= '9' },
		"space": func(b byte) bool { return b == ' ' || b >= 9 && b <= 13 },
		"blank": func(b byte) bool { return b == ' ' || b == 9 },
		"punct": func(b byte) bool {
			return b > 32 && b < 127 && !(b|0x20 >= 'a' && b|0x20 <= 'z' || b >= '0' && b <= '9')
		},
		"cntrl":  func(b byte) bool { return b < 32 || b == 127 },
		"print":  func(b byte) bool { return b >= 32 && b < 127 },
		"graph":  func(b byte) bool { return b > 32 && b < 127 },
		"xdigit": func(b byte) bool { return b >= '0' && b <= '9' || b|0x20 >= 'a' && b|0x20 <= 'f' },
	}
	for i := 0; i < len(text); {
		if strings.HasPrefix(text[i:], "[:") {
			if end := strings.Index(text[i:], ":]"); end > 0 {
				if class, ok := classes[text[i+2:i+end]]; ok {
					for b := range 256 {
						if class(byte(b)) {
							set = append(set, byte(b))
						}
					}
					i += end + 2
					continue
				}
			}
		}
		b, n := trChar(text[i:])
		i += n
		if i+1 < len(text) && text[i] == '-' {
			to, n := trChar(text[i+1:])
			if to >= b {
				for x := int(b); x <= int(to); x++ {
					set = append(set, byte(x))
				}
				i += 1 + n
				continue
			}
		}
		set = append(set, b)
	}
	return set
}

func trChar(text string) (byte, int) {
	if text[0] != '\\' || len(text) == 1 {
		return text[0], 1
	}
	if at := strings.IndexByte(`abfnrtv\`, text[1]); at >= 0 {
		return "\a\b\f\n\r\t\v\\"[at], 2
	}
	n, value := 1, 0
	for n < len(text) && n < 4 && text[n] >= '0' && text[n] <= '7' {
		value = value*8 + int(text[n]-'0')
		n++
	}
	if n > 1 {
		return byte(value), n
	}
	return text[1], 2
}

func tr(c *Ctx) int {
	f := c.opts("+cCdst", "complement=c", "delete=d", "squeeze-repeats=s")
	if len(f.args) == 0 {
		c.usage("[-cds] STRING1 [STRING2]")
	}
	from := trSet(f.args[0])
	if f.has("c") || f.has("C") {
		var in [256]bool
		for _, b := range from {
			in[b] = true
		}
		from = nil
		for b := range 256 {
			if !in[b] {
				from = append(from, byte(b))
			}
		}
	}
	var to []byte
	if len(f.args) > 1 {
		to = trSet(f.args[1])
	}
	var translate [256]byte
	var remove, squeeze [256]bool
	for b := range translate {
		translate[b] = byte(b)
	}
	switch {
	case f.has("d"):
		for _, b := range from {
			remove[b] = true
		}
		for _, b := range to {
			squeeze[b] = f.has("s")
		}
	case len(to) > 0:
		for i, b := range from {
			translate[b] = to[min(i, len(to)-1)]
		}
		for _, b := range to {
			squeeze[b] = f.has("s")
		}
	case f.has("s"):
		for _, b := range from {
			squeeze[b] = true
		}
	default:
		c.usage("[-cds] STRING1 [STRING2]")
	}
	in := c.in()
	buffer := make([]byte, 16*1024)
	last := -1
	for {
		n, err := in.Read(buffer)
		out := buffer[:0]
		for _, b := range buffer[:n] {
			if remove[b] {
				continue
			}
			b = translate[b]
			if squeeze[b] && last == int(b) {
				continue
			}
			last = int(b)
			out = append(out, b)
		}
		c.Out.Write(out)
		if err != nil {
			return 0
		}
	}
}

func tee(c *Ctx) int {
	f := c.opts("ai", "append=a")
	code := 0
	outs := []io.Writer{c.Out}
	for _, name := range f.args {
		flag := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		if f.has("a") {
			flag = os.O_WRONLY | os.O_CREATE | os.O_APPEND
		}
		file, err := os.OpenFile(c.path(name), flag, 0o666)
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
			continue
		}
		defer file.Close()
		outs = append(outs, file)
	}
	in := c.in()
	buffer := make([]byte, 16*1024)
	for {
		n, err := in.Read(buffer)
		for _, out := range outs {
			out.Write(buffer[:n])
		}
		if err != nil {
			return code
		}
	}
}

func nl(c *Ctx) int {
	f := c.opts("b:w:s:v:n:")
	width, _ := strconv.Atoi(f.val("w", "6"))
	number, _ := strconv.Atoi(f.val("v", "1"))
	return c.each(f.args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			line = strings.TrimSuffix(line, "\n")
			if line == "" && f.val("b", "t") != "a" {
				c.printf("%*s%s\n", width+len(f.val("s", "\t")), "", line)
				return true
			}
			c.printf("%*d%s%s\n", width, number, f.val("s", "\t"), line)
			number++
			return true
		})
	})
}

func rev(c *Ctx) int {
	return c.each(c.opts("").args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			text, ended := strings.CutSuffix(line, "\n")
			runes := []rune(text)
			for i, j := 0, len(runes)-1; i < j; i, j = i+1, j-1 {
				runes[i], runes[j] = runes[j], runes[i]
			}
			c.printf("%s", string(runes))
			if ended {
				c.printf("\n")
			}
			return true
		})
	})
}

func tac(c *Ctx) int {
	return c.each(c.opts("").args, func(_ string, r io.Reader) error {
		var lines []string
		err := eachLine(r, func(line string) bool {
			lines = append(lines, line)
			return true
		})
		for i := len(lines) - 1; i >= 0; i-- {
			c.printf("%s", lines[i])
		}
		return err
	})
}

func fold(c *Ctx) int {
	f := c.opts("bsw:", "width:=w", "spaces=s")
	width, err := strconv.Atoi(f.val("w", "80"))
	if err != nil || width < 1 {
		c.die("invalid number '%s'", f.val("w", ""))
	}
	return c.each(f.args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			text, ended := strings.CutSuffix(line, "\n")
			runes := []rune(text)
			for len(runes) > width {
				at := width
				if f.has("s") {
					for i := width - 1; i > 0; i-- {
						if runes[i] == ' ' {
							at = i + 1
							break
						}
					}
				}
				c.printf("%s\n", string(runes[:at]))
				runes = runes[at:]
			}
			c.printf("%s", string(runes))
			if ended {
				c.printf("\n")
			}
			return true
		})
	})
}

func paste(c *Ctx) int {
	f := c.opts("sd:", "serial=s", "delimiters:=d")
	delimiters := trSet(f.val("d", "\t"))
	if len(delimiters) == 0 {
		delimiters = []byte{0}
	}
	names := f.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	var readers []*bufio.Reader
	shared := map[string]*bufio.Reader{}
	for _, name := range names {
		if r := shared[name]; r != nil && name == "-" {
			readers = append(readers, r)
			continue
		}
		r, err := c.open(name)
		if err != nil {
			c.die("can't open '%s': %s", name, reason(err))
		}
		defer r.Close()
		shared[name] = bufio.NewReader(r)
		readers = append(readers, shared[name])
	}
	if f.has("s") {
		for _, r := range readers {
			for i := 0; ; i++ {
				line, err := r.ReadString('\n')
				if line == "" && err != nil {
					break
				}
				if i > 0 {
					c.w().WriteByte(delimiters[(i-1)%len(delimiters)])
				}
				c.w().WriteString(strings.TrimSuffix(line, "\n"))
			}
			c.w().WriteByte('\n')
		}
		return 0
	}
	for {
		any := false
		var b strings.Builder
		for i, r := range readers {
			line, err := r.ReadString('\n')
			any = any || line != "" || err == nil
			if i > 0 {
				b.WriteByte(delimiters[(i-1)%len(delimiters)])
			}
			b.WriteString(strings.TrimSuffix(line, "\n"))
		}
		if !any {
			return 0
		}
		c.printf("%s\n", b.String())
	}
}

func (c *Ctx) linesOf(name string) []string {
	r, err := c.open(name)
	if err != nil {
		c.die("can't open '%s': %s", name, reason(err))
	}
	defer r.Close()
	var lines []string
	eachLine(r, func(line string) bool {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
		return true
	})
	return lines
}

func comm(c *Ctx) int {
	f := c.opts("123")
	if len(f.args) != 2 {
		c.usage("[-123] FILE1 FILE2")
	}
	a, b := c.linesOf(f.args[0]), c.linesOf(f.args[1])
	put := func(column int, line string) {
		if f.has(strconv.Itoa(column)) {
			return
		}
		for i := 1; i < column; i++ {
			if !f.has(strconv.Itoa(i)) {
				c.printf("\t")
			}
		}
		c.printf("%s\n", line)
	}
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			put(1, a[0])
			a = a[1:]
		case len(a) == 0 || b[0] < a[0]:
			put(2, b[0])
			b = b[1:]
		default:
			put(3, a[0])
			a, b = a[1:], b[1:]
		}
	}
	return 0
}

func split(c *Ctx) int {
	f := c.opts("a:b:l:")
	name, prefix := "-", "x"
	if len(f.args) > 0 {
		name = f.args[0]
	}
	if len(f.args) > 1 {
		prefix = f.args[1]
	}
	width, _ := strconv.Atoi(f.val("a", "2"))
	r, err := c.open(name)
	if err != nil {
		c.die("can't open '%s': %s", name, reason(err))
	}
	defer r.Close()
	part := 0
	next := func() *os.File {
		suffix := ""
		n := part
		for range width {
			suffix = string(rune('a'+n%26)) + suffix
			n /= 26
		}
		if n > 0 {
			c.die("suffixes exhausted")
		}
		part++
		file, err := os.Create(c.path(prefix + suffix))
		if err != nil {
			c.die("%s: %s", prefix+suffix, reason(err))
		}
		return file
	}
	if text := f.val("b", ""); text != "" {
		size, err := sizeOf(text)
		if err != nil || size < 1 {
			c.die("invalid number '%s'", text)
		}
		reader := bufio.NewReader(r)
		for {
			if _, err := reader.Peek(1); err != nil {
				return 0
			}
			file := next()
			io.CopyN(file, reader, size)
			file.Close()
		}
	}
	lines, err := strconv.Atoi(f.val("l", "1000"))
	if err != nil || lines < 1 {
		c.die("invalid number '%s'", f.val("l", ""))
	}
	var file *bufio.Writer
	var opened *os.File
	count := 0
	eachLine(r, func(line string) bool {
		if count%lines == 0 {
			if opened != nil {
				file.Flush()
				opened.Close()
			}
			opened = next()
			file = bufio.NewWriter(opened)
		}
		count++
		file.WriteString(line)
		return true
	})
	if opened != nil {
		file.Flush()
		opened.Close()
	}
	return 0
}

func stringsIn(c *Ctx) int {
	f := c.opts("afon:t:")
	least, _ := strconv.Atoi(f.val("n", "4"))
	return c.each(f.args, func(_ string, r io.Reader) error {
		reader := bufio.NewReader(r)
		var run []byte
		put := func() {
			if len(run) >= least {
				c.printf("%s\n", run)
			}
			run = run[:0]
		}
		for {
			b, err := reader.ReadByte()
			if err != nil {
				put()
				return nil
			}
			if b >= 32 && b < 127 || b == '\t' {
				run = append(run, b)
			} else {
				put()
			}
		}
	})
}

func seq(c *Ctx) int {
	// Negative numbers are no options.
	separator, width, args := "\n", false, c.Args[1:]
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && (args[0][1] == 's' || args[0][1] == 'w') {
		if args[0] == "-w" {
			width, args = true, args[1:]
			continue
		}
		if args[0] == "-s" && len(args) > 1 {
			separator, args = args[1], args[2:]
		} else {
			separator, args = args[0][2:], args[1:]
		}
	}
	if len(args) == 0 || len(args) > 3 {
		c.usage("[-w] [-s SEP] [FIRST [INC]] LAST")
	}
	decimals, digits := 0, 0
	number := func(text string) float64 {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			c.die("invalid number '%s'", text)
		}
		if _, fraction, ok := strings.Cut(text, "."); ok {
			decimals = max(decimals, len(fraction))
		}
		return n
	}
	first, step, last := 1.0, 1.0, 0.0
	switch len(args) {
	case 1:
		last = number(args[0])
	case 2:
		first, last = number(args[0]), number(args[1])
	case 3:
		first, step, last = number(args[0]), number(args[1]), number(args[2])
	}
	if step == 0 {
		c.die("increment is 0")
	}
	format := func(n float64) string { return strconv.FormatFloat(n, 'f', decimals, 64) }
	if width {
		digits = max(len(format(first)), len(format(last)))
	}
	for i := 0; ; i++ {
		n := first + float64(i)*step
		if step > 0 && n > last+1e-9 || step < 0 && n < last-1e-9 || c.done() {
			if i > 0 {
				c.printf("\n")
			}
			return 0
		}
		if i > 0 {
			c.printf("%s", separator)
		}
		text := format(n)
		for len(text) < digits {
			if n < 0 {
				text = "-0" + text[1:]
			} else {
				text = "0" + text
			}
		}
		c.printf("%s", text)
	}
}

func yes(c *Ctx) int {
	text := "y"
	if len(c.Args) > 1 {
		text = strings.Join(c.Args[1:], " ")
	}
	block := []byte(strings.Repeat(text+"\n", max(1, 4096/(len(text)+1))))
	for !c.done() {
		if _, err := c.Out.Write(block); err != nil {
			return 1
		}
	}
	return 130
}

func echo(c *Ctx) int {
	args := c.Args[1:]
	newline, escapes := true, false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "neE") == "" {
		for _, letter := range args[0][1:] {
			switch letter {
			case 'n':
				newline = false
			case 'e':
				escapes = true
			case 'E':
				escapes = false
			}
		}
		args = args[1:]
	}
	text := strings.Join(args, " ")
	if escapes {
		var stop bool
		if text, stop = unescape(text, true); stop {
			newline = false
		}
	}
	c.printf("%s", text)
	if newline {
		c.printf("\n")
	}
	return 0
}

// unescape replaces backslash sequences; stop is \c. With zero an octal number begins with 0, as in echo and %b.
func unescape(text string, zero bool) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		i++
		switch ch := text[i]; {
		case ch == 'c':
			return b.String(), true
		case ch == 'e':
			b.WriteByte(27)
		case strings.IndexByte(`abfnrtv\`, ch) >= 0:
			b.WriteByte("\a\b\f\n\r\t\v\\"[strings.IndexByte(`abfnrtv\`, ch)])
		case ch == 'x':
			n, value := 0, 0
			for n < 2 && i+1+n < len(text) {
				digit := strings.IndexByte("0123456789abcdef", text[i+1+n]|0x20)
				if text[i+1+n] >= '0' && text[i+1+n] <= '9' {
					digit = int(text[i+1+n] - '0')
				}
				if digit < 0 {
					break
				}
				value = value*16 + digit
				n++
			}
			if n == 0 {
				b.WriteString(`\x`)
			} else {
				b.WriteByte(byte(value))
				i += n
			}
		case ch >= '0' && ch <= '7':
			most := 3
			if zero && ch == '0' {
				most = 4
			}
			n, value := 0, 0
			for n < most && i+n < len(text) && text[i+n] >= '0' && text[i+n] <= '7' {
				value = value*8 + int(text[i+n]-'0')
				n++
			}
			b.WriteByte(byte(value))
			i += n - 1
		default:
			b.WriteByte('\\')
			b.WriteByte(ch)
		}
	}
	return b.String(), false
}

func basename(c *Ctx) int {
	f := c.opts("as:")
	if len(f.args) == 0 {
		c.usage("FILE [SUFFIX] | -a FILE... | -s SUFFIX FILE...")
	}
	suffix := f.val("s", "")
	names := f.args
	if !f.has("a") && !f.has("s") {
		names = f.args[:1]
		if len(f.args) > 1 {
			suffix = f.args[1]
		}
	}
	for _, name := range names {
		base := name
		if name != "" {
			base = path.Base(name)
		}
		if base != suffix {
			base = strings.TrimSuffix(base, suffix)
		}
		c.printf("%s\n", base)
	}
	return 0
}

func dirname(c *Ctx) int {
	f := c.opts("")
	if len(f.args) == 0 {
		c.usage("FILENAME")
	}
	for _, name := range f.args {
		c.printf("%s\n", path.Dir(strings.TrimRight(name, "/")+map[bool]string{true: "/", false: ""}[strings.Trim(name, "/") == "" && name != ""]))
	}
	return 0
}

func clearScreen(c *Ctx) int {
	c.printf("\x1b[H\x1b[J")
	return 0
}

func cmp(c *Ctx) int {
	f := c.opts("sln:")
	if len(f.args) == 0 {
		c.usage("[-ls] [-n NUM] FILE1 [FILE2]")
	}
	names := append(f.args, "-")[:2]
	var readers [2]*bufio.Reader
	for i, name := range names {
		r, err := c.open(name)
		if err != nil {
			c.errf("can't open '%s': %s", name, reason(err))
			return 2
		}
		defer r.Close()
		readers[i] = bufio.NewReader(r)
	}
	limit := int64(-1)
	if text := f.val("n", ""); text != "" {
		limit, _ = sizeOf(text)
	}
	at, line, code := int64(0), 1, 0
	for limit < 0 || at < limit {
		a, errA := readers[0].ReadByte()
		b, errB := readers[1].ReadByte()
		if errA != nil || errB != nil {
			if (errA == nil) != (errB == nil) {
				short := names[0]
				if errA == nil {
					short = names[1]
				}
				if !f.has("s") {
					c.errf("EOF on %s", short)
				}
				return 1
			}
			return code
		}
		at++
		if a != b {
			code = 1
			switch {
			case f.has("s"):
				return 1
			case f.has("l"):
				c.printf("%d %3o %3o\n", at, a, b)
			default:
				c.printf("%s %s differ: char %d, line %d\n", names[0], names[1], at, line)
				return 1
			}
		}
		if a == '\n' {
			line++
		}
	}
	return code
}

func cksum(c *Ctx) int {
	// POSIX's CRC: the polynomial of CRC-32 unreflected, with the length after the data.
	var table [256]uint32
	for i := range table {
		crc := uint32(i) << 24
		for range 8 {
			if crc&0x80000000 != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
		table[i] = crc
	}
	f := c.opts("")
	return c.each(f.args, func(name string, r io.Reader) error {
		crc, size := uint32(0), 0
		buffer := make([]byte, 16*1024)
		for {
			n, err := r.Read(buffer)
			for _, b := range buffer[:n] {
				crc = crc<<8 ^ table[byte(crc>>24)^b]
			}
			size += n
			if err != nil {
				break
			}
		}
		for n := size; n > 0; n >>= 8 {
			crc = crc<<8 ^ table[byte(crc>>24)^byte(n)]
		}
		c.printf("%d %d", ^crc, size)
		if len(f.args) > 0 {
			c.printf(" %s", name)
		}
		c.printf("\n")
		return nil
	})
}
