// Go-overlay makes the standard library of GOOS=wasip1 one that a Wasilet container can use in full: real sockets,
// signals, pipes, other programs, users and file modes.
//
//	go-overlay build -o app.wasm .     is 'go build -o app.wasm .' for wasip1, with the overlay
//	go-overlay -o DIR                  writes DIR/overlay.json for 'go build -overlay', and the files it names
//
// The files are made from the GOROOT
// of the go that runs this: parts of files of the wasip1 port are taken out, build constraints of the Unix ports are
// widened, and the files under std/ take the empty places. Nothing of Go's own source is kept here.
//
// The changes leave every other target as it was, so the same overlay may be used for tools that run on this machine.
package main

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

//go:embed all:std
var std embed.FS

// Versions of Go whose standard library this program knows.
const (
	oldest = 24
	newest = 26
)

func main() {
	args := os.Args[1:]
	code := 0
	var err error
	switch {
	case len(args) == 2 && args[0] == "-o":
		err = generateOnly(args[1])
	case len(args) > 0 && !strings.HasPrefix(args[0], "-"):
		code, err = runGo(args)
	default:
		fmt.Fprintln(os.Stderr, "usage: go-overlay COMMAND ARGUMENTS...   run 'go COMMAND ARGUMENTS...' for wasip1 with the overlay")
		fmt.Fprintln(os.Stderr, "       go-overlay -o DIR                 write DIR/overlay.json and its files")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func generateOnly(out string) error {
	env, err := goEnv(nil, "GOROOT", "GOVERSION")
	if err != nil {
		return err
	}
	out, err = filepath.Abs(out)
	if err != nil {
		return err
	}
	g, err := generate(out, env["GOROOT"], env["GOVERSION"])
	if err == nil {
		_, err = g.finish(nil)
	}
	return err
}

// generate writes the files of the overlay for one version of Go.
func generate(out, root, version string) (*generator, error) {
	if minor, ok := minorVersion(version); !ok || minor < oldest || minor > newest {
		return nil, fmt.Errorf("%s has a standard library that is not known here: use Go 1.%d to 1.%d "+
			"(GOTOOLCHAIN=go1.%d.0 in the environment makes go fetch one)", version, oldest, newest, newest)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	g := &generator{src: filepath.Join(root, "src"), out: out, replace: map[string]string{}}
	g.generate()
	if g.err != nil {
		return nil, fmt.Errorf("%w (%s is changed, or not one this knows)", g.err, version)
	}
	return g, nil
}

// finish writes overlay.json, with more files than the standard library's, and gives its path.
func (g *generator) finish(more map[string]string) (string, error) {
	name := "overlay.json"
	replace := g.replace
	if len(more) > 0 {
		replace = map[string]string{}
		hash := sha256.New()
		for _, files := range []map[string]string{g.replace, more} {
			for from, to := range files {
				replace[from] = to
			}
		}
		keys := make([]string, 0, len(more))
		for from := range more {
			keys = append(keys, from)
		}
		sort.Strings(keys)
		fmt.Fprintln(hash, keys)
		name = fmt.Sprintf("overlay-%x.json", hash.Sum(nil)[:8])
	}
	text, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		return "", err
	}
	path := filepath.Join(g.out, name)
	// Last, so that one that is there is whole.
	return path, writeFile(path, text)
}

var versionPattern = regexp.MustCompile(`^go1\.(\d+)`)

func minorVersion(version string) (int, bool) {
	match := versionPattern.FindStringSubmatch(version)
	if match == nil {
		return 0, false
	}
	minor, err := strconv.Atoi(match[1])
	return minor, err == nil
}

// A generator writes files; after the first error it does nothing more.
type generator struct {
	src, out string
	replace  map[string]string
	err      error
}

func (g *generator) generate() {
	// The fakes leave wasip1; where Unix has a real one, its constraint is widened.
	for _, name := range []string{
		"net/fd_fake.go", "net/net_fake.go", "net/sockopt_fake.go", "net/tcpsockopt_stub.go", "net/interface_stub.go",
		"syscall/net_fake.go",
	} {
		g.constrain(name, "js")
	}
	for _, name := range []string{
		"net/fd_wasip1.go", "net/file_wasip1.go", "syscall/net_wasip1.go", "internal/syscall/unix/net_wasip1.go",
	} {
		g.remove(name)
	}
	for _, name := range []string{
		"net/fd_unix.go", "net/file_unix.go", "net/fd_posix.go", "net/file_posix.go", "net/sock_posix.go",
		"net/sockopt_posix.go", "net/tcpsockopt_posix.go", "net/tcpsockopt_unix.go", "net/sys_cloexec.go",
		"internal/poll/sockopt.go", "internal/syscall/unix/constants.go", "internal/syscall/unix/nofollow_posix.go", "os/exec/lp_unix.go",
	} {
		g.alsoWasip1(name)
	}
	for _, name := range []string{"os/pipe_wasm.go", "os/executable_wasm.go", "os/exec/lp_wasm.go", "crypto/x509/root_wasm.go"} {
		g.notWasip1(name)
	}
	g.notWasip1("os/wait_unimp.go")
	g.notWasip1("os/signal/signal_unix.go")
	g.notWasip1("net/http/transport_default_wasm.go")
	g.alsoWasip1("net/http/transport_default_other.go")
	// The network is no fake: what it can is to be found out.
	g.edit("net/ipsock_posix.go", `case "js", "wasip1":`+"\n\t\t// Both", `case "js":`+"\n\t\t// Both")

	g.drop("syscall/syscall_wasip1.go",
		"WaitStatus", "Rusage", "SysProcAttr", "Sysctl", "Getuid", "Getgid", "Geteuid", "Getegid", "Getgroups",
		"Getpid", "Getppid", "Kill", "StartProcess", "Wait4", "Umask")
	g.drop("syscall/fs_wasip1.go",
		"preparePath", "openat", "Mkdir", "Stat_t", "Stat", "Lstat", "Fstat", "setDefaultMode", "Chmod", "Fchmod",
		"Chown", "Fchown", "Lchown", "Dup", "Dup2", "Pipe")
	g.edit("syscall/fs_wasip1.go", `if cwd, _ = Getenv("PWD"); cwd != ""`, `if cwd = startDirectory(); cwd != ""`)
	g.drop("internal/syscall/unix/at_wasip1.go", "Fstatat", "Mkdirat", "Fchmodat?", "Fchownat?", "path_filestat_get",
		"path_create_directory")
	g.drop("os/stat_wasip1.go", "fillFileStatFromSys")
	g.edit("internal/poll/fd_wasip1.go", `return -1, "dup", syscall.ENOSYS`, "newfd, err := syscall.Dup(fd)\n\treturn newfd, \"dup\", err")
	// Signals have Linux's numbers, as the node gives them; WASI has all but one of them, and what follows is one less.
	g.edit("syscall/syscall_wasip1.go", "\tSIGTERM\n\tSIGCHLD\n", "\tSIGTERM\n\tSIGSTKFLT\n\tSIGCHLD\n")
	// The runtime itself delivers no signals here: to wait until it has would be for ever.
	g.edit("runtime/sigqueue.go", "func signalWaitUntilIdle() {", "func signalWaitUntilIdle() {\n\tif GOOS == \"wasip1\" {\n\t\treturn\n\t}")
	g.addStd()
}

func (g *generator) read(name string) []byte {
	if g.err != nil {
		return nil
	}
	path := filepath.Join(g.src, filepath.FromSlash(name))
	// What was changed before is changed further.
	if written, ok := g.replace[path]; ok && written != "" {
		path = written
	}
	text, err := os.ReadFile(path)
	if err != nil {
		g.err = err
	}
	return text
}

func (g *generator) write(name string, text []byte) {
	if g.err != nil {
		return
	}
	formatted, err := format.Source(text)
	if err != nil {
		g.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	path := filepath.Join(g.out, strings.ReplaceAll(name, "/", "_"))
	if g.err = writeFile(path, formatted); g.err == nil {
		g.replace[filepath.Join(g.src, filepath.FromSlash(name))] = path
	}
}

// writeFile leaves a file that is the same alone and never shows half of one: builds may run at the same time.
func writeFile(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = temporary.Write(text)
	if closeErr := temporary.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		os.Remove(temporary.Name())
	}
	return err
}

func (g *generator) remove(name string) {
	g.replace[filepath.Join(g.src, filepath.FromSlash(name))] = ""
}

var buildLine = regexp.MustCompile(`(?m)^//go:build (.*)$`)

// constrain replaces the build constraint of a file.
func (g *generator) constrain(name, constraint string) {
	g.reconstrain(name, func(string) string { return constraint })
}

// alsoWasip1 widens the build constraint of a file.
func (g *generator) alsoWasip1(name string) {
	g.reconstrain(name, func(old string) string { return "(" + old + ") || wasip1" })
}

// notWasip1 narrows it.
func (g *generator) notWasip1(name string) {
	g.reconstrain(name, func(old string) string { return "(" + old + ") && !wasip1" })
}

func (g *generator) reconstrain(name string, change func(string) string) {
	path := filepath.Join(g.src, filepath.FromSlash(name))
	if _, err := os.Stat(path); os.IsNotExist(err) {
		// Files are split and joined from version to version; what is missing in the end the compiler says.
		return
	}
	text := g.read(name)
	match := buildLine.FindSubmatch(text)
	if g.err == nil && match == nil {
		g.err = fmt.Errorf("%s has no build constraint", name)
	}
	if g.err != nil {
		return
	}
	line := []byte("//go:build " + change(string(match[1])))
	at := buildLine.FindIndex(text)
	g.write(name, append(append(append([]byte{}, text[:at[0]]...), line...), text[at[1]:]...))
}

// edit replaces one piece of text, which must be there.
func (g *generator) edit(name, old, new string) {
	text := g.read(name)
	if g.err == nil && bytes.Count(text, []byte(old)) != 1 {
		g.err = fmt.Errorf("%s does not have %q once", name, old)
	}
	g.write(name, bytes.Replace(text, []byte(old), []byte(new), 1))
}

// drop takes declarations out of a file: functions, types with their methods. All must be there but those with a
// question mark, which not all versions have.
func (g *generator) drop(name string, names ...string) {
	text := g.read(name)
	if g.err != nil {
		return
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, text, parser.ParseComments)
	if err != nil {
		g.err = err
		return
	}
	wanted := map[string]bool{}
	for _, name := range names {
		name, optional := strings.CutSuffix(name, "?")
		wanted[name] = optional
	}
	type span struct{ from, to int }
	var spans []span
	var kept []ast.Decl
	for _, decl := range file.Decls {
		dropped, doc := "", (*ast.CommentGroup)(nil)
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			dropped, doc = decl.Name.Name, decl.Doc
			if decl.Recv != nil {
				dropped = receiver(decl)
			}
		case *ast.GenDecl:
			if spec, ok := decl.Specs[0].(*ast.TypeSpec); ok && len(decl.Specs) == 1 {
				dropped, doc = spec.Name.Name, decl.Doc
			}
		}
		if _, ok := wanted[dropped]; !ok {
			kept = append(kept, decl)
			continue
		}
		wanted[dropped] = true
		from := decl.Pos()
		if doc != nil {
			from = doc.Pos()
		}
		spans = append(spans, span{files.Position(from).Offset, files.Position(decl.End()).Offset})
	}
	for name, found := range wanted {
		if !found {
			g.err = fmt.Errorf("%s does not declare %s", file.Name.Name, name)
			return
		}
	}
	// An import that nothing uses any more is an error.
	used := map[string]bool{}
	for _, decl := range kept {
		ast.Inspect(decl, func(node ast.Node) bool {
			if selector, ok := node.(*ast.SelectorExpr); ok {
				if id, ok := selector.X.(*ast.Ident); ok {
					used[id.Name] = true
				}
			}
			return true
		})
	}
	for _, spec := range file.Imports {
		path, _ := strconv.Unquote(spec.Path.Value)
		if spec.Name == nil && !used[path[strings.LastIndex(path, "/")+1:]] {
			at := files.Position(spec.Pos()).Offset
			spans = append(spans, span{at, at})
		}
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].from > spans[j].from })
	for _, span := range spans {
		insert := ""
		if span.from == span.to {
			insert = "_ "
		}
		text = append(append(append([]byte{}, text[:span.from]...), insert...), text[span.to:]...)
	}
	g.write(name, text)
}

func receiver(decl *ast.FuncDecl) string {
	kind := decl.Recv.List[0].Type
	if star, ok := kind.(*ast.StarExpr); ok {
		kind = star.X
	}
	if id, ok := kind.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// addStd adds the files of our own.
func (g *generator) addStd() {
	err := fs.WalkDir(std, "std", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := std.ReadFile(path)
		if err != nil {
			return err
		}
		g.write(strings.TrimPrefix(path, "std/"), text)
		return g.err
	})
	if g.err == nil {
		g.err = err
	}
}
