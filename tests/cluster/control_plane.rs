//! The real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, each a process of the sandbox.
//!
//! In: the binaries of `scripts/control-plane.sh`, the flags of `flags/`. Out: a cluster without nodes, ready when
//! [`ControlPlane::start`] returns. Does not know the tests' objects.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;

use super::super::support::{repository, text};
use super::pki::{Pki, Use};
use super::sandbox::{At, Daemon, HOST, Sandbox};

const API_PORT: &str = "6443";
const METRICS_PORT: &str = "4443";

/// The directory of the binaries; builds them when they are not there.
pub fn binaries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut script = Command::new(repository().join("scripts/control-plane.sh"));
        if std::env::var_os("WASILET_TEST_COMPAT").is_some() {
            script.arg("--compat");
        }
        let output = script.stderr(Stdio::inherit()).output().expect("bash runs scripts/control-plane.sh");
        assert!(output.status.success(), "scripts/control-plane.sh failed");
        PathBuf::from(text(&output.stdout).trim())
    })
}

/// What a test wants otherwise: more flags, which win over the common ones.
#[derive(Default, Clone)]
pub struct Extra {
    /// kube-apiserver's.
    pub api_server: Vec<String>,
    /// kube-controller-manager's.
    pub controller_manager: Vec<String>,
}

/// A running control plane; ended when dropped.
pub struct ControlPlane {
    // Dropped before the sandbox that they are in.
    processes: Mutex<BTreeMap<&'static str, Daemon>>,
    dir: PathBuf,
    logs: PathBuf,
    extra: Extra,
    pki: Pki,
    metrics: OnceLock<()>,
    dns: OnceLock<()>,
    sandbox: Arc<Sandbox>,
}

impl ControlPlane {
    /// Starts the API server with state in `dir` and logs in `logs`.
    pub fn start(sandbox: Arc<Sandbox>, dir: &Path, logs: &Path, mut extra: Extra) -> Self {
        let pki = Pki::new(&dir.join("pki"), &[HOST]);
        let server = format!("https://{HOST}:{API_PORT}");
        pki.kubeconfig("admin", &server, "kubernetes-admin", Some("system:masters"));
        pki.kubeconfig("controller-manager", &server, "system:kube-controller-manager", None);
        pki.kubeconfig("scheduler", &server, "system:kube-scheduler", None);
        let audit = repository().join("tests/cluster/audit.yaml");
        extra.api_server.push(format!("--audit-policy-file={}", audit.display()));
        extra.api_server.push(format!("--audit-log-path={}", dir.join("audit.log").display()));
        let plane = Self {
            processes: Mutex::default(),
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            extra,
            pki,
            metrics: OnceLock::new(),
            dns: OnceLock::new(),
            sandbox,
        };
        plane.start_process("etcd");
        plane.start_process("kube-apiserver");
        plane
    }

    /// Starts the others. They give up when the API server does not answer at once, so it must be ready.
    pub fn start_controllers(&self) {
        self.start_process("kube-controller-manager");
        self.start_process("kube-scheduler");
    }

    fn fill_in(&self, template: &str) -> String {
        let pki = self.dir.join("pki");
        let (services, pods) = self.sandbox.ranges();
        let replacements: [(&str, &str); 13] = [
            ("@DIR@", &self.dir.to_string_lossy()),
            ("@PKI@", &pki.to_string_lossy()),
            ("@ADDRESS@", HOST),
            ("@API_PORT@", API_PORT),
            ("@ETCD_PORT@", "2379"),
            ("@ETCD_PEER_PORT@", "2380"),
            ("@CONTROLLER_MANAGER_PORT@", "10257"),
            ("@SCHEDULER_PORT@", "10259"),
            ("@METRICS_PORT@", METRICS_PORT),
            ("@SERVICE_RANGES@", services),
            ("@POD_RANGES@", pods),
            ("@DNS_PORT@", "53"),
            ("@CA_BUNDLE@", &BASE64.encode(fs::read(self.pki.path("ca.crt")).expect("the authority"))),
        ];
        replacements.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Starts one of its processes (again).
    pub fn start_process(&self, name: &'static str) {
        let flags = fs::read_to_string(repository().join("tests/cluster/flags").join(name)).expect("its flags");
        let mut args: Vec<String> = self.fill_in(&flags).lines().map(str::to_owned).collect();
        match name {
            "kube-apiserver" => args.extend(self.extra.api_server.iter().cloned()),
            "kube-controller-manager" => args.extend(self.extra.controller_manager.iter().cloned()),
            _ => {}
        }
        let log = self.logs.join(format!("{name}.log"));
        let process = self.sandbox.daemon(At::Host, &log, &binaries().join(name), &args, &[]);
        self.processes.lock().insert(name, process);
    }

    /// Kills one of its processes, as a machine's failure does.
    pub fn kill_process(&self, name: &'static str) {
        if let Some(mut process) = self.processes.lock().remove(name) {
            process.kill();
        }
    }

    /// The ends of its processes' logs.
    pub fn tails(&self) -> String {
        let processes = self.processes.lock();
        processes.iter().map(|(name, process)| format!("---- {name}\n{}\n", process.tail())).collect()
    }

    /// metrics-server, started when it is first asked for.
    pub fn metrics_server(&self, apply: impl FnOnce(&str)) {
        self.metrics.get_or_init(|| {
            let server = format!("https://{HOST}:{API_PORT}");
            self.pki.kubeconfig("metrics-server", &server, "metrics-server", Some("system:masters"));
            let names = ["metrics-server.kube-system.svc"];
            self.pki.issue("metrics-server-serving", "metrics-server", None, Use::Server, &names);
            self.start_process("metrics-server");
            let manifest = fs::read_to_string(repository().join("tests/cluster/metrics-server.yaml")).expect("there");
            apply(&self.fill_in(&manifest));
        });
    }

    /// CoreDNS as the cluster's DNS server, started when it is first asked for: at port 53 beside the control plane, and
    /// behind the Service `kube-dns` with the address that nodes give their pods.
    pub fn dns(&self, apply: impl FnOnce(&str)) {
        self.dns.get_or_init(|| {
            let server = format!("https://{HOST}:{API_PORT}");
            self.pki.kubeconfig("coredns", &server, "coredns", Some("system:masters"));
            let template = |file: &str| fs::read_to_string(repository().join("tests/cluster").join(file)).expect(file);
            // A name outside of the cluster that needs no network.
            let external = "hosts {\n        192.0.2.55 outside.example\n        fallthrough\n    }";
            let mut corefile = self.fill_in(&template("Corefile")).replace("@EXTERNAL@", external);
            if self.sandbox.is_dual_stack() {
                let both = format!("bind {HOST} {}", Sandbox::v6(HOST));
                corefile = corefile.replace(&format!("bind {HOST}"), &both);
            }
            fs::write(self.dir.join("Corefile"), corefile).expect("a file");
            self.start_process("coredns");
            apply(&self.fill_in(&template("coredns.yaml")));
        });
    }

    /// Its authorities.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The API server's address.
    pub fn server(&self) -> String {
        format!("https://{HOST}:{API_PORT}")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("pki/admin.kubeconfig")
    }

    /// The writes of nodes so far, one audit event a line.
    pub fn audit_log(&self) -> String {
        fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default()
    }
}
