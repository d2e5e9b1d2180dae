package applets

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// backMatcher matches expressions with back references by trying every way, which no automaton can do. It is a small
// engine for the few expressions that need it; its steps are bounded.
type backMatcher struct {
	root   *backNode
	groups int
	fold   bool
}

type backKind int

const (
	backChar backKind = iota
	backAny
	backSet
	backStart
	backEnd
	backGroup
	backRef
	backAlt
	backSeq
	backRepeat
	backWord
)

type backNode struct {
	kind     backKind
	char     byte
	set      *regexp.Regexp
	group    int
	children []*backNode
	min, max int
}

// maxBackSteps bounds the tries for one text.
const maxBackSteps = 2_000_000

var errRegexp = errors.New("bad regex")

type backParser struct {
	text     string
	at       int
	extended bool
	groups   int
}

func newBackMatcher(text string, extended, fold bool) (*backMatcher, error) {
	p := &backParser{text: text, extended: extended}
	root, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if p.at < len(p.text) {
		return nil, errRegexp
	}
	return &backMatcher{root: root, groups: p.groups, fold: fold}, nil
}

// token looks for an operator, which basic expressions write with a backslash.
func (p *backParser) token(op string) bool {
	want := op
	if !p.extended {
		want = `\` + op
	}
	if strings.HasPrefix(p.text[p.at:], want) {
		p.at += len(want)
		return true
	}
	return false
}

func (p *backParser) alternatives() (*backNode, error) {
	node := &backNode{kind: backAlt}
	for {
		seq, err := p.sequence()
		if err != nil {
			return nil, err
		}
		node.children = append(node.children, seq)
		if !p.token("|") {
			return node, nil
		}
	}
}

func (p *backParser) sequence() (*backNode, error) {
	node := &backNode{kind: backSeq}
	for p.at < len(p.text) {
		mark := p.at
		if p.token("|") || p.token(")") {
			p.at = mark
			return node, nil
		}
		atom, err := p.atom(len(node.children) == 0)
		if err != nil {
			return nil, err
		}
		for p.at < len(p.text) {
			low, high := -1, -1
			switch {
			case p.text[p.at] == '*':
				p.at++
				low, high = 0, -1
			case p.token("+"):
				low, high = 1, -1
			case p.token("?"):
				low, high = 0, 1
			case p.token("{"):
				close := "}"
				if !p.extended {
					close = `\}`
				}
				body, _, ok := strings.Cut(p.text[p.at:], close)
				if !ok {
					return nil, errRegexp
				}
				p.at += len(body) + len(close)
				a, b, ranged := strings.Cut(body, ",")
				low, _ = strconv.Atoi(a)
				high = low
				if ranged {
					high = -1
					if b != "" {
						high, _ = strconv.Atoi(b)
					}
				}
			}
			if low < 0 {
				break
			}
			atom = &backNode{kind: backRepeat, children: []*backNode{atom}, min: low, max: high}
		}
		node.children = append(node.children, atom)
	}
	return node, nil
}

func (p *backParser) atom(first bool) (*backNode, error) {
	if p.token("(") {
		p.groups++
		number := p.groups
		inner, err := p.alternatives()
		if err != nil {
			return nil, err
		}
		if !p.token(")") {
			return nil, errRegexp
		}
		return &backNode{kind: backGroup, group: number, children: []*backNode{inner}}, nil
	}
	ch := p.text[p.at]
	switch {
	case ch == '\\' && p.at+1 < len(p.text):
		next := p.text[p.at+1]
		p.at += 2
		switch {
		case next >= '1' && next <= '9':
			if int(next-'0') > p.groups {
				return nil, errors.New("Invalid back reference")
			}
			return &backNode{kind: backRef, group: int(next - '0')}, nil
		case next == '<' || next == '>' || next == 'b':
			return &backNode{kind: backWord}, nil
		case next == 'w' || next == 'W' || next == 's' || next == 'S':
			return &backNode{kind: backSet, set: regexp.MustCompile(`\` + string(next))}, nil
		case next == 'n':
			next = '\n'
		case next == 't':
			next = '\t'
		}
		return &backNode{kind: backChar, char: next}, nil
	case ch == '[':
		if end := bracketEnd(p.text, p.at); end > 0 {
			set, err := regexp.Compile(bracket(p.text[p.at:end]))
			p.at = end
			return &backNode{kind: backSet, set: set}, err
		}
	case ch == '.':
		p.at++
		return &backNode{kind: backAny}, nil
	case ch == '^' && (p.extended || first):
		p.at++
		return &backNode{kind: backStart}, nil
	case ch == '$' && (p.extended || p.at+1 == len(p.text) || strings.HasPrefix(p.text[p.at+1:], `\)`)):
		p.at++
		return &backNode{kind: backEnd}, nil
	}
	p.at++
	return &backNode{kind: backChar, char: ch}, nil
}

type backRun struct {
	m     *backMatcher
	text  string
	pos   []int
	steps int
}

func (m *backMatcher) find(text string, from int) []int {
	for start := from; start <= len(text); start++ {
		run := &backRun{m: m, text: text, pos: make([]int, 2*(m.groups+1))}
		for i := range run.pos {
			run.pos[i] = -1
		}
		best := []int(nil)
		run.match(m.root, start, func(end int) bool {
			if best == nil || end > best[1] {
				run.pos[0], run.pos[1] = start, end
				best = append([]int(nil), run.pos...)
			}
			return end == len(text)
		})
		if best != nil {
			return best
		}
	}
	return nil
}

func (r *backRun) same(a, b string) bool {
	if r.m.fold {
		return strings.EqualFold(a, b)
	}
	return a == b
}

// match calls then with every end of a match of node at at, until one is enough.
func (r *backRun) match(node *backNode, at int, then func(int) bool) bool {
	if r.steps++; r.steps > maxBackSteps {
		return true
	}
	switch node.kind {
	case backChar:
		return at < len(r.text) && r.same(r.text[at:at+1], string(node.char)) && then(at+1)
	case backAny:
		return at < len(r.text) && then(at+1)
	case backSet:
		if at >= len(r.text) {
			return false
		}
		in := node.set.MatchString(r.text[at : at+1])
		if !in && r.m.fold {
			in = node.set.MatchString(strings.ToLower(r.text[at:at+1])) || node.set.MatchString(strings.ToUpper(r.text[at:at+1]))
		}
		return in && then(at+1)
	case backStart:
		return at == 0 && then(at)
	case backEnd:
		return at == len(r.text) && then(at)
	case backWord:
		word := func(i int) bool {
			return i >= 0 && i < len(r.text) && (r.text[i] == '_' || unicode.IsLetter(rune(r.text[i])) || unicode.IsDigit(rune(r.text[i])))
		}
		return word(at-1) != word(at) && then(at)
	case backRef:
		a, b := r.pos[2*node.group], r.pos[2*node.group+1]
		if a < 0 || at+b-a > len(r.text) || !r.same(r.text[a:b], r.text[at:at+b-a]) {
			return false
		}
		return then(at + b - a)
	case backGroup:
		i := 2 * node.group
		oldA, oldB := r.pos[i], r.pos[i+1]
		done := r.match(node.children[0], at, func(end int) bool {
			a, b := r.pos[i], r.pos[i+1]
			r.pos[i], r.pos[i+1] = at, end
			if then(end) {
				return true
			}
			r.pos[i], r.pos[i+1] = a, b
			return false
		})
		if !done {
			r.pos[i], r.pos[i+1] = oldA, oldB
		}
		return done
	case backAlt:
		for _, child := range node.children {
			if r.match(child, at, then) {
				return true
			}
		}
		return false
	case backSeq:
		return r.sequence(node.children, at, then)
	case backRepeat:
		return r.repeat(node, at, 0, then)
	}
	return false
}

func (r *backRun) sequence(nodes []*backNode, at int, then func(int) bool) bool {
	if len(nodes) == 0 {
		return then(at)
	}
	return r.match(nodes[0], at, func(end int) bool { return r.sequence(nodes[1:], end, then) })
}

func (r *backRun) repeat(node *backNode, at, count int, then func(int) bool) bool {
	if node.max < 0 || count < node.max {
		more := r.match(node.children[0], at, func(end int) bool {
			return (end > at || count < node.min) && r.repeat(node, end, count+1, then)
		})
		if more {
			return true
		}
	}
	return count >= node.min && then(at)
}
