#!/usr/bin/env bash
# Builds the programs of the suite's images for wasm into target/conformance/guests; tests/conformance/images.py packs them.
# Upstream's own sources, unmodified, with the standard library of wasm-samples/go-overlay; busybox and what base images
# bring is the toolbox. Quick when they are built already.
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

if [[ -d wasm-samples/toolbox ]]; then
    scripts/build-guests.sh toolbox >&2
    deliver target/guests/toolbox.wasm toolbox.wasm
    deliver wasm-samples/toolbox/applets.txt toolbox.applets
fi

# agnhost has a file for Linux and one for other systems, which knows no tmpfs. A WASI node's files are as Linux's: here
# Linux's file is built, its constraint alone changed. The rest of the module is linked.
port_agnhost() {
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

if [[ -d wasm-samples/go-overlay ]]; then
    key=$( (cat "$SOURCE"/go.{mod,sum} && find wasm-samples/go-overlay -type f | LC_ALL=C sort | xargs cat &&
        cat "$0" && go env GOVERSION) | sha256sum | cut -d' ' -f1)
    if [[ ! -e $OUT/agnhost.wasm || $(cat "$OUT/.agnhost.key" 2>/dev/null) != "$key" ]]; then
        begin=$SECONDS
        say 'conformance-images.sh: building agnhost for wasm from the Go module proxy'
        rm -f "$OUT/.agnhost.key"
        (cd wasm-samples/go-overlay && GOTOOLCHAIN=local go build -trimpath -o "$WORK/go-overlay" .)
        port_agnhost
        nice -n 12 "$WORK/go-overlay" build -C "$WORK/agnhost" -trimpath -ldflags='-s -w' -o "$OUT/.agnhost.new" k8s.io/kubernetes/test/images/agnhost
        mv "$OUT/.agnhost.new" "$OUT/agnhost.wasm"
        echo "$key" >"$OUT/.agnhost.key"
        say "conformance-images.sh: built agnhost in $((SECONDS - begin)) s"
    fi
fi
