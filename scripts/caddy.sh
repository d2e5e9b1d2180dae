#!/usr/bin/env bash
# A server that nobody here wrote: Caddy, unmodified, from the Go module proxy, as a pod that serves files and proxies. It is
# asked by curl, stopped within its grace, started again; its log is read. Heavy: two minutes of Go, minutes of compiling.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

WORK=$REPO/target/caddy
WASILET=${WASILET_BIN:-$REPO/target/release/wasilet}
export WASILET_ROOT_DIR=$WORK/root WASILET_GO_CACHE=$WORK/go-overlay-cache
for tool in go curl python3; do have $tool || die "no $tool on PATH"; done
mkdir -p "$WORK"
say 'caddy.sh: building Caddy for wasm from the Go module proxy'
# Its certificate authority can keep its keys in databases that need mmap; these tags are its own way to leave them out.
GOFLAGS=-mod=readonly nice "$WASILET" go build -C tests/caddy -trimpath -tags nobadger,nobbolt,nomysql,nopgx -ldflags='-s -w' \
    -o "$WORK/caddy.wasm" github.com/caddyserver/caddy/v2/cmd/caddy
"$WASILET" image load "$WORK/caddy.wasm" wasilet.dev/tests/caddy:local

# start LOG: the pod in the foreground of a job of its own; sets address when it is ready.
start() {
    "$WASILET" play tests/caddy/pod.yaml >"$1" 2>&1 &
    play=$!
    trap 'kill -TERM $play 2>/dev/null || true; wait $play 2>/dev/null || true' EXIT
    address=
    for _ in $(seq 900); do
        address=$("$WASILET" ps --output json 2>/dev/null | python3 -c '
import json, sys
for pod in json.load(sys.stdin)["items"]:
    status = pod.get("status", {})
    if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])):
        print("http://%s:8080" % status["podIP"])' 2>/dev/null || true)
        [[ -z $address ]] || return 0
        kill -0 $play 2>/dev/null || { cat "$1" >&2; die 'the pod ended'; }
        sleep 1
    done
    cat "$1" >&2
    die 'the pod is not ready after 15 minutes'
}

# expect WHAT WANTED GOT
expect() { [[ $3 == *"$2"* ]] || die "$1: wanted '$2', got '$3'"; }

for round in first second; do
    start "$WORK/$round.log"
    expect 'a file' 'served by Caddy' "$(curl -sS --fail --max-time 10 "$address/index.html")"
    expect 'a file, not changed' 304 "$(curl -sS --max-time 10 -o /dev/null -w '%{http_code}' \
        -H "If-None-Match: $(curl -sSI --max-time 10 "$address/index.html" | tr -d '\r' | awk 'tolower($1) == "etag:" { print $2 }')" "$address/index.html")"
    expect 'no file' 404 "$(curl -sS --max-time 10 -o /dev/null -w '%{http_code}' "$address/nosuch")"
    expect 'the proxy' 'upstream saw /some/path?x=1' "$(curl -sS --fail --max-time 10 "$address/proxy/some/path?x=1")"
    kill -TERM $play
    began=$SECONDS
    wait $play || true
    trap - EXIT
    ((SECONDS - began < 20)) || die "SIGTERM: it took its whole grace period"
    expect 'its log' '"uri":"/proxy/some/path?x=1"' "$(<"$WORK/$round.log")"
    expect 'its log of the end' 'shutdown complete' "$(<"$WORK/$round.log")"
    say "caddy.sh: the $round run served, and stopped in $((SECONDS - began)) s"
done
