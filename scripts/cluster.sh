#!/usr/bin/env bash
# A Kubernetes cluster on this machine: the released control plane and one Wasilet node, in the foreground until Ctrl-C.
# What it writes is below target/cluster/run and goes with it; logs stay in target/cluster/logs.
#
#   WASILET_CLUSTER_PORT     the API server's port (16443); those of its parts follow it
#   WASILET_CLUSTER_ADDRESS  the address it and the node are known by (this machine's first, not in 127.0.0.0/8)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

wasilet=$REPO/target/release/wasilet
bin=$(scripts/control-plane.sh)
run=$REPO/target/cluster/run
logs=$REPO/target/cluster/logs
port=${WASILET_CLUSTER_PORT:-16443}
address=${WASILET_CLUSTER_ADDRESS:-$(hostname -I | tr ' ' '\n' | grep -m1 -E '^[0-9.]+$' || true)}
[[ -n $address ]] || die 'this machine has no address but loopback, which an API server may not advertise: set WASILET_CLUSTER_ADDRESS'
node=$(hostname | tr '[:upper:]' '[:lower:]')
for tool in setsid setpriv; do have $tool || die "no $tool (util-linux)"; done

mkdir -p "$run" "$logs"
exec 9>"$REPO/target/cluster/run.lock"
flock --nonblock 9 || die 'such a cluster is running already'
rm -rf -- "$run"
mkdir -p "$run/pki"

names=()
pids=()
# start NAME COMMAND...: a process that hears no Ctrl-C of ours, and ends when we do.
start() {
    local name=$1
    shift
    setsid setpriv --pdeathsig KILL "$@" >"$logs/$name.log" 2>&1 9>&- &
    names+=("$name")
    pids+=($!)
}
# Last started, first ended: the node still has an API server to tell.
stop() {
    local index
    trap - EXIT
    trap '' INT TERM
    say 'cluster.sh: stopping'
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill -TERM "${pids[index]}" 2>/dev/null || continue
        for _ in $(seq 400); do
            kill -0 "${pids[index]}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "${pids[index]}" 2>/dev/null || true
    done
    rm -rf -- "$run"
}
trap stop EXIT
trap 'exit 0' INT TERM

# Pods ask at port 53 of a Service; where it leads to is ours to choose.
dns_port=$((port + 6))
flags() {
    sed -e "s#@DIR@#$run#g" -e "s#@PKI@#$run/pki#g" -e "s#@ADDRESS@#$address#g" -e "s#@API_PORT@#$port#g" \
        -e "s#@ETCD_PORT@#$((port + 1))#g" -e "s#@ETCD_PEER_PORT@#$((port + 2))#g" \
        -e "s#@CONTROLLER_MANAGER_PORT@#$((port + 3))#g" -e "s#@SCHEDULER_PORT@#$((port + 4))#g" \
        -e "s#@SERVICE_RANGES@#10.96.0.0/16#g" -e "s#@POD_RANGES@#10.244.0.0/16#g" \
        -e "s#@METRICS_PORT@#$((port + 5))#g" -e "s#@DNS_PORT@#$dns_port#g" \
        -e "s#@EXTERNAL@#forward . /etc/resolv.conf#g" -e "s#@CA_BUNDLE@#$(base64 -w0 "$run/pki/ca.crt")#g" "tests/cluster/$1"
}
# part NAME: a process of the control plane, with the flags that the tests start it with.
part() {
    local arguments
    mapfile -t arguments < <(flags "flags/$1")
    start "$1" "$bin/$1" "${arguments[@]}"
}
# wait_for WHAT COMMAND...: until it succeeds; a part that has ended meanwhile is named.
wait_for() {
    local what=$1 index
    shift
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return 0
        for index in "${!pids[@]}"; do
            kill -0 "${pids[index]}" 2>/dev/null || die "${names[index]} has ended: $(tail -n 3 "$logs/${names[index]}.log")"
        done
        sleep 0.2
    done
    die "$what: not after two minutes; the logs are in $logs"
}

# Certificates and kubeconfigs are made by kubeadm, as on a real control plane.
version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' tests/cluster/go.mod)
cat >"$run/kubeadm.yaml" <<EOF
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: $address, bindPort: $port}
nodeRegistration: {criSocket: unix:///run/none.sock, name: $node}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $version
certificatesDir: $run/pki
controlPlaneEndpoint: $address:$port
networking: {serviceSubnet: 10.96.0.0/16, podSubnet: 10.244.0.0/16}
apiServer: {certSANs: [127.0.0.1, localhost]}
EOF
quietly "$logs/kubeadm-certs.log" "$bin/kubeadm" init phase certs all --config "$run/kubeadm.yaml"
quietly "$logs/kubeadm-kubeconfig.log" "$bin/kubeadm" init phase kubeconfig all --config "$run/kubeadm.yaml" --kubeconfig-dir "$run"
for name in controller-manager scheduler; do cp "$run/$name.conf" "$run/pki/$name.kubeconfig"; done
# metrics-server is asked as a Service: kubeadm makes it a certificate of that name, as for a second API server.
mkdir "$run/metrics-pki"
cp "$run"/pki/ca.{crt,key} "$run/metrics-pki"
sed -e "s#^certificatesDir:.*#certificatesDir: $run/metrics-pki#" -e 's#certSANs: .*#certSANs: [metrics-server.kube-system.svc]}#' \
    "$run/kubeadm.yaml" >"$run/kubeadm-metrics.yaml"
quietly "$logs/kubeadm-metrics.log" "$bin/kubeadm" init phase certs apiserver --config "$run/kubeadm-metrics.yaml"
for suffix in crt key; do mv "$run/metrics-pki/apiserver.$suffix" "$run/pki/metrics-server-serving.$suffix"; done
export KUBECONFIG=$run/super-admin.conf
kubectl() { "$bin/kubectl" "$@"; }

say "cluster.sh: starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler, coredns, metrics-server ($version)"
part etcd
part kube-apiserver
wait_for 'the API server' kubectl get --raw /readyz
# What `kubeadm init` does next: its administrators' rights, and the line that more machines join by.
kubectl create clusterrolebinding kubeadm:cluster-admins --clusterrole=cluster-admin --group=kubeadm:cluster-admins >/dev/null
part kube-controller-manager
part kube-scheduler
quietly "$logs/kubeadm-upload.log" "$bin/kubeadm" init phase upload-config kubelet --config "$run/kubeadm.yaml" --kubeconfig "$KUBECONFIG"
quietly "$logs/kubeadm-token.log" "$bin/kubeadm" init phase bootstrap-token --config "$run/kubeadm.yaml" --kubeconfig "$KUBECONFIG" --skip-token-print
wait_for 'the controllers' kubectl get serviceaccount default
for name in coredns metrics-server; do cp "$run/super-admin.conf" "$run/pki/$name.kubeconfig"; done
flags Corefile >"$run/Corefile"
part coredns
flags coredns.yaml | kubectl apply --filename - >/dev/null
part metrics-server
# Quietly: its Endpoints are of a kind that the oldest API server needs and newer ones warn of.
flags metrics-server.yaml >"$run/metrics-server.yaml"
quietly "$logs/metrics-server-apply.log" kubectl apply --filename "$run/metrics-server.yaml"

load() { "$wasilet" --root-dir "$run/node" image load "$@" >/dev/null; }
for guest in hello sleeper; do load "target/guests/$guest.wasm" "wasilet.dev/samples/$guest:demo"; done
# A server with something to serve.
mkdir -p "$run/web/usr/share/nginx/html"
cp target/guests/web.wasm "$run/web"
cat >"$run/web/usr/share/nginx/html/index.html" <<EOF
<!DOCTYPE html>
<title>Wasilet</title>
<h1>A page from a container that is WebAssembly</h1>
EOF
load "$run/web" wasilet.dev/samples/web:demo --entrypoint /web.wasm
cat >"$run/node.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
serverTLSBootstrap: true
registerWithTaints: []
# However full this machine's disk is.
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
authentication: {x509: {clientCAFile: $run/pki/ca.crt}}
---
apiVersion: wasilet.dev/v1alpha1
kind: NodeConfiguration
kubeconfig: $run/kubelet.conf
nodeIP: $address
EOF
# What an administrator lets nodes read, so that they serve Services and NetworkPolicies.
"$wasilet" rbac | kubectl apply --filename - >/dev/null
say "cluster.sh: starting the node $node"
start node "$wasilet" --root-dir "$run/node" run --config "$run/node.yaml" --node-name "$node"
wait_for 'the node' kubectl wait --for=condition=Ready "node/$node" --timeout=5s
# No controller approves a serving certificate by itself; here the person at the keyboard is the administrator.
serving() { kubectl get csr --field-selector spec.signerName=kubernetes.io/kubelet-serving --output name | grep .; }
wait_for 'the request for a serving certificate' serving
serving | xargs "$bin/kubectl" certificate approve >/dev/null
cat >"$run/runtime-class.yaml" <<EOF
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: wasi}
handler: wasi
EOF
kubectl apply --filename "$run/runtime-class.yaml" >/dev/null

cat <<EOF

The cluster runs, with the node $node. In another shell:

  export KUBECONFIG=$run/admin.conf
  export PATH=$bin:\$PATH

  kubectl get nodes --output wide
  kubectl run hello --image=wasilet.dev/samples/hello:demo --restart=Never
  kubectl wait --for=jsonpath={.status.phase}=Succeeded pod/hello && kubectl logs hello
  kubectl run web --image=wasilet.dev/samples/web:demo --port=80 && kubectl wait --for=condition=Ready pod/web
  kubectl port-forward web 8080:80          # its page is at http://localhost:8080
  kubectl top nodes; kubectl top pods       # half a minute after the start

Another machine joins it by:

  $("$bin/kubeadm" token create --print-join-command --config "$run/kubeadm.yaml" --kubeconfig "$KUBECONFIG" 2>/dev/null | sed 's/^kubeadm/wasilet/')

Logs are in $logs. Ctrl-C stops everything.
EOF
# Whatever ends first ends the rest.
wait -n || true
for index in "${!pids[@]}"; do
    kill -0 "${pids[index]}" 2>/dev/null || die "${names[index]} has ended: $(tail -n 3 "$logs/${names[index]}.log")"
done
