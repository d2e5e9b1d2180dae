package applets

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

func init() {
	for name, applet := range map[string]Applet{"wget": wget, "curl": curl, "httpd": httpd} {
		Register(name, applet)
	}
}

// httpRequest is a request of HTTP/1.1. The standard library's client would do as well, and cost each start of a shell
// more than all the rest.
type httpRequest struct {
	method  string
	url     *url.URL
	headers [][2]string
	body    []byte
	// insecure: no certificate is checked.
	insecure bool
	// timeout of the connection and of each wait for data; none for 0.
	timeout time.Duration
	resolve map[string]string
}

// httpResponse is what came; its body must be closed.
type httpResponse struct {
	proto, status string
	code          int
	header        textproto.MIMEHeader
	raw           string
	body          io.Reader
	length        int64 // -1: not said
	conn          net.Conn
	remote        string
	sent          string
}

func parseURL(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("bad address '%s'", text)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("not an http or ftp url: %s", text)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

// patient gives each wait for data its own time.
type patient struct {
	net.Conn
	timeout time.Duration
}

func (p patient) Read(b []byte) (int, error) {
	if p.timeout > 0 {
		p.Conn.SetReadDeadline(time.Now().Add(p.timeout))
	}
	return p.Conn.Read(b)
}

func (r *httpRequest) do(ctx context.Context) (*httpResponse, error) {
	port := r.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[r.url.Scheme]
	}
	address := net.JoinHostPort(r.url.Hostname(), port)
	if other := r.resolve[address]; other != "" {
		address = other
	}
	dialer := net.Dialer{Timeout: r.timeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	remote := conn.RemoteAddr().String()
	if r.url.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: r.url.Hostname(), InsecureSkipVerify: r.insecure})
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secure
	}
	conn = patient{conn, r.timeout}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", r.method, r.url.RequestURI())
	given := map[string]bool{}
	for _, header := range r.headers {
		given[strings.ToLower(header[0])] = true
	}
	if !given["host"] {
		fmt.Fprintf(&b, "Host: %s\r\n", r.url.Host)
	}
	if r.url.User != nil && !given["authorization"] {
		password, _ := r.url.User.Password()
		fmt.Fprintf(&b, "Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(r.url.User.Username()+":"+password)))
	}
	for _, header := range r.headers {
		if header[1] != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", header[0], header[1])
		}
	}
	if r.body != nil && !given["content-length"] {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(r.body))
	}
	b.WriteString("Connection: close\r\n\r\n")
	head := b.String()
	if _, err := io.WriteString(conn, head); err == nil {
		_, err = conn.Write(r.body)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	response, err := readResponse(bufio.NewReader(conn), r.method)
	if err != nil {
		conn.Close()
		return nil, err
	}
	response.conn, response.remote, response.sent = conn, remote, head
	return response, nil
}

func readResponse(reader *bufio.Reader, method string) (*httpResponse, error) {
	for {
		tp := textproto.NewReader(reader)
		line, err := tp.ReadLine()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, errEmptyReply
			}
			return nil, err
		}
		response := &httpResponse{raw: line + "\r\n", length: -1}
		response.proto, response.status, _ = strings.Cut(line, " ")
		number, _, _ := strings.Cut(response.status, " ")
		if response.code, err = strconv.Atoi(number); err != nil || !strings.HasPrefix(response.proto, "HTTP/") {
			return nil, fmt.Errorf("malformed response: %q", line)
		}
		if response.header, err = tp.ReadMIMEHeader(); err != nil {
			return nil, err
		}
		for _, name := range sortedKeys(response.header) {
			for _, value := range response.header[name] {
				response.raw += name + ": " + value + "\r\n"
			}
		}
		response.raw += "\r\n"
		if response.code >= 100 && response.code < 200 && response.code != 101 {
			continue
		}
		switch length := response.header.Get("Content-Length"); {
		case method == "HEAD" || response.code == 204 || response.code == 304:
			response.body, response.length = strings.NewReader(""), 0
		case strings.EqualFold(response.header.Get("Transfer-Encoding"), "chunked"):
			response.body = &chunked{r: reader}
		case length != "":
			if response.length, err = strconv.ParseInt(strings.TrimSpace(length), 10, 64); err != nil {
				return nil, fmt.Errorf("malformed Content-Length %q", length)
			}
			response.body = &exactly{reader, response.length}
		default:
			response.body = reader
		}
		return response, nil
	}
}

var errEmptyReply = errors.New("empty reply from server")

// exactly is a body whose end before its length is an error.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// chunked decodes the transfer coding.
type chunked struct {
	r    *bufio.Reader
	left int64
	over bool
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.over {
		return 0, io.EOF
	}
	for c.left == 0 {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		text, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		if text == "" {
			continue // the end of the last chunk
		}
		if c.left, err = strconv.ParseInt(text, 16, 64); err != nil {
			return 0, fmt.Errorf("malformed chunk %q", line)
		}
		if c.left == 0 {
			c.over = true
			return 0, io.EOF
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *httpResponse) close() { r.conn.Close() }

// redirect is where a response sends to, as the request that goes there.
func (r *httpRequest) redirect(response *httpResponse) (*httpRequest, bool) {
	switch response.code {
	case 301, 302, 303, 307, 308:
	default:
		return nil, false
	}
	to, err := r.url.Parse(response.header.Get("Location"))
	if err != nil || response.header.Get("Location") == "" {
		return nil, false
	}
	next := *r
	next.url = to
	if response.code == 303 || response.code <= 302 && r.method == "POST" {
		next.method, next.body = "GET", nil
	}
	return &next, true
}

const maxRedirects = 20

// netReason is why a connection failed, in the words of strerror(3).
func netReason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "bad address '" + dns.Name + "'"
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "timed out"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return reason(op.Err)
	}
	return reason(err)
}

func headerLine(text string) [2]string {
	name, value, _ := strings.Cut(text, ":")
	return [2]string{strings.TrimSpace(name), strings.TrimSpace(value)}
}

func wget(c *Ctx) int {
	f := c.opts("cqSO:o:P:U:T:Yst:", "quiet=q", "output-document:=O", "timeout:=T", "tries:=t", "spider=s", "header:=header",
		"post-data:=post", "post-file:=postfile", "no-check-certificate=insecure", "user-agent:=U", "server-response=S", "no-verbose=nv",
		"directory-prefix:=P", "continue=c", "proxy:=proxy")
	if len(f.args) == 0 {
		c.usage("[-cqS] [--spider] [-O FILE] [-P DIR] [--header STR] [--post-data STR | --post-file FILE] [-T SEC] [--no-check-certificate] URL...")
	}
	timeout := 900 * time.Second
	if text := f.val("T", ""); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil {
			c.die("invalid number '%s'", text)
		}
		timeout = time.Duration(seconds) * time.Second
	}
	for _, arg := range f.args {
		u, err := parseURL(arg)
		if err != nil {
			c.die("%v", err)
		}
		request := &httpRequest{method: "GET", url: u, timeout: timeout, insecure: f.has("insecure")}
		request.headers = append(request.headers, [2]string{"User-Agent", f.val("U", "Wget")})
		for _, header := range f.values["header"] {
			request.headers = append(request.headers, headerLine(header))
		}
		if f.has("post") || f.has("postfile") {
			request.method = "POST"
			request.body = []byte(f.val("post", ""))
			if name := f.val("postfile", ""); name != "" {
				if request.body, err = os.ReadFile(c.path(name)); err != nil {
					c.die("can't open '%s': %s", name, reason(err))
				}
			}
			request.headers = append(request.headers, [2]string{"Content-Type", "application/x-www-form-urlencoded"})
		}
		if f.has("s") {
			request.method = "HEAD"
		}
		c.wgetOne(f, request)
	}
	return 0
}

func (c *Ctx) wgetOne(f *flags, request *httpRequest) {
	quiet := f.has("q") || f.has("nv")
	var response *httpResponse
	for hop := 0; ; hop++ {
		var err error
		response, err = request.do(c.Context)
		if err != nil {
			why := netReason(err)
			switch {
			case strings.HasPrefix(why, "bad address"):
				c.die("%s", why)
			case why == "timed out":
				c.die("download timed out")
			}
			c.die("can't connect to remote host (%s): %s", request.url.Hostname(), why)
		}
		if !quiet && hop == 0 {
			fmt.Fprintf(c.Err, "Connecting to %s (%s)\n", request.url.Host, response.remote)
		}
		if f.has("S") {
			for _, line := range strings.Split(strings.TrimRight(response.raw, "\r\n"), "\r\n") {
				fmt.Fprintf(c.Err, "  %s\n", line)
			}
		}
		next, moved := request.redirect(response)
		if !moved {
			break
		}
		response.close()
		if request = next; hop >= maxRedirects {
			c.die("too many redirections")
		}
	}
	defer response.close()
	if response.code < 200 || response.code >= 300 {
		c.die("server returned error: %s %s", response.proto, response.status)
	}
	if f.has("s") {
		if !quiet {
			fmt.Fprintln(c.Err, "remote file exists")
		}
		return
	}
	name := f.val("O", "")
	var out io.Writer = c.Out
	if name != "-" {
		if name == "" {
			name = path.Base(request.url.Path)
			if strings.HasSuffix(request.url.Path, "/") {
				name = "index.html"
			}
			if dir := f.val("P", ""); dir != "" {
				name = strings.TrimSuffix(dir, "/") + "/" + name
			}
		}
		flag := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		if !f.has("O") && !f.has("c") {
			flag |= os.O_EXCL
		}
		file, err := os.OpenFile(c.path(name), flag, 0o666)
		if err != nil {
			c.die("can't open '%s': %s", name, reason(err))
		}
		defer file.Close()
		out = file
		if !quiet {
			fmt.Fprintf(c.Err, "saving to '%s'\n", name)
		}
	}
	n, err := io.Copy(writerOnly{out}, response.body)
	if err != nil {
		c.die("connection closed prematurely")
	}
	if !quiet {
		fmt.Fprintf(c.Err, "%-20s 100%% |%s| %5s  0:00:00 ETA\n", name, strings.Repeat("*", 32), humanBytes(n))
		if name == "-" {
			fmt.Fprintln(c.Err, "written to stdout")
		} else {
			fmt.Fprintf(c.Err, "'%s' saved\n", name)
		}
	}
}

// curl has the options that scripts use.
func curl(c *Ctx) int {
	f := c.opts("sSfkLiIvgGnNq046o:OX:H:d:u:A:m:w:T:e:b:F:x:", "silent=s", "show-error=S", "fail=f", "insecure=k", "location=L", "include=i", "head=I",
		"verbose=v", "output:=o", "remote-name=O", "request:=X", "header:=H", "data:=d", "data-raw:=dr", "data-binary:=db", "user:=u",
		"user-agent:=A", "max-time:=m", "connect-timeout:=ct", "write-out:=w", "retry:=retry", "retry-delay:=rd", "http1.1=h1", "http1.0=0",
		"globoff=g", "get=G", "upload-file:=T", "referer:=e", "cookie:=b", "interface:=if", "local-port:=lp", "resolve:=resolve", "compressed=compressed",
		"ipv4=4", "ipv6=6", "no-buffer=N", "noproxy:=np", "retry-connrefused=rc", "keepalive-time:=kt", "no-progress-meter=s", "cacert:=cacert", "cert:=cert", "key:=key", "json:=json", "url:=url")
	urls := append(f.args, f.values["url"]...)
	if len(urls) == 0 {
		fmt.Fprintln(c.Err, "curl: try 'curl --help' for more information")
		return 2
	}
	say := func(code int, text string) int {
		if !f.has("s") || f.has("S") {
			c.flush()
			fmt.Fprintf(c.Err, "curl: (%d) %s\n", code, text)
		}
		return code
	}
	ctx := c.Context
	if text := f.val("m", ""); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return say(2, "expected a proper numerical parameter")
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
		defer cancel()
	}
	code := 0
	for _, arg := range urls {
		u, err := parseURL(arg)
		if err != nil {
			return say(3, "URL rejected: Malformed input to a URL function")
		}
		request := &httpRequest{method: "GET", url: u, insecure: f.has("k"), resolve: map[string]string{}}
		for _, text := range f.values["resolve"] {
			parts := strings.SplitN(strings.TrimPrefix(text, "+"), ":", 3)
			if len(parts) == 3 {
				request.resolve[net.JoinHostPort(parts[0], parts[1])] = net.JoinHostPort(strings.Trim(parts[2], "[]"), parts[1])
			}
		}
		if text := f.val("ct", ""); text != "" {
			seconds, _ := strconv.ParseFloat(text, 64)
			request.timeout = time.Duration(seconds * float64(time.Second))
		}
		request.headers = [][2]string{{"User-Agent", f.val("A", "curl/8.0.0")}, {"Accept", "*/*"}}
		for _, header := range f.values["H"] {
			h := headerLine(header)
			for i := range request.headers {
				if strings.EqualFold(request.headers[i][0], h[0]) {
					request.headers = append(request.headers[:i], request.headers[i+1:]...)
					break
				}
			}
			request.headers = append(request.headers, h)
		}
		if user := f.val("u", ""); user != "" {
			request.headers = append(request.headers, [2]string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(user))})
		}
		if cookie := f.val("b", ""); cookie != "" {
			request.headers = append(request.headers, [2]string{"Cookie", cookie})
		}
		var data []string
		for _, name := range []string{"d", "dr", "db", "json"} {
			for _, text := range f.values[name] {
				if file, ok := strings.CutPrefix(text, "@"); ok && name != "dr" {
					r, err := c.open(file)
					if err != nil {
						return say(26, "Failed to open "+file)
					}
					all, _ := io.ReadAll(r)
					r.Close()
					text = string(all)
					if name == "d" {
						text = strings.NewReplacer("\n", "", "\r", "").Replace(text)
					}
				}
				data = append(data, text)
			}
		}
		if len(data) > 0 {
			if f.has("G") {
				u.RawQuery = strings.Trim(u.RawQuery+"&"+strings.Join(data, "&"), "&")
			} else {
				request.method, request.body = "POST", []byte(strings.Join(data, "&"))
				kind := "application/x-www-form-urlencoded"
				if f.has("json") {
					kind = "application/json"
				}
				has := false
				for _, header := range request.headers {
					has = has || strings.EqualFold(header[0], "Content-Type")
				}
				if !has {
					request.headers = append(request.headers, [2]string{"Content-Type", kind})
				}
			}
		}
		if name := f.val("T", ""); name != "" {
			r, err := c.open(name)
			if err != nil {
				return say(26, "Failed to open "+name)
			}
			request.body, _ = io.ReadAll(r)
			r.Close()
			request.method = "PUT"
		}
		if f.has("I") {
			request.method = "HEAD"
		}
		request.method = f.val("X", request.method)
		code = c.curlOne(ctx, f, request, say)
	}
	return code
}

func (c *Ctx) curlOne(ctx context.Context, f *flags, request *httpRequest, say func(int, string) int) int {
	started := time.Now()
	tries, _ := strconv.Atoi(f.val("retry", "0"))
	var response *httpResponse
	var err error
	for hop := 0; ; hop++ {
		response, err = request.do(ctx)
		for try := 0; err != nil && try < tries && ctx.Err() == nil; try++ {
			c.sleep(time.Second)
			response, err = request.do(ctx)
		}
		if err != nil {
			break
		}
		if f.has("v") {
			for _, line := range strings.Split(strings.TrimRight(response.sent, "\r\n"), "\r\n") {
				fmt.Fprintf(c.Err, "> %s\n", line)
			}
			fmt.Fprintln(c.Err, ">")
			for _, line := range strings.Split(strings.TrimRight(response.raw, "\r\n"), "\r\n") {
				fmt.Fprintf(c.Err, "< %s\n", line)
			}
			fmt.Fprintln(c.Err, "<")
		}
		next, moved := request.redirect(response)
		if !moved || !f.has("L") {
			break
		}
		if f.has("i") || f.has("I") {
			c.printf("%s", response.raw)
		}
		response.close()
		if request = next; hop >= 50 {
			return say(47, "Maximum (50) redirects followed")
		}
	}
	took := time.Since(started)
	result, size := 0, int64(0)
	status := 0
	if err != nil {
		result = c.curlFailure(ctx, request, err, took, say)
	} else {
		defer response.close()
		status = response.code
		if f.has("f") && response.code >= 400 {
			result = say(22, fmt.Sprintf("The requested URL returned error: %d", response.code))
		} else {
			size, result = c.curlBody(ctx, f, request, response, took, say)
		}
	}
	if format := f.val("w", ""); format != "" {
		text, _ := unescape(format, false)
		remoteHost, remotePort := "", ""
		if response != nil {
			remoteHost, remotePort, _ = net.SplitHostPort(response.remote)
		}
		c.printf("%s", strings.NewReplacer("%{http_code}", fmt.Sprintf("%03d", status), "%{response_code}", fmt.Sprintf("%03d", status),
			"%{size_download}", strconv.FormatInt(size, 10), "%{time_total}", fmt.Sprintf("%.6f", time.Since(started).Seconds()),
			"%{remote_ip}", remoteHost, "%{remote_port}", remotePort, "%{url_effective}", request.url.String(), "%%", "%").Replace(text))
	}
	return result
}

func (c *Ctx) curlBody(ctx context.Context, f *flags, request *httpRequest, response *httpResponse, took time.Duration, say func(int, string) int) (int64, int) {
	var out io.Writer = c.Out
	c.flush()
	name := f.val("o", "")
	if f.has("O") {
		name = path.Base(request.url.Path)
	}
	if name != "" && name != "-" {
		file, err := os.Create(c.path(name))
		if err != nil {
			return 0, say(23, "Failure writing output to destination")
		}
		defer file.Close()
		out = file
	}
	if f.has("i") || f.has("I") {
		io.WriteString(out, response.raw)
	}
	size, err := io.Copy(writerOnly{out}, response.body)
	if err != nil {
		if ctx.Err() != nil {
			return size, say(28, fmt.Sprintf("Operation timed out after %d milliseconds with %d bytes received", took.Milliseconds(), size))
		}
		return size, say(18, "transfer closed with outstanding read data remaining")
	}
	return size, 0
}

func (c *Ctx) curlFailure(ctx context.Context, request *httpRequest, err error, took time.Duration, say func(int, string) int) int {
	port := request.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[request.url.Scheme]
	}
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		return say(6, "Could not resolve host: "+request.url.Hostname())
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout():
		return say(28, fmt.Sprintf("Connection timed out after %d milliseconds", took.Milliseconds()))
	case errors.Is(err, errEmptyReply):
		return say(52, "Empty reply from server")
	case strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "x509"):
		return say(60, "SSL certificate problem: "+err.Error())
	case strings.Contains(err.Error(), "tls:"):
		return say(35, err.Error())
	case strings.Contains(err.Error(), "malformed"):
		return say(1, "Received HTTP/0.9 when not allowed")
	case netReason(err) == "Connection reset by peer":
		return say(56, "Recv failure: Connection reset by peer")
	}
	return say(7, fmt.Sprintf("Failed to connect to %s port %s after %d ms: %s", request.url.Hostname(), port, took.Milliseconds(), netReason(err)))
}

// httpd serves files, as busybox's: -p [IP:]PORT, -h DIR, -f.
func httpd(c *Ctx) int {
	f := c.opts("p:h:fivu:c:r:")
	address := f.val("p", "80")
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	root := c.path(f.val("h", "."))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		c.die("bind: %s", netReason(err))
	}
	stop := context.AfterFunc(c.Context, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if c.done() {
				return 130
			}
			c.die("accept: %s", netReason(err))
		}
		go c.serve(conn, root)
	}
}

func (c *Ctx) serve(conn net.Conn, root string) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		conn.SetReadDeadline(time.Now().Add(60 * time.Second))
		tp := textproto.NewReader(reader)
		line, err := tp.ReadLine()
		if err != nil {
			return
		}
		header, err := tp.ReadMIMEHeader()
		if err != nil {
			return
		}
		method, rest, _ := strings.Cut(line, " ")
		target, version, _ := strings.Cut(rest, " ")
		keep := version == "HTTP/1.1" && !strings.EqualFold(header.Get("Connection"), "close")
		answer := func(status, kind string, length int64, body io.Reader, more string) bool {
			connection := "close"
			if keep {
				connection = "keep-alive"
			}
			_, err := fmt.Fprintf(conn, "HTTP/1.1 %s\r\nDate: %s\r\nConnection: %s\r\nContent-type: %s\r\nContent-Length: %d\r\n%s\r\n",
				status, time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), connection, kind, length, more)
			if err == nil && method != "HEAD" {
				_, err = io.CopyN(conn, body, length)
			}
			return err == nil && keep
		}
		problem := func(status string) bool {
			text := fmt.Sprintf("<HTML><HEAD><TITLE>%s</TITLE></HEAD>\n<BODY><H1>%s</H1></BODY></HTML>\n", status, status)
			return answer(status, "text/html", int64(len(text)), strings.NewReader(text), "")
		}
		u, err := url.ParseRequestURI(target)
		again := false
		switch {
		case err != nil || header.Get("Content-Length") != "" && header.Get("Content-Length") != "0":
			keep = false
			again = problem("400 Bad Request")
		case method != "GET" && method != "HEAD":
			again = problem("501 Not Implemented")
		default:
			again = c.serveFile(root, u.Path, answer, problem)
		}
		if !again {
			return
		}
	}
}

func (c *Ctx) serveFile(root, name string, answer func(status, kind string, length int64, body io.Reader, more string) bool, problem func(string) bool) bool {
	// Clean at the root: nothing above it has a name.
	p := root + path.Clean("/"+name)
	info, err := os.Stat(p)
	if err == nil && info.IsDir() {
		if !strings.HasSuffix(name, "/") {
			return answer("302 Found", "text/html", 0, strings.NewReader(""), "Location: "+name+"/\r\n")
		}
		p = strings.TrimSuffix(p, "/") + "/index.html"
		info, err = os.Stat(p)
	}
	if err != nil || !info.Mode().IsRegular() {
		return problem("404 Not Found")
	}
	file, err := os.Open(p)
	if err != nil {
		return problem("403 Forbidden")
	}
	defer file.Close()
	kind := map[string]string{
		".html": "text/html", ".htm": "text/html", ".txt": "text/plain", ".css": "text/css", ".js": "application/javascript", ".json": "application/json",
		".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".gif": "image/gif", ".wasm": "application/wasm", ".xml": "text/xml",
	}[path.Ext(p)]
	if kind == "" {
		kind = "application/octet-stream"
	}
	return answer("200 OK", kind, info.Size(), file, "Last-Modified: "+info.ModTime().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")+"\r\n")
}
