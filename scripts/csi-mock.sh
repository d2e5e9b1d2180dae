#!/usr/bin/env bash
# Builds the CSI driver that the cluster tests use, the mock of the Kubernetes end-to-end suite, into
# target/tools/csi-mock from the Go module proxy at the versions of tests/cluster/csi/go.{mod,sum}. Quick when it is
# built already. Prints the file.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

SOURCE=$REPO/tests/cluster/csi
OUT=$REPO/target/tools/csi-mock
have go || die 'no go command; install Go 1.24 or newer (Debian: apt-get install golang-go), newer ones fetch the toolchain they need'
mkdir -p "$OUT"
exec 9>"$OUT/.lock"
flock 9
key=$( (cd "$SOURCE" && cat go.mod go.sum main.go; go env GOVERSION) | sha256sum | cut -d' ' -f1)
if [[ ! -x $OUT/csi-mock || $(cat "$OUT/.key" 2>/dev/null) != "$key" ]]; then
    say 'csi-mock.sh: building the mock CSI driver from the Go module proxy'
    (cd "$SOURCE" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 12 go build -ldflags '-s -w' -o "$OUT/.new" .)
    mv "$OUT/.new" "$OUT/csi-mock"
    echo "$key" >"$OUT/.key"
fi
echo "$OUT/csi-mock"
