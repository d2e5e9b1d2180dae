// Users, file modes, processes and pipes, by the host module "wasilet".

package syscall

import (
	"runtime"
	"structs"
	"sync"
	"unsafe"
)

// The numbers are Linux's.
const (
	WNOHANG   = 1
	WUNTRACED = 2

	LOCK_SH = 1
	LOCK_EX = 2
	LOCK_NB = 4
	LOCK_UN = 8

	MS_RDONLY = 1

	EWOULDBLOCK = EAGAIN
)

// Flags of the host call open.
const (
	openRead = 1 << iota
	openWrite
	openAppend
	openCreate
	openExclusive
	openTruncate
	openDirectory
	openNoFollow
	openSync
)

// Flags of the host calls stat and chown.
const followLinks = 1

// Flags of the host call wait.
const (
	waitNoHang = 1
	waitStatus = 2
)

const inheritEnv = ^uint32(0)

//go:wasmimport wasilet open
//go:noescape
func host_open(fd int32, path *byte, pathLen size, flags, mode uint32, newfd *int32) Errno

//go:wasmimport wasilet mkdir
//go:noescape
func host_mkdir(fd int32, path *byte, pathLen size, mode uint32) Errno

//go:wasmimport wasilet stat
//go:noescape
func host_stat(fd int32, path *byte, pathLen size, flags uint32, buf unsafe.Pointer) Errno

//go:wasmimport wasilet chmod
//go:noescape
func host_chmod(fd int32, path *byte, pathLen size, mode uint32) Errno

//go:wasmimport wasilet chown
//go:noescape
func host_chown(fd int32, path *byte, pathLen size, flags, uid, gid uint32) Errno

//go:wasmimport wasilet access
//go:noescape
func host_access(fd int32, path *byte, pathLen size, mode uint32) Errno

//go:wasmimport wasilet statfs
//go:noescape
func host_statfs(fd int32, path *byte, pathLen size, buf unsafe.Pointer) Errno

//go:wasmimport wasilet umask
func host_umask(mask uint32) uint32

//go:wasmimport wasilet getuid
func host_getuid() uint32

//go:wasmimport wasilet getgid
func host_getgid() uint32

//go:wasmimport wasilet getgroups
//go:noescape
func host_getgroups(list *uint32, max size, count *size) Errno

//go:wasmimport wasilet gethostname
//go:noescape
func host_gethostname(buf *byte, bufLen size, length *size) Errno

//go:wasmimport wasilet getcwd
//go:noescape
func host_getcwd(buf *byte, bufLen size, length *size) Errno

//go:wasmimport wasilet dup
//go:noescape
func host_dup(fd int32, newfd *int32) Errno

//go:wasmimport wasilet pipe
//go:noescape
func host_pipe(r, w *int32) Errno

//go:wasmimport wasilet getpid
func host_getpid() uint32

//go:wasmimport wasilet getppid
func host_getppid() uint32

//go:wasmimport wasilet kill
func host_kill(pid, signal uint32) Errno

//go:wasmimport wasilet wait
//go:noescape
func host_wait(pid, flags uint32, status, ended *uint32) Errno

//go:wasmimport wasilet pidfd_open
//go:noescape
func host_pidfd_open(pid uint32, newfd *int32) Errno

//go:wasmimport wasilet spawn
//go:noescape
func host_spawn(path *byte, pathLen size, argv *byte, argvLen size, env *byte, envLen size, cwd *byte, cwdLen size, fds *uint32, fdsCount size, pid *uint32) Errno

// startDirectory is where the process was started.
func startDirectory() string {
	buf := make([]byte, 4096)
	var n size
	if host_getcwd(&buf[0], size(len(buf)), &n) != 0 {
		return "/"
	}
	return string(buf[:n])
}

// preparePath gives the root directory's descriptor and the path below it. Unlike the text operation that this
// replaces it leaves ".." to the file system, which knows what links stand before it.
func preparePath(path string) (int32, *byte, size) {
	if !isAbs(path) {
		path = cwd + "/" + path
	}
	for isAbs(path) {
		path = path[1:]
	}
	if path == "" {
		path = "."
	}
	if len(preopens) == 0 {
		return -1, unsafe.StringData(path), size(len(path))
	}
	return preopens[0].fd, unsafe.StringData(path), size(len(path))
}

func openat(dirFd int32, pathPtr *byte, pathLen size, openmode int, perm uint32) (int, error) {
	var flags uint32
	switch openmode & (O_RDONLY | O_WRONLY | O_RDWR) {
	case O_RDONLY:
		flags = openRead
	case O_WRONLY:
		flags = openWrite
	case O_RDWR:
		flags = openRead | openWrite
	}
	for _, pair := range [...]struct {
		mode int
		flag uint32
	}{
		{O_APPEND, openAppend}, {O_CREATE, openCreate}, {O_EXCL, openExclusive}, {O_TRUNC, openTruncate},
		{O_DIRECTORY, openDirectory}, {O_NOFOLLOW, openNoFollow}, {O_SYNC, openSync},
	} {
		if openmode&pair.mode != 0 {
			flags |= pair.flag
		}
	}
	var fd int32
	if errno := host_open(dirFd, pathPtr, pathLen, flags, perm, &fd); errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func Mkdir(path string, perm uint32) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_mkdir(fd, ptr, n, perm))
}

// Stat_t begins as the port's own; the host fills it as it is.
type Stat_t struct {
	_        structs.HostLayout
	Dev      uint64
	Ino      uint64
	Filetype uint8
	Nlink    uint64
	Size     uint64
	Atime    uint64
	Mtime    uint64
	Ctime    uint64

	// Mode has the kind of file as well, as on Unix (S_IFMT).
	Mode int
	Uid  uint32
	Gid  uint32
	Rdev uint64
	// Blocks are of 512 bytes.
	Blocks int64
}

func statat(path string, flags uint32, st *Stat_t) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_stat(fd, ptr, n, flags, unsafe.Pointer(st)))
}

func Stat(path string, st *Stat_t) error  { return statat(path, followLinks, st) }
func Lstat(path string, st *Stat_t) error { return statat(path, 0, st) }
func Fstat(fd int, st *Stat_t) error {
	return errnoErr(host_stat(int32(fd), nil, 0, 0, unsafe.Pointer(st)))
}

func Chmod(path string, mode uint32) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_chmod(fd, ptr, n, mode))
}

func Fchmod(fd int, mode uint32) error { return errnoErr(host_chmod(int32(fd), nil, 0, mode)) }

func chownat(path string, flags uint32, uid, gid int) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_chown(fd, ptr, n, flags, uint32(uid), uint32(gid)))
}

func Chown(path string, uid, gid int) error  { return chownat(path, followLinks, uid, gid) }
func Lchown(path string, uid, gid int) error { return chownat(path, 0, uid, gid) }
func Fchown(fd int, uid, gid int) error {
	return errnoErr(host_chown(int32(fd), nil, 0, 0, uint32(uid), uint32(gid)))
}

// Access is access(2), with the user the process has.
func Access(path string, mode uint32) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_access(fd, ptr, n, mode))
}

// Statfs_t is what statfs(2) tells.
type Statfs_t struct {
	_       structs.HostLayout
	Type    int64
	Bsize   int64
	Blocks  uint64
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	Flags   int64
	Namelen int64
	Frsize  int64
}

func Statfs(path string, buf *Statfs_t) error {
	if path == "" {
		return ENOENT
	}
	fd, ptr, n := preparePath(path)
	return errnoErr(host_statfs(fd, ptr, n, unsafe.Pointer(buf)))
}

func Fstatfs(fd int, buf *Statfs_t) error {
	return errnoErr(host_statfs(int32(fd), nil, 0, unsafe.Pointer(buf)))
}

func Umask(mask int) int { return int(host_umask(uint32(mask))) }

func Getuid() int  { return int(host_getuid()) }
func Geteuid() int { return int(host_getuid()) }
func Getgid() int  { return int(host_getgid()) }
func Getegid() int { return int(host_getgid()) }

func Getgroups() ([]int, error) {
	list := make([]uint32, 64)
	for {
		var count size
		if errno := host_getgroups(&list[0], size(len(list)), &count); errno != 0 {
			return nil, errno
		}
		if int(count) <= len(list) {
			groups := make([]int, count)
			for i := range groups {
				groups[i] = int(list[i])
			}
			return groups, nil
		}
		list = make([]uint32, count)
	}
}

func Sysctl(key string) (string, error) {
	if key != "kern.hostname" {
		return "", ENOSYS
	}
	buf := make([]byte, 256)
	var n size
	if errno := host_gethostname(&buf[0], size(len(buf)), &n); errno != 0 {
		return "", errno
	}
	return string(buf[:n]), nil
}

func Dup(fd int) (int, error) {
	var newfd int32
	if errno := host_dup(int32(fd), &newfd); errno != 0 {
		return -1, errno
	}
	return int(newfd), nil
}

// Dup2 claims newfd, open or not.
func Dup2(fd, newfd int) error {
	if fd == newfd {
		_, err := fd_fdstat_get_type(fd)
		return err
	}
	// The host gives the lowest free number: the ones on the way to newfd are held until it is reached.
	var held []int
	defer func() {
		for _, fd := range held {
			Close(fd)
		}
	}()
	for {
		got, err := Dup(fd)
		if err != nil {
			return err
		}
		switch {
		case got == newfd:
			return nil
		case got < newfd:
			held = append(held, got)
		default:
			// newfd is open.
			return errnoErr(fd_renumber(int32(got), int32(newfd)))
		}
	}
}

//go:wasmimport wasi_snapshot_preview1 fd_renumber
//go:noescape
func fd_renumber(from, to int32) Errno

func Pipe(p []int) error {
	if len(p) != 2 {
		return EINVAL
	}
	var r, w int32
	if errno := host_pipe(&r, &w); errno != 0 {
		return errno
	}
	p[0], p[1] = int(r), int(w)
	return nil
}

// ForkLock is there for programs that hold it around descriptors; nothing is inherited that was not asked for.
var ForkLock sync.RWMutex

// WaitStatus is as Linux packs it.
type WaitStatus uint32

func (w WaitStatus) Exited() bool { return w&0x7f == 0 }
func (w WaitStatus) ExitStatus() int {
	if !w.Exited() {
		return -1
	}
	return int(w>>8) & 0xff
}
func (w WaitStatus) Signaled() bool { return w&0x7f != 0 }
func (w WaitStatus) Signal() Signal {
	if !w.Signaled() {
		return Signal(0xff)
	}
	return Signal(w & 0x7f)
}
func (w WaitStatus) CoreDump() bool     { return false }
func (w WaitStatus) Stopped() bool      { return false }
func (w WaitStatus) Continued() bool    { return false }
func (w WaitStatus) StopSignal() Signal { return Signal(0xff) }
func (w WaitStatus) TrapCause() int     { return -1 }

// Rusage is not kept by process: it stays zero.
type Rusage struct {
	Utime  Timeval
	Stime  Timeval
	Maxrss int64
}

// Credential is there for programs that can ask for another user; see [StartProcess].
type Credential struct {
	Uid         uint32
	Gid         uint32
	Groups      []uint32
	NoSetGroups bool
}

// SysProcAttr has the fields that programs for Unix set. There are no sessions, process groups and terminals to
// control, so most change nothing.
type SysProcAttr struct {
	Chroot     string
	Credential *Credential
	Setsid     bool
	Setpgid    bool
	Setctty    bool
	Noctty     bool
	Ctty       int
	Foreground bool
	Pgid       int
	Pdeathsig  Signal
}

func Getpid() int  { return int(host_getpid()) }
func Getppid() int { return int(host_getppid()) }

// Kill sends a signal. There are no process groups: a negative pid is the process of that number.
func Kill(pid int, signum Signal) error {
	switch {
	case pid == 0:
		pid = Getpid()
	case pid == -1:
		return EPERM
	case pid < 0:
		pid = -pid
	}
	return errnoErr(host_kill(uint32(pid), uint32(signum)))
}

func nulTerminated(items []string) ([]byte, error) {
	var all []byte
	for _, item := range items {
		for i := 0; i < len(item); i++ {
			if item[i] == 0 {
				return nil, EINVAL
			}
		}
		all = append(append(all, item...), 0)
	}
	return all, nil
}

func dataOf(b []byte) *byte { return unsafe.SliceData(b) }

// StartProcess starts another program of the container.
func StartProcess(argv0 string, argv []string, attr *ProcAttr) (pid int, handle uintptr, err error) {
	if attr == nil {
		attr = &ProcAttr{}
	}
	if sys := attr.Sys; sys != nil {
		if sys.Chroot != "" {
			return 0, 0, ENOSYS
		}
		if c := sys.Credential; c != nil && (int(c.Uid) != Getuid() || int(c.Gid) != Getgid()) {
			return 0, 0, EPERM
		}
	}
	if argv0 == "" {
		return 0, 0, ENOENT
	}
	dir := cwd
	if attr.Dir != "" {
		dir = attr.Dir
		if !isAbs(dir) {
			dir = joinPath(cwd, dir)
		}
	}
	if !isAbs(argv0) {
		argv0 = joinPath(dir, argv0)
	}
	args, err := nulTerminated(argv)
	if err != nil {
		return 0, 0, err
	}
	variables := attr.Env
	if variables == nil {
		variables = Environ()
	}
	env, err := nulTerminated(variables)
	if err != nil {
		return 0, 0, err
	}
	// The child finds its root directory at 3.
	if len(attr.Files) > 3 {
		return 0, 0, ENOTSUP
	}
	var fds []uint32
	for i, fd := range attr.Files {
		if fd != ^uintptr(0) {
			fds = append(fds, uint32(i), uint32(fd))
		}
	}
	var child uint32
	errno := host_spawn(unsafe.StringData(argv0), size(len(argv0)), dataOf(args), size(len(args)), dataOf(env), size(len(env)),
		unsafe.StringData(dir), size(len(dir)), unsafe.SliceData(fds), size(len(fds)/2), &child)
	runtime.KeepAlive(args)
	runtime.KeepAlive(env)
	if errno != 0 {
		return 0, 0, errno
	}
	return int(child), 0, nil
}

// Wait4 waits for a child. It stops all goroutines; os.Process.Wait does not, see [PidfdOpen].
func Wait4(pid int, wstatus *WaitStatus, options int, rusage *Rusage) (wpid int, err error) {
	if pid <= 0 {
		pid = 0
	}
	flags := uint32(waitStatus)
	if options&WNOHANG != 0 {
		flags |= waitNoHang
	}
	var status, ended uint32
	if errno := host_wait(uint32(pid), flags, &status, &ended); errno != 0 {
		return -1, errno
	}
	if wstatus != nil {
		*wstatus = WaitStatus(status)
	}
	if rusage != nil {
		*rusage = Rusage{}
	}
	return int(ended), nil
}

// PidfdOpen gives a descriptor that is at its end, and ready to be read, once the child has ended.
func PidfdOpen(pid int) (int, error) {
	var fd int32
	if errno := host_pidfd_open(uint32(pid), &fd); errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// Flock always succeeds: a container's files have no locks between programs, and most that ask for one are alone.
func Flock(fd int, how int) error { return nil }
