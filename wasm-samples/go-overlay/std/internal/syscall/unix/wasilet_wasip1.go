package unix

import (
	"syscall"
	"unsafe"
)

//go:wasmimport wasilet stat
//go:noescape
func host_stat(fd int32, path *byte, pathLen size, flags uint32, buf unsafe.Pointer) syscall.Errno

//go:wasmimport wasilet mkdir
//go:noescape
func host_mkdir(fd int32, path *byte, pathLen size, mode uint32) syscall.Errno

//go:wasmimport wasilet chmod
//go:noescape
func host_chmod(fd int32, path *byte, pathLen size, mode uint32) syscall.Errno

//go:wasmimport wasilet chown
//go:noescape
func host_chown(fd int32, path *byte, pathLen size, flags, uid, gid uint32) syscall.Errno

func Fstatat(dirfd int, path string, stat *syscall.Stat_t, flags int) error {
	var follow uint32
	if flags&AT_SYMLINK_NOFOLLOW == 0 {
		follow = 1
	}
	return errnoErr(host_stat(int32(dirfd), unsafe.StringData(path), size(len(path)), follow, unsafe.Pointer(stat)))
}

func Mkdirat(dirfd int, path string, mode uint32) error {
	if path == "" {
		return syscall.ENOENT
	}
	return errnoErr(host_mkdir(int32(dirfd), unsafe.StringData(path), size(len(path)), mode))
}

func Fchmodat(dirfd int, path string, mode uint32, flags int) error {
	if flags&AT_SYMLINK_NOFOLLOW != 0 {
		// As Linux: a link has no mode of its own.
		var st syscall.Stat_t
		if err := Fstatat(dirfd, path, &st, flags); err != nil {
			return err
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
			return syscall.ENOTSUP
		}
	}
	return errnoErr(host_chmod(int32(dirfd), unsafe.StringData(path), size(len(path)), mode))
}

func Fchownat(dirfd int, path string, uid, gid int, flags int) error {
	var follow uint32
	if flags&AT_SYMLINK_NOFOLLOW == 0 {
		follow = 1
	}
	return errnoErr(host_chown(int32(dirfd), unsafe.StringData(path), size(len(path)), follow, uint32(uid), uint32(gid)))
}

// Eaccess is access(2) with the effective user, the only one there is.
func Eaccess(path string, mode uint32) error { return syscall.Access(path, mode) }

func inet4(from syscall.Sockaddr, to *syscall.SockaddrInet4) {
	if sa, ok := from.(*syscall.SockaddrInet4); ok {
		*to = *sa
	}
}

func inet6(from syscall.Sockaddr, to *syscall.SockaddrInet6) {
	switch sa := from.(type) {
	case *syscall.SockaddrInet6:
		*to = *sa
	case *syscall.SockaddrInet4:
		// A socket of both families says IPv4 peers as mapped addresses.
		*to = syscall.SockaddrInet6{Port: sa.Port}
		to.Addr[10], to.Addr[11] = 0xff, 0xff
		copy(to.Addr[12:], sa.Addr[:])
	}
}

func RecvfromInet4(fd int, p []byte, flags int, from *syscall.SockaddrInet4) (int, error) {
	n, sa, err := syscall.Recvfrom(fd, p, flags)
	inet4(sa, from)
	return n, err
}

func RecvfromInet6(fd int, p []byte, flags int, from *syscall.SockaddrInet6) (int, error) {
	n, sa, err := syscall.Recvfrom(fd, p, flags)
	inet6(sa, from)
	return n, err
}

func SendtoInet4(fd int, p []byte, flags int, to *syscall.SockaddrInet4) error {
	return syscall.Sendto(fd, p, flags, to)
}

func SendtoInet6(fd int, p []byte, flags int, to *syscall.SockaddrInet6) error {
	return syscall.Sendto(fd, p, flags, to)
}

func SendmsgNInet4(fd int, p, oob []byte, to *syscall.SockaddrInet4, flags int) (int, error) {
	if to == nil {
		return syscall.SendmsgN(fd, p, oob, nil, flags)
	}
	return syscall.SendmsgN(fd, p, oob, to, flags)
}

func SendmsgNInet6(fd int, p, oob []byte, to *syscall.SockaddrInet6, flags int) (int, error) {
	if to == nil {
		return syscall.SendmsgN(fd, p, oob, nil, flags)
	}
	return syscall.SendmsgN(fd, p, oob, to, flags)
}

func RecvmsgInet4(fd int, p, oob []byte, flags int, from *syscall.SockaddrInet4) (n, oobn int, recvflags int, err error) {
	n, oobn, recvflags, sa, err := syscall.Recvmsg(fd, p, oob, flags)
	inet4(sa, from)
	return n, oobn, recvflags, err
}

func RecvmsgInet6(fd int, p, oob []byte, flags int, from *syscall.SockaddrInet6) (n, oobn int, recvflags int, err error) {
	n, oobn, recvflags, sa, err := syscall.Recvmsg(fd, p, oob, flags)
	inet6(sa, from)
	return n, oobn, recvflags, err
}
