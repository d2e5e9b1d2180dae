package applets

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

func init() {
	for name, applet := range map[string]Applet{"tar": tarApplet, "gzip": gzipApplet, "gunzip": gzipApplet, "zcat": gzipApplet} {
		Register(name, applet)
	}
}

func gzipApplet(c *Ctx) int {
	f := c.opts("cdfkqtvn123456789l", "decompress=d", "stdout=c", "to-stdout=c", "force=f", "keep=k", "test=t", "best=9", "fast=1")
	unpack := f.has("d") || f.has("t") || c.name() != "gzip"
	toStdout := f.has("c") || c.name() == "zcat"
	level := gzip.DefaultCompression
	for n := 1; n <= 9; n++ {
		if f.has(strconv.Itoa(n)) {
			level = n
		}
	}
	convert := func(out io.Writer, in io.Reader) error {
		if unpack {
			r, err := gzip.NewReader(bufio.NewReader(in))
			if err != nil {
				return gzip.ErrHeader
			}
			_, err = io.Copy(writerOnly{out}, r)
			return err
		}
		w, err := gzip.NewWriterLevel(out, level)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
		return w.Close()
	}
	why := func(err error) string {
		switch {
		case errors.Is(err, gzip.ErrHeader):
			return "invalid magic"
		case errors.Is(err, gzip.ErrChecksum):
			return "crc error"
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			return "unexpected end of file"
		}
		return reason(err)
	}
	names := f.args
	if len(names) == 0 {
		names = []string{"-"}
	}
	code := 0
	for _, name := range names {
		in, err := c.open(name)
		if err != nil && unpack && isNotExist(err) && !strings.HasSuffix(name, ".gz") {
			name += ".gz"
			in, err = c.open(name)
		}
		if err != nil {
			c.errf("can't open '%s': %s", name, reason(err))
			code = 1
			continue
		}
		if name == "-" || toStdout || f.has("t") {
			var out io.Writer = c.w()
			if f.has("t") {
				out = io.Discard
			}
			err = convert(out, in)
			in.Close()
			if err != nil {
				c.errf("%s", why(err))
				code = 1
			}
			continue
		}
		target := name + ".gz"
		if unpack {
			base, ok := strings.CutSuffix(name, ".gz")
			if stem, isTgz := strings.CutSuffix(name, ".tgz"); isTgz {
				base, ok = stem+".tar", true
			}
			if !ok {
				c.errf("%s: unknown suffix - ignored", name)
				in.Close()
				code = 1
				continue
			}
			target = base
		}
		info, _ := os.Stat(c.path(name))
		flag := os.O_WRONLY | os.O_CREATE | os.O_EXCL
		if f.has("f") {
			flag = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		}
		out, err := os.OpenFile(c.path(target), flag, 0o666)
		if err != nil {
			c.errf("can't open '%s': %s", target, reason(err))
			in.Close()
			code = 1
			continue
		}
		err = convert(out, in)
		in.Close()
		if closed := out.Close(); err == nil {
			err = closed
		}
		if err != nil {
			c.errf("%s", why(err))
			os.Remove(c.path(target))
			code = 1
			continue
		}
		if info != nil {
			os.Chmod(c.path(target), info.Mode().Perm())
			os.Chtimes(c.path(target), info.ModTime(), info.ModTime())
		}
		if !f.has("k") {
			os.Remove(c.path(name))
		}
	}
	return code
}

// tarrer is one run of tar.
type tarrer struct {
	c       *Ctx
	f       *flags
	dir     string
	exclude []string
	links   map[[2]uint64]string
	code    int
	listing io.Writer
}

func tarApplet(c *Ctx) int {
	// The first argument may lack its dash.
	if len(c.Args) > 1 && !strings.HasPrefix(c.Args[1], "-") {
		// Old style: values follow in the order of their letters.
		letters := c.Args[1]
		rest := c.Args[2:]
		args := []string{c.Args[0]}
		for _, letter := range letters {
			args = append(args, "-"+string(letter))
			if strings.ContainsRune("fCTXb", letter) && len(rest) > 0 {
				args = append(args, rest[0])
				rest = rest[1:]
			}
		}
		c.Args = append(args, rest...)
	}
	f := c.opts("ctxf:C:vOzjJahkmopPT:X:b:ZwWS", "create=c", "list=t", "extract=x", "get=x", "file:=f", "directory:=C", "verbose=v",
		"to-stdout=O", "gzip=z", "bzip2=j", "dereference=h", "keep-old-files=k", "touch=m", "no-same-owner=o", "no-same-permissions=nsp",
		"same-permissions=p", "preserve-permissions=p", "files-from:=T", "exclude-from:=X", "exclude:=exclude", "strip-components:=strip",
		"overwrite=overwrite", "numeric-owner=numeric", "auto-compress=a", "absolute-names=P", "no-recursion=norec", "format:=format",
		"owner:=owner", "group:=group", "no-overwrite-dir=nod", "warning:=warning", "same-owner=so", "delay-directory-restore=ddr", "one-file-system=ofs")
	t := &tarrer{c: c, f: f, dir: c.Dir, links: map[[2]uint64]string{}}
	for _, dir := range f.values["C"] {
		if strings.HasPrefix(dir, "/") {
			t.dir = dir
		} else {
			t.dir = strings.TrimSuffix(t.dir, "/") + "/" + dir
		}
	}
	if info, err := os.Stat(t.dir); err != nil || !info.IsDir() {
		why := "Not a directory"
		if err != nil {
			why = reason(err)
		}
		c.die("can't change directory to '%s': %s", f.val("C", ""), why)
	}
	t.exclude = f.values["exclude"]
	for _, name := range f.values["X"] {
		t.exclude = append(t.exclude, c.linesOf(name)...)
	}
	names := f.args
	for _, name := range f.values["T"] {
		names = append(names, c.linesOf(name)...)
	}
	t.listing = c.Err
	switch {
	case f.has("c"):
		return t.create(names)
	case f.has("x"), f.has("t"):
		return t.read(names)
	}
	c.usage("c|x|t [-zvOkmop] [-f TARFILE] [-C DIR] [--exclude PATTERN] [--strip-components N] [FILE]...")
	return 1
}

func (t *tarrer) at(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return strings.TrimSuffix(t.dir, "/") + "/" + name
}

func (t *tarrer) fail(format string, a ...any) {
	t.c.errf(format, a...)
	t.code = 1
}

func (t *tarrer) excluded(name string) bool {
	for _, glob := range t.exclude {
		for part := name; ; {
			if globMatch(glob, part, false) {
				return true
			}
			_, rest, more := strings.Cut(part, "/")
			if !more {
				break
			}
			part = rest
		}
	}
	return false
}

func (t *tarrer) create(names []string) int {
	c, f := t.c, t.f
	var out io.Writer = c.w()
	toFile := ""
	if name := f.val("f", "-"); name != "-" {
		file, err := os.Create(c.path(name))
		if err != nil {
			c.die("can't open '%s': %s", name, reason(err))
		}
		defer file.Close()
		buffered := bufio.NewWriterSize(file, 64*1024)
		defer buffered.Flush()
		out, toFile = buffered, c.path(name)
		t.listing = c.w()
	}
	if f.has("z") || f.has("a") && (strings.HasSuffix(toFile, ".gz") || strings.HasSuffix(toFile, ".tgz")) {
		packed := gzip.NewWriter(out)
		defer packed.Close()
		out = packed
	}
	if len(names) == 0 {
		c.die("empty archive")
	}
	w := tar.NewWriter(out)
	for _, name := range names {
		t.add(w, name, toFile)
	}
	if err := w.Close(); err != nil {
		t.fail("%s", reason(err))
	}
	return t.code
}

func (t *tarrer) add(w *tar.Writer, name, archive string) {
	c, f := t.c, t.f
	if t.excluded(name) || t.at(name) == archive {
		return
	}
	lookup := os.Lstat
	if f.has("h") {
		lookup = os.Stat
	}
	info, err := lookup(t.at(name))
	if err != nil {
		t.fail("%s: %s", name, reason(err))
		return
	}
	own := ownerOf(info)
	stored := name
	if !f.has("P") {
		stored = strings.TrimLeft(stored, "/")
	}
	header := &tar.Header{
		Name: stored, Mode: int64(permissions(info.Mode())), Uid: int(own.uid), Gid: int(own.gid),
		ModTime: info.ModTime().Truncate(time.Second), Format: tar.FormatGNU,
	}
	if !f.has("numeric") {
		header.Uname, header.Gname = t.names(int(own.uid), int(own.gid))
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		header.Typeflag = tar.TypeDir
		if header.Name = strings.TrimSuffix(stored, "/") + "/"; stored == "" {
			header.Name = "./"
		}
	case mode&fs.ModeSymlink != 0:
		header.Typeflag = tar.TypeSymlink
		header.Linkname, err = os.Readlink(t.at(name))
	case mode&fs.ModeNamedPipe != 0:
		header.Typeflag = tar.TypeFifo
	case mode.IsRegular():
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if own.nlink > 1 {
			key := [2]uint64{own.dev, own.ino}
			if first, known := t.links[key]; known {
				header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			} else {
				t.links[key] = stored
			}
		}
	default:
		t.fail("%s: unknown file type", name)
		return
	}
	if err == nil {
		err = t.write(w, name, header)
	}
	if err != nil {
		t.fail("%s: %s", name, reason(err))
		return
	}
	if f.has("v") {
		fmt.Fprintln(t.listing, header.Name)
	}
	if !info.IsDir() || f.has("norec") {
		return
	}
	entries, err := os.ReadDir(t.at(name))
	if err != nil {
		t.fail("can't open '%s': %s", name, reason(err))
	}
	for _, e := range entries {
		t.add(w, strings.TrimSuffix(name, "/")+"/"+e.Name(), archive)
	}
	if c.done() {
		panic(quit(130))
	}
}

var (
	tarUsers, tarGroups map[string]string
)

func (t *tarrer) names(uid, gid int) (string, string) {
	if tarUsers == nil {
		tarUsers, tarGroups = idNames("/etc/passwd"), idNames("/etc/group")
	}
	return tarUsers[strconv.Itoa(uid)], tarGroups[strconv.Itoa(gid)]
}

func (t *tarrer) write(w *tar.Writer, name string, header *tar.Header) error {
	var file *os.File
	if header.Typeflag == tar.TypeReg {
		var err error
		// Opened first: a file that cannot be read must not leave a header behind.
		if file, err = os.Open(t.at(name)); err != nil {
			return err
		}
		defer file.Close()
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if file == nil {
		return nil
	}
	copied, err := io.CopyN(w, file, header.Size)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// It shrank meanwhile: the archive must have what its header says.
	for zeros := make([]byte, 4096); copied < header.Size; {
		n, err := w.Write(zeros[:min(int64(len(zeros)), header.Size-copied)])
		if err != nil {
			return err
		}
		copied += int64(n)
	}
	return nil
}

func (t *tarrer) read(names []string) int {
	c, f := t.c, t.f
	in, err := c.open(f.val("f", "-"))
	if err != nil {
		c.die("can't open '%s': %s", f.val("f", "-"), reason(err))
	}
	defer in.Close()
	buffered := bufio.NewReaderSize(in, 64*1024)
	var source io.Reader = buffered
	// The compression is seen, whatever the options say.
	if magic, _ := buffered.Peek(3); bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) {
		unpacked, err := gzip.NewReader(buffered)
		if err != nil {
			c.die("invalid gzip magic")
		}
		source = unpacked
	} else if string(magic) == "BZh" {
		source = bzip2.NewReader(buffered)
	}
	if f.has("x") && !f.has("O") {
		t.listing = c.w()
	}
	strip, _ := strconv.Atoi(f.val("strip", "0"))
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[strings.TrimSuffix(name, "/")] = false
	}
	r := tar.NewReader(source)
	type directory struct {
		path   string
		header *tar.Header
	}
	var dirs []directory
	any := false
	for {
		if c.done() {
			return 130
		}
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if !any {
				c.errf("short read")
			} else {
				c.errf("corrupted octal value in tar header")
			}
			return 1
		}
		any = true
		if len(wanted) > 0 && !t.named(wanted, header.Name) || t.excluded(header.Name) {
			continue
		}
		if f.has("t") {
			t.list(header)
			continue
		}
		name := header.Name
		for range strip {
			_, rest, _ := strings.Cut(strings.TrimLeft(name, "/"), "/")
			name = rest
		}
		if name == "" {
			continue
		}
		if f.has("O") {
			io.Copy(c.w(), r)
			continue
		}
		if f.has("v") {
			fmt.Fprintln(t.listing, header.Name)
		}
		clean, ok := safeName(name)
		if !ok {
			t.fail("name with '..' encountered: '%s'", name)
			return 1
		}
		if err := t.extract(r, header, clean, strip); err != nil {
			t.fail("can't create '%s': %s", clean, reason(err))
			continue
		}
		if header.Typeflag == tar.TypeDir {
			dirs = append(dirs, directory{t.at(clean), header})
		}
	}
	// Filling a directory changes its time, and its mode may forbid filling it.
	for i := len(dirs) - 1; i >= 0; i-- {
		t.attributes(dirs[i].path, dirs[i].header)
	}
	for name, found := range wanted {
		if !found {
			t.fail("%s: not found in archive", name)
		}
	}
	// What feeds us may not have come to its end: it must not die of it.
	io.Copy(io.Discard, source)
	return t.code
}

// safeName is a path below the directory; names that would leave it are refused.
func safeName(name string) (string, bool) {
	name = strings.TrimLeft(name, "/")
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", false
		}
	}
	return path.Clean("./" + name), true
}

func (t *tarrer) named(wanted map[string]bool, name string) bool {
	name = strings.TrimSuffix(name, "/")
	for part := name; ; part = path.Dir(part) {
		if _, ok := wanted[part]; ok {
			wanted[part] = true
			return true
		}
		if part == "." || part == "/" || !strings.Contains(part, "/") {
			return false
		}
	}
}

func (t *tarrer) list(header *tar.Header) {
	if !t.f.has("v") {
		t.c.printf("%s\n", header.Name)
		return
	}
	mode := fileMode(uint32(header.Mode))
	suffix := ""
	switch header.Typeflag {
	case tar.TypeDir:
		mode |= fs.ModeDir
	case tar.TypeSymlink:
		mode |= fs.ModeSymlink
		suffix = " -> " + header.Linkname
	case tar.TypeLink:
		suffix = " link to " + header.Linkname
	}
	user, group := header.Uname, header.Gname
	if user == "" || t.f.has("numeric") {
		user = strconv.Itoa(header.Uid)
	}
	if group == "" || t.f.has("numeric") {
		group = strconv.Itoa(header.Gid)
	}
	t.c.printf("%s %s/%s %9d %s %s%s\n", modeString(mode), user, group, header.Size, header.ModTime.Format("2006-01-02 15:04:05"), header.Name, suffix)
}

func (t *tarrer) extract(r io.Reader, header *tar.Header, name string, strip int) error {
	f := t.f
	target := t.at(name)
	if err := t.parents(target); err != nil {
		return err
	}
	there, err := os.Lstat(target)
	if err == nil && header.Typeflag != tar.TypeDir {
		if f.has("k") {
			return nil
		}
		if there.IsDir() {
			if err := os.Remove(target); err != nil {
				return err
			}
		} else if !(f.has("overwrite") && there.Mode().IsRegular() && header.Typeflag == tar.TypeReg) {
			os.Remove(target)
		}
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err == nil && there.IsDir() {
			return nil
		}
		if err == nil {
			if resolved, statErr := os.Stat(target); statErr == nil && resolved.IsDir() {
				return nil
			}
			os.Remove(target)
		}
		return os.Mkdir(target, 0o700|fileMode(uint32(header.Mode)).Perm())
	case tar.TypeReg, tar.TypeGNUSparse:
		file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(writerOnly{file}, r)
		if closed := file.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
		t.attributes(target, header)
	case tar.TypeSymlink:
		if err := os.Symlink(header.Linkname, target); err != nil {
			return err
		}
		if os.Geteuid() == 0 && !f.has("o") {
			os.Lchown(target, header.Uid, header.Gid)
		}
	case tar.TypeLink:
		link := header.Linkname
		for range strip {
			_, rest, _ := strings.Cut(link, "/")
			link = rest
		}
		clean, ok := safeName(link)
		if !ok {
			return errors.New("name with '..' encountered")
		}
		return os.Link(t.at(clean), target)
	case tar.TypeFifo:
		return mkfifo(target, uint32(header.Mode))
	default:
		return fmt.Errorf("unsupported file type %c", header.Typeflag)
	}
	return nil
}

// parents makes the directories above a path.
func (t *tarrer) parents(target string) error {
	return os.MkdirAll(path.Dir(target), 0o777)
}

func (t *tarrer) attributes(target string, header *tar.Header) {
	f := t.f
	mode := fileMode(uint32(header.Mode))
	if os.Geteuid() == 0 && !f.has("o") {
		uid, gid := header.Uid, header.Gid
		os.Chown(target, uid, gid)
	} else if !f.has("p") {
		mode &^= fs.FileMode(currentUmask())
	}
	if f.has("nsp") {
		mode = mode.Perm() &^ fs.FileMode(currentUmask())
	}
	os.Chmod(target, mode)
	if !f.has("m") {
		os.Chtimes(target, header.ModTime, header.ModTime)
	}
}
