//! Config files, good and bad.

use super::*;

const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
const NODE: &str = "apiVersion: wasilet.dev/v1alpha1\nkind: NodeConfiguration\n";

fn read(text: &str) -> Result<Loaded, String> {
    parse(Path::new("node.yaml"), text).map_err(|error| error.to_string())
}

#[test]
fn both_documents_of_one_file_are_honoured() {
    let text = format!(
        "{KUBELET}staticPodPath: /m\ncontainerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 3\nmaxPods: 1000\npodPidsLimit: 64\n\
         fileCheckFrequency: 1m30s\nclusterDNS: [10.0.0.10]\npodCIDR: 10.1.0.0/24\n---\n{NODE}nodeName: edge-1\n\
         hostPathAllowedPrefixes: [/srv]\nguestThreads: 2\nrootDir: /r\n"
    );
    let Loaded { config, warnings } = read(&text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let expected = NodeConfig {
        root_dir: Some("/r".into()),
        static_pod_path: Some("/m".into()),
        file_check_frequency: Duration::from_secs(90),
        node_name: Some("edge-1".to_owned()),
        container_log_max_size: 1 << 20,
        container_log_max_files: 3,
        max_pods: Some(1000),
        pod_pids_limit: Some(64),
        pod_cidr: Some(Cidr { address: "10.1.0.0".parse().unwrap(), prefix_length: 24 }),
        cluster_dns: vec!["10.0.0.10".parse().unwrap()],
        host_path_allowed_prefixes: vec!["/srv".into()],
        guest_threads: Some(2),
        ..NodeConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(read("").unwrap().config, NodeConfig::default());
}

#[test]
fn a_field_of_the_kubelet_alone_is_a_warning_and_an_unknown_one_an_error() {
    let loaded = read(&format!("{KUBELET}cgroupDriver: systemd\ncpuManagerPolicy: none\n")).unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "node.yaml:3:1: the kubelet's field \"cgroupDriver\" is not honoured by this node",
            "node.yaml:4:1: the kubelet's field \"cpuManagerPolicy\" is not honoured by this node"
        ]
    );
    assert_eq!(
        read(&format!("{KUBELET}maxPod: 5\nfoo: 1\n")).unwrap_err(),
        "node.yaml:3:1: strict decoding error: unknown field \"maxPod\", unknown field \"foo\""
    );
    assert!(read(&format!("{NODE}maxPods: 5\n")).unwrap_err().contains("unknown field \"maxPods\""));
}

#[test]
fn fields_about_image_pulls_are_warnings_and_change_nothing() {
    for (field, value) in [("maxParallelImagePulls", "4"), ("serializeImagePulls", "false")] {
        let warning = format!("node.yaml:3:1: the kubelet's field {field:?} is not honoured by this node");
        let loaded = read(&format!("{KUBELET}{field}: {value}\n")).unwrap();
        assert_eq!(loaded, Loaded { config: NodeConfig::default(), warnings: vec![warning] });
    }
}

#[test]
fn bad_values_are_named() {
    for (document, line, part) in [
        (KUBELET, "containerLogMaxFiles: 1", "invalid configuration: containerLogMaxFiles must be greater than 1"),
        (KUBELET, "containerLogMaxSize: big", "\"big\" is not a size in bytes such as 10Mi"),
        (KUBELET, "fileCheckFrequency: 20", "node.yaml:3:21: fileCheckFrequency: expected a string"),
        (KUBELET, "fileCheckFrequency: '20'", "missing unit in duration \"20\""),
        (KUBELET, "fileCheckFrequency: 5y", "unknown unit \"y\" in duration"),
        (KUBELET, "maxPods: -1", "maxPods -1 must not be negative"),
        (KUBELET, "podCIDR: 10.0.0.0/33", "invalid CIDR address: 10.0.0.0/33"),
        (KUBELET, "clusterDNS: [dns]", "\"dns\" is not an IP address"),
        (KUBELET, "maxPods: many", "node.yaml:3:10: maxPods: expected a whole number (32 bits), found a string"),
        (NODE, "nodeName: Edge", "is not a lower case DNS name"),
        (NODE, "rootDir: here", "must be an absolute path"),
        (NODE, "guestThreads: 0", "must be at least 1"),
        ("", "kind: Pod\napiVersion: v1", "no kind \"Pod\" is registered for version \"v1\""),
        (
            KUBELET,
            "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration",
            "more than one KubeletConfiguration",
        ),
        ("", "a: b: c", "node.yaml:1:5: yaml: mapping values are not allowed"),
    ] {
        let error = read(&format!("{document}{line}\n")).unwrap_err();
        assert!(error.contains(part), "{line}: {error}");
    }
    let error = load(Path::new("/nonexistent/x.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("failed to read config file /nonexistent/x.yaml: "), "{error}");
}

#[test]
fn durations_and_sizes_are_read_as_go_reads_them() {
    for (text, seconds) in
        [("0", 0.0), ("300ms", 0.3), ("1.5h", 5400.0), ("2h45m", 9900.0), ("1m30s", 90.0), ("100us", 1e-4)]
    {
        assert_eq!(parse_duration(text).unwrap(), Duration::from_secs_f64(seconds), "{text}");
    }
    for bad in ["", "-5s", "5", "s", "1.2.3s", "5 s", "1e9h", "9999999999h"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    assert_eq!((parse_size("1k"), parse_size("512")), (Ok(1000), Ok(512)));
    assert!(parse_size("99E").is_err() && parse_size("1.5Mi").is_err());
    assert!(!host_name().is_empty());
}

#[test]
fn the_settings_of_a_cluster_are_read_with_the_kubelets_defaults() {
    let defaults = read(KUBELET).unwrap().config;
    assert_eq!((defaults.server.port, defaults.server.healthz_port), (10250, Some(10248)));
    assert!(defaults.server.authentication.webhook && !defaults.server.authentication.anonymous);
    let text = format!(
        "{KUBELET}port: 10350\nhealthzPort: 0\nserverTLSBootstrap: true\nregisterWithTaints: []\n\
         authentication: {{x509: {{clientCAFile: /ca.crt}}, webhook: {{cacheTTL: 0s}}}}\n\
         authorization: {{mode: AlwaysAllow}}\nnodeStatusUpdateFrequency: 1s\nnodeLeaseDurationSeconds: 8\n\
         evictionHard: {{memory.available: 5%}}\nkubeAPIQPS: 7\nfeatureGates: {{ExtendWebSocketsToKubelet: false}}\n\
         ---\n{NODE}nodeLabels: {{a: b}}\nnodeIP: 192.0.2.1\npodNetwork: namespace\nserviceProxy: never\n\
         kubeconfig: /k\nbaselineCompiler: always\n"
    );
    let Loaded { config, warnings } = read(&text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((config.server.port, config.server.healthz_port, config.server.tls_bootstrap), (10350, None, true));
    assert_eq!(config.server.authentication.client_ca_file, Some("/ca.crt".into()));
    assert_eq!(config.server.authorization.mode, AuthorizationMode::AlwaysAllow);
    assert_eq!(config.registration.taints, Some(Vec::new()));
    assert_eq!(config.registration.lease_duration, Duration::from_secs(8));
    assert_eq!(config.registration.status_report_frequency, Duration::from_secs(1));
    assert_eq!(config.registration.eviction_hard["memory.available"], "5%");
    assert_eq!(config.registration.labels["a"], "b");
    assert_eq!(config.client.qps, Some(7.0));
    assert_eq!(config.client.kubeconfig, Some("/k".into()));
    assert_eq!(config.pod_network, PodNetworkMode::Namespace);
    assert_eq!((defaults.service_proxy, config.service_proxy), (ServiceProxyMode::Auto, ServiceProxyMode::Never));
    assert_eq!(config.baseline_compiler, BaselineCompiler::Always);
    assert!(!config.feature_gates["ExtendWebSocketsToKubelet"]);
    for (bad, message) in [
        ("port: 70000", "invalid configuration: port 70000 is not a port (0-65535)"),
        ("address: here", "invalid configuration: address \"here\" is not an IP address"),
        ("tlsCertFile: /c", "invalid configuration: tlsCertFile must be given together with tlsPrivateKeyFile"),
        (
            "authorization: {mode: Never}",
            "invalid configuration: authorization.mode \"Never\" is not Webhook or AlwaysAllow",
        ),
    ] {
        assert!(read(&format!("{KUBELET}{bad}\n")).unwrap_err().ends_with(message), "{bad}");
    }
}

#[test]
fn a_node_has_one_address_or_one_of_each_family() {
    let ips = |text: &str| super::node_ips(text).map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(ips("192.0.2.7"), Ok(vec!["192.0.2.7".to_owned()]));
    assert_eq!(ips("2001:db8::7, 192.0.2.7"), Ok(vec!["2001:db8::7".to_owned(), "192.0.2.7".to_owned()]));
    for bad in ["", "192.0.2.7,", "192.0.2.7,192.0.2.8", "2001:db8::7,192.0.2.7,::1", "a machine"] {
        assert!(ips(bad).is_err(), "{bad}");
    }
}
