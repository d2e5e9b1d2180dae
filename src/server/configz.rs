//! `GET /configz`: the settings the node runs with, as a `KubeletConfiguration`.
//!
//! In: the settings. Out: the fields this node honours, under `kubeletconfig` as at the kubelet. Names files, shows no
//! content of any. Pure but for the handler.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::NodeApi;
use crate::config::{AuthorizationMode, NodeConfig, TlsVersion};

pub(super) async fn show(State(api): State<NodeApi>) -> Json<Value> {
    Json(json!({"kubeletconfig": kubelet_configuration(&api.config)}))
}

fn kubelet_configuration(config: &NodeConfig) -> Value {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        // As Go leaves out what is empty.
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    let server = &config.server;
    let (authentication, authorization) = (&server.authentication, &server.authorization);
    let mode = match authorization.mode {
        AuthorizationMode::AlwaysAllow => "AlwaysAllow",
        AuthorizationMode::Webhook => "Webhook",
    };
    let tls_version = match server.tls_min_version {
        TlsVersion::Tls12 => "VersionTLS12",
        TlsVersion::Tls13 => "VersionTLS13",
    };
    set("enableServer", json!(server.enabled));
    set("staticPodPath", json!(config.static_pod_path));
    set("podLogsDir", json!(config.pod_logs_dir));
    set("fileCheckFrequency", duration(config.file_check_frequency));
    set("syncFrequency", duration(config.sync_frequency));
    set("address", json!(server.address));
    set("port", json!(server.port));
    set("tlsCertFile", json!(server.tls_cert_file));
    set("tlsPrivateKeyFile", json!(server.tls_private_key_file));
    set("tlsMinVersion", json!(tls_version));
    set("rotateCertificates", json!(config.client.rotate_certificates));
    set("serverTLSBootstrap", json!(server.tls_bootstrap));
    let x509 = authentication.client_ca_file.as_ref().map_or(json!({}), |file| json!({"clientCAFile": file}));
    set(
        "authentication",
        json!({
            "x509": x509,
            "webhook": {"enabled": authentication.webhook, "cacheTTL": duration(authentication.cache_ttl)},
            "anonymous": {"enabled": authentication.anonymous},
        }),
    );
    set(
        "authorization",
        json!({
            "mode": mode,
            "webhook": {
                "cacheAuthorizedTTL": duration(authorization.allowed_ttl),
                "cacheUnauthorizedTTL": duration(authorization.denied_ttl),
            },
        }),
    );
    let registration = &config.registration;
    set("eventRecordQPS", json!(config.client.event_qps.unwrap_or(0)));
    set("eventBurst", json!(config.client.event_burst));
    set("enableDebuggingHandlers", json!(server.debugging_handlers));
    set("enableSystemLogHandler", json!(server.system_log_handler));
    set("healthzPort", json!(server.healthz_port.unwrap_or(0)));
    set("healthzBindAddress", json!(server.healthz_address));
    set("clusterDomain", json!(config.cluster_domain));
    if !config.cluster_dns.is_empty() {
        set("clusterDNS", json!(config.cluster_dns));
    }
    set("streamingConnectionIdleTimeout", duration(server.streaming_idle_timeout));
    set("nodeStatusUpdateFrequency", duration(registration.status_update_frequency));
    set("nodeStatusReportFrequency", duration(registration.status_report_frequency));
    set("nodeLeaseDurationSeconds", json!(registration.lease_duration.as_secs()));
    set("imageMinimumGCAge", duration(config.image_gc.minimum_age));
    set("imageMaximumGCAge", duration(config.image_gc.maximum_age.unwrap_or_default()));
    set("imageGCHighThresholdPercent", json!(config.image_gc.high_threshold_percent));
    set("imageGCLowThresholdPercent", json!(config.image_gc.low_threshold_percent));
    set("maxPods", json!(config.max_pods));
    set("podCIDR", json!(config.pod_cidr.map(|cidr| format!("{}/{}", cidr.address, cidr.prefix_length))));
    set("podPidsLimit", json!(config.pod_pids_limit.map_or(-1, i64::from)));
    set("nodeStatusMaxImages", json!(registration.max_images.map_or(-1, |images| images as i64)));
    set("kubeAPIQPS", json!(config.client.qps));
    set("kubeAPIBurst", json!(config.client.burst));
    set("evictionHard", json!(registration.eviction_hard));
    set("evictionPressureTransitionPeriod", duration(registration.eviction_pressure_transition_period));
    if !config.feature_gates.is_empty() {
        set("featureGates", json!(config.feature_gates));
    }
    set("containerLogMaxSize", json!(config.container_log_max_size.to_string()));
    set("containerLogMaxFiles", json!(config.container_log_max_files));
    set("registerNode", json!(registration.register));
    set("registerWithTaints", json!(registration.taints));
    set("providerID", json!(registration.provider_id));
    set("shutdownGracePeriod", duration(registration.shutdown_grace_period));
    set("shutdownGracePeriodCriticalPods", duration(registration.shutdown_grace_period_critical_pods));
    set("kind", json!("KubeletConfiguration"));
    set("apiVersion", json!("kubelet.config.k8s.io/v1beta1"));
    Value::Object(fields)
}

/// As Go writes durations: `1h0m0s`, `2m0s`, `1.5s`, `300ms`, `0s`.
fn duration(duration: Duration) -> Value {
    let total = duration.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let nanos = duration.subsec_nanos();
    let text = match (total, nanos) {
        (0, 0) => "0s".to_owned(),
        (0, 1..=999) => format!("{nanos}ns"),
        (0, 1_000..=999_999) => format!("{}µs", f64::from(nanos) / 1e3),
        (0, _) => format!("{}ms", f64::from(nanos) / 1e6),
        _ => {
            let fraction = format!("{nanos:09}");
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            match (hours, minutes) {
                (0, 0) => format!("{seconds}{point}{fraction}s"),
                (0, _) => format!("{minutes}m{seconds}{point}{fraction}s"),
                _ => format!("{hours}h{minutes}m{seconds}{point}{fraction}s"),
            }
        }
    };
    Value::String(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (given, expected) in [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(300), "300ms"),
            (Duration::from_micros(1500), "1.5ms"),
            (Duration::from_millis(1500), "1.5s"),
            (Duration::from_secs(20), "20s"),
            (Duration::from_secs(120), "2m0s"),
            (Duration::from_secs(4 * 3600), "4h0m0s"),
        ] {
            assert_eq!(duration(given), json!(expected));
        }
    }

    #[test]
    fn what_is_shown_is_read_back_as_the_same_settings() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nport: 10350\nmaxPods: 7\n\
                    clusterDNS: [10.96.0.10]\nauthorization: {mode: AlwaysAllow}\nfeatureGates: {X: true}\n\
                    tlsMinVersion: VersionTLS13\nregisterWithTaints: [{key: a, effect: NoSchedule}]\n";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let config = crate::config::load(&path).unwrap().config;
        let shown = kubelet_configuration(&config);
        assert_eq!((&shown["port"], &shown["maxPods"]), (&json!(10350), &json!(7)));
        // JSON is YAML.
        std::fs::write(&path, format!("{shown:#}")).unwrap();
        let again = crate::config::load(&path).unwrap();
        assert_eq!(again.config, config);
    }
}
