package applets

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"math/rand/v2"
)

func init() {
	for name, applet := range map[string]Applet{
		"nc": nc, "nslookup": nslookup, "dig": dig, "getent": getent, "ping": ping, "ss": ss, "netstat": ss,
	} {
		Register(name, applet)
	}
}

func nc(c *Ctx) int {
	f := c.opts("luvznkdNp:w:i:e:s:q:46tU")
	network := "tcp"
	if f.has("u") {
		network = "udp"
	}
	if f.has("4") {
		network += "4"
	}
	if f.has("6") {
		network += "6"
	}
	wait := time.Duration(0)
	if text := f.val("w", ""); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			c.die("invalid number '%s'", text)
		}
		wait = time.Duration(seconds * float64(time.Second))
	}
	args := f.args
	// Everything after -e PROG is its arguments.
	var program []string
	if f.has("e") {
		program = []string{f.val("e", "")}
	}
	if f.has("l") {
		return c.listen(f, network, args, wait, program)
	}
	if len(args) < 2 {
		c.usage("[-lunvz] [-p PORT] [-w SEC] HOST PORT  or  nc -l [-k] [-p PORT] [PORT]")
	}
	code := 1
	for _, port := range portRange(args[1]) {
		address := net.JoinHostPort(args[0], port)
		dialer := net.Dialer{Timeout: wait}
		if local := f.val("s", ""); local != "" || f.has("p") {
			if network[:3] == "tcp" {
				dialer.LocalAddr, _ = net.ResolveTCPAddr(network, net.JoinHostPort(local, f.val("p", "0")))
			} else {
				dialer.LocalAddr, _ = net.ResolveUDPAddr(network, net.JoinHostPort(local, f.val("p", "0")))
			}
		}
		conn, err := dialer.DialContext(c.Context, network, address)
		if err != nil {
			why := netReason(err)
			if strings.HasPrefix(why, "bad address") {
				c.die("%s", why)
			}
			if f.has("v") || !f.has("z") {
				remote := address
				var op *net.OpError
				if errors.As(err, &op) && op.Addr != nil {
					remote = op.Addr.String()
				}
				c.errf("%s (%s): %s", args[0], remote, why)
			}
			continue
		}
		code = 0
		if f.has("v") {
			fmt.Fprintf(c.Err, "%s (%s) open\n", args[0], conn.RemoteAddr())
		}
		if f.has("z") {
			conn.Close()
			continue
		}
		return c.relay(f, conn, wait, program)
	}
	return code
}

// portRange is PORT or FIRST-LAST.
func portRange(text string) []string {
	first, last, ok := strings.Cut(text, "-")
	from, err1 := strconv.Atoi(first)
	to, err2 := strconv.Atoi(last)
	if !ok || err1 != nil || err2 != nil || to < from || to > 65535 {
		return []string{text}
	}
	var ports []string
	for port := from; port <= to; port++ {
		ports = append(ports, strconv.Itoa(port))
	}
	return ports
}

func (c *Ctx) listen(f *flags, network string, args []string, wait time.Duration, program []string) int {
	host, port := "", f.val("p", "")
	switch {
	case len(args) >= 2:
		host, port = args[0], args[1]
	case len(args) == 1 && port == "":
		port = args[0]
	case len(args) == 1:
		host = args[0]
	}
	address := net.JoinHostPort(host, orElse(port, "0"))
	if f.has("u") {
		return c.listenUDP(network, address)
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		c.die("bind: %s", netReason(err))
	}
	defer listener.Close()
	stop := context.AfterFunc(c.Context, func() { listener.Close() })
	defer stop()
	if f.has("v") {
		fmt.Fprintf(c.Err, "listening on %s ...\n", listener.Addr())
	}
	for {
		if wait > 0 {
			listener.(*net.TCPListener).SetDeadline(time.Now().Add(wait))
		}
		conn, err := listener.Accept()
		if err != nil {
			if c.done() {
				return 130
			}
			c.die("accept: %s", netReason(err))
		}
		if f.has("v") {
			fmt.Fprintf(c.Err, "connect to %s from %s\n", conn.LocalAddr(), conn.RemoteAddr())
		}
		if !f.has("k") {
			listener.Close()
			return c.relay(f, conn, 0, program)
		}
		c.relay(f, conn, 0, program)
	}
}

// listenUDP shows what comes, and sends input to whoever came first.
func (c *Ctx) listenUDP(network, address string) int {
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		c.die("bind: %s", netReason(err))
	}
	defer conn.Close()
	stop := context.AfterFunc(c.Context, func() { conn.Close() })
	defer stop()
	var once sync.Once
	buffer := make([]byte, 64*1024)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return 1
		}
		c.Out.Write(buffer[:n])
		once.Do(func() {
			if c.In == nil {
				return
			}
			go func() {
				input := make([]byte, 16*1024)
				for {
					n, err := c.In.Read(input)
					if n > 0 {
						conn.WriteTo(input[:n], from)
					}
					if err != nil {
						return
					}
				}
			}()
		})
	}
}

// relay copies both ways until the other side has no more to say.
func (c *Ctx) relay(f *flags, conn net.Conn, wait time.Duration, program []string) int {
	defer conn.Close()
	stop := context.AfterFunc(c.Context, func() { conn.Close() })
	defer stop()
	if len(program) > 0 {
		return c.relayProgram(conn, program)
	}
	finished := make(chan struct{})
	if c.In != nil && !f.has("d") {
		go func() {
			defer close(finished)
			buffer := make([]byte, 16*1024)
			for {
				n, err := c.In.Read(buffer)
				if n > 0 {
					if _, err := conn.Write(buffer[:n]); err != nil {
						return
					}
				}
				if err != nil {
					if half, ok := conn.(interface{ CloseWrite() error }); ok {
						half.CloseWrite()
					} else if f.has("u") && wait > 0 {
						conn.SetReadDeadline(time.Now().Add(wait))
					}
					return
				}
			}
		}()
	}
	buffer := make([]byte, 16*1024)
	for {
		if wait > 0 {
			conn.SetReadDeadline(time.Now().Add(wait))
		}
		n, err := conn.Read(buffer)
		if n > 0 {
			c.Out.Write(buffer[:n])
		}
		if err != nil {
			if c.done() {
				return 130
			}
			// Whoever waits for input must be let go.
			if c.In != nil && !f.has("d") {
				select {
				case <-finished:
				case <-time.After(100 * time.Millisecond):
					c.In.SetReadDeadline(Past)
					<-finished
					c.In.SetReadDeadline(Never)
				}
			}
			return 0
		}
	}
}

func (c *Ctx) relayProgram(conn net.Conn, program []string) int {
	pr, pw, err := os.Pipe()
	if err != nil {
		c.die("%s", reason(err))
	}
	go func() {
		io.Copy(pw, conn)
		pw.Close()
	}()
	cmd := c.command(program)
	cmd.Stdin, cmd.Stdout = pr, conn
	code := cmd.failsAs("").Run(c.Context)
	pr.Close()
	return code
}

// The DNS on the wire, for the tools that show it.

var dnsTypes = map[string]uint16{"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "ANY": 255}

func dnsTypeName(number uint16) string {
	for name, known := range dnsTypes {
		if known == number {
			return name
		}
	}
	return "TYPE" + strconv.Itoa(int(number))
}

type dnsRecord struct {
	name, text string
	kind       uint16
	ttl        uint32
}

type dnsAnswer struct {
	code                           int
	id                             uint16
	authoritative, truncated       bool
	answers, authority, additional []dnsRecord
	server                         string
	took                           time.Duration
	size                           int
}

var dnsCodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

func (a *dnsAnswer) codeName() string {
	if a.code < len(dnsCodes) {
		return dnsCodes[a.code]
	}
	return "RCODE" + strconv.Itoa(a.code)
}

// resolvConf is /etc/resolv.conf.
type resolvConf struct {
	servers, search []string
	ndots           int
}

func readResolvConf() resolvConf {
	conf := resolvConf{ndots: 1}
	text, _ := os.ReadFile("/etc/resolv.conf")
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			conf.servers = append(conf.servers, fields[1])
		case "search", "domain":
			conf.search = fields[1:]
		case "options":
			for _, option := range fields[1:] {
				if n, ok := strings.CutPrefix(option, "ndots:"); ok {
					conf.ndots, _ = strconv.Atoi(n)
				}
			}
		}
	}
	if len(conf.servers) == 0 {
		conf.servers = []string{"127.0.0.1"}
	}
	return conf
}

// candidates are the full names to try for a name.
func (r resolvConf) candidates(name string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var searched []string
	for _, domain := range r.search {
		searched = append(searched, name+"."+strings.TrimSuffix(domain, ".")+".")
	}
	if strings.Count(name, ".") >= r.ndots {
		return append([]string{name + "."}, searched...)
	}
	return append(searched, name+".")
}

func dnsQuery(ctx context.Context, server, port, name string, kind uint16, tcp bool, timeout time.Duration) (*dnsAnswer, error) {
	id := uint16(rand.N(1 << 16))
	message := binary.BigEndian.AppendUint16(nil, id)
	message = append(message, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for _, label := range strings.Split(strings.TrimSuffix(name, "."), ".") {
		if label == "" && strings.Trim(name, ".") == "" {
			break
		}
		if len(label) == 0 || len(label) > 63 {
			return nil, fmt.Errorf("bad name '%s'", name)
		}
		message = append(append(message, byte(len(label))), label...)
	}
	message = append(message, 0)
	message = binary.BigEndian.AppendUint16(message, kind)
	message = append(message, 0, 1)
	network := "udp"
	if tcp {
		network = "tcp"
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	started := time.Now()
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(server, port))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write(message); err != nil {
		return nil, err
	}
	buffer := make([]byte, 64*1024)
	for {
		n := 0
		if tcp {
			if _, err = io.ReadFull(conn, buffer[:2]); err == nil {
				n, err = io.ReadFull(conn, buffer[:binary.BigEndian.Uint16(buffer)])
			}
		} else {
			n, err = conn.Read(buffer)
		}
		if err != nil {
			return nil, err
		}
		if n < 12 || binary.BigEndian.Uint16(buffer) != id {
			continue
		}
		answer, err := parseDNS(buffer[:n])
		if err != nil {
			return nil, err
		}
		if answer.truncated && !tcp {
			return dnsQuery(ctx, server, port, name, kind, true, timeout)
		}
		answer.server, answer.took, answer.size = server, time.Since(started), n
		return answer, nil
	}
}

var errDNS = errors.New("malformed DNS message")

func parseDNS(m []byte) (*dnsAnswer, error) {
	flags := binary.BigEndian.Uint16(m[2:])
	answer := &dnsAnswer{id: binary.BigEndian.Uint16(m), code: int(flags & 15), authoritative: flags&0x400 != 0, truncated: flags&0x200 != 0}
	at := 12
	for range binary.BigEndian.Uint16(m[4:]) {
		_, next, err := dnsName(m, at)
		if err != nil || next+4 > len(m) {
			return nil, errDNS
		}
		at = next + 4
	}
	for i, section := range []*[]dnsRecord{&answer.answers, &answer.authority, &answer.additional} {
		for range binary.BigEndian.Uint16(m[6+2*i:]) {
			name, next, err := dnsName(m, at)
			if err != nil || next+10 > len(m) {
				return nil, errDNS
			}
			record := dnsRecord{name: name, kind: binary.BigEndian.Uint16(m[next:]), ttl: binary.BigEndian.Uint32(m[next+4:])}
			length := int(binary.BigEndian.Uint16(m[next+8:]))
			start := next + 10
			if at = start + length; at > len(m) {
				return nil, errDNS
			}
			record.text = dnsData(m, start, length, record.kind)
			if record.kind != 41 { // OPT
				*section = append(*section, record)
			}
		}
	}
	return answer, nil
}

// dnsName reads a name; jumps only go back, so they end.
func dnsName(m []byte, at int) (string, int, error) {
	var labels []string
	end, limit := -1, at
	for {
		if at >= len(m) {
			return "", 0, errDNS
		}
		length := int(m[at])
		switch {
		case length == 0:
			if end < 0 {
				end = at + 1
			}
			return strings.Join(labels, ".") + ".", end, nil
		case length&0xc0 == 0xc0:
			if at+1 >= len(m) {
				return "", 0, errDNS
			}
			if end < 0 {
				end = at + 2
			}
			to := (length&0x3f)<<8 | int(m[at+1])
			if to >= limit {
				return "", 0, errDNS
			}
			at, limit = to, to
		default:
			if at+1+length > len(m) {
				return "", 0, errDNS
			}
			labels = append(labels, string(m[at+1:at+1+length]))
			at += 1 + length
		}
	}
}

func dnsData(m []byte, at, length int, kind uint16) string {
	data := m[at : at+length]
	name := func(from int) string {
		text, _, err := dnsName(m, from)
		if err != nil {
			return "?"
		}
		return text
	}
	switch {
	case kind == 1 && length == 4, kind == 28 && length == 16:
		return net.IP(data).String()
	case kind == 5 || kind == 2 || kind == 12:
		return name(at)
	case kind == 15 && length > 2:
		return fmt.Sprintf("%d %s", binary.BigEndian.Uint16(data), name(at+2))
	case kind == 33 && length > 6:
		return fmt.Sprintf("%d %d %d %s", binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:]), binary.BigEndian.Uint16(data[4:]), name(at+6))
	case kind == 16:
		var parts []string
		for len(data) > 0 && int(data[0]) < len(data) {
			parts = append(parts, strconv.Quote(string(data[1:1+data[0]])))
			data = data[1+data[0]:]
		}
		return strings.Join(parts, " ")
	case kind == 6:
		primary, next, err := dnsName(m, at)
		if err != nil {
			return "?"
		}
		mailbox, next, err := dnsName(m, next)
		if err != nil || next+20 > len(m) {
			return "?"
		}
		text := primary + " " + mailbox
		for i := range 5 {
			text += " " + strconv.FormatUint(uint64(binary.BigEndian.Uint32(m[next+4*i:])), 10)
		}
		return text
	}
	return fmt.Sprintf("\\# %d %x", length, data)
}

// reverseName is the name under which an address has its PTR.
func reverseName(ip net.IP) string {
	if v4 := ip.To4(); v4 != nil {
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", v4[3], v4[2], v4[1], v4[0])
	}
	var b strings.Builder
	for i := len(ip) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "%x.%x.", ip[i]&15, ip[i]>>4)
	}
	return b.String() + "ip6.arpa."
}

func (c *Ctx) askAny(servers []string, port, name string, kind uint16, tcp bool, timeout time.Duration, tries int) (*dnsAnswer, error) {
	var last error
	for range tries {
		for _, server := range servers {
			answer, err := dnsQuery(c.Context, server, port, name, kind, tcp, timeout)
			if err == nil {
				return answer, nil
			}
			last = err
			if c.done() {
				panic(quit(130))
			}
		}
	}
	return nil, last
}

func nslookup(c *Ctx) int {
	kinds := []uint16{1, 28}
	var args []string
	port := "53"
	timeout, tries := 5*time.Second, 2
	for _, arg := range c.Args[1:] {
		option, isOption := strings.CutPrefix(arg, "-")
		name, value, _ := strings.Cut(option, "=")
		switch {
		case !isOption:
			args = append(args, arg)
		case strings.HasPrefix("querytype", name) && name != "" || name == "type" || name == "qt":
			kind, ok := dnsTypes[strings.ToUpper(value)]
			if !ok {
				c.die("invalid query type \"%s\"", value)
			}
			kinds = []uint16{kind}
		case name == "port":
			port = value
		case name == "timeout":
			if n, err := strconv.Atoi(value); err == nil {
				timeout = time.Duration(n) * time.Second
			}
		case name == "retry":
			if n, err := strconv.Atoi(value); err == nil {
				tries = n
			}
		}
	}
	if len(args) == 0 {
		c.usage("[-type=QUERY_TYPE] HOST [DNS_SERVER]")
	}
	conf := readResolvConf()
	if len(args) > 1 {
		addresses, err := net.DefaultResolver.LookupHost(c.Context, args[1])
		if err != nil {
			c.die("bad address '%s'", args[1])
		}
		conf.servers = addresses[:1]
	}
	names := conf.candidates(args[0])
	if ip := net.ParseIP(args[0]); ip != nil {
		names, kinds = []string{reverseName(ip)}, []uint16{12}
	}
	shown, found, code := false, false, 0
	failure := ""
	for _, name := range names {
		for _, kind := range kinds {
			answer, err := c.askAny(conf.servers, port, name, kind, false, timeout, tries)
			if err != nil {
				c.printf(";; connection timed out; no servers could be reached\n\n")
				return 1
			}
			if !shown {
				c.printf("Server:\t\t%s\nAddress:\t%s\n\n", answer.server, net.JoinHostPort(answer.server, port))
				shown = true
			}
			if answer.code != 0 {
				failure = fmt.Sprintf("** server can't find %s: %s\n\n", strings.TrimSuffix(name, "."), answer.codeName())
				continue
			}
			for _, record := range answer.answers {
				found = true
				owner := strings.TrimSuffix(record.name, ".")
				text := strings.TrimSuffix(record.text, ".")
				switch record.kind {
				case 1, 28:
					c.printf("Name:\t%s\nAddress: %s\n", owner, record.text)
				case 5:
					c.printf("%s\tcanonical name = %s\n", owner, text)
				case 12:
					c.printf("%s\tname = %s\n", owner, text)
				case 33:
					c.printf("%s\tservice = %s\n", owner, text)
				case 16:
					c.printf("%s\ttext = %s\n", owner, record.text)
				case 2:
					c.printf("%s\tnameserver = %s\n", owner, text)
				case 15:
					c.printf("%s\tmail exchanger = %s\n", owner, text)
				default:
					c.printf("%s\t%s\n", owner, record.text)
				}
			}
			if len(answer.answers) > 0 {
				c.printf("\n")
			}
		}
		if found {
			return 0
		}
	}
	if failure == "" {
		failure = fmt.Sprintf("*** Can't find %s: No answer\n\n", args[0])
	}
	c.printf("%s", failure)
	code = 1
	return code
}

func dig(c *Ctx) int {
	conf := readResolvConf()
	name, kind, port := "", uint16(1), "53"
	short, search, tcp := false, false, false
	show := map[string]bool{"comments": true, "question": true, "answer": true, "authority": true, "additional": true, "stats": true, "cmd": true}
	timeout, tries := 5*time.Second, 3
	args := c.Args[1:]
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg[0] == '@':
			addresses, err := net.DefaultResolver.LookupHost(c.Context, arg[1:])
			if err != nil {
				c.printf("dig: couldn't get address for '%s': not found\n", arg[1:])
				return 10
			}
			conf.servers = addresses
		case arg[0] == '+':
			option, value, _ := strings.Cut(arg[1:], "=")
			on := !strings.HasPrefix(option, "no")
			plain := strings.TrimPrefix(option, "no")
			switch plain {
			case "short":
				short = on
			case "search":
				search = on
			case "tcp", "vc":
				tcp = on
			case "all":
				for section := range show {
					show[section] = on
				}
			case "time", "timeout":
				if n, err := strconv.Atoi(value); err == nil {
					timeout = time.Duration(n) * time.Second
				}
			case "tries", "retry":
				if n, err := strconv.Atoi(value); err == nil {
					tries = n
				}
			default:
				if _, known := show[plain]; known {
					show[plain] = on
				}
			}
		case arg == "-p" && i+1 < len(args):
			i++
			port = args[i]
		case arg == "-t" && i+1 < len(args):
			i++
			kind = dnsTypes[strings.ToUpper(args[i])]
		case arg == "-x" && i+1 < len(args):
			i++
			ip := net.ParseIP(args[i])
			if ip == nil {
				c.printf("Invalid IP address %s\n", args[i])
				return 1
			}
			name, kind = reverseName(ip), 12
		case arg == "-4" || arg == "-6" || strings.EqualFold(arg, "IN"):
		case dnsTypes[strings.ToUpper(arg)] != 0:
			kind = dnsTypes[strings.ToUpper(arg)]
		case name == "" && arg[0] != '-':
			name = arg
		}
	}
	if name == "" {
		name, kind = ".", 2
	}
	names := []string{strings.TrimSuffix(name, ".") + "."}
	if search {
		names = conf.candidates(name)
	}
	var answer *dnsAnswer
	var err error
	asked := names[0]
	for _, candidate := range names {
		asked = candidate
		answer, err = c.askAny(conf.servers, port, candidate, kind, tcp, timeout, tries)
		if err != nil {
			c.printf(";; connection timed out; no servers could be reached\n")
			return 9
		}
		if answer.code == 0 && len(answer.answers) > 0 {
			break
		}
	}
	if short {
		for _, record := range answer.answers {
			c.printf("%s\n", record.text)
		}
		return 0
	}
	if show["cmd"] {
		c.printf("\n; <<>> DiG (Wasilet toolbox) <<>> %s\n", strings.Join(c.Args[1:], " "))
	}
	if show["comments"] {
		bits := "qr rd ra"
		if answer.authoritative {
			bits = "qr aa rd ra"
		}
		c.printf(";; Got answer:\n;; ->>HEADER<<- opcode: QUERY, status: %s, id: %d\n;; flags: %s; QUERY: 1, ANSWER: %d, AUTHORITY: %d, ADDITIONAL: %d\n\n",
			answer.codeName(), answer.id, bits, len(answer.answers), len(answer.authority), len(answer.additional))
	}
	if show["question"] {
		c.printf(";; QUESTION SECTION:\n;%s\t\t\tIN\t%s\n\n", asked, dnsTypeName(kind))
	}
	section := func(title, name string, records []dnsRecord) {
		if len(records) == 0 || !show[name] {
			return
		}
		if show["comments"] {
			c.printf(";; %s SECTION:\n", title)
		}
		for _, record := range records {
			c.printf("%s\t\t%d\tIN\t%s\t%s\n", record.name, record.ttl, dnsTypeName(record.kind), record.text)
		}
		if show["comments"] {
			c.printf("\n")
		}
	}
	section("ANSWER", "answer", answer.answers)
	section("AUTHORITY", "authority", answer.authority)
	section("ADDITIONAL", "additional", answer.additional)
	if show["stats"] {
		c.printf(";; Query time: %d msec\n;; SERVER: %s#%s(%s)\n;; WHEN: %s\n;; MSG SIZE  rcvd: %d\n\n", answer.took.Milliseconds(), answer.server, port, answer.server,
			time.Now().Format("Mon Jan 02 15:04:05 MST 2006"), answer.size)
	}
	return 0
}

func getent(c *Ctx) int {
	f := c.opts("+s:i")
	if len(f.args) == 0 {
		c.usage("DATABASE [KEY]...")
	}
	database, keys := f.args[0], f.args[1:]
	switch database {
	case "hosts", "ahosts", "ahostsv4", "ahostsv6":
		return c.getentHosts(database, keys)
	case "passwd", "group", "services", "protocols", "networks":
		text, err := os.ReadFile("/etc/" + database)
		if err != nil && len(keys) > 0 {
			return 2
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(keys) == 0 {
			c.printf("%s\n", strings.Join(lines, "\n"))
			return 0
		}
		for _, key := range keys {
			found := false
			for _, line := range lines {
				fields := strings.Split(line, ":")
				if fields[0] == key || len(fields) > 2 && fields[2] == key {
					c.printf("%s\n", line)
					found = true
					break
				}
			}
			if !found {
				return 2
			}
		}
		return 0
	}
	fmt.Fprintf(c.Err, "Unknown database: %s\n", database)
	return 1
}

func (c *Ctx) getentHosts(database string, keys []string) int {
	if len(keys) == 0 {
		for _, fields := range hostsLines() {
			c.printf("%-15s %s\n", fields[0], strings.Join(fields[1:], " "))
		}
		return 0
	}
	for _, key := range keys {
		if ip := net.ParseIP(key); ip != nil && database == "hosts" {
			names, err := net.DefaultResolver.LookupAddr(c.Context, key)
			if err != nil || len(names) == 0 {
				return 2
			}
			c.printf("%-15s %s\n", key, strings.TrimSuffix(names[0], "."))
			continue
		}
		network := map[string]string{"ahostsv4": "ip4", "ahostsv6": "ip6"}[database]
		addresses, err := net.DefaultResolver.LookupIP(c.Context, orElse(network, "ip"), key)
		if err != nil || len(addresses) == 0 {
			return 2
		}
		canonical := longName(key)
		for i, ip := range addresses {
			if database == "hosts" {
				// The aliases come too, as in the hosts file.
				names := canonical
				for _, fields := range hostsLines() {
					if fields[0] == ip.String() {
						for _, name := range fields[1:] {
							if name == key {
								names = strings.Join(fields[1:], " ")
							}
						}
					}
				}
				c.printf("%-15s %s\n", ip, names)
				continue
			}
			for j, kind := range []string{"STREAM", "DGRAM", "RAW"} {
				suffix := ""
				if i == 0 && j == 0 {
					suffix = " " + canonical
				}
				c.printf("%-15s %s%s\n", ip, kind, suffix)
			}
		}
	}
	return 0
}

// ping connects instead of sending ICMP, which takes a right that no pod has: an answer, even a refusal, is a sign of life.
func ping(c *Ctx) int {
	f := c.opts("46c:w:W:i:qs:I:t:n")
	if len(f.args) == 0 {
		c.usage("[-c COUNT] [-W SEC] [-p PORT] HOST")
	}
	count := -1
	if n, err := strconv.Atoi(f.val("c", "")); err == nil {
		count = n
	}
	seconds := func(name, otherwise string) time.Duration {
		n, err := strconv.ParseFloat(f.val(name, otherwise), 64)
		if err != nil {
			c.die("invalid number '%s'", f.val(name, ""))
		}
		return time.Duration(n * float64(time.Second))
	}
	wait, interval := seconds("W", "10"), seconds("i", "1")
	var deadline time.Time
	if f.has("w") {
		deadline = time.Now().Add(seconds("w", "0"))
	}
	network := "ip"
	if f.has("4") {
		network = "ip4"
	} else if f.has("6") {
		network = "ip6"
	}
	addresses, err := net.DefaultResolver.LookupIP(c.Context, network, f.args[0])
	if err != nil || len(addresses) == 0 {
		c.die("bad address '%s'", f.args[0])
	}
	ip := addresses[0].String()
	c.printf("PING %s (%s): by TCP, port 80\n", f.args[0], ip)
	c.flush()
	sent, received := 0, 0
	for seq := 0; (count < 0 || seq < count) && !c.done(); seq++ {
		if seq > 0 {
			c.sleep(interval)
		}
		if !deadline.IsZero() && time.Now().After(deadline) {
			break
		}
		sent++
		started := time.Now()
		dialer := net.Dialer{Timeout: wait}
		conn, err := dialer.DialContext(c.Context, "tcp", net.JoinHostPort(ip, "80"))
		if conn != nil {
			conn.Close()
		}
		if err == nil || netReason(err) == "Connection refused" {
			received++
			if !f.has("q") {
				c.printf("answer from %s: seq=%d time=%.3f ms\n", ip, seq, float64(time.Since(started).Microseconds())/1000)
				c.flush()
			}
		}
	}
	loss := 100
	if sent > 0 {
		loss = (sent - received) * 100 / sent
	}
	c.printf("\n--- %s ping statistics ---\n%d packets transmitted, %d packets received, %d%% packet loss\n", f.args[0], sent, received, loss)
	if received == 0 {
		return 1
	}
	return 0
}

// ss shows the sockets that /proc/net has; netstat is its older name.
func ss(c *Ctx) int {
	f := c.opts("ltunaprWe46xio", "listening=l", "tcp=t", "udp=u", "numeric=n", "all=a", "processes=p", "no-header=H")
	netstat := c.name() == "netstat"
	if netstat {
		c.printf("Active Internet connections %s\nProto Recv-Q Send-Q %-23s %-23s State\n", map[bool]string{true: "(only servers)", false: "(w/o servers)"}[f.has("l")], "Local Address", "Foreign Address")
	} else {
		c.printf("%-6s%-11s%-7s%-7s%23s %23s\n", "Netid", "State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port")
	}
	both := !f.has("t") && !f.has("u")
	code := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		if !both && !f.has(table[:1]) {
			continue
		}
		file, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue
		}
		scanner := bufio.NewScanner(file)
		for scanner.Scan() {
			fields := strings.Fields(scanner.Text())
			if len(fields) < 4 || fields[0] == "sl" {
				continue
			}
			state := socketState(fields[3], table)
			listening := state == "LISTEN" || state == "UNCONN"
			if !f.has("a") && listening != f.has("l") {
				continue
			}
			local, remote := socketAddress(fields[1]), socketAddress(fields[2])
			if netstat {
				if state == "UNCONN" {
					state = ""
				}
				c.printf("%-5s %6d %6d %-23s %-23s %s\n", table, 0, 0, local, remote, state)
			} else {
				c.printf("%-6s%-11s%-7d%-7d%23s %23s\n", table[:3], map[string]string{"ESTABLISHED": "ESTAB"}[state]+map[bool]string{true: state}[state != "ESTABLISHED"], 0, 0, local, remote)
			}
		}
		file.Close()
	}
	return code
}

func socketState(text, table string) string {
	if strings.HasPrefix(table, "udp") {
		return map[bool]string{true: "UNCONN", false: "ESTABLISHED"}[text == "07"]
	}
	if name := map[string]string{"01": "ESTABLISHED", "02": "SYN_SENT", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "06": "TIME_WAIT", "08": "CLOSE_WAIT", "0A": "LISTEN"}[text]; name != "" {
		return name
	}
	return "UNKNOWN"
}

// socketAddress reads /proc/net's: words of the address in the machine's order, in hexadecimal.
func socketAddress(text string) string {
	address, portText, _ := strings.Cut(text, ":")
	port, _ := strconv.ParseUint(portText, 16, 16)
	var ip net.IP
	for i := 0; i+8 <= len(address); i += 8 {
		word, _ := strconv.ParseUint(address[i:i+8], 16, 32)
		ip = binary.LittleEndian.AppendUint32(ip, uint32(word))
	}
	end := "*"
	if port != 0 {
		end = strconv.Itoa(int(port))
	}
	return net.JoinHostPort(ip.String(), end)
}
