//! `KubeletConfiguration`: the fields this node honours, and the names of all others a kubelet of 1.36 has.
//!
//! In: the document. Out: settings, and a warning for each field that is a kubelet's but not ours.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::yaml::Node;

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
    container_log_max_size: Option<String>,
    container_log_max_files: Option<i32>,
    max_pods: Option<i32>,
    pod_pids_limit: Option<i64>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<String>>,
    cluster_domain: Option<String>,
}

/// The other fields of `k8s.io/kubelet/config/v1beta1` at 1.36.
#[rustfmt::skip]
const NOT_HONOURED: &[&str] = &[
    "address", "allowedUnsafeSysctls", "authentication", "authorization", "cgroupDriver", "cgroupRoot",
    "cgroupsPerQOS", "configMapAndSecretChangeDetectionStrategy", "containerLogMaxWorkers",
    "containerLogMonitorInterval", "containerRuntimeEndpoint", "contentType", "cpuCFSQuota", "cpuCFSQuotaPeriod",
    "cpuManagerPolicy", "cpuManagerPolicyOptions", "cpuManagerReconcilePeriod", "crashLoopBackOff",
    "enableContentionProfiling", "enableControllerAttachDetach", "enableDebugFlagsHandler",
    "enableDebuggingHandlers", "enableProfilingHandler", "enableServer", "enableSystemLogHandler",
    "enableSystemLogQuery", "enforceNodeAllocatable", "eventBurst", "eventRecordQPS", "evictionHard",
    "evictionMaxPodGracePeriod", "evictionMinimumReclaim", "evictionPressureTransitionPeriod", "evictionSoft",
    "evictionSoftGracePeriod", "failCgroupV", "failSwapOn", "featureGates", "hairpinMode", "healthzBindAddress",
    "healthzPort", "httpCheckFrequency", "imageGCHighThresholdPercent", "imageGCLowThresholdPercent",
    "imageMaximumGCAge", "imageMinimumGCAge", "imagePullCredentialsVerificationPolicy", "imageServiceEndpoint",
    "iptablesDropBit", "iptablesMasqueradeBit", "kernelMemcgNotification", "kubeAPIBurst", "kubeAPIQPS",
    "kubeletCgroups", "kubeReserved", "kubeReservedCgroup", "localStorageCapacityIsolation", "logging",
    "makeIPTablesUtilChains", "maxOpenFiles", "maxParallelImagePulls", "memoryManagerPolicy",
    "memoryReservationPolicy", "memorySwap", "memoryThrottlingFactor", "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds", "nodeStatusMaxImages", "nodeStatusReportFrequency", "nodeStatusUpdateFrequency",
    "oomScoreAdj", "podsPerCore", "port", "preloadedImagesVerificationAllowlist", "protectKernelDefaults",
    "providerID", "qosReserved", "readOnlyPort", "registerNode", "registerWithTaints", "registryBurst",
    "registryPullQPS", "reservedMemory", "reservedSystemCPUs", "resolvConf", "rotateCertificates", "runOnce",
    "runtimeRequestTimeout", "seccompDefault", "serializeImagePulls", "serverTLSBootstrap",
    "showHiddenMetricsForVersion", "shutdownGracePeriod", "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods", "singleProcessOOMKill", "staticPodURL", "staticPodURLHeader",
    "streamingConnectionIdleTimeout", "syncFrequency", "systemCgroups", "systemReserved", "systemReservedCgroup",
    "tlsCertFile", "tlsCipherSuites", "tlsCurvePreferences", "tlsMinVersion", "tlsPrivateKeyFile",
    "topologyManagerPolicy", "topologyManagerPolicyOptions", "topologyManagerScope", "tracing", "userNamespaces",
    "volumePluginDir", "volumeStatsAggPeriod",
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

fn take_over(document: KubeletConfiguration, config: &mut NodeConfig) -> Result<(), Invalid> {
    // As in the kubelet, an empty string or zero is the default.
    if let Some(path) = document.static_pod_path.filter(|path| !path.is_empty()) {
        config.static_pod_path = Some(PathBuf::from(path));
    }
    config.pod_logs_dir = document.pod_logs_dir;
    if config.pod_logs_dir.as_deref().is_some_and(|dir| !dir.is_absolute()) {
        return Err(("podLogsDir", "must be an absolute path".to_owned()));
    }
    duration("fileCheckFrequency", document.file_check_frequency, &mut config.file_check_frequency)?;
    if let Some(size) = document.container_log_max_size.filter(|size| !size.is_empty()) {
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
    if let Some(cidr) = document.pod_cidr.filter(|cidr| !cidr.is_empty()) {
        config.pod_cidr = Some(cidr.parse().map_err(|problem| ("podCIDR", problem))?);
    }
    for address in document.cluster_dns.unwrap_or_default() {
        let address = address.parse().map_err(|_| ("clusterDNS", format!("{address:?} is not an IP address")))?;
        config.cluster_dns.push(address);
    }
    config.cluster_domain = document.cluster_domain.filter(|domain| !domain.is_empty());
    Ok(())
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
