// What programs for Unix ask of golang.org/x/sys/unix and the standard library of Wasilet's wasip1 has.

package unix

import "syscall"

const (
	SOL_SOCKET   = syscall.SOL_SOCKET
	SO_REUSEADDR = syscall.SO_REUSEADDR
	SO_REUSEPORT = syscall.SO_REUSEPORT

	O_RDONLY = syscall.O_RDONLY
	O_WRONLY = syscall.O_WRONLY
	O_RDWR   = syscall.O_RDWR

	LOCK_SH = syscall.LOCK_SH
	LOCK_EX = syscall.LOCK_EX
	LOCK_NB = syscall.LOCK_NB
	LOCK_UN = syscall.LOCK_UN

	// What Statfs says of everything.
	TMPFS_MAGIC = 0x01021994
)

type Statfs_t = syscall.Statfs_t

func Statfs(path string, buf *Statfs_t) error { return syscall.Statfs(path, buf) }

func Access(path string, mode uint32) error { return syscall.Access(path, mode) }

func Umask(mask int) int { return syscall.Umask(mask) }

func SetsockoptInt(fd, level, opt int, value int) error {
	return syscall.SetsockoptInt(fd, level, opt, value)
}
