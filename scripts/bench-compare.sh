#!/usr/bin/env bash
# Instructions that each hot path takes, before and after: this checkout beside a commit (its parent by default), counted by
# valgrind's callgrind in one run. A count says what a noisy machine's clock cannot. Both are built with this checkout's
# benches/counts.rs; the other commit's own crate is compiled in a worktree below target/compare. Guests are not in it: compiled
# code does not come to its end under valgrind.
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

mkdir -p "$work"
git worktree remove --force "$tree" 2>/dev/null || true
git worktree prune
git worktree add --quiet --force --detach "$tree" "$commit"
trap 'git worktree remove --force "$tree"' EXIT
cp benches/counts.rs "$tree/benches/counts.rs"
grep -q '^name = "counts"' "$tree/Cargo.toml" || printf '\n[[bench]]\nname = "counts"\nharness = false\n' >>"$tree/Cargo.toml"

# build DIRECTORY NAME: the paths of that tree, as target/compare/NAME.
build() {
    local messages executable
    say "bench-compare.sh: building $2"
    messages=$(cd "$1" && nice "$cargo" bench --target-dir "$REPO/target" --no-run --bench counts --message-format=json-render-diagnostics)
    executable=$(python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "counts":
        print(message["executable"])' <<<"$messages")
    cp "$executable" "$work/$2"
}

# instructions COMMAND...: of all its threads.
instructions() {
    local log=$work/callgrind.log
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" >/dev/null 2>"$log" || { cat "$log" >&2; die "$* failed under valgrind"; }
    sed -n 's/^==[0-9]*== Collected : //p' "$log" | tail -n 1
}

# each LESS MORE COMMAND...: instructions of one of those that MORE has and LESS has not.
each() {
    local less=$1 more=$2 a b
    shift 2
    a=$(instructions "$@" "$less")
    b=$(instructions "$@" "$more")
    echo $(((b - a) / (more - less)))
}

build "$tree" before
build "$REPO" after

printf '%-28s %14s %14s %8s\n' 'instructions of one' "$commit" 'this checkout' ratio
row() { printf '%-28s %14d %14d %8.3f\n' "$1" "$2" "$3" "$(python3 -c "print($3 / max($2, 1))")"; }
for path in vfs-lookup vfs-open vfs-write loopback plan; do
    row "$path" "$(each 100 5100 "$work/before" "$path")" "$(each 100 5100 "$work/after" "$path")"
done
