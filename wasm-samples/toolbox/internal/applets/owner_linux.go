package applets

import (
	"io/fs"
	"os"
	"syscall"
	"unsafe"
)

func ownerOf(info fs.FileInfo) owner {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{nlink: 1}
	}
	return owner{
		uid: st.Uid, gid: st.Gid, dev: uint64(st.Dev), ino: st.Ino, nlink: uint64(st.Nlink), blocks: st.Blocks, rdev: uint64(st.Rdev),
		atime: st.Atim.Nano(), mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// IsTerminal tells a terminal from other devices.
func IsTerminal(f *os.File) bool {
	var termios [64]byte
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&termios)))
	return errno == 0
}

func mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }
