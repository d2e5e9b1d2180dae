#!/usr/bin/env bash
# Builds the programs of the conformance suite's images, unmodified, into target/conformance/guests/*.wasm.
#
#   scripts/guest-images.sh            all of them
#   scripts/guest-images.sh NAME...    these alone
#   scripts/guest-images.sh --list     says what there is
#
# Each is a Go program at the version that tests/conformance/images pins, built for wasip1 with Wasilet's overlay of the
# standard library. A second run takes seconds, a first one minutes: agnhost has most of Kubernetes in it.
set -euo pipefail
# shellcheck source=lib/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/common.sh"

OUT=$REPO/target/conformance/guests
# NAME MODULE PACKAGE: the folder of the module that pins it, below tests/conformance/images, and the program.
PROGRAMS='
agnhost  .        k8s.io/kubernetes/test/images/agnhost
coredns  coredns  .
'

usage() { sed -n '2,/^set -/ { /^#/ s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}"; }

case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --list) awk 'NF { print $1 }' <<<"$PROGRAMS"; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
esac
for name; do
    awk -v name="$name" '$1 == name { found = 1 } END { exit !found }' <<<"$PROGRAMS" || die "no program is called $name (see --list)"
done
have go || die 'no go on PATH: the programs are in Go'
mkdir -p -- "$OUT"
go_overlay_tool "$OUT/.go-overlay"
while read -r name module package; do
    [ -n "$name" ] || continue
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
    (cd -- "$REPO/tests/conformance/images/$module" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly WASILET_GO_CACHE=$OUT/.go-overlay-cache \
        nice "$OUT/.go-overlay" build -trimpath -ldflags='-s -w' -o "$OUT/.$name.new" "$package")
    if cmp -s -- "$OUT/.$name.new" "$OUT/$name.wasm"; then rm -- "$OUT/.$name.new"; else mv -- "$OUT/.$name.new" "$OUT/$name.wasm"; fi
    say "$name: $((($(stat -c %s -- "$OUT/$name.wasm") + 500000) / 1000000)) MB"
done <<<"$PROGRAMS"
