package main

import (
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// modules are the files that are added to modules outside of the standard library, or stand in for files of theirs.
//
//go:embed xsys xnet xreadline
var modules embed.FS

// changed are those modules, and their folders here.
var changed = []struct{ module, folder string }{
	{"golang.org/x/sys", "xsys"},
	{"golang.org/x/net", "xnet"},
	{"github.com/chzyer/readline", "xreadline"},
}

// complete is the last file of a copy that is whole.
const complete = ".wasilet-complete"

// Commands of go that build packages.
var building = map[string]bool{"build": true, "vet": true, "list": true, "install": true, "test": true, "run": true}

// run runs the go command with these arguments, for this target and with the overlay. It gives go's own exit code.
func runGo(args []string) (int, error) {
	// -C comes first and says where everything else happens.
	var dir []string
	if len(args) > 1 {
		switch sub := args[1]; {
		case sub == "-C" && len(args) > 2:
			dir, args = []string{"-C", args[2]}, append(args[:1:1], args[3:]...)
		case strings.HasPrefix(sub, "-C="):
			dir, args = []string{sub}, append(args[:1:1], args[2:]...)
		}
	}
	command := append([]string{args[0]}, dir...)
	if building[args[0]] {
		for _, arg := range args[1:] {
			if name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "="); strings.HasPrefix(arg, "-") && (name == "overlay" || name == "modfile") {
				return 0, fmt.Errorf("-%s cannot be given: it is set here", name)
			}
		}
		env, err := goEnv(dir, "GOROOT", "GOVERSION", "GOMOD", "GOWORK", "GOMODCACHE")
		if err != nil {
			return 0, err
		}
		out, err := cacheDir(env["GOVERSION"], env["GOROOT"])
		if err != nil {
			return 0, err
		}
		if env["GOROOT"], err = outsideModuleCache(env, out); err != nil {
			return 0, err
		}
		g, err := generate(out, env["GOROOT"], env["GOVERSION"])
		if err != nil {
			return 0, err
		}
		flags, err := moduleFlags(g, dir, env, args)
		if err != nil {
			return 0, err
		}
		overlay, err := g.finish(flags.overlay)
		if err != nil {
			return 0, err
		}
		command = append(append(command, "-overlay="+overlay), flags.arguments...)
	}
	command = append(command, args[1:]...)
	cmd := exec.Command("go", command...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = target()
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// outsideModuleCache gives GOROOT a name outside of the module cache, where toolchains are that go fetched itself: an
// overlay may not touch what is below it. From here on that toolchain is the go that runs.
func outsideModuleCache(env map[string]string, out string) (string, error) {
	root := env["GOROOT"]
	if !strings.HasPrefix(root, env["GOMODCACHE"]+string(filepath.Separator)) {
		return root, nil
	}
	link := filepath.Join(out, "goroot")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	if err := os.Symlink(root, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	for name, value := range map[string]string{
		"GOROOT": link, "GOTOOLCHAIN": "local", "PATH": filepath.Join(link, "bin") + string(filepath.ListSeparator) + os.Getenv("PATH"),
	} {
		if err := os.Setenv(name, value); err != nil {
			return "", err
		}
	}
	return link, nil
}

func target() []string {
	return append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
}

// goEnv asks go for its settings, seen from the directory that -C names.
func goEnv(dir []string, names ...string) (map[string]string, error) {
	arguments := append(append([]string{"env"}, dir...), names...)
	cmd := exec.Command("go", arguments...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("there is no go on PATH: install Go 1.%d or later (https://go.dev/dl)", oldest)
	}
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	if len(lines) < len(names) {
		return nil, fmt.Errorf("go env: unexpected answer %q", text)
	}
	env := map[string]string{}
	for i, name := range names {
		env[name] = lines[i]
	}
	return env, nil
}

// cacheDir is a directory for one toolchain and one version of this program.
func cacheDir(version, root string) (string, error) {
	base := os.Getenv("WASILET_GO_CACHE")
	if base == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no place for generated files: %w (set WASILET_GO_CACHE)", err)
		}
		base = filepath.Join(cache, "wasilet", "go-overlay")
	}
	hash := sha256.New()
	fmt.Fprintln(hash, root)
	for _, files := range []embed.FS{std, modules} {
		err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			text, err := files.ReadFile(path)
			fmt.Fprintf(hash, "%s %d\n%s", path, len(text), text)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	name := fmt.Sprintf("%s-%x", strings.Fields(version + " -")[0], hash.Sum(nil)[:8])
	return filepath.Abs(filepath.Join(base, name))
}

type moduleChanges struct {
	arguments []string
	overlay   map[string]string
}

// moduleFlags makes the modules of [changed], where the main module needs them, ones with our changes. An overlay may not
// touch the module cache, so that is done by a go.mod beside the user's that replaces each with a copy.
func moduleFlags(g *generator, dir []string, env map[string]string, args []string) (moduleChanges, error) {
	var none moduleChanges
	mod := env["GOMOD"]
	if mod == "" || mod == os.DevNull {
		return none, nil
	}
	if root := filepath.Dir(mod); vendored(root, args) {
		overlay := map[string]string{}
		for _, change := range changed {
			if err := overlayVendored(g, filepath.Join(root, "vendor", filepath.FromSlash(change.module)), change.folder, overlay); err != nil {
				return none, err
			}
		}
		return moduleChanges{overlay: overlay}, nil
	}
	var replace []string
	for _, change := range changed {
		copied, err := copyOf(g, dir, env, change.module, change.folder)
		if err != nil {
			return none, err
		}
		if copied != "" {
			replace = append(replace, "-replace="+change.module+"="+copied)
		}
	}
	if len(replace) == 0 {
		return none, nil
	}
	beside := filepath.Join(g.out, fmt.Sprintf("mod-%x", sha256.Sum256([]byte(mod))))
	if err := os.MkdirAll(beside, 0o755); err != nil {
		return none, err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(mod), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = writeFile(filepath.Join(beside, name), text)
		}
		if err != nil {
			return none, err
		}
	}
	modfile := filepath.Join(beside, "go.mod")
	edit := exec.Command("go", append(append([]string{"mod", "edit"}, replace...), modfile)...)
	edit.Stderr = os.Stderr
	if err := edit.Run(); err != nil {
		return none, fmt.Errorf("go mod edit: %w", err)
	}
	return moduleChanges{arguments: []string{"-modfile=" + modfile}}, nil
}

// copyOf gives a copy with our changes of the version of a module that the main module needs; none when it needs none.
func copyOf(g *generator, dir []string, env map[string]string, module, folder string) (string, error) {
	list := func(more ...string) (string, error) {
		cmd := exec.Command("go", append(append([]string{"list"}, dir...), more...)...)
		cmd.Env = target()
		text, err := cmd.Output()
		return strings.TrimSpace(string(text)), err
	}
	version, err := list("-m", "-f", "{{.Version}}", module)
	if err != nil {
		// Not among the modules; what else is wrong with them the command itself says.
		return "", nil
	}
	if work := env["GOWORK"]; work != "" && work != "off" {
		return "", fmt.Errorf("%s needs %s replaced, which go does not do in a workspace: set GOWORK=off", work, module)
	}
	source, err := list("-m", "-f", "{{.Dir}}", module)
	if err != nil || source == "" {
		cmd := exec.Command("go", append(append([]string{"mod", "download"}, dir...), module)...)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("go mod download %s: %w", module, err)
		}
		if source, err = list("-m", "-f", "{{.Dir}}", module); err != nil {
			return "", fmt.Errorf("go list %s: %w", module, err)
		}
	}
	copied := filepath.Join(g.out, folder+"-"+version)
	return copied, copyModule(source, copied, module, folder)
}

// overlayVendored adds our files of a module to the overlay, for the packages of it that are vendored.
func overlayVendored(g *generator, vendored, folder string, overlay map[string]string) error {
	return eachChange(folder, func(name string, text []byte) error {
		if _, err := os.Stat(filepath.Join(vendored, filepath.Dir(name))); err != nil {
			return nil
		}
		ours := filepath.Join(g.out, folder, name)
		if err := os.MkdirAll(filepath.Dir(ours), 0o755); err != nil {
			return err
		}
		overlay[filepath.Join(vendored, name)] = ours
		return writeFile(ours, text)
	})
}

// eachChange goes through the files that we have for a module.
func eachChange(folder string, f func(name string, text []byte) error) error {
	return fs.WalkDir(modules, folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := modules.ReadFile(path)
		if err != nil {
			return err
		}
		return f(filepath.FromSlash(strings.TrimPrefix(path, folder+"/")), text)
	})
}

// vendored says whether go takes packages from the vendor directory.
func vendored(root string, args []string) bool {
	for _, arg := range append(strings.Fields(os.Getenv("GOFLAGS")), args...) {
		if mode, ok := strings.CutPrefix(strings.TrimPrefix(arg, "-"), "-mod="); ok || strings.HasPrefix(arg, "-mod=") {
			if !ok {
				mode = strings.TrimPrefix(arg, "-mod=")
			}
			return mode == "vendor"
		}
	}
	_, err := os.Stat(filepath.Join(root, "vendor", "modules.txt"))
	return err == nil
}

// copyModule makes a copy of a module with our changes, once.
func copyModule(from, to, module, folder string) error {
	if _, err := os.Stat(filepath.Join(to, complete)); err == nil {
		return nil
	}
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, relative), 0o755)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(to, relative), text)
	})
	if err == nil {
		err = eachChange(folder, func(name string, text []byte) error {
			// A version that does not have the package has nothing to change.
			if _, err := os.Stat(filepath.Join(to, filepath.Dir(name))); err != nil {
				return nil
			}
			return writeFile(filepath.Join(to, name), text)
		})
	}
	if err == nil {
		err = writeFile(filepath.Join(to, complete), nil)
	}
	if err != nil {
		return fmt.Errorf("copying %s: %w", module, err)
	}
	return nil
}
