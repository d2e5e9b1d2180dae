#!/usr/bin/env bash
# Builds the guests (wasm-samples/) into target/guests/*.wasm.
#
#   scripts/build-guests.sh              all of them; one whose language has no compiler here is skipped and named
#   scripts/build-guests.sh --strict     all of them, a skipped one is an error
#   scripts/build-guests.sh NAME...      these alone; all of them must build
#   scripts/build-guests.sh --list       says what there is
#
# A name without a suffix is the program's first form; -p2 is the same as a WASI 0.2 component, -c and -go are in C and Go.
# Which compilers are used, and why, is scripts/wasm-toolchain.sh's choice. A second run takes no time.
#   CARGO           cargo, or what stands for it
#   WASILET_CACHE   where compilers are kept, see wasm-toolchain.sh
set -euo pipefail
# shellcheck source=lib/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/common.sh"

SAMPLES=$REPO/wasm-samples
OUT=$REPO/target/guests
WORK=$REPO/target/guests-build
STAMPS=$WORK/stamps

# NAME LANGUAGE WHERE [PROGRAM]: for Rust the target and the binary, for C its files, for Go its folder. go-overlay is Go with the
# standard library of 'wasilet go', its folder below wasm-samples.
GUESTS='
hello           rust  wasm32-wasip1
hello-p2        rust  wasm32-wasip2  hello
init            rust  wasm32-wasip1
init-p2         rust  wasm32-wasip2  init
updater         rust  wasm32-wasip1
updater-p2      rust  wasm32-wasip2  updater
web             rust  wasm32-wasip2
sleeper         rust  wasm32-wasip1
sleeper-p2      rust  wasm32-wasip2  sleeper
cat             rust  wasm32-wasip1
exit-code       rust  wasm32-wasip1
exit-code-p2    rust  wasm32-wasip2
trap            rust  wasm32-wasip1
trap-p2         rust  wasm32-wasip2  trap
spin            rust  wasm32-wasip1
spin-p2         rust  wasm32-wasip2  spin
grow            rust  wasm32-wasip1
grow-p2         rust  wasm32-wasip2  grow
flood           rust  wasm32-wasip1
flood-p2        rust  wasm32-wasip2  flood
open-files      rust  wasm32-wasip1
coherent        rust  wasm32-wasip1
fill            rust  wasm32-wasip1
throughput-p2   rust  wasm32-wasip2  throughput
kill            rust  wasm32-wasip1
open-files-p2   rust  wasm32-wasip2  open-files
fs-check        rust  wasm32-wasip1
fs-check-p2     rust  wasm32-wasip2  fs-check
net-check       rust  wasm32-wasip2
name-check      rust  wasm32-wasip2
signal          rust  wasm32-wasip1
pipeline        rust  wasm32-wasip1
accept          rust  wasm32-wasip1
pause           rust  wasm32-wasip1
http-component  rust  wasm32-wasip2
hello-c         c     hello.c
posix-check-c   c     posix-check.c
hello-go        go    hello
http-server-go  go-overlay  go/http-server
go-check        go-overlay  go/check
toolbox         go-overlay  toolbox
'

usage() { sed -n '2,/^set -/ { /^#/ s/^# \{0,1\}//p }' "${BASH_SOURCE[0]}"; }

# Lines of GUESTS that are wanted, by language.
wanted_of() { awk -v language="$1" '$2 == language' <<<"$WANTED"; }

# Puts a finished file in place, and leaves one alone that is the same: its age says when it last changed. The stamp
# has the time this run began: a source that changes during the build is newer and is built next time.
deliver() {
    if ! cmp -s -- "$1" "$OUT/$2.wasm"; then
        cp -- "$1" "$OUT/.$2.new"
        mv -- "$OUT/.$2.new" "$OUT/$2.wasm"
    fi
    touch -r "$WORK/started" -- "$STAMPS/$2"
}

# True when every wanted guest is there and none is older than what they are made from.
up_to_date() {
    local name oldest=''
    while read -r name _; do
        [ -e "$OUT/$name.wasm" ] && [ -e "$STAMPS/$name" ] || return 1
        if [ -z "$oldest" ] || [ "$STAMPS/$name" -ot "$oldest" ]; then oldest=$STAMPS/$name; fi
    done <<<"$WANTED"
    [ -z "$(find "$SAMPLES" "$REPO/scripts" -newer "$oldest" -print -quit)" ]
}

build_rust() {
    local wanted target name bins
    wanted=$(wanted_of rust)
    [ -n "$wanted" ] || return 0
    eval "$("$REPO/scripts/wasm-toolchain.sh" rust || echo exit 1)"
    say "rust: $WASM_RUST"
    # The user's flags and target are for the machine's own programs.
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS RUSTC_WORKSPACE_WRAPPER
    for target in wasm32-wasip1 wasm32-wasip2; do
        mapfile -t bins < <(awk -v target="$target" '$3 == target { print ($4 == "" ? $1 : $4) }' <<<"$wanted")
        [ ${#bins[@]} -gt 0 ] || continue
        (cd -- "$SAMPLES" && "${CARGO:-cargo}" build --locked --release --target "$target" --target-dir "$WORK" \
            "${bins[@]/#/--bin=}")
    done
    while read -r name _ target bin; do
        deliver "$WORK/$target/release/${bin:-$name}.wasm" "$name"
    done <<<"$wanted"
}

build_c() {
    local wanted name source
    wanted=$(wanted_of c)
    [ -n "$wanted" ] || return 0
    local toolchain
    toolchain=$("$REPO/scripts/wasm-toolchain.sh" c) || { skip "$wanted" 'no C compiler for WASI'; return 0; }
    eval "$toolchain"
    say "c: $WASM_C"
    while read -r name _ source; do
        (cd -- "$SAMPLES/c" && sh -c "$WASM_CC -std=gnu17 -Os -Wall -Wextra -Werror -Wl,--strip-debug -o '$WORK/$name.wasm' '$source'")
        deliver "$WORK/$name.wasm" "$name"
    done <<<"$wanted"
}

build_go() {
    local wanted name folder
    wanted=$(wanted_of go)
    [ -n "$wanted" ] || return 0
    have go || { skip "$wanted" 'no go on PATH'; return 0; }
    say "go: $(GOTOOLCHAIN=local go version | cut -d' ' -f3-) on PATH"
    while read -r name _ folder; do
        (cd -- "$SAMPLES/go/$folder" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOOS=wasip1 GOARCH=wasm CGO_ENABLED=0 \
            go build -trimpath -ldflags='-s -w' -o "$WORK/$name.wasm" .)
        deliver "$WORK/$name.wasm" "$name"
    done <<<"$wanted"
}

build_go_overlay() {
    local wanted name folder
    wanted=$(wanted_of go-overlay)
    [ -n "$wanted" ] || return 0
    have go || { skip "$wanted" 'no go on PATH'; return 0; }
    go_overlay_tool "$WORK/go-overlay"
    # A module may ask for a newer go than this machine's; go fetches that one where it may.
    while read -r name _ folder; do
        (cd -- "$SAMPLES/$folder" && GOFLAGS=-mod=readonly WASILET_GO_CACHE=$WORK/go-overlay-cache \
            "$WORK/go-overlay" build -trimpath -ldflags='-s -w' -o "$WORK/$name.wasm" .)
        deliver "$WORK/$name.wasm" "$name"
    done <<<"$wanted"
}

# Says what is not built and why; an error where it was asked for.
skip() {
    local names
    names=$(awk '{ print $1 }' <<<"$1" | paste -sd ' ')
    [ "$MODE" = lenient ] || die "$names: $2"
    say "SKIPPED $names: $2"
}

MODE=lenient
WANTED=$(grep . <<<"$GUESTS")
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --list) awk '{ print $1 }' <<<"$WANTED"; exit 0 ;;
    --strict) MODE=strict ;;
    -*) die "unknown option $1 (see --help)" ;;
    ?*)
        MODE=strict
        for name; do
            awk -v name="$name" '$1 == name { found = 1 } END { exit !found }' <<<"$WANTED" || die "no guest is called $name (see --list)"
        done
        WANTED=$(awk -v names=" $* " 'index(names, " " $1 " ")' <<<"$WANTED")
        ;;
esac

count=$(wc -l <<<"$WANTED")
if up_to_date; then
    say "guests: $count up to date in ${OUT#"$PWD"/}"
    exit 0
fi
mkdir -p -- "$OUT" "$STAMPS"
touch -- "$WORK/started"
build_rust
build_c
build_go
build_go_overlay
say "guests: $count in ${OUT#"$PWD"/}"
