package shell

import (
	"context"
	"fmt"
	"strconv"
	"syscall"

	"wasilet.dev/toolbox/internal/applets"
	"wasilet.dev/toolbox/internal/interp"
)

// builtin has the builtins that are about the process; the rest are the interpreter's.
func (s *shell) builtin(r *interp.Runner, ctx context.Context, name string, args []string) (uint8, bool) {
	switch name {
	case "exec":
		if len(args) > 0 && r.IsShell() {
			s.replaced.Store(true)
		}
		return 0, false
	case "umask":
		return umask(r, args), true
	case "kill":
		for i, arg := range args {
			if len(arg) > 1 && arg[0] == '%' {
				pid, ok := r.JobPid(arg)
				if !ok {
					r.Errf("kill: %s: no such job\n", arg)
					return 1, true
				}
				args[i] = strconv.Itoa(pid)
			}
		}
		hc := interp.HandlerCtx(ctx)
		c := &applets.Ctx{Context: ctx, Args: append([]string{"kill"}, args...), Dir: hc.Dir, Out: hc.Stdout, Err: hc.Stderr}
		kill, _ := applets.Find("kill")
		return uint8(applets.Run(kill, c)), true
	case "jobs":
		r.Jobs(func(number, pid int, done bool, status uint8, command string) {
			state := "Running"
			switch {
			case done && status == 0:
				state = "Done"
			case done:
				state = fmt.Sprintf("Done(%d)", status)
			}
			if len(args) > 0 && args[0] == "-p" {
				fmt.Fprintln(r.Out(), pid)
				return
			}
			if len(args) > 0 && args[0] == "-l" {
				state = fmt.Sprintf("%d %s", pid, state)
			}
			fmt.Fprintf(r.Out(), "[%d]+  %-20s %s\n", number, state, command)
		})
		return 0, true
	case "fg", "bg":
		job := "%%"
		if len(args) > 0 {
			job = args[0]
		}
		if _, ok := r.JobPid(job); !ok {
			r.Errf("%s: %s: no such job\n", name, job)
			return 1, true
		}
		if name == "bg" {
			return 0, true // it runs
		}
		return r.Wait(ctx, job), true
	case "ulimit":
		return ulimit(r, args), true
	}
	return 0, false
}

func umask(r *interp.Runner, args []string) uint8 {
	current := syscall.Umask(0)
	syscall.Umask(current)
	symbolic := false
	if len(args) > 0 && args[0] == "-S" {
		symbolic, args = true, args[1:]
	}
	if len(args) == 0 {
		if symbolic {
			fmt.Fprintln(r.Out(), applets.SymbolicMask(current))
		} else {
			fmt.Fprintf(r.Out(), "%04o\n", current)
		}
		return 0
	}
	if mask, err := strconv.ParseUint(args[0], 8, 12); err == nil {
		syscall.Umask(int(mask) & 0o777)
		return 0
	}
	allowed, err := applets.ParseMode(args[0], uint32(0o777&^current), true, 0)
	if err != nil {
		r.Errf("umask: Illegal mode: %s\n", args[0])
		return 2
	}
	syscall.Umask(int(0o777 &^ allowed & 0o777))
	return 0
}

// ulimit shows limits; the node sets them, so none can be changed.
func ulimit(r *interp.Runner, args []string) uint8 {
	which := "f"
	for _, arg := range args {
		switch {
		case arg == "-a":
			for _, line := range []struct{ text, name string }{
				{"core file size (blocks)         (-c) ", "0"},
				{"file size (blocks)              (-f) ", "unlimited"},
				{"open files                      (-n) ", applets.Limit("Max open files")},
				{"max user processes              (-u) ", applets.Limit("Max processes")},
			} {
				fmt.Fprintln(r.Out(), line.text+line.name)
			}
			return 0
		case len(arg) > 1 && arg[0] == '-':
			which = arg[len(arg)-1:]
		default:
			return 0 // a wish that the node's limits stand over
		}
	}
	switch which {
	case "n":
		fmt.Fprintln(r.Out(), applets.Limit("Max open files"))
	case "u", "p":
		fmt.Fprintln(r.Out(), applets.Limit("Max processes"))
	case "c":
		fmt.Fprintln(r.Out(), 0)
	default:
		fmt.Fprintln(r.Out(), "unlimited")
	}
	return 0
}
