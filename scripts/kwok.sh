#!/usr/bin/env bash
# Builds kwok, which benches/cluster.rs measures the node against, into target/tools/kwok/kwok. Versions and checksums are
# those of tests/tools/kwok/go.{mod,sum}; it comes from the Go module proxy. Quick when it is built already. Prints the path;
# stages.yaml beside it is its configuration.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

source=$REPO/tests/tools/kwok
out=$REPO/target/tools/kwok
have go || die 'no go command; install Go 1.24 or newer (Debian: apt-get install golang-go), newer ones fetch the toolchain they need'
key=$( (cd "$source" && cat go.mod go.sum; cat "$REPO/scripts/kwok.sh"; go env GOVERSION) | sha256sum | cut -d' ' -f1)
mkdir -p "$out"
# Two builds at once would do the work twice; the second finds it done.
exec 9>"$out/lock"
flock 9
if [[ ! -x $out/kwok || $(cat "$out/key" 2>/dev/null) != "$key" ]]; then
    version=$(awk '$1 == "require" && $2 == "sigs.k8s.io/kwok" { print $3 } $1 == "sigs.k8s.io/kwok" { print $2 }' "$source/go.mod" | head -n 1)
    say "kwok.sh: building kwok ($version) from the Go module proxy"
    rm -f "$out/key"
    (cd "$source" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 12 go build -trimpath -p "${WASILET_KWOK_BUILDS:-2}" \
        -ldflags "-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=$version" -o "$out/kwok.new" sigs.k8s.io/kwok/cmd/kwok)
    mv "$out/kwok.new" "$out/kwok"
    # What it does with nodes and pods: kwok's own quickest stages.
    stages=$(cd "$source" && go list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
    for stage in "$stages"/node/{fast,heartbeat-with-lease}/*.yaml "$stages"/pod/fast/*.yaml; do
        [[ $stage == */kustomization.yaml ]] || { echo ---; cat "$stage"; }
    done >"$out/stages.yaml"
    echo "$key" >"$out/key"
fi
echo "$out/kwok"
