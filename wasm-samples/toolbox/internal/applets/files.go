package applets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	for name, applet := range map[string]Applet{
		"cat": cat, "ls": ls, "cp": cp, "mv": mv, "rm": rm, "mkdir": mkdir, "rmdir": rmdir, "touch": touch, "chmod": chmod,
		"chown": chown, "chgrp": chgrp, "stat": stat, "ln": ln, "readlink": readlink, "realpath": realpath, "du": du, "df": df,
		"mktemp": mktemp, "sync": syncDisks, "dd": dd, "truncate": truncate, "unlink": unlink, "less": less, "more": less,
	} {
		Register(name, applet)
	}
}

func cat(c *Ctx) int {
	f := c.opts("nbvteAsuT")
	if !f.has("n") && !f.has("b") && !f.has("v") && !f.has("e") && !f.has("A") && !f.has("t") {
		return c.each(f.args, func(_ string, r io.Reader) error {
			_, err := io.Copy(writerOnly{c.Out}, r)
			return err
		})
	}
	number := 0
	return c.each(f.args, func(_ string, r io.Reader) error {
		return eachLine(r, func(line string) bool {
			text, ended := strings.CutSuffix(line, "\n")
			if f.has("n") || f.has("b") && text != "" {
				number++
				c.printf("%6d\t", number)
			}
			if f.has("v") || f.has("e") || f.has("A") || f.has("t") {
				text = visible(text, f.has("t") || f.has("A"))
			}
			c.printf("%s", text)
			if ended {
				if f.has("e") || f.has("A") {
					c.printf("$")
				}
				c.printf("\n")
			}
			return true
		})
	})
}

// writerOnly hides what io.Copy would take for a short cut.
type writerOnly struct{ io.Writer }

func visible(text string, tabs bool) string {
	var b strings.Builder
	for i := range len(text) {
		ch := text[i]
		if ch >= 128 {
			b.WriteString("M-")
			ch -= 128
		}
		switch {
		case ch == '\t' && !tabs:
			b.WriteByte(ch)
		case ch < 32:
			b.WriteByte('^')
			b.WriteByte(ch + 64)
		case ch == 127:
			b.WriteString("^?")
		default:
			b.WriteByte(ch)
		}
	}
	return b.String()
}

func less(c *Ctx) int {
	f := c.opts("EFIMmNnRSsXe", "no-init=X")
	c.Args = append([]string{c.name()}, f.args...)
	return c.each(f.args, func(_ string, r io.Reader) error {
		_, err := io.Copy(writerOnly{c.Out}, r)
		return err
	})
}

// entry is one line of ls.
type entry struct {
	name string
	info fs.FileInfo
	path string
}

func ls(c *Ctx) int {
	f := c.opts("1AaCcdFghiklLnopqQRrSstTuUvXxHw:", "color=", "all=a", "full-time=l", "group-directories-first=")
	code := 0
	var files, dirs []entry
	args := f.args
	if len(args) == 0 {
		args = []string{"."}
	}
	follow := !f.has("l") && !f.has("F") && !f.has("d") || f.has("L") || f.has("H")
	for _, arg := range args {
		info, err := os.Lstat(c.path(arg))
		if err == nil && follow && info.Mode()&fs.ModeSymlink != 0 {
			if target, err := os.Stat(c.path(arg)); err == nil {
				info = target
			}
		}
		if err != nil {
			c.errf("%s: %s", arg, reason(err))
			code = 1
			continue
		}
		if info.IsDir() && !f.has("d") {
			dirs = append(dirs, entry{arg, info, arg})
		} else {
			files = append(files, entry{arg, info, arg})
		}
	}
	names := [2]map[string]string{}
	if f.has("l") && !f.has("n") {
		names = [2]map[string]string{idNames("/etc/passwd"), idNames("/etc/group")}
	}
	lsSort(f, files)
	lsSort(f, dirs)
	c.lsPrint(f, names, files)
	many := len(args) > 1 || f.has("R")
	first := len(files) == 0
	var list func(dir entry)
	list = func(dir entry) {
		if !first {
			c.printf("\n")
		}
		first = false
		if many {
			c.printf("%s:\n", dir.path)
		}
		read, err := os.ReadDir(c.path(dir.path))
		if err != nil {
			c.errf("can't open '%s': %s", dir.path, reason(err))
			code = 1
			return
		}
		var entries []entry
		if f.has("a") {
			for _, dot := range []string{".", ".."} {
				if info, err := os.Stat(c.path(strings.TrimSuffix(dir.path, "/") + "/" + dot)); err == nil {
					entries = append(entries, entry{dot, info, ""})
				}
			}
		}
		for _, item := range read {
			if strings.HasPrefix(item.Name(), ".") && !f.has("a") && !f.has("A") {
				continue
			}
			at := strings.TrimSuffix(dir.path, "/") + "/" + item.Name()
			info, err := os.Lstat(c.path(at))
			if err == nil && f.has("L") {
				info, err = os.Stat(c.path(at))
			}
			if err != nil {
				c.errf("%s: %s", at, reason(err))
				code = 1
				continue
			}
			entries = append(entries, entry{item.Name(), info, at})
		}
		lsSort(f, entries)
		if f.has("l") || f.has("s") {
			total := int64(0)
			for _, e := range entries {
				total += (ownerOf(e.info).blocks + 1) / 2
			}
			c.printf("total %d\n", total)
		}
		c.lsPrint(f, names, entries)
		if f.has("R") {
			for _, e := range entries {
				if e.info.IsDir() && e.name != "." && e.name != ".." {
					list(e)
				}
			}
		}
	}
	for _, dir := range dirs {
		list(dir)
	}
	return code
}

func lsSort(f *flags, entries []entry) {
	if f.has("U") {
		return
	}
	sort.SliceStable(entries, func(i, j int) bool {
		a, b := entries[i], entries[j]
		if f.has("r") {
			a, b = b, a
		}
		switch {
		case f.has("S") && a.info.Size() != b.info.Size():
			return a.info.Size() > b.info.Size()
		case f.has("t") && !a.info.ModTime().Equal(b.info.ModTime()):
			return a.info.ModTime().After(b.info.ModTime())
		}
		return a.name < b.name
	})
}

func (c *Ctx) lsPrint(f *flags, names [2]map[string]string, entries []entry) {
	for _, e := range entries {
		own := ownerOf(e.info)
		if f.has("i") {
			c.printf("%7d ", own.ino)
		}
		if f.has("s") {
			c.printf("%6d ", (own.blocks+1)/2)
		}
		suffix := ""
		if f.has("F") || f.has("p") {
			mode := e.info.Mode()
			switch {
			case mode.IsDir():
				suffix = "/"
			case f.has("p"):
			case mode&fs.ModeSymlink != 0:
				suffix = "@"
			case mode&fs.ModeNamedPipe != 0:
				suffix = "|"
			case mode&0o111 != 0:
				suffix = "*"
			}
		}
		if !f.has("l") && !f.has("n") && !f.has("g") && !f.has("o") {
			c.printf("%s%s\n", e.name, suffix)
			continue
		}
		id := func(which int, number uint32) string {
			if name := names[which][strconv.Itoa(int(number))]; name != "" {
				return name
			}
			return strconv.Itoa(int(number))
		}
		size := strconv.FormatInt(e.info.Size(), 10)
		if f.has("h") {
			size = humanBytes(e.info.Size())
		}
		if e.info.Mode()&fs.ModeDevice != 0 {
			size = fmt.Sprintf("%d, %3d", own.rdev>>8&0xfff, own.rdev&0xff)
		}
		modified := e.info.ModTime()
		stamp := modified.Format("Jan _2 15:04")
		if age := time.Since(modified); age > 180*24*time.Hour || age < -24*time.Hour {
			stamp = modified.Format("Jan _2  2006")
		}
		if f.has("full-time") {
			stamp = modified.Format("2006-01-02 15:04:05 -0700")
		}
		name := e.name + suffix
		if e.info.Mode()&fs.ModeSymlink != 0 {
			if target, err := os.Readlink(c.path(e.path)); err == nil {
				name = e.name + " -> " + target
			}
		}
		c.printf("%s %4d %-8s %-8s %9s %s %s\n", modeString(e.info.Mode()), own.nlink, id(0, own.uid), id(1, own.gid), size, stamp, name)
	}
}

func humanBytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	size := float64(n)
	unit := -1
	for size >= 1024 && unit < 5 {
		size /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f%c", size, "KMGTPE"[unit])
}

// copier is cp, and mv between file systems.
type copier struct {
	c                                                  *Ctx
	recursive, preserve, noDereference, force, verbose bool
	linkOnly, symlinkOnly, update, noClobber           bool
	code                                               int
}

func cp(c *Ctx) int {
	f := c.opts("adPLHprRfilsunvTt:", "archive=a", "recursive=r", "preserve=p", "force=f", "no-clobber=n", "verbose=v")
	cpy := copier{
		c: c, recursive: f.has("r") || f.has("R") || f.has("a"), preserve: f.has("p") || f.has("a"),
		noDereference: (f.has("d") || f.has("a") || f.has("P") || f.has("r") || f.has("R")) && !f.has("L"), force: f.has("f"),
		verbose: f.has("v"), linkOnly: f.has("l"), symlinkOnly: f.has("s"), update: f.has("u"), noClobber: f.has("n"),
	}
	return intoDirectory(c, f, "[-arfpuv] SOURCE... DEST", cpy.copy, &cpy.code)
}

// intoDirectory calls act for each source with where it is to go.
func intoDirectory(c *Ctx, f *flags, usage string, act func(from, to string), code *int) int {
	args := f.args
	target := f.val("t", "")
	if target == "" {
		if len(args) < 2 {
			c.usage(usage)
		}
		target, args = args[len(args)-1], args[:len(args)-1]
	}
	info, err := os.Stat(c.path(target))
	directory := err == nil && info.IsDir() && !f.has("T")
	if len(args) > 1 && !directory {
		c.die("target '%s' is not a directory", target)
	}
	for _, from := range args {
		to := target
		if directory {
			to = strings.TrimSuffix(target, "/") + "/" + path.Base(strings.TrimRight(from, "/"))
		}
		act(from, to)
	}
	return *code
}

func (k *copier) fail(format string, a ...any) {
	k.c.errf(format, a...)
	k.code = 1
}

func (k *copier) copy(from, to string) {
	c := k.c
	if c.done() {
		panic(quit(130))
	}
	lookup := os.Stat
	if k.noDereference {
		lookup = os.Lstat
	}
	info, err := lookup(c.path(from))
	if err != nil {
		k.fail("can't stat '%s': %s", from, reason(err))
		return
	}
	there, err := os.Lstat(c.path(to))
	if err == nil {
		if resolved, err := os.Stat(c.path(to)); err == nil && os.SameFile(info, resolved) && !k.symlinkOnly {
			k.fail("'%s' and '%s' are the same file", from, to)
			return
		}
		if k.noClobber && !info.IsDir() || k.update && !info.IsDir() && !info.ModTime().After(there.ModTime()) {
			return
		}
	} else {
		there = nil
	}
	if k.verbose {
		c.printf("'%s' -> '%s'\n", from, to)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		if !k.recursive {
			k.fail("omitting directory '%s'", from)
			return
		}
		k.directory(from, to, info, there)
		return
	case k.linkOnly:
		err = os.Link(c.path(from), c.path(to))
	case k.symlinkOnly:
		err = os.Symlink(from, c.path(to))
	case mode&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(c.path(from)); err == nil {
			if there != nil {
				os.Remove(c.path(to))
			}
			err = os.Symlink(target, c.path(to))
		}
		if err == nil && k.preserve {
			own := ownerOf(info)
			os.Lchown(c.path(to), int(own.uid), int(own.gid))
		}
		if err != nil {
			k.fail("can't create symlink '%s': %s", to, reason(err))
		}
		return
	case mode&fs.ModeNamedPipe != 0 && k.recursive:
		err = mkfifo(c.path(to), permissions(mode))
	default:
		k.file(from, to, info, there)
		return
	}
	if err != nil {
		k.fail("can't create '%s': %s", to, reason(err))
	}
}

func (k *copier) directory(from, to string, info, there fs.FileInfo) {
	c := k.c
	if there == nil {
		if err := os.Mkdir(c.path(to), info.Mode().Perm()|0o700); err != nil {
			k.fail("can't create directory '%s': %s", to, reason(err))
			return
		}
	} else if resolved, err := os.Stat(c.path(to)); err != nil || !resolved.IsDir() {
		k.fail("can't create directory '%s': Not a directory", to)
		return
	}
	entries, err := os.ReadDir(c.path(from))
	if err != nil {
		k.fail("can't open '%s': %s", from, reason(err))
		return
	}
	for _, e := range entries {
		k.copy(strings.TrimSuffix(from, "/")+"/"+e.Name(), strings.TrimSuffix(to, "/")+"/"+e.Name())
	}
	if k.preserve {
		k.attributes(to, info)
	} else if there == nil {
		os.Chmod(c.path(to), info.Mode().Perm()&^fs.FileMode(currentUmask()))
	}
}

func (k *copier) file(from, to string, info, there fs.FileInfo) {
	c := k.c
	in, err := os.Open(c.path(from))
	if err != nil {
		k.fail("can't open '%s': %s", from, reason(err))
		return
	}
	defer in.Close()
	out, err := os.OpenFile(c.path(to), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil && k.force && there != nil {
		os.Remove(c.path(to))
		out, err = os.OpenFile(c.path(to), os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	}
	if err != nil {
		k.fail("can't create '%s': %s", to, reason(err))
		return
	}
	_, err = io.Copy(writerOnly{out}, in)
	if closed := out.Close(); err == nil {
		err = closed
	}
	if err != nil {
		k.fail("error writing to '%s': %s", to, reason(err))
		return
	}
	if k.preserve {
		k.attributes(to, info)
	}
}

// attributes gives a copy its original's mode, owner and times.
func (k *copier) attributes(to string, info fs.FileInfo) {
	p := k.c.path(to)
	own := ownerOf(info)
	if err := os.Chown(p, int(own.uid), int(own.gid)); err != nil && os.Geteuid() == 0 {
		k.c.errf("can't preserve ownership of '%s': %s", to, reason(err))
	}
	os.Chmod(p, info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
	os.Chtimes(p, time.Unix(0, own.atime), info.ModTime())
}

func mv(c *Ctx) int {
	f := c.opts("finTt:v", "force=f", "no-clobber=n", "verbose=v")
	code := 0
	act := func(from, to string) {
		if f.has("n") {
			if _, err := os.Lstat(c.path(to)); err == nil {
				return
			}
		}
		err := os.Rename(c.path(from), c.path(to))
		switch {
		case err == nil:
			if f.has("v") {
				c.printf("'%s' -> '%s'\n", from, to)
			}
		case errors.Is(err, syscall.EXDEV):
			k := copier{c: c, recursive: true, preserve: true, noDereference: true, force: true}
			if k.copy(from, to); k.code == 0 {
				err = os.RemoveAll(c.path(from))
			}
			if k.code != 0 || err != nil {
				code = 1
			}
		default:
			if _, missing := os.Lstat(c.path(from)); missing != nil {
				c.errf("can't rename '%s': %s", from, reason(missing))
			} else {
				c.errf("can't rename '%s': %s", from, reason(err))
			}
			code = 1
		}
	}
	return intoDirectory(c, f, "[-fivn] SOURCE... DEST", act, &code)
}

func rm(c *Ctx) int {
	f := c.opts("firRv", "force=f", "recursive=r", "verbose=v")
	if len(f.args) == 0 && !f.has("f") {
		c.usage("[-rfv] FILE...")
	}
	code := 0
	for _, arg := range f.args {
		if base := path.Base(arg); base == "." || base == ".." {
			c.errf("can't remove '.' or '..'")
			code = 1
			continue
		}
		info, err := os.Lstat(c.path(arg))
		if err != nil {
			if !f.has("f") || !isNotExist(err) {
				c.errf("can't remove '%s': %s", arg, reason(err))
				code = 1
			}
			continue
		}
		switch {
		case info.IsDir() && !f.has("r") && !f.has("R"):
			c.errf("'%s' is a directory", arg)
			code = 1
			continue
		case info.IsDir():
			err = os.RemoveAll(c.path(arg))
		default:
			err = os.Remove(c.path(arg))
		}
		if err != nil {
			c.errf("can't remove '%s': %s", arg, reason(err))
			code = 1
		} else if f.has("v") {
			c.printf("removed '%s'\n", arg)
		}
	}
	return code
}

func unlink(c *Ctx) int {
	f := c.opts("")
	if len(f.args) != 1 {
		c.usage("FILE")
	}
	if err := syscall.Unlink(c.path(f.args[0])); err != nil {
		c.die("can't remove file '%s': %s", f.args[0], reason(err))
	}
	return 0
}

func mkdir(c *Ctx) int {
	f := c.opts("m:pv", "mode:=m", "parents=p", "verbose=v")
	if len(f.args) == 0 {
		c.usage("[-m MODE] [-p] DIRECTORY...")
	}
	umask := currentUmask()
	mode := 0o777 &^ umask
	if text := f.val("m", ""); text != "" {
		parsed, err := ParseMode(text, 0o777, true, umask)
		if err != nil {
			c.die("invalid mode '%s'", text)
		}
		mode = parsed
	}
	code := 0
	for _, dir := range f.args {
		p := c.path(dir)
		if f.has("p") {
			if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
				c.errf("can't create directory '%s': %s", dir, reason(err))
				code = 1
				continue
			}
			if info, err := os.Stat(p); err == nil && info.IsDir() {
				continue
			}
		}
		err := os.Mkdir(p, 0o777)
		if err == nil && f.has("m") {
			err = os.Chmod(p, fileMode(mode))
		}
		if err != nil {
			c.errf("can't create directory '%s': %s", dir, reason(err))
			code = 1
		} else if f.has("v") {
			c.printf("created directory: '%s'\n", dir)
		}
	}
	return code
}

func rmdir(c *Ctx) int {
	f := c.opts("p", "parents=p", "ignore-fail-on-non-empty=i")
	code := 0
	for _, dir := range f.args {
		for {
			if err := syscall.Rmdir(c.path(dir)); err != nil {
				if !(f.has("i") && errors.Is(err, syscall.ENOTEMPTY)) {
					c.errf("'%s': %s", dir, reason(err))
					code = 1
				}
				break
			}
			dir = path.Dir(dir)
			if !f.has("p") || dir == "." || dir == "/" {
				break
			}
		}
	}
	return code
}

func touch(c *Ctx) int {
	f := c.opts("acmhd:t:r:f", "no-create=c", "date:=d", "reference:=r")
	if len(f.args) == 0 {
		c.usage("[-cam] [-d DATE] [-t DATE] [-r FILE] FILE...")
	}
	access := time.Now()
	modify := access
	if text := f.val("d", f.val("t", "")); text != "" {
		when, err := parseDate(text, time.Now())
		if err != nil {
			c.die("invalid date '%s'", text)
		}
		access, modify = when, when
	}
	if file := f.val("r", ""); file != "" {
		info, err := os.Stat(c.path(file))
		if err != nil {
			c.die("%s: %s", file, reason(err))
		}
		access, modify = time.Unix(0, ownerOf(info).atime), info.ModTime()
	}
	code := 0
	for _, name := range f.args {
		p := c.path(name)
		info, err := os.Stat(p)
		if isNotExist(err) {
			if f.has("c") {
				continue
			}
			var made *os.File
			if made, err = os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o666); err == nil {
				made.Close()
			}
		}
		if err == nil {
			a, m := access, modify
			if info != nil && f.has("m") && !f.has("a") {
				a = time.Unix(0, ownerOf(info).atime)
			}
			if info != nil && f.has("a") && !f.has("m") {
				m = info.ModTime()
			}
			err = os.Chtimes(p, a, m)
		}
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
		}
	}
	return code
}

// walk calls f for a path and all that is below it.
func (c *Ctx) walk(p string, f func(p string, info fs.FileInfo)) error {
	info, err := os.Lstat(c.path(p))
	if err != nil {
		return err
	}
	f(p, info)
	if info.IsDir() {
		entries, err := os.ReadDir(c.path(p))
		if err != nil {
			return err
		}
		for _, e := range entries {
			c.walk(strings.TrimSuffix(p, "/")+"/"+e.Name(), f)
		}
	}
	return nil
}

func chmod(c *Ctx) int {
	// A mode such as -x is no option.
	var modes []string
	args := []string{c.Args[0]}
	recursive, verbose := false, false
	for _, arg := range c.Args[1:] {
		switch {
		case arg == "-R" || arg == "--recursive":
			recursive = true
		case arg == "-v" || arg == "-c" || arg == "-f" || arg == "-Rf":
			verbose = arg == "-v"
			recursive = recursive || arg == "-Rf"
		case arg == "--":
		case len(modes) == 0:
			modes = append(modes, arg)
		default:
			args = append(args, arg)
		}
	}
	if len(modes) == 0 || len(args) < 2 {
		c.usage("[-Rcvf] MODE[,MODE]... FILE...")
	}
	code := 0
	umask := currentUmask()
	change := func(p string, info fs.FileInfo) {
		if info.Mode()&fs.ModeSymlink != 0 {
			return
		}
		mode, err := ParseMode(modes[0], permissions(info.Mode()), info.IsDir(), umask)
		if err != nil {
			c.die("invalid mode '%s'", modes[0])
		}
		if err := os.Chmod(c.path(p), fileMode(mode)); err != nil {
			c.errf("%s: %s", p, reason(err))
			code = 1
		} else if verbose {
			c.printf("mode of '%s' changed to %04o\n", p, mode)
		}
	}
	for _, name := range args[1:] {
		var err error
		if recursive {
			err = c.walk(name, change)
		} else {
			var info fs.FileInfo
			if info, err = os.Stat(c.path(name)); err == nil {
				change(name, info)
			}
		}
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
		}
	}
	return code
}

func chown(c *Ctx) int { return changeOwner(c, false) }
func chgrp(c *Ctx) int { return changeOwner(c, true) }

func changeOwner(c *Ctx, groupOnly bool) int {
	f := c.opts("RhcvfLPH", "recursive=R", "no-dereference=h")
	if len(f.args) < 2 {
		c.usage("[-Rh] USER[:[GRP]] FILE...")
	}
	uid, gid := -1, -1
	var err error
	user, group, both := strings.Cut(f.args[0], ":")
	if !both {
		user, group, both = strings.Cut(f.args[0], ".")
	}
	if groupOnly {
		user, group = "", f.args[0]
	}
	if user != "" {
		if uid, err = idNumber("/etc/passwd", user); err != nil {
			c.die("%v", err)
		}
		if both && group == "" {
			group = user
		}
	}
	if group != "" {
		if gid, err = idNumber("/etc/group", group); err != nil {
			c.die("%v", err)
		}
	}
	code := 0
	change := func(p string, info fs.FileInfo) {
		act := os.Chown
		if f.has("h") || f.has("R") && info.Mode()&fs.ModeSymlink != 0 {
			act = os.Lchown
		}
		if err := act(c.path(p), uid, gid); err != nil {
			c.errf("%s: %s", p, reason(err))
			code = 1
		}
	}
	for _, name := range f.args[1:] {
		if f.has("R") {
			err = c.walk(name, change)
		} else {
			var info fs.FileInfo
			if info, err = os.Lstat(c.path(name)); err == nil {
				change(name, info)
			}
		}
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
		}
	}
	return code
}

func stat(c *Ctx) int {
	f := c.opts("Lc:ft", "format:=c", "dereference=L", "terse=t")
	if len(f.args) == 0 {
		c.usage("[-Lf] [-c FMT] FILE...")
	}
	code := 0
	for _, name := range f.args {
		if f.has("f") {
			code |= c.statFS(name, f.val("c", ""))
			continue
		}
		lookup := os.Lstat
		if f.has("L") {
			lookup = os.Stat
		}
		info, err := lookup(c.path(name))
		if err != nil {
			c.errf("can't stat '%s': %s", name, reason(err))
			code = 1
			continue
		}
		if format := f.val("c", ""); format != "" {
			c.printf("%s\n", c.statFormat(format, name, info))
			continue
		}
		if f.has("t") {
			c.printf("%s\n", c.statFormat("%n %s %b %f %u %g %D %i %h %t %T %X %Y %Z %o", name, info))
			continue
		}
		shown := "%N"
		if info.Mode()&fs.ModeSymlink == 0 {
			shown = "%n"
		}
		c.printf("%s\n", c.statFormat("  File: "+shown+"\n  Size: %-10s\tBlocks: %-10b IO Block: %-6o %F\n"+
			"Device: %Dh/%dd\tInode: %-10i  Links: %h\nAccess: (%04a/%A)  Uid: (%5u/%8U)   Gid: (%5g/%8G)\n"+
			"Access: %x\nModify: %y\nChange: %z", name, info))
	}
	return code
}

func (c *Ctx) statFormat(format, name string, info fs.FileInfo) string {
	own := ownerOf(info)
	kind := "regular file"
	kindBits := uint32(0o100000)
	switch mode := info.Mode(); {
	case mode.IsDir():
		kind, kindBits = "directory", 0o040000
	case mode&fs.ModeSymlink != 0:
		kind, kindBits = "symbolic link", 0o120000
	case mode&fs.ModeNamedPipe != 0:
		kind, kindBits = "fifo", 0o010000
	case mode&fs.ModeSocket != 0:
		kind, kindBits = "socket", 0o140000
	case mode&fs.ModeCharDevice != 0:
		kind, kindBits = "character special file", 0o020000
	case mode&fs.ModeDevice != 0:
		kind, kindBits = "block special file", 0o060000
	case info.Size() == 0:
		kind = "regular empty file"
	}
	stamp := func(nanoseconds int64) string {
		return time.Unix(0, nanoseconds).Format("2006-01-02 15:04:05.000000000 -0700")
	}
	idName := func(file string, id uint32) string {
		if name := idNames(file)[strconv.Itoa(int(id))]; name != "" {
			return name
		}
		return "UNKNOWN"
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		j := i + 1
		for j < len(format) && strings.IndexByte("-0123456789.+ #", format[j]) >= 0 {
			j++
		}
		if j == len(format) {
			b.WriteString(format[i:])
			break
		}
		spec := format[i:j]
		text := func(s string) { fmt.Fprintf(&b, strings.ReplaceAll(spec, "0", "")+"s", s) }
		number := func(verb string, n any) { fmt.Fprintf(&b, spec+verb, n) }
		switch format[j] {
		case 'n':
			text(name)
		case 'N':
			quoted := "'" + name + "'"
			if target, err := os.Readlink(c.path(name)); err == nil {
				quoted += " -> '" + target + "'"
			}
			text(quoted)
		case 's':
			number("d", info.Size())
		case 'a':
			number("o", permissions(info.Mode()))
		case 'A':
			text(modeString(info.Mode()))
		case 'f':
			number("x", kindBits|permissions(info.Mode()))
		case 'F':
			text(kind)
		case 'u':
			number("d", own.uid)
		case 'g':
			number("d", own.gid)
		case 'U':
			text(idName("/etc/passwd", own.uid))
		case 'G':
			text(idName("/etc/group", own.gid))
		case 'i':
			number("d", own.ino)
		case 'h':
			number("d", own.nlink)
		case 'd':
			number("d", own.dev)
		case 'D':
			number("x", own.dev)
		case 'b':
			number("d", own.blocks)
		case 'B':
			number("d", 512)
		case 'o':
			number("d", 4096)
		case 't':
			number("x", own.rdev>>8&0xfff)
		case 'T':
			number("x", own.rdev&0xff)
		case 'm':
			text("/")
		case 'x':
			text(stamp(own.atime))
		case 'y':
			text(stamp(own.mtime))
		case 'z', 'w':
			text(stamp(own.ctime))
		case 'X':
			number("d", own.atime/1e9)
		case 'Y':
			number("d", own.mtime/1e9)
		case 'Z', 'W':
			number("d", own.ctime/1e9)
		case '%':
			b.WriteByte('%')
		default:
			b.WriteByte('?')
		}
		i = j
	}
	return b.String()
}

// fsTypes are the names of file systems by their magic numbers.
var fsTypes = map[int64]string{
	0x01021994: "tmpfs", 0xef53: "ext2/ext3", 0x794c7630: "overlayfs", 0x9fa0: "proc", 0x62656572: "sysfs", 0x6969: "nfs",
	0x58465342: "xfs", 0x9123683e: "btrfs", 0x27e0eb: "cgroup", 0x63677270: "cgroup2",
}

func fsType(magic int64) string {
	if name, ok := fsTypes[magic]; ok {
		return name
	}
	return "UNKNOWN"
}

func (c *Ctx) statFS(name, format string) int {
	var st syscall.Statfs_t
	if err := syscall.Statfs(c.path(name), &st); err != nil {
		c.errf("can't read file system information for '%s': %s", name, reason(err))
		return 1
	}
	if format == "" {
		c.printf("  File: \"%s\"\n    Namelen: %-7d Type: %s\nBlock size: %-10d\nBlocks: Total: %-10d Free: %-10d Available: %d\nInodes: Total: %-10d Free: %d\n",
			name, st.Namelen, fsType(int64(st.Type)), st.Bsize, st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree)
		return 0
	}
	c.printf("%s\n", strings.NewReplacer(
		"%n", name, "%T", fsType(int64(st.Type)), "%t", fmt.Sprintf("%x", st.Type), "%s", fmt.Sprint(st.Bsize), "%S", fmt.Sprint(st.Bsize),
		"%b", fmt.Sprint(st.Blocks), "%f", fmt.Sprint(st.Bfree), "%a", fmt.Sprint(st.Bavail), "%c", fmt.Sprint(st.Files),
		"%d", fmt.Sprint(st.Ffree), "%l", fmt.Sprint(st.Namelen), "%%", "%",
	).Replace(format))
	return 0
}

func ln(c *Ctx) int {
	f := c.opts("sfnvTr", "symbolic=s", "force=f", "no-dereference=n")
	if len(f.args) == 0 {
		c.usage("[-sfnT] TARGET... LINK|DIR")
	}
	targets, link := f.args[:len(f.args)-1], f.args[len(f.args)-1]
	if len(f.args) == 1 {
		targets, link = f.args, path.Base(f.args[0])
	}
	code := 0
	for _, target := range targets {
		to := link
		lookup := os.Stat
		if f.has("n") {
			lookup = os.Lstat
		}
		if info, err := lookup(c.path(link)); err == nil && info.IsDir() && !f.has("T") && len(f.args) > 1 {
			to = strings.TrimSuffix(link, "/") + "/" + path.Base(target)
		}
		if f.has("f") {
			os.Remove(c.path(to))
		}
		var err error
		if f.has("s") {
			err = os.Symlink(target, c.path(to))
		} else {
			err = os.Link(c.path(target), c.path(to))
		}
		if err != nil {
			c.errf("%s: %s", to, reason(err))
			code = 1
		}
	}
	return code
}

func readlink(c *Ctx) int {
	f := c.opts("fnevm", "canonicalize=f")
	code := 0
	for _, name := range f.args {
		var target string
		var err error
		if f.has("f") || f.has("e") || f.has("m") {
			target, err = c.canonical(name, !f.has("e"))
		} else {
			target, err = os.Readlink(c.path(name))
		}
		if err != nil {
			code = 1
			continue
		}
		c.printf("%s", target)
		if !f.has("n") {
			c.printf("\n")
		}
	}
	return code
}

// canonical resolves every link; the last part need not exist.
func (c *Ctx) canonical(name string, lastMayMiss bool) (string, error) {
	p, err := filepath.EvalSymlinks(c.path(name))
	if err == nil {
		return filepath.Clean(p), nil
	}
	if lastMayMiss && isNotExist(err) {
		dir, dirErr := filepath.EvalSymlinks(filepath.Dir(c.path(name)))
		if dirErr == nil {
			return filepath.Join(dir, filepath.Base(name)), nil
		}
	}
	return "", err
}

func realpath(c *Ctx) int {
	f := c.opts("esmz")
	code := 0
	for _, name := range f.args {
		target, err := c.canonical(name, !f.has("e"))
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
			continue
		}
		c.printf("%s\n", target)
	}
	return code
}

func du(c *Ctx) int {
	f := c.opts("aHLdlschmkxbd:", "summarize=s", "human-readable=h", "apparent-size=b")
	names := f.args
	if len(names) == 0 {
		names = []string{"."}
	}
	depth := -1
	if text := f.val("d", ""); text != "" {
		depth, _ = strconv.Atoi(text)
	}
	if f.has("s") {
		depth = 0
	}
	show := func(bytes int64, name string) {
		switch {
		case f.has("h"):
			c.printf("%s\t%s\n", humanBytes(bytes), name)
		case f.has("m"):
			c.printf("%d\t%s\n", (bytes+1<<20-1)>>20, name)
		case f.has("b"):
			c.printf("%d\t%s\n", bytes, name)
		default:
			c.printf("%d\t%s\n", (bytes+1023)/1024, name)
		}
	}
	code := 0
	seen := map[[2]uint64]bool{}
	var sum func(p string, level int) int64
	sum = func(p string, level int) int64 {
		info, err := os.Lstat(c.path(p))
		if err != nil {
			c.errf("%s: %s", p, reason(err))
			code = 1
			return 0
		}
		own := ownerOf(info)
		if own.nlink > 1 && !info.IsDir() && !f.has("l") {
			key := [2]uint64{own.dev, own.ino}
			if seen[key] {
				return 0
			}
			seen[key] = true
		}
		total := own.blocks * 512
		if f.has("b") {
			total = info.Size()
		}
		if info.IsDir() {
			entries, err := os.ReadDir(c.path(p))
			if err != nil {
				c.errf("can't open '%s': %s", p, reason(err))
				code = 1
			}
			for _, e := range entries {
				total += sum(strings.TrimSuffix(p, "/")+"/"+e.Name(), level+1)
			}
		}
		if (info.IsDir() || f.has("a") || level == 0) && (depth < 0 || level <= depth) {
			show(total, p)
		}
		return total
	}
	total := int64(0)
	for _, name := range names {
		total += sum(name, 0)
	}
	if f.has("c") {
		show(total, "total")
	}
	return code
}

// mountPoint is one line of /proc/mounts.
type mountPoint struct{ device, dir, kind, options string }

func mounts() []mountPoint {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return []mountPoint{{"overlay", "/", "overlay", "rw"}}
	}
	var list []mountPoint
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`)
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) >= 4 {
			list = append(list, mountPoint{f[0], unescape.Replace(f[1]), f[2], f[3]})
		}
	}
	return list
}

func df(c *Ctx) int {
	f := c.opts("PkmhTait:B:", "human-readable=h")
	list := mounts()
	code := 0
	if len(f.args) > 0 {
		all := list
		list = nil
		for _, name := range f.args {
			p, err := c.canonical(name, false)
			if err != nil {
				c.errf("%s: %s", name, reason(err))
				code = 1
				continue
			}
			best := mountPoint{"overlay", "/", "overlay", "rw"}
			for _, m := range all {
				if (p == m.dir || m.dir == "/" || strings.HasPrefix(p, m.dir+"/")) && len(m.dir) >= len(best.dir) {
					best = m
				}
			}
			list = append(list, best)
		}
	}
	unit, title := int64(1024), "1K-blocks"
	switch {
	case f.has("m"):
		unit, title = 1<<20, "1M-blocks"
	case f.has("h"):
		title = "     Size"
	case f.has("P"):
		title = "1024-blocks"
	}
	kind := func(m mountPoint) string {
		if f.has("T") {
			return fmt.Sprintf("%-10s ", m.kind)
		}
		return ""
	}
	typeTitle := ""
	if f.has("T") {
		typeTitle = "Type       "
	}
	if f.has("i") {
		c.printf("%-20s %s%10s %9s %9s %s Mounted on\n", "Filesystem", typeTitle, "Inodes", "Used", "Available", "Use%")
	} else {
		c.printf("%-20s %s%10s %9s %9s %s Mounted on\n", "Filesystem", typeTitle, title, "Used", "Available", "Use%")
	}
	for _, m := range list {
		var st syscall.Statfs_t
		if err := syscall.Statfs(m.dir, &st); err != nil {
			continue
		}
		if st.Blocks == 0 && !f.has("a") && len(f.args) == 0 {
			continue
		}
		size := int64(st.Bsize)
		total, free, avail := int64(st.Blocks)*size, int64(st.Bfree)*size, int64(st.Bavail)*size
		if f.has("i") {
			total, free, avail, unit = int64(st.Files), int64(st.Ffree), int64(st.Ffree), 1
		}
		used := total - free
		percent := int64(0)
		if used+avail > 0 {
			percent = (used*100 + used + avail - 1) / (used + avail)
		}
		text := func(n int64) string {
			if f.has("h") {
				return humanBytes(n)
			}
			return strconv.FormatInt(n/unit, 10)
		}
		c.printf("%-20s %s%10s %9s %9s %3d%% %s\n", m.device, kind(m), text(total), text(used), text(avail), percent, m.dir)
	}
	return code
}

func mktemp(c *Ctx) int {
	f := c.opts("dqtup:")
	template := "tmp.XXXXXX"
	dir := f.val("p", "")
	if len(f.args) > 0 {
		template = f.args[0]
	} else if dir == "" {
		dir = c.getenv("TMPDIR")
		if dir == "" {
			dir = "/tmp"
		}
	}
	if f.has("t") && dir == "" {
		dir = "/tmp"
	}
	if dir != "" {
		template = strings.TrimSuffix(dir, "/") + "/" + template
	}
	base := strings.TrimRight(template, "X")
	if len(template)-len(base) < 6 {
		c.die("Invalid argument")
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	for range 100 {
		name := base
		for range len(template) - len(base) {
			name += string(letters[randomN(len(letters))])
		}
		var err error
		if f.has("u") {
			_, err = os.Lstat(c.path(name))
			if err == nil {
				continue
			}
			err = nil
		} else if f.has("d") {
			err = os.Mkdir(c.path(name), 0o700)
		} else {
			var made *os.File
			if made, err = os.OpenFile(c.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				made.Close()
			}
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			if !f.has("q") {
				c.errf("%s: %s", template, reason(err))
			}
			return 1
		}
		c.printf("%s\n", name)
		return 0
	}
	return c.die("%s: File exists", template)
}

func syncDisks(c *Ctx) int {
	f := c.opts("df")
	code := 0
	for _, name := range f.args {
		file, err := os.Open(c.path(name))
		if err == nil {
			file.Sync()
			file.Close()
			continue
		}
		c.errf("%s: %s", name, reason(err))
		code = 1
	}
	return code
}

// sizeOf parses numbers such as 4k and 1M.
func sizeOf(text string) (int64, error) {
	end := len(text)
	for end > 0 && (text[end-1] < '0' || text[end-1] > '9') {
		end--
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("invalid number '%s'", text)
	}
	switch strings.ToLower(text[end:]) {
	case "":
	case "c":
	case "w":
		n *= 2
	case "b":
		n *= 512
	case "k", "kib":
		n <<= 10
	case "kb":
		n *= 1000
	case "m", "mib":
		n <<= 20
	case "mb":
		n *= 1000000
	case "g", "gib":
		n <<= 30
	case "gb":
		n *= 1000000000
	case "t":
		n <<= 40
	default:
		return 0, fmt.Errorf("invalid number '%s'", text)
	}
	return n, nil
}

func truncate(c *Ctx) int {
	f := c.opts("cs:", "size:=s")
	if f.val("s", "") == "" || len(f.args) == 0 {
		c.usage("[-c] -s SIZE FILE...")
	}
	text := f.val("s", "")
	sign := byte(0)
	if text[0] == '+' || text[0] == '-' {
		sign, text = text[0], text[1:]
	}
	size, err := sizeOf(text)
	if err != nil {
		c.die("%v", err)
	}
	code := 0
	for _, name := range f.args {
		flag := os.O_WRONLY | os.O_CREATE
		if f.has("c") {
			flag = os.O_WRONLY
		}
		file, err := os.OpenFile(c.path(name), flag, 0o666)
		if err == nil {
			to := size
			if info, err := file.Stat(); err == nil && sign != 0 {
				to = info.Size() + size
				if sign == '-' {
					to = max(0, info.Size()-size)
				}
			}
			err = file.Truncate(to)
			file.Close()
		} else if f.has("c") && isNotExist(err) {
			continue
		}
		if err != nil {
			c.errf("%s: %s", name, reason(err))
			code = 1
		}
	}
	return code
}

func dd(c *Ctx) int {
	get := map[string]string{"bs": "", "ibs": "512", "obs": "512", "count": "", "skip": "0", "seek": "0", "if": "", "of": "", "conv": "", "status": "", "iflag": "", "oflag": ""}
	for _, arg := range c.Args[1:] {
		name, value, ok := strings.Cut(arg, "=")
		if _, known := get[name]; !ok || !known {
			c.die("invalid argument '%s'", arg)
		}
		get[name] = value
	}
	number := func(name string) int64 {
		n, err := sizeOf(get[name])
		if err != nil {
			c.die("%v", err)
		}
		return n
	}
	ibs, obs := number("ibs"), number("obs")
	if get["bs"] != "" {
		ibs = number("bs")
		obs = ibs
	}
	count := int64(-1)
	if get["count"] != "" {
		count = number("count")
	}
	var in io.Reader = c.in()
	if get["if"] != "" {
		file, err := os.Open(c.path(get["if"]))
		if err != nil {
			c.die("can't open '%s': %s", get["if"], reason(err))
		}
		defer file.Close()
		in = file
	}
	out := c.Out
	if get["of"] != "" {
		flag := os.O_WRONLY | os.O_CREATE
		if !strings.Contains(get["conv"], "notrunc") && number("seek") == 0 {
			flag |= os.O_TRUNC
		}
		file, err := os.OpenFile(c.path(get["of"]), flag, 0o666)
		if err != nil {
			c.die("can't open '%s': %s", get["of"], reason(err))
		}
		defer file.Close()
		if seek := number("seek"); seek > 0 {
			if !strings.Contains(get["conv"], "notrunc") {
				file.Truncate(seek * obs)
			}
			if _, err := file.Seek(seek*obs, io.SeekStart); err != nil {
				c.die("%s: cannot seek: %s", get["of"], reason(err))
			}
		}
		if strings.Contains(get["conv"], "fsync") {
			defer file.Sync()
		}
		out = file
	}
	if skip := number("skip"); skip > 0 {
		if seeker, ok := in.(io.Seeker); !ok || get["if"] == "" {
			io.CopyN(io.Discard, in, skip*ibs)
		} else if _, err := seeker.Seek(skip*ibs, io.SeekStart); err != nil {
			io.CopyN(io.Discard, in, skip*ibs)
		}
	}
	if ibs <= 0 || ibs > 1<<30 {
		c.die("invalid number '%d'", ibs)
	}
	buffer := make([]byte, ibs)
	var full, part, total int64
	started := time.Now()
	code := 0
	full2, part2 := int64(0), int64(0)
	for count < 0 || full+part < count {
		if c.done() {
			return 130
		}
		read := func(p []byte) (int, error) { return in.Read(p) }
		if strings.Contains(get["iflag"], "fullblock") {
			read = func(p []byte) (int, error) { return io.ReadFull(in, p) }
		}
		n, err := read(buffer)
		if n > 0 {
			block := buffer[:n]
			if int64(n) == ibs {
				full++
			} else {
				part++
				if strings.Contains(get["conv"], "sync") && !strings.Contains(get["conv"], "fsync") {
					clear(buffer[n:])
					block = buffer
				}
			}
			if _, err := out.Write(block); err != nil {
				c.errf("error writing '%s': %s", orElse(get["of"], "standard output"), reason(err))
				code = 1
				break
			}
			total += int64(len(block))
			if int64(len(block)) == obs {
				full2++
			} else {
				part2++
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				c.errf("%s: %s", orElse(get["if"], "standard input"), reason(err))
				code = 1
			}
			break
		}
	}
	if get["status"] != "none" {
		fmt.Fprintf(c.Err, "%d+%d records in\n%d+%d records out\n", full, part, full2, part2)
		if get["status"] != "noxfer" {
			seconds := time.Since(started).Seconds()
			fmt.Fprintf(c.Err, "%d bytes (%sB) copied, %f seconds, %sB/s\n", total, humanBytes(total), seconds, humanBytes(int64(float64(total)/max(seconds, 1e-6))))
		}
	}
	return code
}

func orElse(text, otherwise string) string {
	if text != "" {
		return text
	}
	return otherwise
}
