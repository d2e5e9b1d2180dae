package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var fileChecks = []check{
	{"files: the mode asked for, less the umask", modes},
	{"files: chmod, with setgid and sticky", chmod},
	{"files: chown, by number and of a link", chown},
	{"files: users and groups", users},
	{"files: a directory nobody may enter", denied},
	{"files: statfs", statfs},
	{"files: times", times},
	{"files: links, hard and symbolic", links},
	{"files: .. after a link is the target's parent", dotDotAfterLink},
	{"files: append, truncate, exclusive", openModes},
	{"files: walk, rename, remove all", walk},
	{"files: os.Root keeps inside", root},
	{"files: pipes and sockets by kind", kinds},
	{"files: Dup2 claims a number", dup2},
	{"host name", hostname},
}

func scratch() (string, func(), error) {
	dir, err := os.MkdirTemp("", "check")
	return dir, func() { os.RemoveAll(dir) }, err
}

func mode(path string) fs.FileMode {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Mode()
}

func sys(path string) *syscall.Stat_t {
	info, err := os.Lstat(path)
	if err != nil {
		return &syscall.Stat_t{}
	}
	return info.Sys().(*syscall.Stat_t)
}

func modes() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
	if err := all(os.WriteFile(file, nil, 0o666), os.Mkdir(sub, 0o777)); err != nil {
		return err
	}
	if err := all(equal("a file", mode(file), 0o644), equal("a directory", mode(sub), fs.ModeDir|0o755)); err != nil {
		return err
	}
	if got := syscall.Umask(0o077); got != 0o022 {
		return fmt.Errorf("the umask was %03o", got)
	}
	private := filepath.Join(dir, "private")
	if err := os.WriteFile(private, nil, 0o640); err != nil {
		return err
	}
	return all(equal("a private file", mode(private), 0o600),
		equal("st_mode", sys(private).Mode, syscall.S_IFREG|0o600), equal("nlink", sys(private).Nlink, 1))
}

func chmod() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	file := filepath.Join(dir, "file")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return all(os.Chmod(file, 0o400), equal("chmod", mode(file), 0o400),
		f.Chmod(0o755), equal("fchmod", mode(file), 0o755),
		os.Chmod(dir, 0o1770), os.Chmod(dir, fs.ModeSetgid|fs.ModeSticky|0o770),
		equal("the directory", mode(dir), fs.ModeDir|fs.ModeSetgid|fs.ModeSticky|0o770),
		isError("a missing file", os.Chmod(filepath.Join(dir, "none"), 0o600), os.ErrNotExist))
}

func chown() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := all(os.WriteFile(file, nil, 0o644), os.Symlink(file, link)); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return isError("chown", os.Chown(file, 7, 7), os.ErrPermission)
	}
	if err := all(os.Lchown(link, 7, 8), os.Chown(link, 5, -1)); err != nil {
		return err
	}
	return all(equal("the file's user", sys(file).Uid, 5), equal("its group", sys(file).Gid, uint32(os.Getgid())),
		equal("the link's user", sys(link).Uid, 7), equal("the link's group", sys(link).Gid, 8))
}

func users() error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	fmt.Printf("     uid %d, gid %d, groups %v\n", os.Getuid(), os.Getgid(), groups)
	return all(equal("the effective user", os.Geteuid(), os.Getuid()), equal("the effective group", os.Getegid(), os.Getgid()),
		equal("the owner of what it makes", int(sys(dir).Uid), os.Getuid()))
}

func denied() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	closed := filepath.Join(dir, "closed")
	if err := all(os.Mkdir(closed, 0o700), os.WriteFile(filepath.Join(closed, "f"), nil, 0o600), os.Chmod(closed, 0)); err != nil {
		return err
	}
	defer os.Chmod(closed, 0o700)
	_, err = os.ReadFile(filepath.Join(closed, "f"))
	if os.Getuid() == 0 {
		return err
	}
	return isError("reading in it", err, os.ErrPermission)
}

func statfs() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs("/", &st); err != nil {
		return err
	}
	if st.Type == 0 || st.Bsize <= 0 || st.Namelen != 255 {
		return fmt.Errorf("it says %+v", st)
	}
	return isError("a missing path", syscall.Statfs("/no/such/path", &st), os.ErrNotExist)
}

func times() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	when := time.Date(2001, 2, 3, 4, 5, 6, 7000, time.UTC)
	if err := os.Chtimes(dir, time.Time{}, when); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	return all(err, equal("the time", info.ModTime().UTC(), when))
}

func links() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	file, hard, soft := filepath.Join(dir, "file"), filepath.Join(dir, "hard"), filepath.Join(dir, "soft")
	if err := all(os.WriteFile(file, []byte("text"), 0o644), os.Link(file, hard), os.Symlink("file", soft)); err != nil {
		return err
	}
	a, _ := os.Stat(file)
	b, _ := os.Stat(hard)
	c, _ := os.Stat(soft)
	target, err := os.Readlink(soft)
	return all(err, equal("the target", target, "file"), equal("links", sys(file).Nlink, 2),
		equal("the hard one is the same", os.SameFile(a, b), true), equal("the soft one leads there", os.SameFile(a, c), true),
		equal("the link itself", mode(soft).Type(), fs.ModeSymlink))
}

func dotDotAfterLink() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	deep := filepath.Join(dir, "a", "b")
	if err := all(os.MkdirAll(deep, 0o755), os.Symlink("a/b", filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, "a", "f"), []byte("right"), 0o644)); err != nil {
		return err
	}
	text, err := os.ReadFile(dir + "/link/../f")
	return all(err, equal("what is there", string(text), "right"))
}

func openModes() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	path := filepath.Join(dir, "log")
	for _, line := range []string{"one\n", "two\n"} {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		f.WriteString(line)
		f.Close()
	}
	text, _ := os.ReadFile(path)
	if err := equal("the log", string(text), "one\ntwo\n"); err != nil {
		return err
	}
	_, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err := isError("an exclusive open", err, os.ErrExist); err != nil {
		return err
	}
	if err := os.Truncate(path, 3); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	f.WriteAt([]byte("!"), 2)
	text, err = io.ReadAll(f)
	return all(err, equal("the rest", string(text), "on!"))
}

func walk() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	for i := range 300 {
		sub := filepath.Join(dir, fmt.Sprint("d", i%7))
		if err := all(os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, fmt.Sprint("f", i)), nil, 0o644)); err != nil {
			return err
		}
	}
	if err := os.Rename(filepath.Join(dir, "d0"), filepath.Join(dir, "moved")); err != nil {
		return err
	}
	count := 0
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			count++
		}
		return err
	})
	if err := all(err, equal("files", count, 300), os.RemoveAll(dir)); err != nil {
		return err
	}
	_, err = os.Stat(dir)
	return isError("what is left", err, os.ErrNotExist)
}

func root() error {
	dir, done, err := scratch()
	if err != nil {
		return err
	}
	defer done()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir("sub", 0o750); err != nil {
		return err
	}
	f, err := root.OpenFile("sub/file", os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	f.Close()
	info, err := root.Stat("sub/file")
	if err := all(err, equal("its mode", info.Mode().Perm(), 0o640), os.Symlink("/etc", filepath.Join(dir, "out"))); err != nil {
		return err
	}
	if _, err := root.Open("out/hostname"); err == nil {
		return errors.New("it left")
	}
	return nil
}

func kinds() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	info, err := r.Stat()
	if err := all(err, equal("a pipe", info.Mode().Type(), fs.ModeNamedPipe)); err != nil {
		return err
	}
	null, err := os.Stat(os.DevNull)
	return all(err, equal("/dev/null", null.Mode().Type(), fs.ModeDevice|fs.ModeCharDevice))
}

func dup2() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	const number = 40
	for range 2 { // free the first time, taken the second
		if err := syscall.Dup2(int(w.Fd()), number); err != nil {
			return err
		}
	}
	w.Close()
	copied := os.NewFile(number, "copy")
	copied.WriteString("by another number")
	copied.Close()
	text, err := io.ReadAll(r)
	return all(err, equal("the pipe", string(text), "by another number"))
}

func hostname() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/etc/hostname")
	return all(err, equal("it", name+"\n", string(text)))
}
