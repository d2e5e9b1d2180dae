// Package tools pins the suite: scripts/conformance.sh builds k8s.io/kubernetes/test/e2e from the Go module proxy at the
// versions go.mod and go.sum say.
//
//go:build tools
package tools

import (
	_ "k8s.io/kubernetes/test/e2e"
)
