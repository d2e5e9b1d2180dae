//! What a node in a cluster is set to: its API, its registration, its clients.
//!
//! In: fields of the two documents. Out: plain data with the kubelet's defaults (`apis/config/v1beta1/defaults.go`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

/// How requests to the kubelet API prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// `authentication.anonymous.enabled`: who shows nothing is `system:anonymous`. Off unless asked for.
    pub anonymous: bool,
    /// `authentication.x509.clientCAFile`: authorities of client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// `authentication.webhook.enabled`: bearer tokens are shown to the API server (TokenReview).
    pub webhook: bool,
    /// `authentication.webhook.cacheTTL`.
    pub cache_ttl: Duration,
}

impl Default for Authentication {
    fn default() -> Self {
        Self { anonymous: false, client_ca_file: None, webhook: true, cache_ttl: Duration::from_secs(120) }
    }
}

/// `authorization.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthorizationMode {
    /// Who is known may do everything.
    AlwaysAllow,
    /// The API server is asked (SubjectAccessReview).
    #[default]
    Webhook,
}

/// Who may do what with the kubelet API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// `authorization.mode`.
    pub mode: AuthorizationMode,
    /// `authorization.webhook.cacheAuthorizedTTL`.
    pub allowed_ttl: Duration,
    /// `authorization.webhook.cacheUnauthorizedTTL`.
    pub denied_ttl: Duration,
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            mode: AuthorizationMode::Webhook,
            allowed_ttl: Duration::from_secs(300),
            denied_ttl: Duration::from_secs(30),
        }
    }
}

/// `tlsMinVersion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// `VersionTLS12`.
    #[default]
    Tls12,
    /// `VersionTLS13`.
    Tls13,
}

/// The kubelet API and its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// `enableServer`.
    pub enabled: bool,
    /// `address`.
    pub address: IpAddr,
    /// `port`.
    pub port: u16,
    /// `healthzBindAddress`.
    pub healthz_address: IpAddr,
    /// `healthzPort`; `None` (0) is no such listener.
    pub healthz_port: Option<u16>,
    /// `authentication`.
    pub authentication: Authentication,
    /// `authorization`.
    pub authorization: Authorization,
    /// `tlsCertFile`, with `tls_private_key_file`.
    pub tls_cert_file: Option<PathBuf>,
    /// `tlsPrivateKeyFile`.
    pub tls_private_key_file: Option<PathBuf>,
    /// `tlsMinVersion`.
    pub tls_min_version: TlsVersion,
    /// `serverTLSBootstrap`: ask for the serving certificate by CSR.
    pub tls_bootstrap: bool,
    /// `streamingConnectionIdleTimeout`.
    pub streaming_idle_timeout: Duration,
    /// `enableDebuggingHandlers`: exec, attach, run, port-forward and logs.
    pub debugging_handlers: bool,
    /// `enableSystemLogHandler`: the machine's `/var/log` at `/logs/`, with the debugging handlers.
    pub system_log_handler: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port: 10250,
            healthz_address: Ipv4Addr::LOCALHOST.into(),
            healthz_port: Some(10248),
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            tls_cert_file: None,
            tls_private_key_file: None,
            tls_min_version: TlsVersion::default(),
            tls_bootstrap: false,
            streaming_idle_timeout: Duration::from_secs(4 * 3600),
            debugging_handlers: true,
            system_log_handler: true,
        }
    }
}

/// How the Node object is made and kept.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationConfig {
    /// `registerNode`.
    pub register: bool,
    /// `registerWithTaints`; `None` is this node's own default taint, an empty list is no taint.
    pub taints: Option<Vec<Taint>>,
    /// `nodeLabels` (ours) or `--node-labels`: laid over the node's own.
    pub labels: BTreeMap<String, String>,
    /// `nodeIP` (ours) or `--node-ip`: the InternalIP, or one of each family, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// `providerID`.
    pub provider_id: Option<String>,
    /// `nodeStatusUpdateFrequency`: how often the status is computed.
    pub status_update_frequency: Duration,
    /// `nodeStatusReportFrequency`: how often it is written when nothing changed.
    pub status_report_frequency: Duration,
    /// `nodeLeaseDurationSeconds`; renewed four times in it.
    pub lease_duration: Duration,
    /// `nodeStatusMaxImages`; `None` (-1) is all.
    pub max_images: Option<usize>,
    /// `systemReserved` and `kubeReserved`, added up: quantities by resource name.
    pub reserved: Vec<BTreeMap<String, String>>,
    /// `evictionHard`: thresholds (quantity or percentage) by signal.
    pub eviction_hard: BTreeMap<String, String>,
    /// `evictionSoft`: thresholds that hold after their grace.
    pub eviction_soft: BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`: the grace of each of them, as Go writes durations.
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// `evictionMinimumReclaim`: how much more than a threshold must be free before it counts as left behind.
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// `evictionMaxPodGracePeriod`: most that a pod gets which ends for a soft threshold.
    pub eviction_max_pod_grace_period: Duration,
    /// `evictionPressureTransitionPeriod`.
    pub eviction_pressure_transition_period: Duration,
    /// `shutdownGracePeriod`: what the machine's shutdown is held up for at most.
    pub shutdown_grace_period: Duration,
    /// `shutdownGracePeriodCriticalPods`: the last part of it, for critical pods.
    pub shutdown_grace_period_critical_pods: Duration,
}

impl Default for RegistrationConfig {
    fn default() -> Self {
        let eviction = [("memory.available", "100Mi"), ("nodefs.available", "10%"), ("nodefs.inodesFree", "5%")];
        Self {
            register: true,
            taints: None,
            labels: BTreeMap::new(),
            node_ips: Vec::new(),
            provider_id: None,
            status_update_frequency: Duration::from_secs(10),
            status_report_frequency: Duration::from_secs(300),
            lease_duration: Duration::from_secs(40),
            max_images: Some(50),
            reserved: Vec::new(),
            eviction_hard: eviction.map(|(signal, limit)| (signal.to_owned(), limit.to_owned())).into(),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_minimum_reclaim: BTreeMap::new(),
            eviction_max_pod_grace_period: Duration::ZERO,
            eviction_pressure_transition_period: Duration::from_secs(300),
            shutdown_grace_period: Duration::ZERO,
            shutdown_grace_period_critical_pods: Duration::ZERO,
        }
    }
}

/// How this node reaches its API server, and how much it may ask of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientConfig {
    /// `kubeconfig` (ours) or `--kubeconfig`: no such file is a node without a cluster.
    pub kubeconfig: Option<PathBuf>,
    /// `bootstrapKubeconfig` (ours) or `--bootstrap-kubeconfig`: used while the kubeconfig is not there.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `rotateCertificates`: ask for a new client certificate before the old one expires.
    pub rotate_certificates: bool,
    /// `kubeAPIQPS`: requests a second; `None` is no limit of our own (the server's fairness decides).
    pub qps: Option<f32>,
    /// `kubeAPIBurst`.
    pub burst: Option<u32>,
    /// `eventRecordQPS`; `None` (0) is no limit.
    pub event_qps: Option<u32>,
    /// `eventBurst`.
    pub event_burst: u32,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            bootstrap_kubeconfig: None,
            rotate_certificates: true,
            qps: None,
            burst: None,
            event_qps: Some(50),
            event_burst: 100,
        }
    }
}

/// `imageGC*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGcConfig {
    /// `imageGCHighThresholdPercent`: disk usage that starts a collection; 100 is never.
    pub high_threshold_percent: u8,
    /// `imageGCLowThresholdPercent`: disk usage it ends at.
    pub low_threshold_percent: u8,
    /// `imageMinimumGCAge`.
    pub minimum_age: Duration,
    /// `imageMaximumGCAge`; `None` (0) is no limit.
    pub maximum_age: Option<Duration>,
}

impl Default for ImageGcConfig {
    fn default() -> Self {
        Self {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            minimum_age: Duration::from_secs(120),
            maximum_age: None,
        }
    }
}

/// `podNetwork` (ours): how pods get their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodNetworkMode {
    /// `auto`: a namespace of the node's own when it may make one and has a podCIDR, else the node's address in a
    /// cluster, addresses of 127.0.0.0/8 without one.
    #[default]
    Auto,
    /// `namespace`: fail when the namespace cannot be made.
    Namespace,
    /// `nodeAddress`: pods share the node's address, one pod a port.
    NodeAddress,
}

/// Who serves NodePorts, external and load balancers' addresses of Services on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceProxyMode {
    /// This node, unless a kube-proxy answers on the machine.
    #[default]
    Auto,
    /// This node.
    Always,
    /// Another program.
    Never,
}
