#!/usr/bin/env bash
# Runs every benchmark; each prints its figures beside those of a peer measured in the same run. Of those, cluster and node
# take four minutes on two cores once everything is built. Arguments go to `cargo bench` (`--bench node` runs one).
#
#   WRITE=1               writes benches/results.md and the plots beside it
#   WASILET_BENCH_MANY=1  also 5,000 pods through the API server
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
if [[ -z ${WRITE:-} ]]; then
    exec nice "$cargo" bench --locked "$@"
fi

results=$(mktemp -d)
trap 'rm -rf -- "$results"' EXIT
WASILET_BENCH_RESULTS=$results nice "$cargo" bench --locked "$@"
commit=$(git rev-parse --short HEAD)
[[ -z $(git status --porcelain -- src Cargo.lock) ]] || commit+=' with changes'
{
    echo '# Results of the benchmarks'
    echo
    echo 'Written by `make bench WRITE=1`: the figures of one run on one machine. A ratio is to a peer measured in the same run.'
    echo
    echo "$(date -u '+%Y-%m-%d %H:%M UTC'), commit $commit,"
    echo "$(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r)."
    echo
    echo '| what | target | measured | |'
    echo '|---|---|---|---|'
    cat "$results/rows"
    for plot in "$results"/*.svg; do
        [[ -e $plot ]] || continue
        cp "$plot" benches/
        echo
        echo "![$(basename "$plot" .svg)]($(basename "$plot"))"
    done
} >benches/results.md
echo 'bench.sh: wrote benches/results.md' >&2
