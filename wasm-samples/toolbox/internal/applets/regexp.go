package applets

import (
	"regexp"
	"strings"
)

// posixRegexp turns a POSIX regular expression (basic unless extended) into Go's.
func posixRegexp(text string, extended bool) string {
	var b strings.Builder
	atStart := true // a * here is a star
	for i := 0; i < len(text); i++ {
		ch := text[i]
		start := atStart
		atStart = false
		switch {
		case ch == '\\' && i+1 < len(text):
			i++
			next := text[i]
			switch {
			case strings.IndexByte("(){}|+?", next) >= 0:
				if extended {
					b.WriteByte('\\')
					b.WriteByte(next)
				} else {
					b.WriteByte(next)
					atStart = next == '(' || next == '|'
				}
			case next == '<' || next == '>':
				b.WriteString(`\b`)
			case next == '`':
				b.WriteString(`\A`)
			case next == '\'':
				b.WriteString(`\z`)
			case next == 'n':
				b.WriteByte('\n')
			case next == 't':
				b.WriteByte('\t')
			case strings.IndexByte("wWbBsSdD", next) >= 0:
				b.WriteByte('\\')
				b.WriteByte(next)
			case next >= '1' && next <= '9':
				// Go's engine has no back references; see hasBackReference.
				b.WriteString(`\x{10ffff}`)
			default:
				b.WriteString(regexp.QuoteMeta(string(next)))
			}
		case ch == '[':
			end := bracketEnd(text, i)
			if end < 0 {
				b.WriteString(`\[`)
				break
			}
			b.WriteString(bracket(text[i:end]))
			i = end - 1
		case ch == '*':
			if start && !extended {
				b.WriteString(`\*`)
			} else if !start {
				b.WriteByte('*')
			}
		case ch == '^':
			if extended || start {
				b.WriteByte('^')
				atStart = true
			} else {
				b.WriteString(`\^`)
			}
		case ch == '$':
			if extended || i+1 == len(text) || strings.HasPrefix(text[i+1:], `\)`) || strings.HasPrefix(text[i+1:], `\|`) {
				b.WriteByte('$')
			} else {
				b.WriteString(`\$`)
			}
		case strings.IndexByte("(){}|+?", ch) >= 0:
			switch {
			case !extended:
				b.WriteByte('\\')
				b.WriteByte(ch)
			case ch == '{' && (i+1 == len(text) || text[i+1] < '0' || text[i+1] > '9') && !strings.HasPrefix(text[i+1:], ","):
				b.WriteString(`\{`)
			case ch == '{' && strings.HasPrefix(text[i+1:], ","):
				b.WriteString("{0")
			default:
				b.WriteByte(ch)
				atStart = ch == '(' || ch == '|'
			}
		default:
			b.WriteByte(ch)
		}
	}
	return b.String()
}

// bracketEnd is where a bracket expression ends.
func bracketEnd(text string, start int) int {
	i := start + 1
	if i < len(text) && text[i] == '^' {
		i++
	}
	if i < len(text) && text[i] == ']' {
		i++
	}
	for i < len(text) {
		switch {
		case text[i] == '[' && i+1 < len(text) && strings.IndexByte(":.=", text[i+1]) >= 0:
			end := strings.Index(text[i+2:], string(text[i+1])+"]")
			if end < 0 {
				return -1
			}
			i += 2 + end + 2
		case text[i] == ']':
			return i + 1
		default:
			i++
		}
	}
	return -1
}

// bracket quotes what is special in Go's brackets and not in POSIX's.
func bracket(text string) string {
	var b strings.Builder
	inner := text[1 : len(text)-1]
	b.WriteByte('[')
	if strings.HasPrefix(inner, "^") {
		b.WriteByte('^')
		inner = inner[1:]
	}
	for i := 0; i < len(inner); i++ {
		switch {
		case strings.HasPrefix(inner[i:], "[:"):
			end := strings.Index(inner[i:], ":]")
			if end > 0 {
				b.WriteString(inner[i : i+end+2])
				i += end + 1
				continue
			}
			b.WriteString(`\[`)
		case inner[i] == '\\':
			// Literal in POSIX, but people write \n and \t.
			if i+1 < len(inner) && strings.IndexByte("ntr", inner[i+1]) >= 0 {
				b.WriteString(inner[i : i+2])
				i++
			} else {
				b.WriteString(`\\`)
			}
		case inner[i] == '[' || inner[i] == ']' || inner[i] == '&' || inner[i] == '~':
			b.WriteByte('\\')
			b.WriteByte(inner[i])
		default:
			b.WriteByte(inner[i])
		}
	}
	b.WriteByte(']')
	return b.String()
}

// hasBackReference tells whether an expression asks for what Go's engine cannot do.
func hasBackReference(text string) bool {
	for i := 0; i+1 < len(text); i++ {
		if text[i] == '\\' {
			if text[i+1] >= '1' && text[i+1] <= '9' {
				return true
			}
			i++
		}
	}
	return false
}

// matcher is a regular expression; one with back references is matched by trying.
type matcher struct {
	re   *regexp.Regexp
	back *backMatcher
}

// compile makes a matcher of a POSIX expression.
func compile(text string, extended, ignoreCase, multiline bool) (*matcher, error) {
	if hasBackReference(text) {
		back, err := newBackMatcher(text, extended, ignoreCase)
		return &matcher{back: back}, err
	}
	flags := ""
	if ignoreCase {
		flags += "i"
	}
	if multiline {
		flags += "m"
	} else {
		flags += "s"
	}
	re, err := regexp.Compile("(?" + flags + ")" + posixRegexp(text, extended))
	if err != nil {
		return nil, err
	}
	// POSIX wants the longest match of the leftmost.
	re.Longest()
	return &matcher{re: re}, nil
}

// find gives the positions of the first match at or after from, and of its groups; nil for none.
func (m *matcher) find(text string, from int) []int {
	if m.back != nil {
		return m.back.find(text, from)
	}
	if from == 0 {
		return m.re.FindStringSubmatchIndex(text)
	}
	// What stands before from must be seen by ^ and \b: all matches are looked at until one is far enough.
	for _, match := range m.re.FindAllStringSubmatchIndex(text, -1) {
		if match[0] >= from {
			return match
		}
	}
	return nil
}

// all gives every match that does not overlap another.
func (m *matcher) all(text string) [][]int {
	if m.back == nil {
		return m.re.FindAllStringSubmatchIndex(text, -1)
	}
	var matches [][]int
	for from := 0; from <= len(text); {
		match := m.back.find(text, from)
		if match == nil {
			break
		}
		matches = append(matches, match)
		from = match[1]
		if match[0] == match[1] {
			from++
		}
	}
	return matches
}

func (m *matcher) matches(text string) bool { return m.find(text, 0) != nil }
