// Package tools pins the helm that the chart is checked with: Helm's own command, built by scripts/helm.sh from the Go
// module proxy at the versions go.mod and go.sum say. The Kubernetes modules are those of tests/cluster, so that what was
// compiled for the one is not compiled again for the other.
//
//go:build tools
package tools

import _ "helm.sh/helm/v4/cmd/helm"
