// Package tools pins the OCI registry the image tests run against: CNCF distribution's own server, built by
// scripts/registry.sh from the Go module proxy at the versions go.mod and go.sum say.
//
//go:build tools
package tools

import _ "github.com/distribution/distribution/v3/cmd/registry"
