#!/usr/bin/env bash
# The main job in one sitting: a pod of three wasm containers on this machine, its page changing, then a clean stop.
# Touches only target/demo; asks for no privileges and no cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
wasilet="${PWD}/target/release/wasilet"
root="${PWD}/target/demo"
manifest=wasm-samples/manifests/web-with-updater.yaml
export WASILET_ROOT_DIR=$root
mkdir -p "$root"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "Three WebAssembly programs become images on this node"
for name in init web updater; do
    "$wasilet" image load "target/guests/$name.wasm" "wasilet.dev/samples/$name:demo"
done
"$wasilet" image ls

say "wasilet play $manifest"
"$wasilet" play "$manifest" &
play=$!
trap 'kill -TERM $play 2>/dev/null || true; wait $play 2>/dev/null || true' EXIT

# The pod's address: `ps -o json` is a PodList.
url() {
    "$wasilet" ps --output json 2>/dev/null | python3 -c '
import json, sys
for pod in json.load(sys.stdin)["items"]:
    status = pod.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    if ready and status.get("podIP"):
        ports = pod["metadata"].get("annotations", {}).get("wasilet.dev/ports", "")
        port = dict(p.split("->") for p in ports.split(",") if "->" in p).get("80", "80")
        print("http://%s:%s/" % (status["podIP"], port))
' 2>/dev/null
}
for _ in $(seq 300); do
    address=$(url || true)
    [ -n "$address" ] && break
    kill -0 $play 2>/dev/null || { echo "demo: wasilet play ended early" >&2; exit 1; }
    sleep 0.1
done
[ -n "$address" ] || { echo "demo: the pod did not become ready within 30 s" >&2; exit 1; }

say "The pod serves its page at $address (fetched by curl, a second apart)"
previous=
changes=0
for _ in 1 2 3 4; do
    page=$(curl --silent --show-error --fail --max-time 5 "$address")
    printf '  %s\n' "$page"
    [ -n "$previous" ] && [ "$page" != "$previous" ] && changes=$((changes + 1))
    previous=$page
    sleep 1.1
done
[ "$changes" -ge 2 ] || { echo "demo: the page did not change" >&2; exit 1; }

say "wasilet ps, from another process"
"$wasilet" ps

say "Ctrl-C"
kill -INT $play
wait $play && code=0 || code=$?
trap - EXIT
[ "$code" -eq 0 ] || [ "$code" -eq 130 ] || { echo "demo: wasilet play ended with $code" >&2; exit 1; }
say "Everything that was started has stopped. The page changed $changes times while you looked."
