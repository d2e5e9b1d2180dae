#!/usr/bin/env bash
# Builds what the cluster tests and `make cluster` run into target/cluster/bin: etcd, kube-apiserver,
# kube-controller-manager, kube-scheduler, kubectl, kubeadm, metrics-server and coredns, from the Go module proxy at the versions
# of tests/cluster/{,metrics-server/,coredns/}go.{mod,sum}. Quick when they are built already. Prints the directory.
#
#   scripts/control-plane.sh             the current release
#   scripts/control-plane.sh --compat    also the oldest API server a node joins, with its controllers, into
#                                        target/cluster/compat (the rest is linked from bin)
#   WASILET_CONTROL_PLANE=DIR            binaries that are there already; nothing is built
#   WASILET_CONTROL_PLANE_BUILDS         how many packages Go compiles at once (default: as many as there are cores)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

SOURCE=$REPO/tests/cluster
OUT=$REPO/target/cluster
CURRENT='kubectl kube-apiserver kube-controller-manager kube-scheduler kubeadm'
COMPAT='kube-apiserver kube-controller-manager kube-scheduler'

# kubernetes_version MODULE_DIRECTORY: the version go.mod pins, v1.36.3.
kubernetes_version() { awk '$1 == "k8s.io/kubernetes" || $2 == "k8s.io/kubernetes" { print $NF; exit }' "$1/go.mod"; }

# What must agree for a binary to be used again: sources, versions, this script and the compiler.
key_of() {
    (cd "$1" && cat go.mod go.sum -- *.go; cat "$REPO/scripts/control-plane.sh"; go env GOVERSION) | sha256sum | cut -d' ' -f1
}

# build MODULE_DIRECTORY OUT VERSION PACKAGE...: each into OUT by its last name, when it is not there already. Not with
# -trimpath, here and in the scripts of helm, the mock driver and the suite: it names a replaced module by the version it was
# replaced for, and what one of them compiled would be compiled again for the next.
build() {
    local module=$1 out=$2 version=$3 key package name begin
    shift 3
    key=$(key_of "$module")
    mkdir -p "$out"
    # kubectl, kubeadm and the servers say this version of themselves; clients decide by it.
    local flags='-s -w' minor=${version#v1.}
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    done
    for package; do
        name=${package##*/}
        [[ -x $out/$name && $(cat "$out/.$name.key" 2>/dev/null) == "$key" ]] && continue
        say "control-plane.sh: building $name ($version) from the Go module proxy"
        begin=$SECONDS
        rm -f "$out/.$name.key"
        (cd "$module" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 12 go build \
            ${WASILET_CONTROL_PLANE_BUILDS:+-p "$WASILET_CONTROL_PLANE_BUILDS"} -ldflags "$flags" -o "$out/.$name.new" "$package")
        mv "$out/.$name.new" "$out/$name"
        echo "$key" >"$out/.$name.key"
        say "control-plane.sh: built $name in $((SECONDS - begin)) s"
    done
}

if [[ -n ${WASILET_CONTROL_PLANE:-} ]]; then
    echo "$WASILET_CONTROL_PLANE"
    exit 0
fi
have go || die 'no go command; install Go 1.24 or newer (Debian: apt-get install golang-go), newer ones fetch the toolchain they need'
mkdir -p "$OUT"
# Two builds at once would do the work twice; the second finds it done.
exec 9>"$OUT/lock"
flock 9
version=$(kubernetes_version "$SOURCE")
packages=()
for name in $CURRENT; do packages+=("k8s.io/kubernetes/cmd/$name"); done
build "$SOURCE" "$OUT/bin" "$version" "${packages[@]}" ./etcd
build "$SOURCE/metrics-server" "$OUT/bin" "$version" sigs.k8s.io/metrics-server/cmd/metrics-server
build "$SOURCE/coredns" "$OUT/bin" "$version" wasilet.dev/tests/cluster/coredns
if [[ ${1:-} == --compat ]]; then
    packages=()
    for name in $COMPAT; do packages+=("k8s.io/kubernetes/cmd/$name"); done
    build "$SOURCE/compat" "$OUT/compat" "$(kubernetes_version "$SOURCE/compat")" "${packages[@]}"
    for name in etcd kubectl kubeadm metrics-server coredns; do ln -sf "../bin/$name" "$OUT/compat/$name"; done
    echo "$OUT/compat"
else
    echo "$OUT/bin"
fi
