package os

import (
	"internal/filepathlite"
	"io"
	"syscall"
	"time"
)

// Pipe returns a connected pair of Files; reads from r return bytes written to w.
// It returns the files and an error, if any.
func Pipe() (r *File, w *File, err error) {
	var p [2]int
	if err := syscall.Pipe(p[:]); err != nil {
		return nil, nil, NewSyscallError("pipe", err)
	}
	return newFile(p[0], "|0", kindPipe, false), newFile(p[1], "|1", kindPipe, false), nil
}

// blockUntilWaitable waits in the poller for the child to end, so that other goroutines run meanwhile.
func (p *Process) blockUntilWaitable() (bool, error) {
	fd, err := syscall.PidfdOpen(p.Pid)
	if err != nil {
		if err == syscall.ECHILD {
			return false, nil // Wait4 says so.
		}
		return false, NewSyscallError("pidfd_open", err)
	}
	child := newFile(fd, "pidfd", kindPipe, false)
	defer child.Close()
	for {
		var b [1]byte
		switch _, err := child.Read(b[:]); err {
		case io.EOF:
			return true, nil
		case nil:
		default:
			return false, err
		}
	}
}

func fillFileStatFromSys(fs *fileStat, name string) {
	fs.name = filepathlite.Base(name)
	fs.size = int64(fs.sys.Size)
	fs.modTime = time.Unix(0, int64(fs.sys.Mtime))
	fs.mode = FileMode(fs.sys.Mode & 0o777)
	switch fs.sys.Mode & syscall.S_IFMT {
	case syscall.S_IFBLK:
		fs.mode |= ModeDevice
	case syscall.S_IFCHR:
		fs.mode |= ModeDevice | ModeCharDevice
	case syscall.S_IFDIR:
		fs.mode |= ModeDir
	case syscall.S_IFIFO:
		fs.mode |= ModeNamedPipe
	case syscall.S_IFLNK:
		fs.mode |= ModeSymlink
	case syscall.S_IFSOCK:
		fs.mode |= ModeSocket
	}
	if fs.sys.Mode&syscall.S_ISGID != 0 {
		fs.mode |= ModeSetgid
	}
	if fs.sys.Mode&syscall.S_ISUID != 0 {
		fs.mode |= ModeSetuid
	}
	if fs.sys.Mode&syscall.S_ISVTX != 0 {
		fs.mode |= ModeSticky
	}
}

// Asked for before anybody changes it.
var initWd, errWd = Getwd()

// executable is what the host says, or the program as it is found: a name is looked for on PATH, and nothing needs an
// execute bit.
func executable() (string, error) {
	if path, err := Readlink("/proc/self/exe"); err == nil && path != "" && path[0] == PathSeparator {
		return path, nil
	}
	if len(Args) == 0 || Args[0] == "" {
		return "", ErrNotExist
	}
	name := Args[0]
	if name[0] == PathSeparator {
		return name, nil
	}
	for i := range len(name) {
		if name[i] == PathSeparator {
			return initWd + "/" + name, errWd
		}
	}
	path := Getenv("PATH")
	for len(path) > 0 {
		dir := path
		path = ""
		for i := range len(dir) {
			if dir[i] == PathListSeparator {
				dir, path = dir[:i], dir[i+1:]
				break
			}
		}
		if dir == "" || dir[0] != PathSeparator {
			dir = initWd + "/" + dir
		}
		if info, err := Stat(dir + "/" + name); err == nil && info.Mode().IsRegular() {
			return dir + "/" + name, nil
		}
	}
	return "", ErrNotExist
}
