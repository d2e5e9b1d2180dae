package main

import (
	"os"
	"syscall"
)

// streams are the standard streams for many goroutines: one that waits for input must not stop the others, so they are
// in the poller. Only this process's descriptors change by that; the node gives children blocking ones.
func streams() (in, out, err *os.File) {
	files := [3]*os.File{}
	for fd, name := range []string{"/dev/stdin", "/dev/stdout", "/dev/stderr"} {
		syscall.SetNonblock(fd, true)
		files[fd] = os.NewFile(uintptr(fd), name)
	}
	return files[0], files[1], files[2]
}
