#!/usr/bin/env bash
# Runs every benchmark; each prints its figures as ratios to a peer measured in the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
nice "${CARGO:-cargo}" bench --locked "$@"
