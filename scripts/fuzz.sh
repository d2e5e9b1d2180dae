#!/usr/bin/env bash
# Fuzzes every target for SECONDS_EACH seconds (default 60) on the stable toolchain, starting from its corpus.
# Coverage-guided engines work too: `cargo bolero test --engine libfuzzer NAME` with cargo-bolero and a nightly.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-60}
cargo=${CARGO:-cargo}
mapfile -t targets < <(sed -n 's/^mod \([a-z_0-9]*\);.*/\1/p' fuzz/targets/mod.rs)
"$cargo" test --release --locked --test it --no-run
for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    BOLERO_RANDOM_TEST_TIME_MS=$((seconds * 1000)) BOLERO_RANDOM_ITERATIONS=4294967295 \
        "$cargo" test --release --locked --test it "fuzz::$target" -- --nocapture
done
