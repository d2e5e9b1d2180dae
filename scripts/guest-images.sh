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

# One file of agnhost says "tmpfs" on Linux, and a number elsewhere; the suite waits for the word. The module is taken with
# that file's constraint widened: everything else of it are links to the module cache.
#   kubernetes_source DIR
kubernetes_source() {
    local from part path=''
    from=$(GOFLAGS=-mod=mod go list -m -f '{{.Dir}}' k8s.io/kubernetes)
    rm -rf -- "$1"
    mkdir -p -- "$1"
    for part in test images agnhost mounttest ''; do
        (cd -- "$from/$path" && find . -mindepth 1 -maxdepth 1 ! -name "${part:-*_utils_*}") | while read -r entry; do
            ln -s -- "$from/$path$entry" "$1/$path$entry"
        done
        [ -z "$part" ] || mkdir -- "$1/$path$part"
        path+=${part:+$part/}
    done
    sed 's/^\/\/go:build linux$/\/\/go:build wasip1/' "$from/${path}mt_utils_linux.go" >"$1/${path}mt_utils_wasip1.go"
}

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
    where=$REPO/tests/conformance/images/$module
    if [ "$name" = agnhost ]; then
        mkdir -p -- "$OUT/.module"
        cp -- "$where"/go.mod "$where"/go.sum "$where"/tools.go "$OUT/.module"
        (cd -- "$where" && kubernetes_source "$OUT/.kubernetes")
        (cd -- "$OUT/.module" && go mod edit -replace="k8s.io/kubernetes=$OUT/.kubernetes")
        where=$OUT/.module
    fi
    (cd -- "$where" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly WASILET_GO_CACHE=$OUT/.go-overlay-cache \
        nice "$OUT/.go-overlay" build -trimpath -ldflags='-s -w' -o "$OUT/.$name.new" "$package")
    if cmp -s -- "$OUT/.$name.new" "$OUT/$name.wasm"; then rm -- "$OUT/.$name.new"; else mv -- "$OUT/.$name.new" "$OUT/$name.wasm"; fi
    say "$name: $((($(stat -c %s -- "$OUT/$name.wasm") + 500000) / 1000000)) MB"
done <<<"$PROGRAMS"
