//go:build !wasip1

package applets

import "os"

// self is this program; tests, which are another one, say where it is.
func self() string {
	if path := os.Getenv("TOOLBOX_SELF"); path != "" {
		return path
	}
	path, err := os.Executable()
	if err != nil {
		return "toolbox"
	}
	return path
}
