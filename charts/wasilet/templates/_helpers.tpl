{{- define "wasilet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "wasilet.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "wasilet.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "wasilet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "wasilet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wasilet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "wasilet.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "wasilet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "wasilet.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Who asks for a node's first certificate: a subject of a ClusterRoleBinding. */}}
{{- define "wasilet.bootstrapper" -}}
{{- if eq .Values.bootstrap.mode "token" -}}
- apiGroup: rbac.authorization.k8s.io
  kind: Group
  name: {{ include "wasilet.bootstrapGroup" . }}
{{- else -}}
- kind: ServiceAccount
  name: {{ include "wasilet.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
{{- end }}

{{- define "wasilet.bootstrapGroup" -}}
system:bootstrappers:{{ include "wasilet.fullname" . }}
{{- end }}

{{/* The kubeconfig with which a node asks for its first certificate. */}}
{{- define "wasilet.bootstrapKubeconfig" -}}
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster:
      server: {{ .Values.apiServer | quote }}
      certificate-authority: /etc/wasilet/bootstrap/ca.crt
users:
  - name: bootstrap
    user:
      {{- if eq .Values.bootstrap.mode "token" }}
      token: {{ printf "%s.%s" .Values.bootstrap.token.id .Values.bootstrap.token.secret | quote }}
      {{- else }}
      tokenFile: /etc/wasilet/bootstrap/token
      {{- end }}
contexts:
  - name: bootstrap
    context: {cluster: cluster, user: bootstrap}
current-context: bootstrap
{{- end }}

{{/* What pods ask for names: as given, else the cluster's own name server. */}}
{{- define "wasilet.clusterDNS" -}}
{{- $servers := .Values.clusterDNS }}
{{- if not $servers }}
{{- $service := lookup "v1" "Service" "kube-system" "kube-dns" }}
{{- if $service }}
{{- $servers = list $service.spec.clusterIP }}
{{- end }}
{{- end }}
{{- toJson $servers }}
{{- end }}

{{/* Who signs the certificate that the API server shows to nodes: as given, else as the cluster says of itself. */}}
{{- define "wasilet.clientCA" -}}
{{- if .Values.kubelet.clientCA }}
{{- trim .Values.kubelet.clientCA }}
{{- else }}
{{- $authentication := lookup "v1" "ConfigMap" "kube-system" "extension-apiserver-authentication" }}
{{- if $authentication }}
{{- index $authentication.data "client-ca-file" | default "" | trim }}
{{- end }}
{{- end }}
{{- end }}

{{/* The two documents of the node's config file. */}}
{{- define "wasilet.config" -}}
{{- $kubelet := merge (dict
      "apiVersion" "kubelet.config.k8s.io/v1beta1"
      "kind" "KubeletConfiguration"
      "port" .Values.kubelet.port
      "healthzPort" .Values.kubelet.healthzPort
      "serverTLSBootstrap" .Values.kubelet.serverTLSBootstrap
      "rotateCertificates" true
      "registerWithTaints" .Values.node.taints
      "clusterDomain" .Values.clusterDomain
      "clusterDNS" (include "wasilet.clusterDNS" . | fromJsonArray)
      "maxPods" .Values.maxPods
      "systemReserved" .Values.systemReserved
      "podLogsDir" (printf "%s/logs/pods" .Values.node.rootDir)
    ) (deepCopy .Values.kubeletConfiguration) }}
{{- if include "wasilet.clientCA" . }}
{{- $x509 := dict "x509" (dict "clientCAFile" "/etc/wasilet/config/client-ca.crt") }}
{{- $kubelet = merge (dict "authentication" $x509) $kubelet }}
{{- end }}
{{- $node := merge (dict
      "apiVersion" "wasilet.dev/v1alpha1"
      "kind" "NodeConfiguration"
      "rootDir" .Values.node.rootDir
      "kubeconfig" (printf "%s/kubeconfig" .Values.node.rootDir)
      "bootstrapKubeconfig" "/etc/wasilet/bootstrap/kubeconfig"
      "nodeLabels" .Values.node.labels
      "podNetwork" .Values.podNetwork
      "hostPathAllowedPrefixes" .Values.node.hostPathAllowedPrefixes
      "memoryVolumeDir" "/run/wasilet/memory/volumes"
    ) (deepCopy .Values.nodeConfiguration) }}
{{- if .Values.node.guestThreads }}
{{- $_ := set $node "guestThreads" .Values.node.guestThreads }}
{{- end }}
{{- toYaml $kubelet }}
---
{{ toYaml $node }}
{{- end }}

{{/* What cannot work, said before anything is made. */}}
{{- define "wasilet.checks" -}}
{{- if and (not .Values.allowKindnet) (lookup "apps/v1" "DaemonSet" "kube-system" "kindnet") }}
{{- fail "this cluster's network is kindnet, which takes a Node with the address of a host for that host and gives its pods addresses of the wrong range. Join a node with an address of its own instead: README.md of this chart, 'kindnet'. (--set allowKindnet=true installs it anyway)" }}
{{- end }}
{{- if eq (int .Values.kubelet.port) (int .Values.kubelet.healthzPort) }}
{{- fail "kubelet.port and kubelet.healthzPort must differ" }}
{{- end }}
{{- end }}
