// Package tools pins metrics-server (`kubectl top`), built by scripts/control-plane.sh.
//
//go:build tools
package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
