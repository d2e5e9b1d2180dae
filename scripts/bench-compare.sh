#!/usr/bin/env bash
# Instructions that each hot path takes, before and after: this checkout beside a commit (its parent by default), counted by
# valgrind's callgrind in one run. A count says what a noisy machine's clock cannot. Both are built with this checkout's
# benches/counts.rs; the other commit's own crate is compiled in a worktree below target/compare.
#
#   scripts/bench-compare.sh [COMMIT]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

commit=$(git rev-parse --short "${1:-HEAD^}")
have valgrind || die 'no valgrind (Debian: apt-get install valgrind)'
cargo=${CARGO:-cargo}
work=$REPO/target/compare
tree=$work/tree
lines=$REPO/target/guests/flood.wasm
pods=$REPO/target/guests/hello.wasm
[[ -e $lines && -e $pods ]] || scripts/build-guests.sh >&2

mkdir -p "$work"
git worktree remove --force "$tree" 2>/dev/null || true
git worktree prune
git worktree add --quiet --force --detach "$tree" "$commit"
trap 'git worktree remove --force "$tree"' EXIT
cp benches/counts.rs "$tree/benches/counts.rs"
grep -q '^name = "counts"' "$tree/Cargo.toml" || printf '\n[[bench]]\nname = "counts"\nharness = false\n' >>"$tree/Cargo.toml"

# build DIRECTORY NAME: the node and the paths of that tree, into target/compare/NAME.
build() {
    local messages executable
    say "bench-compare.sh: building $2"
    messages=$(cd "$1" && nice "$cargo" bench --target-dir "$REPO/target" --no-run --bench counts --message-format=json-render-diagnostics)
    executable=$(python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] in ("counts", "wasilet"):
        print(message["executable"])' <<<"$messages")
    mkdir -p "$work/$2"
    for file in $executable; do
        case ${file##*/} in
            wasilet) cp "$file" "$work/$2/wasilet" ;;
            counts-*) cp "$file" "$work/$2/counts" ;;
        esac
    done
}

# instructions COMMAND...: of all its threads.
instructions() {
    local log=$work/callgrind.log
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" >/dev/null 2>"$log" || { cat "$log" >&2; die "$* failed under valgrind"; }
    sed -n 's/^==[0-9]*== Collected : //p' "$log" | tail -n 1
}

# each DIRECTORY LESS MORE COMMAND...: instructions of one of those that MORE has and LESS has not.
each() {
    local less=$1 more=$2 a b
    shift 2
    a=$(instructions "$@" "$less")
    b=$(instructions "$@" "$more")
    echo $(((b - a) / (more - less)))
}

# play NAME KIND TIMES: the node that runs a pod which writes so many lines, or so many pods one line each.
play() {
    local root manifest=$work/manifest.yaml number
    root=$(mktemp -d)
    "$work/$1/wasilet" --root-dir "$root" image load "$([[ $2 == line ]] && echo "$lines" || echo "$pods")" bench/guest:v1 >/dev/null
    : >"$manifest"
    for ((number = 0; number < ($([[ $2 == line ]] && echo 1 || echo "$3")); number++)); do
        printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d}\nspec: {restartPolicy: Never, containers: [{name: main, image: "bench/guest:v1", args: ["%d"]}]}\n' "$number" "$3" >>"$manifest"
    done
    # The artifact is made before what is counted.
    "$work/$1/wasilet" --root-dir "$root" play --toolbox '' --quiet "$manifest" >/dev/null 2>&1 || true
    instructions "$work/$1/wasilet" --root-dir "$root" play --toolbox '' --quiet "$manifest"
    rm -rf -- "$root"
}

build "$tree" before
build "$REPO" after

printf '%-28s %14s %14s %8s\n' 'instructions of one' "$commit" 'this checkout' ratio
row() { printf '%-28s %14d %14d %8.3f\n' "$1" "$2" "$3" "$(python3 -c "print($3 / max($2, 1))")"; }
for path in vfs-lookup vfs-open vfs-write loopback plan; do
    row "$path" "$(each 100 5100 "$work/before/counts" "$path")" "$(each 100 5100 "$work/after/counts" "$path")"
done
for kind in line pod; do
    [[ $kind == line ]] && few=100 many=4100 || few=3 many=13
    counted=()
    for name in before after; do
        counted+=($((($(play "$name" "$kind" "$many") - $(play "$name" "$kind" "$few")) / (many - few))))
    done
    row "$([[ $kind == line ]] && echo 'fd_write of a line, to the log' || echo 'a pod, start to end')" "${counted[@]}"
done
