package net

import (
	"os"
	"syscall"
)

func setDefaultSockopts(s, family, sotype int, ipv6only bool) error {
	if family == syscall.AF_INET6 {
		// Sockets of both families where the network has both; where it has not, the bind says so.
		syscall.SetsockoptInt(s, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, boolint(ipv6only))
	}
	if sotype == syscall.SOCK_DGRAM {
		return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1))
	}
	return nil
}

func setDefaultListenerSockopts(s int) error {
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(s, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
}

func setDefaultMulticastSockopts(s int) error {
	return setDefaultListenerSockopts(s)
}

func interfaceTable(ifindex int) ([]Interface, error)            { return nil, nil }
func interfaceAddrTable(ifi *Interface) ([]Addr, error)          { return nil, nil }
func interfaceMulticastAddrTable(ifi *Interface) ([]Addr, error) { return nil, nil }
