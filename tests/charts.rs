//! What the Helm chart renders is what a cluster and the node itself take: helm's own output, parsed strictly.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use wasilet::config::{self, PodNetworkMode};
use wasilet::yaml;

use super::support::{repository, wasilet as binary};

/// Helm, built when it is not there.
fn helm() -> Command {
    static BUILT: OnceLock<String> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let built = Command::new(repository().join("scripts/helm.sh")).arg("--build").output().unwrap();
        assert!(built.status.success(), "scripts/helm.sh: {}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8(built.stdout).unwrap().trim().to_owned()
    });
    let mut command = Command::new(path);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, repository().join("target/tools/helm/home"));
    }
    command
}

/// The objects of a release.
pub struct Rendered(pub Vec<Value>);

/// Renders the chart with one of its sets of values, and some more.
fn render(set: Option<&str>, more: &[&str]) -> Rendered {
    let values = set.map(|set| repository().join(format!("charts/wasilet/ci/{set}-values.yaml")));
    let mut args = vec!["--namespace".to_owned(), "wasm".to_owned()];
    args.extend(values.iter().flat_map(|file| ["--values".to_owned(), file.display().to_string()]));
    args.extend(more.iter().flat_map(|value| ["--set".to_owned(), (*value).to_owned()]));
    render_release("edge", &args)
}

/// Renders the chart as a release.
pub fn render_release(name: &str, args: &[String]) -> Rendered {
    let output = helm().args(["template", name]).arg(repository().join("charts/wasilet")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = yaml::parse(&text).unwrap_or_else(|error| panic!("{args:?}: {error}\n{text}"));
    let objects = documents.iter().map(|document| yaml::decode::<Value>(document).unwrap().value);
    Rendered(objects.filter(|object| !object.is_null()).collect())
}

impl Rendered {
    fn all<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let kind = kind.to_owned();
        self.0.iter().filter(move |object| object["kind"] == kind.as_str())
    }

    /// The only object of a kind.
    pub fn one(&self, kind: &str) -> &Value {
        let mut found = self.all(kind);
        let (first, second) = (found.next(), found.next());
        assert!(second.is_none(), "two {kind}s");
        first.unwrap_or_else(|| panic!("no {kind} in {:?}", self.0))
    }

    /// The agent: its pod and its container.
    pub fn pod(&self) -> (&Value, &Value) {
        let workload = self.0.iter().find(|object| object["apiVersion"] == "apps/v1").expect("a workload");
        let spec = &workload["spec"]["template"]["spec"];
        assert_eq!(spec["containers"].as_array().map(Vec::len), Some(1));
        (spec, &spec["containers"][0])
    }

    /// The node's configuration, read by the node's own code. Nothing in it is unknown to it.
    fn config(&self) -> config::NodeConfig {
        let text = self.one("ConfigMap")["data"]["config.yaml"].as_str().expect("a config.yaml");
        let loaded = config::parse("config.yaml".as_ref(), text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(loaded.warnings, Vec::<String>::new());
        loaded.config
    }
}

const SETS: [Option<&str>; 4] = [None, Some("deployment-namespace"), Some("token"), Some("kubeconfig")];

#[test]
fn the_agent_is_on_the_hosts_network_and_its_ports_agree() {
    for set in SETS {
        let rendered = render(set, &[]);
        let (pod, container) = rendered.pod();
        let config = rendered.config();
        assert_eq!(pod["hostNetwork"], true, "{set:?}");
        assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{set:?}: not on nodes of its own kind");
        // The host's kubelet has these.
        assert!(config.server.port != 10250 && config.server.healthz_port != Some(10248), "{set:?}");
        let port = &container["ports"][0];
        assert_eq!(
            (&port["containerPort"], &port["hostPort"]),
            (&config.server.port.into(), &config.server.port.into())
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let request = &container[probe]["httpGet"];
            assert_eq!(request["port"].as_u64(), config.server.healthz_port.map(u64::from), "{set:?}: {probe}");
            assert_eq!(request["host"], config.server.healthz_address.to_string(), "{set:?}: {probe}");
        }
        let terms = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(terms[0]["topologyKey"], "kubernetes.io/hostname", "{set:?}: one a host");
    }
}

#[test]
fn the_agent_has_the_rights_its_pod_network_needs_and_no_others() {
    for (set, mode, added) in [
        (None, PodNetworkMode::NodeAddress, Vec::new()),
        (Some("token"), PodNetworkMode::NodeAddress, Vec::new()),
        (
            Some("deployment-namespace"),
            PodNetworkMode::Namespace,
            vec!["NET_ADMIN".to_owned(), "SYS_ADMIN".to_owned(), "NET_BIND_SERVICE".to_owned()],
        ),
    ] {
        let rendered = render(set, &[]);
        let (_, container) = rendered.pod();
        let context = &container["securityContext"];
        assert_eq!(rendered.config().pod_network, mode);
        assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&false.into(), &false.into()));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        let list = |field: &str| -> Vec<String> {
            let all = context["capabilities"][field].as_array().into_iter().flatten();
            all.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        assert_eq!((list("drop"), list("add")), (vec!["ALL".to_owned()], added), "{set:?}");
    }
}

#[test]
fn the_command_line_is_one_that_the_binary_takes() {
    let rendered = render(None, &[]);
    let (_, container) = rendered.pod();
    let args: Vec<String> =
        container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    assert!(args.contains(&"--node-name=wasilet-$(HOST_NAME)".to_owned()), "{args:?}");
    let args = args.iter().map(|arg| arg.replace("$(HOST_NAME)", "a").replace("$(HOST_IP)", "192.0.2.7"));
    // There is no such file here, and that is what it complains of.
    let output = binary().args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/etc/wasilet/config/config.yaml"), "{said}");
    let names = container["env"].as_array().unwrap().iter();
    let fields: Vec<(&str, &str)> = names
        .map(|env| (env["name"].as_str().unwrap(), env["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap()))
        .collect();
    assert_eq!(fields, [("HOST_NAME", "spec.nodeName"), ("HOST_IP", "status.hostIP")]);
}

#[test]
fn every_path_of_the_configuration_is_mounted() {
    for set in SETS {
        let rendered = render(set, &[]);
        let (pod, container) = rendered.pod();
        let config = rendered.config();
        let volumes: Vec<&str> = names(&pod["volumes"], "name");
        let mounts: Vec<&str> = names(&container["volumeMounts"], "mountPath");
        assert!(names(&container["volumeMounts"], "name").iter().all(|name| volumes.contains(name)), "{set:?}");
        let paths =
            [&config.root_dir, &config.memory_volume_dir, &config.client.bootstrap_kubeconfig, &config.pod_logs_dir];
        let prefixes = config.host_path_allowed_prefixes.iter();
        for path in paths.into_iter().flatten().chain(config.client.kubeconfig.iter()).chain(prefixes) {
            assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{set:?}: {} is not mounted", path.display());
        }
        // The node makes that one itself, for itself alone: a mount of the cluster's is open to all.
        assert!(config.memory_volume_dir.is_some_and(|dir| !mounts.contains(&dir.to_str().unwrap())), "{set:?}");
        // A kubelet on the host removes what it does not know from there.
        assert!(config.pod_logs_dir.as_ref().is_some_and(|dir| !dir.starts_with("/var/log/pods")), "{set:?}");
    }
}

fn names<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().into_iter().flatten().filter_map(|item| item[field].as_str()).collect()
}

#[test]
fn the_runtime_class_leads_to_these_nodes() {
    let rendered = render(None, &[]);
    let class = rendered.one("RuntimeClass");
    assert_eq!((&class["metadata"]["name"], &class["handler"]), (&"wasi".into(), &"wasi".into()));
    assert_eq!(class["scheduling"]["nodeSelector"]["kubernetes.io/os"], "wasi");
    let (taint, toleration) =
        (&rendered.config().registration.taints.unwrap()[0], &class["scheduling"]["tolerations"][0]);
    assert_eq!((&toleration["key"], &toleration["effect"]), (&taint.key.clone().into(), &taint.effect.clone().into()));
    assert_eq!(toleration["value"].as_str(), taint.value.as_deref());
    assert_eq!(render(Some("token"), &[]).one("RuntimeClass")["scheduling"]["tolerations"], Value::Array(Vec::new()));
}

/// The ClusterRoleBinding to a role: who it is for.
fn bound(rendered: &Rendered, role: &str) -> Option<Value> {
    let mut bindings = rendered.all("ClusterRoleBinding").filter(|binding| binding["roleRef"]["name"] == role);
    bindings.next().map(|binding| binding["subjects"][0]["name"].clone())
}

#[test]
fn who_asks_for_a_certificate_may_and_is_approved() {
    for (set, who) in [(None, "edge-wasilet"), (Some("token"), "system:bootstrappers:edge-wasilet")] {
        let rendered = render(set, &[]);
        for (role, subject) in [
            ("system:node-bootstrapper", who),
            ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", who),
            ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
        ] {
            assert_eq!(bound(&rendered, role), Some(subject.into()), "{set:?}: {role}");
        }
        assert_eq!(bound(&rendered, "system:node-proxier"), Some("system:nodes".into()));
        assert_eq!(bound(&rendered, "edge-wasilet-policy-reader"), Some("system:nodes".into()));
    }
    let none = render(None, &["rbac.nodeProxier.create=false"]);
    assert_eq!((bound(&none, "system:node-proxier"), none.all("ClusterRole").count()), (None, 0));
    let token = render(Some("token"), &[]);
    let secret =
        token.all("Secret").find(|secret| secret["type"] == "bootstrap.kubernetes.io/token").expect("the token");
    assert_eq!(secret["metadata"]["name"], "bootstrap-token-abcdef");
    assert_eq!(secret["stringData"]["auth-extra-groups"], "system:bootstrappers:edge-wasilet");
    let own = render(Some("kubeconfig"), &[]);
    assert_eq!(own.all("ServiceAccount").count() + own.all("Secret").count(), 0);
    assert_eq!(bound(&own, "system:node-proxier"), Some("system:nodes".into()));
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for (values, word) in [
        ("podNetwork=bridge", "podNetwork"),
        ("bootstrap.mode=token", "bootstrap"),
        ("kubelet.port=10348", "must differ"),
        ("node.rootDir=here", "rootDir"),
        ("replicas=2", "replicas"),
    ] {
        let chart = repository().join("charts/wasilet");
        let output = helm().arg("template").arg("edge").arg(chart).args(["--set", values]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{values}: {said}");
    }
}

#[test]
fn the_example_of_a_configuration_is_one() {
    let loaded = config::load(&repository().join("packaging/config.yaml")).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
}
