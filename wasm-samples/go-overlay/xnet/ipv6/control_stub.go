//go:build !aix && !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd && !solaris && !windows && !zos

package ipv6

import "golang.org/x/net/internal/socket"

// setControlMessage lets a program ask for the addresses of its datagrams, and tells it none: a pod answers from the
// address it was asked at without that. Anything else is refused as on every system that has no control messages.
func setControlMessage(_ *socket.Conn, _ *rawOpt, cf ControlFlags, _ bool) error {
	if cf&^(FlagSrc|FlagDst|FlagInterface) != 0 {
		return errNotImplemented
	}
	return nil
}
