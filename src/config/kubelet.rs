//! `KubeletConfiguration`: the fields this node honours, and the names of all others a kubelet of 1.36 has.
//!
//! In: the document. Out: settings, and a warning for each field that is a kubelet's but not ours.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use crate::yaml::Node;

use super::cluster::{AuthorizationMode, ClientConfig, RegistrationConfig, ServerConfig, TlsVersion};
use super::{ConfigError, Invalid, Loaded, NodeConfig, decode, parse_duration, parse_size};

pub(super) const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
pub(super) const KIND: &str = "KubeletConfiguration";

/// What we honour.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "apiVersion and kind are fields of the document that were looked at before")]
struct KubeletConfiguration {
    api_version: Option<String>,
    kind: Option<String>,
    static_pod_path: Option<String>,
    pod_logs_dir: Option<PathBuf>,
    file_check_frequency: Option<String>,
    sync_frequency: Option<String>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<i32>,
    max_pods: Option<i32>,
    pod_pids_limit: Option<i64>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<String>>,
    cluster_domain: Option<String>,
    resolv_conf: Option<PathBuf>,
    address: Option<String>,
    port: Option<i32>,
    healthz_bind_address: Option<String>,
    healthz_port: Option<i32>,
    enable_server: Option<bool>,
    enable_debugging_handlers: Option<bool>,
    enable_system_log_handler: Option<bool>,
    authentication: Option<AuthenticationDocument>,
    authorization: Option<AuthorizationDocument>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    tls_min_version: Option<String>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    rotate_certificates: Option<bool>,
    streaming_connection_idle_timeout: Option<String>,
    register_node: Option<bool>,
    register_with_taints: Option<Vec<Taint>>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    node_status_update_frequency: Option<String>,
    node_status_report_frequency: Option<String>,
    node_lease_duration_seconds: Option<i32>,
    node_status_max_images: Option<i32>,
    system_reserved: Option<BTreeMap<String, String>>,
    kube_reserved: Option<BTreeMap<String, String>>,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: Option<BTreeMap<String, String>>,
    eviction_soft_grace_period: Option<BTreeMap<String, String>>,
    eviction_minimum_reclaim: Option<BTreeMap<String, String>>,
    eviction_max_pod_grace_period: Option<i32>,
    eviction_pressure_transition_period: Option<String>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    #[serde(rename = "kubeAPIQPS")]
    kube_api_qps: Option<f64>,
    #[serde(rename = "kubeAPIBurst")]
    kube_api_burst: Option<i32>,
    #[serde(rename = "eventRecordQPS")]
    event_record_qps: Option<i32>,
    event_burst: Option<i32>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<i32>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<i32>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
    feature_gates: Option<BTreeMap<String, bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthenticationDocument {
    x509: X509Document,
    webhook: WebhookAuthenticationDocument,
    anonymous: AnonymousDocument,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct X509Document {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WebhookAuthenticationDocument {
    enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    cache_ttl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AnonymousDocument {
    enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthorizationDocument {
    mode: Option<String>,
    webhook: WebhookAuthorizationDocument,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WebhookAuthorizationDocument {
    #[serde(rename = "cacheAuthorizedTTL")]
    cache_authorized_ttl: Option<String>,
    #[serde(rename = "cacheUnauthorizedTTL")]
    cache_unauthorized_ttl: Option<String>,
}

/// The other fields of `k8s.io/kubelet/config/v1beta1` at 1.36: known, and without a meaning on this node.
#[rustfmt::skip]
pub const NOT_HONOURED: &[&str] = &[
    "allowedUnsafeSysctls", "cgroupDriver", "cgroupRoot", "cgroupsPerQOS",
    "configMapAndSecretChangeDetectionStrategy", "containerLogMaxWorkers", "containerLogMonitorInterval",
    "containerRuntimeEndpoint", "contentType", "cpuCFSQuota", "cpuCFSQuotaPeriod", "cpuManagerPolicy",
    "cpuManagerPolicyOptions", "cpuManagerReconcilePeriod", "crashLoopBackOff", "enableContentionProfiling",
    "enableControllerAttachDetach", "enableDebugFlagsHandler", "enableProfilingHandler",
    "enableSystemLogQuery", "enforceNodeAllocatable", "failCgroupV1", "failSwapOn",
    "hairpinMode", "httpCheckFrequency", "imagePullCredentialsVerificationPolicy", "imageServiceEndpoint",
    "iptablesDropBit", "iptablesMasqueradeBit", "kernelMemcgNotification", "kubeletCgroups",
    "kubeReservedCgroup", "localStorageCapacityIsolation", "logging", "makeIPTablesUtilChains", "maxOpenFiles",
    "maxParallelImagePulls", "memoryManagerPolicy", "memoryReservationPolicy", "memorySwap",
    "memoryThrottlingFactor", "mergeDefaultEvictionSettings", "oomScoreAdj", "podsPerCore",
    "preloadedImagesVerificationAllowlist", "protectKernelDefaults", "qosReserved", "readOnlyPort",
    "registryBurst", "registryPullQPS", "reservedMemory", "reservedSystemCPUs", "runOnce",
    "runtimeRequestTimeout", "seccompDefault", "serializeImagePulls", "showHiddenMetricsForVersion",
    "shutdownGracePeriodByPodPriority", "singleProcessOOMKill", "staticPodURL", "staticPodURLHeader",
    "systemCgroups", "systemReservedCgroup", "tlsCipherSuites", "tlsCurvePreferences",
    "topologyManagerPolicy", "topologyManagerPolicyOptions", "topologyManagerScope", "tracing",
    "userNamespaces", "volumePluginDir", "volumeStatsAggPeriod",
];

pub(super) fn apply(path: &Path, document: &Node, loaded: &mut Loaded) -> Result<(), ConfigError> {
    let is_known = |field: &str| NOT_HONOURED.contains(&field);
    let (document, known) = decode::<KubeletConfiguration>(path, document, is_known)?;
    loaded.warnings.extend(known.iter().map(|field| {
        let (file, place, name) = (path.display(), field.place, &field.path);
        format!("{file}:{place}: the kubelet's field {name:?} is not honoured by this node")
    }));
    let invalid = |(field, problem)| ConfigError::Invalid { path: path.to_owned(), field, problem };
    take_over(document, &mut loaded.config).map_err(invalid)
}

fn take_over(mut document: KubeletConfiguration, config: &mut NodeConfig) -> Result<(), Invalid> {
    // As in the kubelet, an empty string or zero is the default.
    if let Some(path) = document.static_pod_path.take().filter(|path| !path.is_empty()) {
        config.static_pod_path = Some(PathBuf::from(path));
    }
    config.pod_logs_dir = document.pod_logs_dir.take();
    if config.pod_logs_dir.as_deref().is_some_and(|dir| !dir.is_absolute()) {
        return Err(("podLogsDir", "must be an absolute path".to_owned()));
    }
    duration("fileCheckFrequency", document.file_check_frequency.take(), &mut config.file_check_frequency)?;
    duration("syncFrequency", document.sync_frequency.take(), &mut config.sync_frequency)?;
    if let Some(size) = document.container_log_max_size.take().filter(|size| !size.is_empty()) {
        // Negative means no rotation; zero says the same to the writer.
        let size = if size.starts_with('-') { Ok(0) } else { parse_size(&size) };
        config.container_log_max_size = size.map_err(|problem| ("containerLogMaxSize", problem))?;
    }
    if let Some(files) = document.container_log_max_files {
        let files = u32::try_from(files).ok().filter(|files| *files > 1);
        config.container_log_max_files = files.ok_or(("containerLogMaxFiles", "must be greater than 1".to_owned()))?;
    }
    config.max_pods = count("maxPods", document.max_pods.map(i64::from))?.filter(|pods| *pods > 0);
    // -1, the kubelet's default, is no limit.
    config.pod_pids_limit = count("podPidsLimit", document.pod_pids_limit.filter(|limit| *limit != -1))?;
    if let Some(cidr) = document.pod_cidr.take().filter(|cidr| !cidr.is_empty()) {
        config.pod_cidr = Some(cidr.parse().map_err(|problem| ("podCIDR", problem))?);
    }
    for address in document.cluster_dns.take().unwrap_or_default() {
        let address = address.parse().map_err(|_| ("clusterDNS", format!("{address:?} is not an IP address")))?;
        config.cluster_dns.push(address);
    }
    config.resolv_conf = document.resolv_conf.take();
    config.cluster_domain = document.cluster_domain.take().filter(|domain| !domain.is_empty());
    take_over_server(&mut document, &mut config.server)?;
    take_over_registration(&mut document, &mut config.registration)?;
    take_over_client(&document, &mut config.client)?;
    take_over_image_gc(document, config)
}

fn take_over_server(document: &mut KubeletConfiguration, server: &mut ServerConfig) -> Result<(), Invalid> {
    set(&mut server.enabled, document.enable_server);
    set(&mut server.debugging_handlers, document.enable_debugging_handlers);
    set(&mut server.system_log_handler, document.enable_system_log_handler);
    set(&mut server.tls_bootstrap, document.server_tls_bootstrap);
    set(&mut server.address, address("address", document.address.as_deref())?);
    set(&mut server.healthz_address, address("healthzBindAddress", document.healthz_bind_address.as_deref())?);
    set(&mut server.port, port("port", document.port)?.filter(|port| *port != 0));
    if let Some(port) = port("healthzPort", document.healthz_port)? {
        server.healthz_port = Some(port).filter(|port| *port != 0);
    }
    server.tls_cert_file = document.tls_cert_file.take();
    server.tls_private_key_file = document.tls_private_key_file.take();
    if server.tls_cert_file.is_some() != server.tls_private_key_file.is_some() {
        return Err(("tlsCertFile", "must be given together with tlsPrivateKeyFile".to_owned()));
    }
    server.tls_min_version = match document.tls_min_version.as_deref() {
        None | Some("" | "VersionTLS12" | "VersionTLS10" | "VersionTLS11") => TlsVersion::Tls12,
        Some("VersionTLS13") => TlsVersion::Tls13,
        Some(other) => return Err(("tlsMinVersion", format!("{other:?} is not VersionTLS12 or VersionTLS13"))),
    };
    let idle = document.streaming_connection_idle_timeout.take();
    duration("streamingConnectionIdleTimeout", idle, &mut server.streaming_idle_timeout)?;
    if let Some(given) = document.authentication.take() {
        let authentication = &mut server.authentication;
        authentication.client_ca_file = given.x509.client_ca_file.filter(|file| !file.as_os_str().is_empty());
        set(&mut authentication.webhook, given.webhook.enabled);
        set(&mut authentication.anonymous, given.anonymous.enabled);
        duration("authentication.webhook.cacheTTL", given.webhook.cache_ttl, &mut authentication.cache_ttl)?;
    }
    if let Some(given) = document.authorization.take() {
        let authorization = &mut server.authorization;
        authorization.mode = match given.mode.as_deref() {
            None | Some("" | "Webhook") => AuthorizationMode::Webhook,
            Some("AlwaysAllow") => AuthorizationMode::AlwaysAllow,
            Some(other) => return Err(("authorization.mode", format!("{other:?} is not Webhook or AlwaysAllow"))),
        };
        let WebhookAuthorizationDocument { cache_authorized_ttl, cache_unauthorized_ttl } = given.webhook;
        duration("authorization.webhook.cacheAuthorizedTTL", cache_authorized_ttl, &mut authorization.allowed_ttl)?;
        duration("authorization.webhook.cacheUnauthorizedTTL", cache_unauthorized_ttl, &mut authorization.denied_ttl)?;
    }
    Ok(())
}

fn take_over_registration(
    document: &mut KubeletConfiguration,
    registration: &mut RegistrationConfig,
) -> Result<(), Invalid> {
    set(&mut registration.register, document.register_node);
    registration.taints = document.register_with_taints.take();
    registration.provider_id = document.provider_id.take().filter(|id| !id.is_empty());
    let update = document.node_status_update_frequency.take();
    duration("nodeStatusUpdateFrequency", update, &mut registration.status_update_frequency)?;
    // As the kubelet: who sets only how often it is computed means how often it is written too.
    match document.node_status_report_frequency.take() {
        Some(report) => {
            duration("nodeStatusReportFrequency", Some(report), &mut registration.status_report_frequency)?;
        }
        None if registration.status_update_frequency != RegistrationConfig::default().status_update_frequency => {
            registration.status_report_frequency = registration.status_update_frequency;
        }
        None => {}
    }
    if let Some(seconds) = document.node_lease_duration_seconds.filter(|seconds| *seconds != 0) {
        let positive =
            u64::try_from(seconds).map_err(|_| ("nodeLeaseDurationSeconds", "must be positive".to_owned()))?;
        registration.lease_duration = std::time::Duration::from_secs(positive);
    }
    match document.node_status_max_images {
        Some(-1) => registration.max_images = None,
        Some(images) => {
            let images =
                usize::try_from(images).map_err(|_| ("nodeStatusMaxImages", "must be -1 or more".to_owned()))?;
            registration.max_images = Some(images);
        }
        None => {}
    }
    registration.reserved.extend(document.system_reserved.take());
    registration.reserved.extend(document.kube_reserved.take());
    if let Some(thresholds) = document.eviction_hard.take() {
        registration.eviction_hard = thresholds;
    }
    registration.eviction_soft = document.eviction_soft.take().unwrap_or_default();
    registration.eviction_soft_grace_period = document.eviction_soft_grace_period.take().unwrap_or_default();
    registration.eviction_minimum_reclaim = document.eviction_minimum_reclaim.take().unwrap_or_default();
    if let Some(seconds) = document.eviction_max_pod_grace_period {
        let seconds =
            u64::try_from(seconds).map_err(|_| ("evictionMaxPodGracePeriod", "must not be negative".to_owned()))?;
        registration.eviction_max_pod_grace_period = std::time::Duration::from_secs(seconds);
    }
    let period = document.eviction_pressure_transition_period.take();
    duration("evictionPressureTransitionPeriod", period, &mut registration.eviction_pressure_transition_period)?;
    duration("shutdownGracePeriod", document.shutdown_grace_period.take(), &mut registration.shutdown_grace_period)?;
    let critical = &mut registration.shutdown_grace_period_critical_pods;
    duration("shutdownGracePeriodCriticalPods", document.shutdown_grace_period_critical_pods.take(), critical)?;
    if *critical > registration.shutdown_grace_period {
        return Err(("shutdownGracePeriodCriticalPods", "must not exceed shutdownGracePeriod".to_owned()));
    }
    Ok(())
}

fn take_over_client(document: &KubeletConfiguration, client: &mut ClientConfig) -> Result<(), Invalid> {
    set(&mut client.rotate_certificates, document.rotate_certificates);
    // Zero is the default, which is no limit of our own here; negative is no limit at the kubelet too.
    client.qps = document.kube_api_qps.filter(|qps| *qps > 0.0).map(|qps| qps as f32);
    client.burst = document.kube_api_burst.and_then(|burst| u32::try_from(burst).ok()).filter(|burst| *burst > 0);
    if let Some(qps) = count("eventRecordQPS", document.event_record_qps.map(i64::from))? {
        client.event_qps = Some(qps).filter(|qps| *qps > 0);
    }
    if let Some(burst) = count("eventBurst", document.event_burst.map(i64::from))?.filter(|burst| *burst > 0) {
        client.event_burst = burst;
    }
    Ok(())
}

fn take_over_image_gc(document: KubeletConfiguration, config: &mut NodeConfig) -> Result<(), Invalid> {
    let gc = &mut config.image_gc;
    set(
        &mut gc.high_threshold_percent,
        percent("imageGCHighThresholdPercent", document.image_gc_high_threshold_percent)?,
    );
    set(&mut gc.low_threshold_percent, percent("imageGCLowThresholdPercent", document.image_gc_low_threshold_percent)?);
    if gc.low_threshold_percent >= gc.high_threshold_percent {
        return Err(("imageGCLowThresholdPercent", "must be less than imageGCHighThresholdPercent".to_owned()));
    }
    duration("imageMinimumGCAge", document.image_minimum_gc_age, &mut gc.minimum_age)?;
    let mut maximum = std::time::Duration::ZERO;
    duration("imageMaximumGCAge", document.image_maximum_gc_age, &mut maximum)?;
    gc.maximum_age = Some(maximum).filter(|age| !age.is_zero());
    config.feature_gates = document.feature_gates.unwrap_or_default();
    Ok(())
}

fn set<T>(into: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *into = value;
    }
}

fn address(field: &'static str, text: Option<&str>) -> Result<Option<IpAddr>, Invalid> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| (field, format!("{text:?} is not an IP address")))
}

fn port(field: &'static str, value: Option<i32>) -> Result<Option<u16>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    u16::try_from(value).map(Some).map_err(|_| (field, format!("{value} is not a port (0-65535)")))
}

fn percent(field: &'static str, value: Option<i32>) -> Result<Option<u8>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let percent = u8::try_from(value).ok().filter(|percent| *percent <= 100);
    percent.map(Some).ok_or((field, format!("{value} must be between 0 and 100")))
}

fn duration(field: &'static str, text: Option<String>, into: &mut std::time::Duration) -> Result<(), Invalid> {
    if let Some(text) = text {
        let value = parse_duration(&text).map_err(|problem| (field, problem))?;
        if !value.is_zero() {
            *into = value;
        }
    }
    Ok(())
}

fn count(field: &'static str, value: Option<i64>) -> Result<Option<u32>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    u32::try_from(value).map(Some).map_err(|_| (field, format!("{value} must not be negative")))
}
