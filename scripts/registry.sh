#!/usr/bin/env bash
# Builds CNCF distribution's registry, which the image tests run against, into target/tools/registry/registry.
# Versions and checksums are those of tests/tools/registry/go.{mod,sum}; it comes from the Go module proxy.
# Quick when it is built already. Prints the path.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD/tests/tools/registry
out=$PWD/target/tools/registry
key=$(cat "$source/go.mod" "$source/go.sum" | sha256sum | cut -d' ' -f1)
if [[ -x $out/registry && $(cat "$out/key" 2>/dev/null) == "$key" ]]; then
    echo "$out/registry"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "registry.sh: no go command; install Go 1.24 or newer (Debian: apt-get install golang-go)" >&2
    exit 1
fi
mkdir -p "$out"
# Two builds at once would write one file; the second finds it made.
exec 9>"$out/lock"
flock 9
if [[ ! -x $out/registry || $(cat "$out/key" 2>/dev/null) != "$key" ]]; then
    rm -f "$out/key"
    echo "registry.sh: building the registry from the Go module proxy" >&2
    (cd "$source" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice go build -trimpath -o "$out/registry" \
        github.com/distribution/distribution/v3/cmd/registry)
    echo "$key" >"$out/key"
fi
echo "$out/registry"
