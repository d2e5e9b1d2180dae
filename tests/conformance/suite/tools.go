// Package tools pins the suite and the programs of its images: scripts/conformance.sh builds k8s.io/kubernetes/test/e2e,
// scripts/conformance-images.sh test/images/agnhost, from the Go module proxy at the versions go.mod and go.sum say.
//
//go:build tools
package tools

import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
