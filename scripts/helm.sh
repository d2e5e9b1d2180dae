#!/usr/bin/env bash
# Checks the Helm chart: `helm lint` and `helm template`, with its defaults and with each file of charts/wasilet/ci.
# Helm is built into target/tools/helm from the Go module proxy, at the versions of packaging/helm/go.{mod,sum}. Quick
# when it is built already.
#
#   scripts/helm.sh          builds helm and checks the chart
#   scripts/helm.sh --build  only builds; prints the path
#   WASILET_HELM=FILE        a helm that is there already; nothing is built
#   WASILET_HELM_BUILDS      how many packages Go compiles at once (1: what this runs beside wants the cores)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

SOURCE=$REPO/packaging/helm
OUT=$REPO/target/tools/helm
CHART=$REPO/charts/wasilet

# build: helm into OUT, when it is not there already.
build() {
    local key version major flags
    have go || die 'no go command; install Go 1.24 or newer (Debian: apt-get install golang-go), newer ones fetch the toolchain they need'
    key=$( (cd "$SOURCE" && cat go.mod go.sum; go env GOVERSION) | sha256sum | cut -d' ' -f1)
    mkdir -p "$OUT"
    # Two builds at once would do the work twice; the second finds it done.
    exec 9>"$OUT/lock"
    flock 9
    [[ -x $OUT/helm && $(cat "$OUT/key" 2>/dev/null) == "$key" ]] && return 0
    version=$(awk '$2 == "helm.sh/helm/v4" { print $3; exit }' "$SOURCE/go.mod")
    major=${version%%.*}
    flags="-s -w -X helm.sh/helm/$major/internal/version.version=$version"
    say "helm.sh: building helm ($version) from the Go module proxy"
    rm -f "$OUT/key"
    (cd "$SOURCE" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice -n 12 go build -p "${WASILET_HELM_BUILDS:-1}" \
        -ldflags "$flags" -o "$OUT/helm.new" "helm.sh/helm/$major/cmd/helm")
    mv "$OUT/helm.new" "$OUT/helm"
    echo "$key" >"$OUT/key"
}

helm=${WASILET_HELM:-$OUT/helm}
[[ -n ${WASILET_HELM:-} ]] || build
if [[ ${1:-} == --build ]]; then
    echo "$helm"
    exit 0
fi

# Nothing of the user's own helm is read or written.
home=$(mktemp -d)
trap 'rm -rf -- "$home"' EXIT
export HELM_CACHE_HOME=$home HELM_CONFIG_HOME=$home HELM_DATA_HOME=$home
unset KUBECONFIG HELM_NAMESPACE

for values in /dev/null "$CHART"/ci/*-values.yaml; do
    "$helm" lint --strict --quiet --values "$values" "$CHART" || die "helm lint with $values"
    "$helm" template wasilet "$CHART" --namespace wasilet --values "$values" >"$home/rendered.yaml" || die "helm template with $values"
    [[ -s $home/rendered.yaml ]] || die "helm template with $values renders nothing"
done
# What the schema refuses.
for wrong in podNetwork=bridge kubelet.port=0 workload.kind=StatefulSet unknown=1; do
    ! "$helm" template wasilet "$CHART" --set "$wrong" >/dev/null 2>&1 || die "the chart takes --set $wrong"
done
say "helm.sh: $("$helm" version --short): the chart is right"
