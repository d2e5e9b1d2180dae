#!/usr/bin/env bash
# Runs the Kubernetes conformance suite (k8s.io/kubernetes/test/e2e, unmodified) against two Wasilet nodes in namespaces of
# their own, and prints what passed. Builds what it needs into target/conformance; logs of every run stay in
# target/conformance/logs.
#
#   scripts/conformance.sh               every spec that exercises a node
#   scripts/conformance.sh --quick       those of tests/conformance/quick.txt
#   scripts/conformance.sh --build       builds only
#
#   SET=                conformance, or another list of tests/conformance/sets: nodeconformance, network, network-policy,
#                       dual-stack, storage, node, apps, cli
#   FOCUS=, SKIP=       a group (common/node), a source path (network/dns.go) or a regular expression of names
#   ONLY=               passed, failed or new: by the newest result of each spec
#   CLASSES=            classes of specs.tsv; A,An,B (those that exercise a node, but the excluded) by default, D the API alone
#   LIST=               a file of names
#   PROCESSES=          how many specs at once (4); Serial ones always run alone
#   SPEC_SECONDS=       time limit of one spec (900)
#   REPEAT=             how many times (1)
#   WRITE=1             writes tests/conformance/results.md (results-SET.md)
#   HOLD=1              starts the cluster and nothing else, until Ctrl-C
#   WASILET_BIN         the node (target/release/wasilet)
#   WASILET_CONFORMANCE a target/conformance of another checkout, whose suite and images are used
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

OUT=$REPO/target/conformance
BUILT=${WASILET_CONFORMANCE:-$OUT}
SOURCE=$REPO/tests/conformance/suite
WASILET_BIN=$(realpath "${WASILET_BIN:-target/release/wasilet}")

version=$(awk '$2 == "k8s.io/kubernetes" || $1 == "k8s.io/kubernetes" { print $NF; exit }' "$SOURCE/go.mod")

# The suite, from the Go module proxy; what must agree for it to be used again is its key.
build_suite() {
    local key flags='-s -w' minor=${version#v1.} package begin=$SECONDS
    key=$( (cat "$SOURCE"/go.mod "$SOURCE"/go.sum && go env GOVERSION) | sha256sum | cut -d' ' -f1)
    [[ -x $OUT/e2e.test && $(cat "$OUT/.e2e.test.key" 2>/dev/null) == "$key" ]] && return
    say "conformance.sh: building the suite ($version) from the Go module proxy"
    # Specs read the version and decide by it.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    done
    rm -f "$OUT/.e2e.test.key"
    (cd "$SOURCE" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 12 go test -c -ldflags "$flags" \
        -o "$OUT/.e2e.test.new" k8s.io/kubernetes/test/e2e)
    mv "$OUT/.e2e.test.new" "$OUT/e2e.test"
    echo "$key" >"$OUT/.e2e.test.key"
    say "conformance.sh: built the suite in $((SECONDS - begin)) s"
}

mkdir -p "$OUT/guests"
if [[ $BUILT == "$OUT" ]]; then
    have go || die 'no go command; install Go 1.24 or newer (Debian: apt-get install golang-go), newer ones fetch the toolchain they need'
    # Two builds at once would do the work twice; the second finds it done.
    exec 9>"$OUT/lock"
    flock 9
    build_suite
    if [[ -z ${CONFORMANCE_GUESTS_AS_THEY_ARE:-} ]]; then
        scripts/conformance-images.sh
        # A DNS server in a pod, of one spec.
        [[ ${SET:-} != network ]] || scripts/conformance-images.sh coredns
    fi
    exec 9>&-
else
    rm -rf "$OUT/guests"
    ln -sfn "$(realpath "$BUILT")/guests" "$OUT/guests"
fi
control_plane=$(scripts/control-plane.sh)
registry=$(scripts/registry.sh)
# Only files are read there: images' web pages and certificates.
upstream=$(cd "$SOURCE" && go list -mod=readonly -m -f '{{.Dir}}' k8s.io/kubernetes)
case ${1:-} in
    --build) exit 0 ;;
    --quick) export LIST=$REPO/tests/conformance/quick.txt SPEC_SECONDS=${SPEC_SECONDS:-300} ;;
    '') ;;
    *) die "unknown option $1 (see the head of scripts/conformance.sh)" ;;
esac
[[ -x $WASILET_BIN ]] || die "no $WASILET_BIN: build it (make build), or set WASILET_BIN"
for tool in unshare nsenter ip python3; do have $tool || die "no $tool (Debian: util-linux, iproute2, python3)"; done

export PYTHONDONTWRITEBYTECODE=1
export CONFORMANCE_OUT=$OUT CONFORMANCE_UPSTREAM=$upstream CONFORMANCE_SUITE=$BUILT/e2e.test WASILET_BIN
export CONFORMANCE_CONTROL_PLANE=$control_plane CONFORMANCE_REGISTRY=$registry
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY WASILET_LOG
user=()
[[ $(id -u) == 0 ]] || user=(--user --map-root-user)
# When this process ends, however it does, so does everything inside.
exec unshare "${user[@]}" --net --pid --mount --propagation private --mount-proc --fork --kill-child \
    python3 tests/conformance/run.py
