#!/usr/bin/env bash
# Builds wasmtime's own command, whose `serve` benches/http.rs measures the node against, into target/tools/wasmtime/bin/wasmtime.
# It comes from crates.io, in the version of the node's wasmtime (Cargo.toml), with its own lock file and the features that
# `serve` has by default. Takes ten minutes on two cores; quick when it is built already. Prints the path.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

out=$REPO/target/tools/wasmtime
version=$(sed -n 's/^wasmtime = { version = "=\([^"]*\)".*/\1/p' Cargo.toml)
[[ -n $version ]] || die 'Cargo.toml names no version of wasmtime'
# Of the defaults what serving one component can be faster or slower by, and what `serve` does not compile without (run,
# component-model-async).
features=serve,run,component-model-async,cranelift,pooling-allocator,parallel-compilation
key="$version $features $(sha256sum <scripts/wasmtime.sh | cut -d' ' -f1)"
mkdir -p "$out"
# Two builds at once would do the work twice; the second finds it done.
exec 9>"$out/lock"
flock 9
if [[ ! -x $out/bin/wasmtime || $(cat "$out/key" 2>/dev/null) != "$key" ]]; then
    say "wasmtime.sh: building wasmtime-cli $version from crates.io"
    rm -f "$out/key"
    # Settings that make the node's build quick would make the peer slow.
    env -u CARGO_PROFILE_RELEASE_OPT_LEVEL -u CARGO_PROFILE_RELEASE_DEBUG -u CARGO_INCREMENTAL -u RUSTFLAGS \
        nice -n 12 "${CARGO:-cargo}" install --quiet --locked --force --root "$out" --target-dir "$out/build" \
        wasmtime-cli --version "=$version" --no-default-features --features "$features" >&2
    rm -rf -- "$out/build"
    echo "$key" >"$out/key"
fi
echo "$out/bin/wasmtime"
