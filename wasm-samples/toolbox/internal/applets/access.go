package applets

import "syscall"

// accessible asks access(2) for r, w or x.
func accessible(path string, what byte) bool {
	bits := map[byte]uint32{'r': 4, 'w': 2, 'x': 1}[what]
	return syscall.Access(path, bits) == nil
}
