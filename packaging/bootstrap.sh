#!/usr/bin/env bash
# What a node needs to join a cluster that keeps no kubeadm (k3s, or any other): run it where kubectl is an administrator's,
# then copy the files to /var/lib/wasilet of the node's machine and start it there.
#
#   packaging/bootstrap.sh DIRECTORY [https://SERVER:PORT]
#
# In the cluster: a service account that may ask for nodes' certificates, and the approval of such requests and of renewals.
# In DIRECTORY: config.yaml, bootstrap-kubeconfig with a token for an hour, client-ca.crt. The server is that of kubectl
# when not given; it has to be one that the node's machine reaches.
set -euo pipefail

[[ $# -ge 1 && $# -le 2 ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
directory=$1
server=${2:-$(kubectl config view --minify --output 'jsonpath={.clusters[0].cluster.server}')}
namespace=kube-system
account=wasilet-bootstrap
root=/var/lib/wasilet
mkdir -p "$directory"

apply() { kubectl "$@" --dry-run=client --output yaml | kubectl apply --filename - >&2; }
apply --namespace "$namespace" create serviceaccount "$account"
apply create clusterrolebinding wasilet:bootstrap --clusterrole=system:node-bootstrapper --serviceaccount="$namespace:$account"
apply create clusterrolebinding wasilet:approve-bootstrap --serviceaccount="$namespace:$account" \
    --clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient
apply create clusterrolebinding wasilet:approve-renewal --group=system:nodes \
    --clusterrole=system:certificates.k8s.io:certificatesigningrequests:selfnodeclient

# Who signs the API server's certificate, and who signs the one it shows to nodes: not always the same.
authority=$(kubectl --namespace "$namespace" get configmap kube-root-ca.crt --output 'jsonpath={.data.ca\.crt}')
kubectl --namespace "$namespace" get configmap extension-apiserver-authentication \
    --output 'jsonpath={.data.client-ca-file}' >"$directory/client-ca.crt"
dns=$(kubectl --namespace "$namespace" get service kube-dns --output 'jsonpath={.spec.clusterIP}' 2>/dev/null || true)
token=$(kubectl --namespace "$namespace" create token "$account" --duration=1h)

umask 077
cat >"$directory/bootstrap-kubeconfig" <<END
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster: {server: "$server", certificate-authority-data: $(base64 --wrap=0 <<<"$authority")}
users:
  - name: bootstrap
    user: {token: "$token"}
contexts:
  - name: bootstrap
    context: {cluster: cluster, user: bootstrap}
current-context: bootstrap
END
cat >"$directory/config.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $root/client-ca.crt}}
serverTLSBootstrap: true
clusterDNS: [$dns]
clusterDomain: cluster.local
---
apiVersion: wasilet.dev/v1alpha1
kind: NodeConfiguration
rootDir: $root
kubeconfig: $root/kubeconfig
bootstrapKubeconfig: $root/bootstrap-kubeconfig
END
echo "$directory: copy its files to $root of the node's machine within the hour, and start the node there:" >&2
echo "  wasilet run --config $root/config.yaml" >&2
