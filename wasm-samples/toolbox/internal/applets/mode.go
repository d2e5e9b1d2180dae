package applets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ParseMode is chmod's idea of a mode: octal digits, or changes to one of a file that is (or is not) a directory.
// Where nobody is named the umask counts.
func ParseMode(text string, mode uint32, directory bool, umask uint32) (uint32, error) {
	if n, err := strconv.ParseUint(text, 8, 32); err == nil {
		if n > 0o7777 {
			return 0, errors.New("invalid mode")
		}
		return uint32(n), nil
	}
	for _, clause := range strings.Split(text, ",") {
		who := uint32(0)
		i := 0
		for ; i < len(clause) && strings.IndexByte("ugoa", clause[i]) >= 0; i++ {
			switch clause[i] {
			case 'u':
				who |= 0o4700
			case 'g':
				who |= 0o2070
			case 'o':
				who |= 0o1007
			case 'a':
				who |= 0o7777
			}
		}
		mask := uint32(0)
		if who == 0 {
			who, mask = 0o7777, umask
		}
		if i == len(clause) {
			return 0, errors.New("invalid mode")
		}
		for i < len(clause) {
			op := clause[i]
			if strings.IndexByte("+-=", op) < 0 {
				return 0, errors.New("invalid mode")
			}
			i++
			bits := uint32(0)
			for ; i < len(clause) && strings.IndexByte("+-=", clause[i]) < 0; i++ {
				switch clause[i] {
				case 'r':
					bits |= 0o444
				case 'w':
					bits |= 0o222
				case 'x':
					bits |= 0o111
				case 'X':
					if directory || mode&0o111 != 0 {
						bits |= 0o111
					}
				case 's':
					bits |= 0o6000
				case 't':
					bits |= 0o1000
				case 'u':
					bits |= mode >> 6 & 7 * 0o111
				case 'g':
					bits |= mode >> 3 & 7 * 0o111
				case 'o':
					bits |= mode & 7 * 0o111
				default:
					return 0, errors.New("invalid mode")
				}
			}
			if who == 0o7777 || bits&0o1000 == 0 {
				bits &= who | 0o1000
			}
			bits &= who &^ mask
			switch op {
			case '+':
				mode |= bits
			case '-':
				mode &^= bits
			case '=':
				keep := uint32(0)
				if directory {
					keep = mode & 0o6000
				}
				mode = mode&^(who&0o7777) | bits | keep
			}
		}
	}
	return mode, nil
}

// SymbolicMask is umask -S.
func SymbolicMask(mask int) string {
	var parts []string
	for i, who := range []string{"u", "g", "o"} {
		bits := ^mask >> (6 - 3*i) & 7
		text := who + "="
		for j, letter := range "rwx" {
			if bits&(4>>j) != 0 {
				text += string(letter)
			}
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ",")
}

// permissions are the twelve bits of a mode.
func permissions(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// fileMode is the other way round.
func fileMode(bits uint32) fs.FileMode {
	mode := fs.FileMode(bits & 0o777)
	if bits&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if bits&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if bits&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// modeString is ls's, such as drwxr-xr-x.
func modeString(mode fs.FileMode) string {
	kind := byte('-')
	switch {
	case mode.IsDir():
		kind = 'd'
	case mode&fs.ModeSymlink != 0:
		kind = 'l'
	case mode&fs.ModeNamedPipe != 0:
		kind = 'p'
	case mode&fs.ModeSocket != 0:
		kind = 's'
	case mode&fs.ModeCharDevice != 0:
		kind = 'c'
	case mode&fs.ModeDevice != 0:
		kind = 'b'
	}
	text := []byte{kind}
	bits := permissions(mode)
	for i := 8; i >= 0; i-- {
		if bits>>i&1 != 0 {
			text = append(text, "rwx"[2-i%3])
		} else {
			text = append(text, '-')
		}
	}
	special := func(at int, bit uint32, set, unset byte) {
		if bits&bit == 0 {
			return
		}
		if text[at] == 'x' {
			text[at] = set
		} else {
			text[at] = unset
		}
	}
	special(3, 0o4000, 's', 'S')
	special(6, 0o2000, 's', 'S')
	special(9, 0o1000, 't', 'T')
	return string(text)
}

// currentUmask reads the umask, which can only be had by setting it.
func currentUmask() uint32 {
	mask := syscall.Umask(0)
	syscall.Umask(mask)
	return uint32(mask)
}

// owner is who a file belongs to, with what else only the system knows.
type owner struct {
	uid, gid            uint32
	dev, ino, nlink     uint64
	blocks              int64
	rdev                uint64
	atime, mtime, ctime int64 // nanoseconds
}

// idNames reads /etc/passwd or /etc/group: names by number.
func idNames(file string) map[string]string {
	names := map[string]string{}
	text, err := os.ReadFile(file)
	if err != nil {
		return names
	}
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Split(line, ":")
		if len(fields) >= 3 {
			if _, known := names[fields[2]]; !known {
				names[fields[2]] = fields[0]
			}
		}
	}
	return names
}

// idNumber finds a name or number in /etc/passwd or /etc/group.
func idNumber(file, name string) (int, error) {
	for number, known := range idNames(file) {
		if known == name {
			return strconv.Atoi(number)
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	if strings.HasSuffix(file, "group") {
		return 0, fmt.Errorf("unknown group %s", name)
	}
	return 0, fmt.Errorf("unknown user %s", name)
}
