//go:build !aix && !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd && !solaris && !zos

package socket

// A header as of a 32-bit Unix, so that what is parsed ends: there are no messages, and of those that a program makes
// nobody reads any.

const sizeofCmsghdr = 12

func controlHeaderLen() int { return sizeofCmsghdr }

func controlMessageLen(dataLen int) int { return sizeofCmsghdr + dataLen }

func controlMessageSpace(dataLen int) int { return sizeofCmsghdr + (dataLen+3)&^3 }

type cmsghdr struct {
	length      uint32
	level, kind int32
}

func (h *cmsghdr) len() int { return int(h.length) }
func (h *cmsghdr) lvl() int { return int(h.level) }
func (h *cmsghdr) typ() int { return int(h.kind) }

func (h *cmsghdr) set(l, lvl, typ int) {
	h.length, h.level, h.kind = uint32(l), int32(lvl), int32(typ)
}
