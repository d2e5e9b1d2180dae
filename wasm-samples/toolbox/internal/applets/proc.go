package applets

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	for name, applet := range map[string]Applet{
		"ps": ps, "kill": kill, "killall": killall, "pidof": pidof, "pgrep": pgrep, "pkill": pgrep, "top": top, "free": free,
		"uptime": uptime, "sleep": sleep, "usleep": usleep, "timeout": timeout, "nohup": nohup, "time": timeApplet, "nproc": nproc,
		"mount": mount,
	} {
		Register(name, applet)
	}
}

// signalNames are Linux's.
var signalNames = []string{
	"EXIT", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
	"CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "POLL", "PWR", "SYS",
}

// ParseSignal finds a signal by its number or name, with or without SIG.
func ParseSignal(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n >= 0 && n < 65
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if name == "IOT" {
		name = "ABRT"
	}
	for n, known := range signalNames {
		if known == name {
			return n, true
		}
	}
	return 0, false
}

// SignalName is the name of a number.
func SignalName(n int) string {
	if n >= 0 && n < len(signalNames) {
		return signalNames[n]
	}
	return strconv.Itoa(n)
}

// Limit is a line of /proc/self/limits.
func Limit(name string) string {
	text, _ := os.ReadFile("/proc/self/limits")
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				return fields[0]
			}
		}
	}
	return "unlimited"
}

func kill(c *Ctx) int {
	args := c.Args[1:]
	sig := syscall.SIGTERM
	parse := func(name string) {
		n, ok := ParseSignal(name)
		if !ok {
			c.die("bad signal name '%s'", name)
		}
		sig = syscall.Signal(n)
	}
	if len(args) > 0 && (args[0] == "-l" || args[0] == "-L") {
		if len(args) == 1 {
			for n, name := range signalNames[1:] {
				c.printf("%2d) %s\n", n+1, name)
			}
			return 0
		}
		for _, arg := range args[1:] {
			n, ok := ParseSignal(arg)
			if !ok {
				c.die("bad signal name '%s'", arg)
			}
			if _, err := strconv.Atoi(arg); err == nil {
				c.printf("%s\n", SignalName(n&127))
			} else {
				c.printf("%d\n", n)
			}
		}
		return 0
	}
	switch {
	case len(args) > 1 && (args[0] == "-s" || args[0] == "-n"):
		parse(args[1])
		args = args[2:]
	case len(args) > 0 && args[0] == "--":
		args = args[1:]
	case len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-':
		parse(args[0][1:])
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		c.die("you need to specify whom to kill")
	}
	code := 0
	for _, arg := range args {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			c.errf("invalid number '%s'", arg)
			code = 1
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil {
			c.errf("can't kill pid %d: %s", pid, reason(err))
			code = 1
		}
	}
	return code
}

// process is what /proc says of one.
type process struct {
	pid, ppid int
	name      string
	args      []string
	state     string
	uid       int
	size, rss int64 // KiB
	ticks     int64
}

func processes() []process {
	entries, _ := os.ReadDir("/proc")
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := process{pid: pid, uid: -1}
		dir := "/proc/" + e.Name()
		text, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // it has ended meanwhile
		}
		for _, line := range strings.Split(string(text), "\n") {
			key, value, _ := strings.Cut(line, ":")
			fields := strings.Fields(value)
			if len(fields) == 0 {
				continue
			}
			number, _ := strconv.ParseInt(fields[0], 10, 64)
			switch key {
			case "Name":
				p.name = fields[0]
			case "State":
				p.state = fields[0]
			case "PPid":
				p.ppid = int(number)
			case "Uid":
				p.uid = int(number)
			case "VmSize":
				p.size = number
			case "VmRSS":
				p.rss = number
			}
		}
		if text, err := os.ReadFile(dir + "/cmdline"); err == nil && len(text) > 0 {
			p.args = strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		}
		if text, err := os.ReadFile(dir + "/stat"); err == nil {
			if _, rest, ok := strings.Cut(string(text), ") "); ok {
				if fields := strings.Fields(rest); len(fields) > 12 {
					user, _ := strconv.ParseInt(fields[11], 10, 64)
					system, _ := strconv.ParseInt(fields[12], 10, 64)
					p.ticks = user + system
				}
			}
		}
		list = append(list, p)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].pid < list[j].pid })
	return list
}

func (p process) command() string {
	if len(p.args) == 0 {
		return "[" + p.name + "]"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return r
	}, strings.Join(p.args, " "))
}

func (p process) user() string {
	if name := userName(p.uid); name != "" {
		return name
	}
	return strconv.Itoa(p.uid)
}

func ps(c *Ctx) int {
	// People type aux, -ef, -o pid,args.
	columns := "pid,user,time,args"
	args := c.Args[1:]
	var only map[int]bool
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-o" && i+1 < len(args):
			i++
			columns = args[i]
		case strings.HasPrefix(args[i], "-o"):
			columns = args[i][2:]
		case args[i] == "-p" && i+1 < len(args):
			i++
			only = map[int]bool{}
			for _, text := range strings.Split(args[i], ",") {
				pid, _ := strconv.Atoi(text)
				only[pid] = true
			}
		case strings.Contains(args[i], "f") && strings.HasPrefix(args[i], "-"):
			columns = "user,pid,ppid,time,args"
		case strings.Contains(args[i], "u") && strings.Trim(args[i], "-auxwelTjz") == "":
			columns = "user,pid,vsz,rss,stat,time,args"
		}
	}
	widths := map[string]int{"pid": 5, "ppid": 5, "user": 8, "group": 8, "time": 5, "vsz": 6, "rss": 6, "stat": 4, "etime": 7, "comm": 16, "args": 27}
	titles := map[string]string{"args": "COMMAND", "comm": "COMMAND"}
	var names []string
	for _, column := range strings.FieldsFunc(columns, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, title, given := strings.Cut(column, "=")
		switch name {
		case "cmd", "command":
			name = "args"
		case "state", "s":
			name = "stat"
		case "uid", "ruser", "uname":
			name = "user"
		}
		if widths[name] == 0 {
			c.die("bad -o argument '%s', supported arguments: user,comm,args,pid,ppid,etime,time,stat,vsz,rss", name)
		}
		if given {
			titles[name] = title
		}
		names = append(names, name)
	}
	row := func(cell func(string) string) {
		for i, name := range names {
			text := cell(name)
			right := name == "pid" || name == "ppid" || name == "vsz" || name == "rss"
			switch {
			case i == len(names)-1 && !right:
				c.printf("%s", text)
			case right:
				c.printf("%*s", widths[name], text)
			default:
				c.printf("%-*s", widths[name], text)
			}
			if i < len(names)-1 {
				c.printf(" ")
			}
		}
		c.printf("\n")
	}
	empty := true
	for _, name := range names {
		title, given := titles[name]
		empty = empty && given && title == ""
	}
	if !empty {
		row(func(name string) string {
			if title, ok := titles[name]; ok {
				return title
			}
			return strings.ToUpper(name)
		})
	}
	for _, p := range processes() {
		if only != nil && !only[p.pid] {
			continue
		}
		row(func(name string) string {
			switch name {
			case "pid":
				return strconv.Itoa(p.pid)
			case "ppid":
				return strconv.Itoa(p.ppid)
			case "user":
				return p.user()
			case "group":
				return strconv.Itoa(p.uid)
			case "time", "etime":
				seconds := p.ticks / 100
				return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
			case "vsz":
				return strconv.FormatInt(p.size, 10)
			case "rss":
				return strconv.FormatInt(p.rss, 10)
			case "stat":
				return p.state
			case "comm":
				return p.name
			}
			return p.command()
		})
	}
	return 0
}

// called are the processes of this name, but for this one.
func called(name string) []process {
	var list []process
	for _, p := range processes() {
		if p.name == name || len(p.args) > 0 && (p.args[0] == name || path.Base(p.args[0]) == name) {
			list = append(list, p)
		}
	}
	return list
}

func killall(c *Ctx) int {
	args := c.Args[1:]
	sig := syscall.SIGTERM
	quiet := false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		if args[0] == "-q" {
			quiet, args = true, args[1:]
			continue
		}
		text := args[0][1:]
		if text == "s" && len(args) > 1 {
			args = args[1:]
			text = args[0]
		}
		n, ok := ParseSignal(text)
		if !ok {
			c.die("bad signal name '%s'", text)
		}
		sig, args = syscall.Signal(n), args[1:]
	}
	code := 0
	for _, name := range args {
		found := false
		for _, p := range called(name) {
			if p.pid == os.Getpid() {
				continue
			}
			found = true
			if err := syscall.Kill(p.pid, sig); err != nil {
				c.errf("can't kill pid %d: %s", p.pid, reason(err))
				code = 1
			}
		}
		if !found {
			if !quiet {
				c.errf("%s: no process killed", name)
			}
			code = 1
		}
	}
	return code
}

func pidof(c *Ctx) int {
	f := c.opts("so:")
	var pids []string
	for _, name := range f.args {
		for _, p := range called(name) {
			if f.val("o", "") == strconv.Itoa(p.pid) {
				continue
			}
			pids = append(pids, strconv.Itoa(p.pid))
			if f.has("s") {
				break
			}
		}
	}
	if len(pids) == 0 {
		return 1
	}
	c.printf("%s\n", strings.Join(pids, " "))
	return 0
}

// pgrep is pkill too.
func pgrep(c *Ctx) int {
	sig := syscall.SIGTERM
	if c.name() == "pkill" && len(c.Args) > 1 && len(c.Args[1]) > 1 && c.Args[1][0] == '-' {
		if n, ok := ParseSignal(c.Args[1][1:]); ok {
			sig = syscall.Signal(n)
			c.Args = append(c.Args[:1:1], c.Args[2:]...)
		}
	}
	f := c.opts("flanovxs:P:u:")
	if len(f.args) == 0 && !f.has("P") {
		c.usage("[-flnovx] [-P PPID] PATTERN")
	}
	expression := ""
	if len(f.args) > 0 {
		expression = f.args[0]
	}
	if f.has("x") {
		expression = "^(" + expression + ")$"
	}
	re, err := regexp.Compile(expression)
	if err != nil {
		c.die("bad regex '%s'", expression)
	}
	var found []process
	for _, p := range processes() {
		text := p.name
		if f.has("f") {
			text = p.command()
		}
		if p.pid == os.Getpid() || re.MatchString(text) == f.has("v") || f.has("P") && strconv.Itoa(p.ppid) != f.val("P", "") {
			continue
		}
		found = append(found, p)
	}
	if len(found) > 0 && f.has("n") {
		found = found[len(found)-1:]
	}
	if len(found) > 0 && f.has("o") {
		found = found[:1]
	}
	for _, p := range found {
		switch {
		case c.name() == "pkill":
			syscall.Kill(p.pid, sig)
		case f.has("l"):
			c.printf("%d %s\n", p.pid, p.name)
		case f.has("a"):
			c.printf("%d %s\n", p.pid, p.command())
		default:
			c.printf("%d\n", p.pid)
		}
	}
	if len(found) == 0 {
		return 1
	}
	return 0
}

// memory reads /proc/meminfo, in KiB.
func memory() map[string]int64 {
	values := map[string]int64{}
	text, _ := os.ReadFile("/proc/meminfo")
	for _, line := range strings.Split(string(text), "\n") {
		key, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			values[key], _ = strconv.ParseInt(fields[0], 10, 64)
		}
	}
	return values
}

func free(c *Ctx) int {
	f := c.opts("bkmgth")
	m := memory()
	show := func(kib int64) string {
		switch {
		case f.has("h"):
			return humanBytes(kib * 1024)
		case f.has("b"):
			return strconv.FormatInt(kib*1024, 10)
		case f.has("m"):
			return strconv.FormatInt(kib/1024, 10)
		case f.has("g"):
			return strconv.FormatInt(kib>>20, 10)
		}
		return strconv.FormatInt(kib, 10)
	}
	used := m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["Cached"]
	c.printf("%s%15s%12s%12s%12s%12s%12s\n", "      ", "total", "used", "free", "shared", "buff/cache", "available")
	c.printf("Mem:  %15s%12s%12s%12s%12s%12s\n", show(m["MemTotal"]), show(used), show(m["MemFree"]), show(m["Shmem"]), show(m["Buffers"]+m["Cached"]), show(m["MemAvailable"]))
	c.printf("Swap: %15s%12s%12s\n", show(m["SwapTotal"]), show(m["SwapTotal"]-m["SwapFree"]), show(m["SwapFree"]))
	return 0
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(text)); err == nil && len(fields) >= 3 {
		return strings.Join(fields[:3], ", ")
	}
	return "0.00, 0.00, 0.00"
}

func upFor() time.Duration {
	text, _ := os.ReadFile("/proc/uptime")
	first, _, _ := strings.Cut(string(text), " ")
	seconds, _ := strconv.ParseFloat(first, 64)
	return time.Duration(seconds * float64(time.Second))
}

func uptime(c *Ctx) int {
	up := upFor()
	text := fmt.Sprintf("%2d:%02d", int(up.Hours())%24, int(up.Minutes())%60)
	if days := int(up.Hours()) / 24; days > 0 {
		text = fmt.Sprintf("%d day%s, %s", days, map[bool]string{true: "s"}[days > 1], text)
	}
	c.printf(" %s up %s,  load average: %s\n", time.Now().Format("15:04:05"), text, loadAverage())
	return 0
}

func top(c *Ctx) int {
	f := c.opts("bmHn:d:")
	rounds := -1
	if n, err := strconv.Atoi(f.val("n", "")); err == nil {
		rounds = n
	} else if !f.has("b") && (c.In == nil || !IsTerminal(c.In)) {
		rounds = 1
	}
	delay, err := strconv.ParseFloat(f.val("d", "5"), 64)
	if err != nil {
		c.die("invalid number '%s'", f.val("d", ""))
	}
	before := map[int]int64{}
	at := time.Now()
	for round := 0; rounds < 0 || round < rounds; round++ {
		if round > 0 {
			c.sleep(time.Duration(delay * float64(time.Second)))
		}
		if c.done() {
			return 130
		}
		list := processes()
		elapsed := max(time.Since(at).Seconds(), 0.1)
		at = time.Now()
		share := map[int]float64{}
		for _, p := range list {
			if old, ok := before[p.pid]; ok {
				share[p.pid] = float64(p.ticks-old) / elapsed / float64(runtime.NumCPU())
			}
			before[p.pid] = p.ticks
		}
		sort.SliceStable(list, func(i, j int) bool { return share[list[i].pid] > share[list[j].pid] })
		m := memory()
		if !f.has("b") {
			c.printf("\x1b[H\x1b[J")
		}
		c.printf("Mem: %dK used, %dK free, %dK shrd, %dK buff, %dK cached\n", m["MemTotal"]-m["MemFree"], m["MemFree"], m["Shmem"], m["Buffers"], m["Cached"])
		c.printf("Load average: %s 1/%d %d\n", strings.ReplaceAll(loadAverage(), ",", ""), len(list), os.Getpid())
		c.printf("  PID  PPID USER     STAT   VSZ %%VSZ CPU %%CPU COMMAND\n")
		for _, p := range list {
			percent := int64(0)
			if m["MemTotal"] > 0 {
				percent = p.size * 100 / m["MemTotal"]
			}
			size := strconv.FormatInt(p.size, 10)
			if p.size > 99999 {
				size = strconv.FormatInt(p.size/1024, 10) + "m"
			}
			c.printf("%5d %5d %-8s %-4s %6s %3d%% %3d %3.0f%% %s\n", p.pid, p.ppid, p.user(), p.state, size, percent, 0, share[p.pid], p.command())
		}
		c.flush()
	}
	return 0
}

// duration parses sleep's numbers: 1, 0.5, 2m.
func duration(text string) (time.Duration, error) {
	if text == "infinity" || text == "inf" {
		return 1<<63 - 1, nil
	}
	unit := time.Second
	number := text
	if text != "" {
		switch text[len(text)-1] {
		case 's':
			number = text[:len(text)-1]
		case 'm':
			unit, number = time.Minute, text[:len(text)-1]
		case 'h':
			unit, number = time.Hour, text[:len(text)-1]
		case 'd':
			unit, number = 24*time.Hour, text[:len(text)-1]
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("invalid number '%s'", text)
	}
	if n*float64(unit) > float64(1<<63-1) {
		return 1<<63 - 1, nil
	}
	return time.Duration(n * float64(unit)), nil
}

func sleep(c *Ctx) int {
	if len(c.Args) < 2 {
		c.usage("[N]...")
	}
	var total time.Duration
	for _, arg := range c.Args[1:] {
		d, err := duration(arg)
		if err != nil {
			c.die("%v", err)
		}
		if total += d; total < 0 {
			total = 1<<63 - 1
		}
	}
	c.sleep(total)
	if c.done() {
		return 130
	}
	return 0
}

func usleep(c *Ctx) int {
	if len(c.Args) < 2 {
		c.usage("N")
	}
	n, err := strconv.ParseInt(c.Args[1], 10, 64)
	if err != nil {
		c.die("invalid number '%s'", c.Args[1])
	}
	c.sleep(time.Duration(n) * time.Microsecond)
	return 0
}

func timeout(c *Ctx) int {
	f := c.opts("+s:k:t:", "signal:=s", "kill-after:=k")
	args := f.args
	text := f.val("t", "")
	if text == "" && len(args) > 0 {
		text, args = args[0], args[1:]
	}
	if len(args) == 0 {
		c.usage("[-s SIG] [-k KILL_SECS] SECS PROG ARGS")
	}
	limit, err := duration(text)
	if err != nil {
		c.die("%v", err)
	}
	sig, ok := ParseSignal(f.val("s", "TERM"))
	if !ok {
		c.die("bad signal name '%s'", f.val("s", ""))
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	cmd := c.command(args).failsAs("")
	started := make(chan *os.Process, 1)
	cmd.Started = func(p *os.Process) { started <- p }
	done := make(chan int, 1)
	go func() { done <- cmd.Run(ctx) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case code := <-done:
		return code
	case <-timer.C:
	case <-c.Context.Done():
		cancel()
		<-done
		return 130
	}
	select {
	case p := <-started:
		// A process of its own may have its own idea of the signal.
		p.Signal(syscall.Signal(sig))
		if text := f.val("k", ""); text != "" {
			if after, err := duration(text); err == nil {
				select {
				case code := <-done:
					return code
				case <-time.After(after):
					p.Kill()
				}
			}
		}
		return <-done
	default:
		cancel()
		<-done
		return 128 + sig
	}
}

func nohup(c *Ctx) int {
	if len(c.Args) < 2 {
		c.usage("PROG ARGS")
	}
	signal.Ignore(syscall.SIGHUP)
	cmd := c.command(c.Args[1:]).failsAs("")
	if out, ok := Unwrap(c.Out).(*os.File); ok && IsTerminal(out) {
		file, err := os.OpenFile(c.path("nohup.out"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			c.die("can't open 'nohup.out': %s", reason(err))
		}
		defer file.Close()
		c.errf("appending output to nohup.out")
		cmd.Stdout = file
		if errs, ok := Unwrap(c.Err).(*os.File); ok && IsTerminal(errs) {
			cmd.Stderr = file
		}
	}
	return cmd.Run(c.Context)
}

func timeApplet(c *Ctx) int {
	f := c.opts("+pvf:o:a")
	if len(f.args) == 0 {
		c.usage("[-p] PROG ARGS")
	}
	started := time.Now()
	code := c.command(f.args).failsAs("").Run(c.Context)
	elapsed := time.Since(started)
	if f.has("p") {
		fmt.Fprintf(c.Err, "real %.2f\nuser %.2f\nsys %.2f\n", elapsed.Seconds(), 0.0, 0.0)
		return code
	}
	minutes := int(elapsed.Minutes())
	fmt.Fprintf(c.Err, "real\t%dm %.2fs\nuser\t0m 0.00s\nsys\t0m 0.00s\n", minutes, elapsed.Seconds()-float64(minutes*60))
	return code
}

func nproc(c *Ctx) int {
	text, err := os.ReadFile("/proc/cpuinfo")
	n := strings.Count(string(text), "processor\t")
	if err != nil || n == 0 {
		n = runtime.NumCPU()
	}
	// As many as the container may use.
	if text, err := os.ReadFile("/sys/fs/cgroup/cpu.max"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) == 2 && fields[0] != "max" {
			quota, _ := strconv.Atoi(fields[0])
			period, _ := strconv.Atoi(fields[1])
			if period > 0 {
				n = max(1, min(n, (quota+period-1)/period))
			}
		}
	}
	c.printf("%d\n", n)
	return 0
}

func mount(c *Ctx) int {
	f := c.opts("afrwnvo:t:")
	if len(f.args) > 0 {
		c.die("permission denied (are you root?)")
	}
	for _, m := range mounts() {
		if kind := f.val("t", ""); kind == "" || kind == m.kind {
			c.printf("%s on %s type %s (%s)\n", m.device, m.dir, m.kind, m.options)
		}
	}
	return 0
}
