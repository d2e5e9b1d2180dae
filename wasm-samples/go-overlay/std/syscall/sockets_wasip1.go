// Sockets, by WasmEdge's extension of preview 1 in its second version. The numbers that programs see are Linux's.

package syscall

import (
	"runtime"
	"structs"
	"unsafe"
)

const (
	AF_UNSPEC = 0
	AF_UNIX   = 1
	AF_INET   = 2
	AF_INET6  = 10

	SOCK_STREAM    = 1
	SOCK_DGRAM     = 2
	SOCK_RAW       = 3
	SOCK_SEQPACKET = 5
	SOCK_NONBLOCK  = 0
	SOCK_CLOEXEC   = 0

	IPPROTO_IP   = 0
	IPPROTO_ICMP = 1
	IPPROTO_IPV4 = 4
	IPPROTO_TCP  = 6
	IPPROTO_UDP  = 17
	IPPROTO_IPV6 = 41

	SOMAXCONN = 0x80

	SHUT_RD   = 0
	SHUT_WR   = 1
	SHUT_RDWR = 2

	SOL_SOCKET    = 1
	SO_REUSEADDR  = 2
	SO_TYPE       = 3
	SO_ERROR      = 4
	SO_BROADCAST  = 6
	SO_SNDBUF     = 7
	SO_RCVBUF     = 8
	SO_KEEPALIVE  = 9
	SO_LINGER     = 13
	SO_REUSEPORT  = 15
	SO_ACCEPTCONN = 30

	TCP_NODELAY   = 1
	TCP_KEEPIDLE  = 4
	TCP_KEEPINTVL = 5
	TCP_KEEPCNT   = 6

	IP_TOS              = 1
	IP_TTL              = 2
	IP_PKTINFO          = 8
	IP_MULTICAST_IF     = 32
	IP_MULTICAST_TTL    = 33
	IP_MULTICAST_LOOP   = 34
	IP_ADD_MEMBERSHIP   = 35
	IP_DROP_MEMBERSHIP  = 36
	IPV6_UNICAST_HOPS   = 16
	IPV6_MULTICAST_IF   = 17
	IPV6_MULTICAST_HOPS = 18
	IPV6_MULTICAST_LOOP = 19
	IPV6_JOIN_GROUP     = 20
	IPV6_V6ONLY         = 26

	MSG_OOB          = 1
	MSG_PEEK         = 2
	MSG_TRUNC        = 0x20
	MSG_DONTWAIT     = 0x40
	MSG_CMSG_CLOEXEC = 0
	SCM_RIGHTS       = 1

	F_DUPFD_CLOEXEC = 1030
	SYS_FCNTL       = 500 // not there
)

// The extension's numbers.
const (
	hostInet4    = 1
	hostInet6    = 2
	hostDatagram = 1
	hostStream   = 2

	hostLevelSocket = 0
	hostPeek        = 1
	hostTruncated   = 1
)

// socketOptions are the names of level SOL_SOCKET by Linux's number.
var socketOptions = map[int]uint32{
	SO_REUSEADDR: 0, SO_TYPE: 1, SO_ERROR: 2, SO_BROADCAST: 4, SO_SNDBUF: 5, SO_RCVBUF: 6, SO_KEEPALIVE: 7, SO_ACCEPTCONN: 13,
}

type Sockaddr any

type SockaddrInet4 struct {
	Port int
	Addr [4]byte
}

type SockaddrInet6 struct {
	Port   int
	ZoneId uint32
	Addr   [16]byte
}

type SockaddrUnix struct {
	Name string
}

type Linger struct {
	Onoff  int32
	Linger int32
}

type RawSockaddrInet4 struct {
	Family uint16
	Port   uint16
	Addr   [4]byte
	Zero   [8]uint8
}

type RawSockaddrInet6 struct {
	Family   uint16
	Port     uint16
	Flowinfo uint32
	Addr     [16]byte
	Scope_id uint32
}

type RawSockaddr struct {
	Family uint16
	Data   [14]int8
}

type RawSockaddrAny struct {
	Addr RawSockaddr
	Pad  [96]int8
}

type IPMreq struct{ Multiaddr, Interface [4]byte }

type IPMreqn struct {
	Multiaddr [4]byte
	Address   [4]byte
	Ifindex   int32
}

type IPv6Mreq struct {
	Multiaddr [16]byte
	Interface uint32
}

//go:wasmimport wasi_snapshot_preview1 sock_open
//go:noescape
func sock_open(family, kind uint32, fd *int32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_bind
//go:noescape
func sock_bind(fd int32, addr *hostAddr, port uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_listen
func sock_listen(fd int32, backlog uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_accept
//go:noescape
func sock_accept(fd int32, flags fdflags, newfd *int32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_connect
//go:noescape
func sock_connect(fd int32, addr *hostAddr, port uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_recv_from
//go:noescape
func sock_recv_from(fd int32, iovs *iovec, iovsLen size, addr *hostAddr, flags uint32, port *uint32, n *size, outFlags *uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_send_to
//go:noescape
func sock_send_to(fd int32, iovs *iovec, iovsLen size, addr *hostAddr, port, flags uint32, n *size) Errno

//go:wasmimport wasi_snapshot_preview1 sock_getlocaladdr
//go:noescape
func sock_getlocaladdr(fd int32, addr *hostAddr, port *uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_getpeeraddr
//go:noescape
func sock_getpeeraddr(fd int32, addr *hostAddr, port *uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_getsockopt
//go:noescape
func sock_getsockopt(fd int32, level, name uint32, value *uint32, length *uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_setsockopt
//go:noescape
func sock_setsockopt(fd int32, level, name uint32, value *uint32, length uint32) Errno

//go:wasmimport wasi_snapshot_preview1 sock_shutdown
func sock_shutdown(fd int32, how uint32) Errno

// hostAddr is the place and length of an address, with the room for it behind.
type hostAddr struct {
	_      structs.HostLayout
	buf    uintptr32
	bufLen uint32
	family uint16
	bytes  [126]byte
}

// newAddr makes one that is on the heap and so stays where it is while the host writes to it.
func newAddr() *hostAddr {
	a := new(hostAddr)
	a.buf = uintptr32(uintptr(unsafe.Pointer(&a.family)))
	a.bufLen = 128
	return a
}

func (a *hostAddr) sockaddr(port uint32) Sockaddr {
	switch a.family {
	case hostInet4:
		return &SockaddrInet4{Port: int(port), Addr: [4]byte(a.bytes[:4])}
	case hostInet6:
		return &SockaddrInet6{Port: int(port), Addr: [16]byte(a.bytes[:16])}
	}
	return nil
}

func addrOf(sa Sockaddr) (*hostAddr, uint32, error) {
	a := newAddr()
	switch sa := sa.(type) {
	case *SockaddrInet4:
		a.family = hostInet4
		copy(a.bytes[:], sa.Addr[:])
		return a, uint32(sa.Port), nil
	case *SockaddrInet6:
		a.family = hostInet6
		copy(a.bytes[:], sa.Addr[:])
		return a, uint32(sa.Port), nil
	}
	return nil, 0, EAFNOSUPPORT
}

func Socket(family, sotype, proto int) (fd int, err error) {
	var hostFamily, kind uint32
	switch family {
	case AF_INET:
		hostFamily = hostInet4
	case AF_INET6:
		hostFamily = hostInet6
	default:
		return -1, EAFNOSUPPORT
	}
	switch sotype {
	case SOCK_STREAM:
		kind = hostStream
	case SOCK_DGRAM:
		kind = hostDatagram
	default:
		return -1, EPROTONOSUPPORT
	}
	var newfd int32
	if errno := sock_open(hostFamily, kind, &newfd); errno != 0 {
		return -1, errno
	}
	return int(newfd), nil
}

func Bind(fd int, sa Sockaddr) error {
	a, port, err := addrOf(sa)
	if err != nil {
		return err
	}
	errno := sock_bind(int32(fd), a, port)
	runtime.KeepAlive(a)
	return errnoErr(errno)
}

func Connect(fd int, sa Sockaddr) error {
	a, port, err := addrOf(sa)
	if err != nil {
		return err
	}
	errno := sock_connect(int32(fd), a, port)
	runtime.KeepAlive(a)
	return errnoErr(errno)
}

func Listen(fd int, backlog int) error {
	return errnoErr(sock_listen(int32(fd), uint32(backlog)))
}

func Accept(fd int) (int, Sockaddr, error) {
	var newfd int32
	if errno := sock_accept(int32(fd), 0, &newfd); errno != 0 {
		return -1, nil, errno
	}
	sa, _ := Getpeername(int(newfd))
	return int(newfd), sa, nil
}

func Getsockname(fd int) (Sockaddr, error) {
	a := newAddr()
	var port uint32
	errno := sock_getlocaladdr(int32(fd), a, &port)
	runtime.KeepAlive(a)
	if errno != 0 {
		return nil, errno
	}
	return a.sockaddr(port), nil
}

func Getpeername(fd int) (Sockaddr, error) {
	a := newAddr()
	var port uint32
	errno := sock_getpeeraddr(int32(fd), a, &port)
	runtime.KeepAlive(a)
	if errno != 0 {
		return nil, errno
	}
	return a.sockaddr(port), nil
}

func recvfrom(fd int, p []byte, flags int) (n int, cut bool, from Sockaddr, err error) {
	a := newAddr()
	var port, out uint32
	var got size
	var in uint32
	if flags&MSG_PEEK != 0 {
		in = hostPeek
	}
	errno := sock_recv_from(int32(fd), makeIOVec(p), 1, a, in, &port, &got, &out)
	runtime.KeepAlive(p)
	runtime.KeepAlive(a)
	if errno != 0 {
		return -1, false, nil, errno
	}
	return int(got), out&hostTruncated != 0, a.sockaddr(port), nil
}

func Recvfrom(fd int, p []byte, flags int) (n int, from Sockaddr, err error) {
	n, _, from, err = recvfrom(fd, p, flags)
	return n, from, err
}

// Recvmsg has no control messages to give.
func Recvmsg(fd int, p, oob []byte, flags int) (n, oobn, recvflags int, from Sockaddr, err error) {
	n, cut, from, err := recvfrom(fd, p, flags)
	if cut {
		recvflags = MSG_TRUNC
	}
	return n, 0, recvflags, from, err
}

func Sendto(fd int, p []byte, flags int, to Sockaddr) error {
	_, err := SendmsgN(fd, p, nil, to, flags)
	return err
}

// SendmsgN sends no control messages: they are hints, and descriptors that have nowhere to go.
func SendmsgN(fd int, p, oob []byte, to Sockaddr, flags int) (n int, err error) {
	var a *hostAddr
	var port uint32
	if to != nil {
		if a, port, err = addrOf(to); err != nil {
			return 0, err
		}
	}
	var sent size
	errno := sock_send_to(int32(fd), makeIOVec(p), 1, a, port, 0, &sent)
	runtime.KeepAlive(p)
	runtime.KeepAlive(a)
	if errno != 0 {
		return 0, errno
	}
	return int(sent), nil
}

func hostOption(level, opt int) (uint32, uint32, error) {
	switch level {
	case SOL_SOCKET:
		if name, ok := socketOptions[opt]; ok {
			return hostLevelSocket, name, nil
		}
		return 0, 0, ENOPROTOOPT
	case IPPROTO_TCP, IPPROTO_IPV6:
		return uint32(level), uint32(opt), nil
	}
	return 0, 0, ENOPROTOOPT
}

func GetsockoptInt(fd, level, opt int) (value int, err error) {
	hostLevel, name, err := hostOption(level, opt)
	if err != nil {
		return -1, err
	}
	var got uint32
	length := uint32(4)
	if errno := sock_getsockopt(int32(fd), hostLevel, name, &got, &length); errno != 0 {
		return -1, errno
	}
	if level == SOL_SOCKET && opt == SO_TYPE {
		if got == hostStream {
			return SOCK_STREAM, nil
		}
		return SOCK_DGRAM, nil
	}
	return int(got), nil
}

func SetsockoptInt(fd, level, opt int, value int) error {
	// What has no meaning between sockets that are not the kernel's is taken, as hints are.
	switch {
	case level == SOL_SOCKET && opt == SO_REUSEPORT, level == IPPROTO_IP && opt == IP_TOS:
		return nil
	}
	hostLevel, name, err := hostOption(level, opt)
	if err != nil {
		return err
	}
	number := uint32(value)
	return errnoErr(sock_setsockopt(int32(fd), hostLevel, name, &number, 4))
}

func SetsockoptByte(fd, level, opt int, value byte) error {
	return SetsockoptInt(fd, level, opt, int(value))
}

// SetsockoptLinger is taken: a close always goes on in the background, and never as a reset.
func SetsockoptLinger(fd, level, opt int, l *Linger) error        { return nil }
func SetsockoptInet4Addr(fd, level, opt int, value [4]byte) error { return ENOPROTOOPT }
func SetsockoptIPMreq(fd, level, opt int, mreq *IPMreq) error     { return ENOPROTOOPT }
func SetsockoptIPMreqn(fd, level, opt int, mreq *IPMreqn) error   { return ENOPROTOOPT }
func SetsockoptIPv6Mreq(fd, level, opt int, mreq *IPv6Mreq) error { return ENOPROTOOPT }
func SetsockoptString(fd, level, opt int, s string) error         { return ENOPROTOOPT }

func Shutdown(fd int, how int) error {
	// Preview 1 has bits where Unix has numbers.
	if how < SHUT_RD || how > SHUT_RDWR {
		return EINVAL
	}
	return errnoErr(sock_shutdown(int32(fd), uint32(how)+1))
}

func StopIO(fd int) error                    { return ENOSYS }
func SetReadDeadline(fd int, t int64) error  { return ENOSYS }
func SetWriteDeadline(fd int, t int64) error { return ENOSYS }
func UnixRights(fds ...int) []byte           { return nil }
