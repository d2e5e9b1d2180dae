// What readline has for each system: here a terminal is the other end's, which edits the line itself.

package readline

import (
	"errors"
	"io"
	"os"
	"syscall"
)

var errNoRawMode = errors.New("the terminal cannot be set to raw mode here")

// State contains the state of a terminal.
type State struct{}

// IsTerminal returns true if the given file descriptor is a terminal.
func IsTerminal(fd int) bool {
	name := [...]string{"/dev/stdin", "/dev/stdout", "/dev/stderr"}
	if fd < 0 || fd >= len(name) {
		return false
	}
	info, err := os.Stat(name[fd])
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// MakeRaw is refused.
func MakeRaw(int) (*State, error) { return nil, errNoRawMode }

// GetState is the state of a terminal that never changes.
func GetState(int) (*State, error) { return &State{}, nil }

// restoreTerm has nothing to restore.
func restoreTerm(int, *State) error { return nil }

// GetSize does not know.
func GetSize(int) (width, height int, err error) { return 0, 0, errNoRawMode }

// ReadPassword would show what is typed.
func ReadPassword(int) ([]byte, error) { return nil, errNoRawMode }

// SuspendMe does nothing: a container has no other job to go to.
func SuspendMe() {}

// GetScreenWidth does not know.
func GetScreenWidth() int { return -1 }

// ClearScreen clears the console screen.
func ClearScreen(w io.Writer) (int, error) { return w.Write([]byte("\033[H")) }

// DefaultIsTerminal says whether somebody sits there.
func DefaultIsTerminal() bool {
	return IsTerminal(syscall.Stdin) && (IsTerminal(syscall.Stdout) || IsTerminal(syscall.Stderr))
}

// GetStdin is standard input's descriptor.
func GetStdin() int { return syscall.Stdin }

// DefaultOnWidthChanged never calls.
func DefaultOnWidthChanged(func()) {}
