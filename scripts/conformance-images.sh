#!/usr/bin/env bash
# Builds the programs of the suite's images for wasm into target/conformance/guests; tests/conformance/images.py packs them.
# Upstream's own sources, unmodified, with the standard library of wasm-samples/go-overlay; busybox and what base images
# bring is the toolbox. Quick when they are built already.
#
#   scripts/conformance-images.sh              what the suite runs
#   scripts/conformance-images.sh coredns      CoreDNS, which agnhost's image has too: for SET=network
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

OUT=$REPO/target/conformance/guests
WORK=$REPO/target/conformance
SOURCE=$REPO/tests/conformance/images

# deliver FILE NAME: in place at once, and an unchanged one left alone.
deliver() { cmp -s -- "$1" "$OUT/$2" || { cp -- "$1" "$OUT/.$2.new" && mv -- "$OUT/.$2.new" "$OUT/$2"; }; }

mkdir -p "$OUT"
scripts/build-guests.sh pause >&2
deliver target/guests/pause.wasm pause.wasm

scripts/build-guests.sh toolbox >&2
deliver target/guests/toolbox.wasm toolbox.wasm
deliver wasm-samples/toolbox/applets.txt toolbox.applets

# agnhost has a file for Linux and one for other systems, which knows no tmpfs. A WASI node's files are as Linux's: here
# Linux's file is built, its constraint alone changed. The rest of the module is linked.
prepare_agnhost() {
    local module=$WORK/agnhost/kubernetes upstream dir name
    upstream=$(cd "$SOURCE" && go list -mod=readonly -m -f '{{.Dir}}' k8s.io/kubernetes)
    rm -rf -- "$WORK/agnhost"
    for dir in . test test/images; do
        mkdir -p "$module/$dir"
        for name in "$upstream/$dir"/*; do
            name=${name##*/}
            case $dir/$name in
                ./test | test/images) ;;
                test/images/agnhost) cp -r "$upstream/$dir/$name" "$module/$dir/" && chmod -R u+w "$module/$dir/$name" ;;
                *) ln -s "$upstream/$dir/$name" "$module/$dir/$name" ;;
            esac
        done
    done
    (cd "$module/test/images/agnhost/mounttest" && sed 's,^//go:build linux$,//go:build wasip1,' mt_utils_linux.go >mt_utils_wasip1.go)
    rm "$module/test/images/agnhost/mounttest/mt_utils_other.go"
    cp "$SOURCE"/{go.mod,go.sum,tools.go} "$WORK/agnhost/"
    (cd "$WORK/agnhost" && go mod edit -replace "k8s.io/kubernetes=./kubernetes")
}

# build NAME DIRECTORY PACKAGE: a Go program of the module in DIRECTORY, unless it is there from the same sources. What
# prepares the module is prepare_NAME, where there is one.
build() {
    local name=$1 module=$2 package=$3 key begin=$SECONDS
    key=$( (cat "$SOURCE"/go.{mod,sum} "$SOURCE"/coredns/go.{mod,sum} &&
        find wasm-samples/go-overlay -type f | LC_ALL=C sort | xargs cat && cat "$0" && go env GOVERSION) | sha256sum | cut -d' ' -f1)
    [[ ! -e $OUT/$name.wasm || $(cat "$OUT/.$name.key" 2>/dev/null) != "$key" ]] || return 0
    say "conformance-images.sh: building $name for wasm from the Go module proxy"
    rm -f "$OUT/.$name.key"
    go_overlay_tool "$WORK/go-overlay"
    if declare -F "prepare_$name" >/dev/null; then "prepare_$name"; fi
    nice -n 12 "$WORK/go-overlay" build -C "$module" -trimpath -ldflags='-s -w' -o "$OUT/.$name.new" "$package"
    mv "$OUT/.$name.new" "$OUT/$name.wasm"
    echo "$key" >"$OUT/.$name.key"
    say "conformance-images.sh: built $name in $((SECONDS - begin)) s"
}

case ${1:-agnhost} in
    agnhost) build agnhost "$WORK/agnhost" k8s.io/kubernetes/test/images/agnhost ;;
    coredns) build coredns "$SOURCE/coredns" . ;;
    *) die "no program is called $1" ;;
esac
