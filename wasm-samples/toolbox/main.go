// Toolbox is a POSIX shell and some hundred small programs in one module, as busybox is one executable: the name it is
// called by says which one runs. It is the shell that a Wasilet node offers every container.
package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"sort"
	"strings"

	"wasilet.dev/toolbox/internal/applets"
	"wasilet.dev/toolbox/internal/shell"
)

func init() {
	for _, name := range []string{"sh", "ash", "bash"} {
		applets.Register(name, shell.Main)
	}
	for _, name := range []string{"busybox", "toolbox"} {
		applets.Register(name, multicall)
	}
}

// collectAt is GOGC. A shell has little that lives, and shares a container's memory with what it starts: Go's own 100 lets
// the first 4 MiB of garbage lie.
const collectAt = 25

func main() {
	debug.SetGCPercent(collectAt)
	args := os.Args
	if len(args) == 0 {
		args = []string{"sh"}
	}
	name := path.Base(strings.TrimPrefix(args[0], "-"))
	applet, ok := applets.Find(name)
	if !ok {
		applet = multicall
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	in, out, errs := streams()
	c := &applets.Ctx{Context: context.Background(), Args: args, Env: os.Environ(), Dir: dir, In: in, Out: out, Err: errs}
	os.Exit(applets.Run(applet, c))
}

// multicall is busybox itself: the first argument names the program.
func multicall(c *applets.Ctx) int {
	if len(c.Args) < 2 {
		fmt.Fprint(c.Out, "Wasilet toolbox: the shell and utilities of the node.\n\nUsage: busybox [function [arguments]...]\n   or: busybox --list\n\n")
		list(c, ", ")
		return 0
	}
	if c.Args[1] == "--list" {
		list(c, "\n")
		return 0
	}
	name := path.Base(c.Args[1])
	applet, ok := applets.Find(name)
	if !ok {
		fmt.Fprintf(c.Err, "%s: applet not found\n", name)
		return 127
	}
	c.Args = c.Args[1:]
	return applet(c)
}

func list(c *applets.Ctx, separator string) {
	names := applets.Names()
	sort.Strings(names)
	fmt.Fprintln(c.Out, strings.Join(names, separator))
}
