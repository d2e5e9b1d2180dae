// Package tools pins kwok, the peer of benches/cluster.rs: nodes and pods of an API server that run nothing. Built by
// scripts/kwok.sh from the Go module proxy at the versions go.mod and go.sum say.
//
//go:build tools
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
