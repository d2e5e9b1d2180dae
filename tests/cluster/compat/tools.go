// Package tools pins the oldest control plane a node of ours joins, for `make test-compat`; built by
// `scripts/control-plane.sh --compat`.
//
//go:build tools
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
)
