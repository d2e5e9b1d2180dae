#!/usr/bin/env bash
# A program of 136 MB on a node: upstream's agnhost, built for the conformance suite, is compiled once, in a process of its own
# within its limit of memory, while other pods keep starting; prints what each took. Minutes of Go, minutes of compiling.
#
#   AGNHOST_WASM   a file that is built already
#   WASILET_BIN    the node (target/release/wasilet)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

WASILET=${WASILET_BIN:-$REPO/target/release/wasilet}
have python3 || die 'no python3 on PATH'
if [[ -z ${AGNHOST_WASM:-} ]]; then
    scripts/conformance-images.sh agnhost
    AGNHOST_WASM=$REPO/target/conformance/guests/agnhost.wasm
fi
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY WASILET_LOG
exec python3 tests/agnhost/measure.py "$WASILET" "$AGNHOST_WASM" target/guests/sleeper.wasm target/agnhost
