#!/usr/bin/env bash
# Everything that must hold, in the order that finds a mistake soonest. What only waits for a download or for Go
# runs beside the Rust build.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
mkdir -p target
: >target/stages.tsv
stage() { scripts/stage.sh "$@"; }

stage format "$cargo" fmt --all --check

# The guests come first: their toolchain is a download, and the tests cannot start without them.
stage guests scripts/build-guests.sh
stage registry scripts/registry.sh &
registry=$!
# One after the other: what Go compiled for the first it need not compile for the second.
{
    stage control-plane scripts/control-plane.sh && stage helm scripts/helm.sh && stage csi-mock scripts/csi-mock.sh &&
        stage suite scripts/conformance.sh --build &&
        # Tools that cannot be had skip their tests; a build that fails is a failure.
        stage script-guests scripts/script-guests.sh
} &
control_plane=$!
stage build nice "$cargo" test --release --locked --no-run --quiet --test it
# The unit tests are their own copy of the library. Unoptimised it compiles in a minute instead of many; what it
# calls (wasmtime, the compiler) is the optimised build of before.
units=(env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 nice "$cargo" test --release --locked --quiet --lib)
stage unit-build "${units[@]}" --no-run
wait $registry
wait $control_plane
stage guest-tests "$cargo" test --locked --quiet --manifest-path wasm-samples/Cargo.toml --target-dir target/guests-build -p guest-support
if command -v go >/dev/null; then
    stage toolbox-tests go -C wasm-samples/toolbox test ./...
fi
# The same random inputs every time: a red run must be about the change. `make fuzz` looks for new ones.
export BOLERO_RANDOM_SEED=1
stage units "${units[@]}"
stage tests nice "$cargo" test --release --locked --test it -- --skip joined::
stage doc-tests nice "$cargo" test --release --locked --quiet --doc
# These wait for controllers most of the time: all at once, whatever the number of cores.
RUST_TEST_THREADS=16 stage cluster nice "$cargo" test --release --locked --test it joined::
# This one measures how guests share the CPU: by itself.
stage shares nice "$cargo" test --release --locked --test it -- --ignored joined::limits::
# The judge that is not ours: upstream's suite, those of its specs that are quick.
stage conformance scripts/conformance.sh --quick
stage clippy nice "$cargo" clippy --release --locked --all-targets --quiet -- -D warnings
stage deny scripts/deny.sh
