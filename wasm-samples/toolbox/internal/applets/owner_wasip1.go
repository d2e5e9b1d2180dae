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
		uid: st.Uid, gid: st.Gid, dev: st.Dev, ino: st.Ino, nlink: st.Nlink, blocks: st.Blocks, rdev: st.Rdev,
		atime: int64(st.Atime), mtime: int64(st.Mtime), ctime: int64(st.Ctime),
	}
}

// fdstat is preview 1's.
type fdstat struct {
	filetype   uint8
	_          uint8
	flags      uint16
	_          uint32
	rights     uint64
	inheriting uint64
}

//go:wasmimport wasi_snapshot_preview1 fd_fdstat_get
//go:noescape
func fdFdstatGet(fd int32, stat unsafe.Pointer) uint32

// IsTerminal tells a terminal from other devices as wasi-libc does: one that cannot be sought in.
func IsTerminal(f *os.File) bool {
	const characterDevice, seek, tell = 2, 1 << 2, 1 << 5
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	raw.Control(func(fd uintptr) {
		var stat fdstat
		errno := fdFdstatGet(int32(fd), unsafe.Pointer(&stat))
		terminal = errno == 0 && stat.filetype == characterDevice && stat.rights&(seek|tell) == 0
	})
	return terminal
}

func mkfifo(string, uint32) error { return syscall.ENOSYS }
