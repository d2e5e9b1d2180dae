//go:build tools

// Package images pins the programs that the guest images of the conformance suite are made from.
package images

import (
	_ "k8s.io/kubernetes/test/images/agnhost"
)
