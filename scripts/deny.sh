#!/usr/bin/env bash
# Checks licences, bans and sources of every dependency with cargo-deny; advisories when their database is on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
tools="${WASILET_CACHE:-$PWD/target}/tools"
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
    deny=$tools/bin/cargo-deny
    if [ ! -x "$deny" ]; then
        echo "deny: building cargo-deny $version into ${tools#"$PWD"/} (once)"
        CARGO_TARGET_DIR=$tools/build nice "${CARGO:-cargo}" install --quiet --locked --root "$tools" --version "$version" cargo-deny
        rm -rf "$tools/build"
    fi
fi
# A build fetches only this platform's crates; the graph that is checked has those of every platform.
"${CARGO:-cargo}" fetch --locked --quiet
"$deny" --offline --locked check --hide-inclusion-graph licenses bans sources
if [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then
    "$deny" --offline --locked check --disable-fetch advisories
else
    echo "deny: advisories SKIPPED (their database is not on this machine; run 'cargo deny fetch')"
fi
