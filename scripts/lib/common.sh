# Shared by the scripts: where things are, how they speak. Sourced, never run.
# shellcheck shell=bash

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything downloaded or built on the way; safe to delete, safe to keep between checkouts.
# shellcheck disable=SC2034  # Used by those who source this.
CACHE=${WASILET_CACHE:-$REPO/target/wasm-toolchain}

# What the user reads goes to stderr: stdout is for what a caller evaluates.
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Puts a finished directory in place at once; whoever looks sees all of it or nothing.
#   publish TEMPORARY FINAL
publish() {
    if [ -e "$2" ]; then rm -rf -- "$1"; else mv -T -- "$1" "$2"; fi
}

# Runs a command, its output kept for when it fails.
#   quietly LOG COMMAND...
quietly() {
    local log=$1
    shift
    mkdir -p -- "$(dirname -- "$log")"
    if "$@" >"$log" 2>&1 </dev/null; then return 0; fi
    say "  failed: $*"
    tail -n 5 -- "$log" | sed 's/^/    /' >&2
    return 1
}

# Builds the command that runs go for wasip1 with the overlay: what 'wasilet go' carries, without wasilet.
#   go_overlay_tool FILE
go_overlay_tool() {
    (cd -- "$REPO/wasm-samples/go-overlay" && env GOTOOLCHAIN=local GOFLAGS= GOOS= GOARCH= GOWORK=off CGO_ENABLED=0 go build -o "$1" .)
}
