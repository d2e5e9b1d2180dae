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
stage build nice "$cargo" test --release --locked --no-run --quiet
wait $registry
stage guest-tests "$cargo" test --locked --quiet --manifest-path wasm-samples/Cargo.toml --target-dir target/guests-build -p guest-support
# The same random inputs every time: a red run must be about the change. `make fuzz` looks for new ones.
export BOLERO_RANDOM_SEED=1
stage tests nice "$cargo" test --release --locked
stage clippy nice "$cargo" clippy --release --locked --all-targets --quiet -- -D warnings
stage deny scripts/deny.sh
