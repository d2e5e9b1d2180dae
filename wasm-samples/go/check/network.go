package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var networkChecks = []check{
	{"tcp: a connection carries bytes both ways and ends in halves", tcpHalfClose},
	{"tcp: a large transfer is whole", tcpLarge},
	{"tcp: read deadlines pass, and the connection goes on", tcpDeadline},
	{"tcp: many connections at once", tcpMany},
	{"tcp: nobody listening is ECONNREFUSED", tcpRefused},
	{"tcp: a taken port is EADDRINUSE", tcpInUse},
	{"tcp: a closed listener ends Accept", tcpCloseListener},
	{"tcp: a connection is dropped by closing it", tcpCloseWakesReader},
	{"tcp: a dial is given up with its context", tcpDialCancel},
	{"tcp: File gives a descriptor of its own", tcpFile},
	{"udp: datagrams with addresses", udpAddresses},
	{"udp: connected, with deadlines", udpConnected},
	{"udp: a server that asks for its datagrams' addresses", udpControl},
	{"http: server, client, and graceful shutdown", httpShutdown},
	{"lookup: localhost", lookupLocalhost},
	{"lookup: a name that does not exist", lookupMissing},
	{"ipv6: a listener of both families answers on 127.0.0.1", bothFamilies},
	{"unix sockets: refused with a clear error", unixSockets},
}

func pair() (client, server *net.TCPConn, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := listener.Accept()
		accepted <- c
	}()
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	s := <-accepted
	if s == nil {
		return nil, nil, errors.New("nothing was accepted")
	}
	if err := all(equal("the peer", c.RemoteAddr().String(), listener.Addr().String()),
		equal("the server's peer", s.RemoteAddr().String(), c.LocalAddr().String())); err != nil {
		return nil, nil, err
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), nil
}

func tcpHalfClose() error {
	client, server, err := pair()
	if err != nil {
		return err
	}
	defer client.Close()
	defer server.Close()
	client.Write([]byte("question"))
	if err := client.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(server)
	if err := all(err, equal("what the server read", string(got), "question")); err != nil {
		return err
	}
	server.Write([]byte("answer"))
	server.Close()
	got, err = io.ReadAll(client)
	return all(err, equal("what the client read", string(got), "answer"))
}

func tcpLarge() error {
	client, server, err := pair()
	if err != nil {
		return err
	}
	const size = 8 << 20
	go func() {
		defer client.Close()
		piece := make([]byte, 100_000)
		for sent := 0; sent < size; sent += len(piece) {
			piece = piece[:min(len(piece), size-sent)]
			for i := range piece {
				piece[i] = byte((sent + i) * 31)
			}
			if _, err := client.Write(piece); err != nil {
				return
			}
		}
	}()
	count, at := 0, make([]byte, 64*1024)
	for {
		n, err := server.Read(at)
		for i := range n {
			if at[i] != byte((count+i)*31) {
				return fmt.Errorf("byte %d is wrong", count+i)
			}
		}
		count += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	return equal("bytes", count, size)
}

func tcpDeadline() error {
	client, server, err := pair()
	if err != nil {
		return err
	}
	defer client.Close()
	defer server.Close()
	client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	begun := time.Now()
	_, err = client.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		return fmt.Errorf("the read gives %v", err)
	}
	if waited := time.Since(begun); waited < 40*time.Millisecond {
		return fmt.Errorf("the read waited %v only", waited)
	}
	client.SetReadDeadline(time.Time{})
	server.Write([]byte("x"))
	_, err = client.Read(make([]byte, 1))
	return err
}

func tcpMany() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	const clients = 100
	errs := make(chan error, clients)
	var ready sync.WaitGroup
	ready.Add(clients)
	for i := range clients {
		go func() {
			errs <- func() error {
				c, err := net.Dial("tcp", listener.Addr().String())
				ready.Done()
				if err != nil {
					return err
				}
				defer c.Close()
				ready.Wait() // all are open at once
				message := fmt.Sprintf("client %d", i)
				c.Write([]byte(message))
				got := make([]byte, len(message))
				_, err = io.ReadFull(c, got)
				return all(err, equal("the echo", string(got), message))
			}()
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func tcpRefused() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	listener.Close()
	_, err = net.Dial("tcp", address)
	return isError("the dial", err, syscall.ECONNREFUSED)
}

func tcpInUse() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	_, err = net.Listen("tcp", listener.Addr().String())
	return isError("the second listener", err, syscall.EADDRINUSE)
}

func tcpCloseListener() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	time.AfterFunc(20*time.Millisecond, func() { listener.Close() })
	_, err = listener.Accept()
	return isError("Accept", err, net.ErrClosed)
}

func tcpCloseWakesReader() error {
	client, server, err := pair()
	if err != nil {
		return err
	}
	defer server.Close()
	time.AfterFunc(20*time.Millisecond, func() { client.Close() })
	if _, err = client.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		return isError("the reader of the closed one", err, net.ErrClosed)
	}
	_, err = server.Read(make([]byte, 1))
	return isError("the other side", err, io.EOF)
}

func tcpDialCancel() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:9")
	return isError("the dial", err, context.Canceled)
}

func tcpFile() error {
	client, server, err := pair()
	if err != nil {
		return err
	}
	defer server.Close()
	file, err := client.File()
	if err != nil {
		return err
	}
	client.Close()
	if _, err := file.Write([]byte("still here")); err != nil {
		return err
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return err
	}
	file.Close()
	conn.Write([]byte(", and here"))
	conn.Close()
	got, err := io.ReadAll(server)
	return all(err, equal("what was sent", string(got), "still here, and here"))
}

func udpAddresses() error {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.WriteTo([]byte("hello"), server.LocalAddr()); err != nil {
		return err
	}
	buf := make([]byte, 3)
	n, from, err := server.ReadFrom(buf)
	if err := all(err, equal("the datagram, cut", string(buf[:n]), "hel"),
		equal("the sender", from.String(), client.LocalAddr().String())); err != nil {
		return err
	}
	_, err = server.WriteTo([]byte("back"), from)
	if err != nil {
		return err
	}
	n, from, err = client.ReadFrom(buf)
	return all(err, equal("the answer", string(buf[:n]), "bac"), equal("its sender", from.String(), server.LocalAddr().String()))
}

// udpControl is how DNS servers answer from the address they were asked at: by control messages, of which there may be none.
func udpControl() error {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer server.Close()
	err4 := ipv4.NewPacketConn(server).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	err6 := ipv6.NewPacketConn(server).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	if err4 != nil && err6 != nil {
		return fmt.Errorf("control messages: %w, %w", err4, err6)
	}
	client, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write([]byte("question")); err != nil {
		return err
	}
	buf, oob := make([]byte, 64), make([]byte, 128)
	n, oobn, _, from, err := server.ReadMsgUDP(buf, oob)
	if err := all(err, equal("the datagram", string(buf[:n]), "question")); err != nil {
		return err
	}
	var message4 ipv4.ControlMessage
	var message6 ipv6.ControlMessage
	if err := all(message4.Parse(oob[:oobn]), message6.Parse(oob[:oobn])); err != nil {
		return err
	}
	if _, _, err := server.WriteMsgUDP([]byte("answer"), oob[:oobn], from); err != nil {
		return err
	}
	n, err = client.Read(buf)
	return all(err, equal("the answer", string(buf[:n]), "answer"))
}

func udpConnected() error {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := client.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return isError("the early read", err, os.ErrDeadlineExceeded)
	}
	client.SetReadDeadline(time.Time{})
	client.Write([]byte("ping"))
	buf := make([]byte, 9)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err := all(err, equal("the datagram", string(buf[:n]), "ping")); err != nil {
		return err
	}
	if _, err := server.WriteToUDPAddrPort([]byte("pong"), from); err != nil {
		return err
	}
	n, err = client.Read(buf)
	return all(err, equal("the answer", string(buf[:n]), "pong"))
}

func httpShutdown() error {
	begun := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		time.Sleep(100 * time.Millisecond)
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	}))
	answer := make(chan error, 1)
	go func() {
		response, err := http.Get(server.URL + "/path")
		if err != nil {
			answer <- err
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		answer <- all(err, equal("the body", string(body), "GET /path"))
	}()
	select {
	case <-begun:
	case err := <-answer:
		return err
	}
	if err := server.Config.Shutdown(context.Background()); err != nil {
		return err
	}
	if err := <-answer; err != nil {
		return err
	}
	_, err := http.Get(server.URL)
	return isError("a request after the end", err, syscall.ECONNREFUSED)
}

func lookupLocalhost() error {
	addresses, err := net.DefaultResolver.LookupIP(context.Background(), "ip4", "localhost")
	if err != nil {
		return err
	}
	return equal("localhost", addresses[0].String(), "127.0.0.1")
}

func lookupMissing() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := net.DefaultResolver.LookupHost(ctx, "no-such-name.invalid")
	var dns *net.DNSError
	if !errors.As(err, &dns) {
		return fmt.Errorf("the lookup gives %v", err)
	}
	return nil
}

func bothFamilies() error {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		if c, err := listener.Accept(); err == nil {
			c.Write([]byte("hi"))
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	return all(err, equal("what it says", string(got), "hi"))
}

func unixSockets() error {
	_, err := net.Listen("unix", "/tmp/check.sock")
	return isError("listening", err, syscall.EAFNOSUPPORT)
}
