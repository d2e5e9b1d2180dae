//! A node of the cluster: the binary under test, on a machine of its own on the cluster's bridge.
//!
//! In: what a test wants of it. Out: a Ready node whose pods the API server reaches. In a cluster that is elsewhere the
//! node runs on this machine, with a certificate that the cluster signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use parking_lot::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::support::{eventually, guest, text};
use super::pki::Use;
use super::sandbox::{At, Daemon, Sandbox};
use super::{Cluster, LONG};

/// However full the machine's disk is: nothing is evicted and no image is collected for it.
pub const KEEP: &str = "evictionHard: {memory.available: 50Mi}\nimageGCHighThresholdPercent: 100";

/// What a test wants of a node.
#[derive(Clone, Copy, Default)]
pub struct NodeOptions<'a> {
    /// Guests that it has as images `test/NAME:v1`.
    pub images: &'a [&'a str],
    /// Guests that it has as programs `/bin/NAME` of an image `test/tools:v1`; the first is its entrypoint.
    pub tools: &'a [&'a str],
    /// More lines of its `KubeletConfiguration`.
    pub kubelet: &'a str,
    /// More lines of its `NodeConfiguration`. `@V4@` and `@V6@` are its addresses, which it has unless a `nodeIP` is among
    /// these lines.
    pub node: &'a str,
    /// More labels, each as `, KEY: VALUE`.
    pub labels: &'a str,
    /// A piece of shell that is run before its process, as root in a mount namespace of that process alone, where `$0` is the
    /// node's root directory: what is mounted there, the node sees and nobody else.
    pub mounts: &'a str,
}

/// A running node; killed when dropped.
pub struct Node<'c> {
    cluster: &'c Cluster,
    name: String,
    /// Known from the start on a machine of ours, elsewhere once it is Ready.
    address: OnceLock<String>,
    /// Of its HTTPS API.
    port: u16,
    dir: PathBuf,
    log: PathBuf,
    /// Whether its configuration says where its toolbox is. The others have none: each would compile it.
    toolbox: bool,
    mounts: String,
    process: Mutex<Option<Daemon>>,
}

impl<'c> Node<'c> {
    /// Starts a node that carries the label `wasilet.dev/test: SPACE` and waits until it is Ready.
    pub(super) fn start(cluster: &'c Cluster, space: &str, options: NodeOptions<'_>) -> Self {
        let node = Self::prepare(cluster, space, options);
        node.run();
        node.wait_ready();
        node
    }

    /// Everything but the process.
    pub fn prepare(cluster: &'c Cluster, space: &str, options: NodeOptions<'_>) -> Self {
        let node = Self::prepare_without_rights(cluster, space, options);
        node.grant();
        node
    }

    /// Gives it the rights for Services that an administrator adds to those of every node; those for policies are for the
    /// tests of these to give.
    pub fn grant(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
        let rights = command.args(["rbac", "--node", &self.name]).output().expect("the binary starts");
        assert!(rights.status.success(), "{}", text(&rights.stderr));
        let apply = ["apply", "--server-side", "--force-conflicts", "--filename", "-"];
        let rights = text(&rights.stdout);
        let of_services: Vec<&str> =
            rights.split("---\n").filter(|one| one.contains("wasilet:service-reader")).collect();
        self.cluster.kubectl_with(&apply, &of_services.join("---\n"));
    }

    /// Everything but the process and these rights.
    pub fn prepare_without_rights(cluster: &'c Cluster, space: &str, options: NodeOptions<'_>) -> Self {
        let number = cluster.number();
        let (name, address) = match cluster.try_plane() {
            Some(_) => {
                let name = format!("node-{number}");
                let address = cluster.sandbox().add_machine(&name);
                (name, address)
            }
            None => (format!("{space}-{number}"), String::new()),
        };
        let dir = cluster.dir().join(&name);
        fs::create_dir_all(&dir).expect("a directory");
        let log = cluster.logs().join(format!("{name}-{space}.log"));
        let node = Self {
            cluster,
            name,
            address: if address.is_empty() { OnceLock::new() } else { OnceLock::from(address) },
            // In another's cluster all of them are on this machine.
            port: if cluster.try_plane().is_some() { 10_250 } else { 20_250 + number },
            dir,
            log,
            toolbox: options.node.contains("toolbox:"),
            mounts: options.mounts.to_owned(),
            process: Mutex::default(),
        };
        for image in options.images {
            node.load(&guest(image), &format!("test/{image}:v1"));
        }
        if !options.tools.is_empty() {
            node.load_tools(options.tools);
        }
        let identity = match cluster.try_plane() {
            Some(_) => node.certificates(),
            None => node.certificates_of_the_cluster(),
        };
        let address = match (node.address(), cluster.sandbox().is_dual_stack()) {
            ("", _) => String::new(),
            _ if options.node.contains("nodeIP:") => String::new(),
            (v4, false) => format!("nodeIP: {v4}"),
            (v4, true) => format!("nodeIP: \"{v4},{}\"", Sandbox::v6(v4)),
        };
        let kubeconfig = node.kubeconfig();
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
registerWithTaints: []
{keep}
{dns}
clusterDomain: cluster.local
{identity}
{kubelet}
---
apiVersion: wasilet.dev/v1alpha1
kind: NodeConfiguration
kubeconfig: {kubeconfig}
nodeLabels: {{wasilet.dev/test: {space}{labels}}}
{address}
{more}
",
            keep = if options.kubelet.contains("evictionHard:") { "imageGCHighThresholdPercent: 100" } else { KEEP },
            dns = if options.kubelet.contains("clusterDNS:") { "" } else { "clusterDNS: [10.96.0.10]" },
            kubelet = options.kubelet,
            labels = options.labels,
            kubeconfig = kubeconfig.display(),
            more = options.node.replace("@V4@", node.address()).replace("@V6@", &Sandbox::v6(node.address())),
        );
        fs::write(node.dir.join("config.yaml"), config).expect("a file");
        node
    }

    /// Its certificates, from the authority that is ours. Returns lines of its configuration.
    fn certificates(&self) -> String {
        let plane = self.cluster.plane();
        let (pki, user) = (plane.pki(), format!("system:node:{}", self.name));
        pki.kubeconfig(&self.name, &plane.server(), &user, Some("system:nodes"));
        fs::copy(pki.path(&format!("{}.kubeconfig", self.name)), self.kubeconfig()).expect("a file");
        let serving = format!("{}-serving", self.name);
        let v6 = Sandbox::v6(self.address());
        pki.issue(&serving, &user, Some("system:nodes"), Use::Server, &[&self.name, self.address(), &v6]);
        format!(
            "tlsCertFile: {}\ntlsPrivateKeyFile: {}\nauthentication: {{x509: {{clientCAFile: {}}}}}",
            pki.path(&format!("{serving}.crt")),
            pki.path(&format!("{serving}.key")),
            pki.path("ca.crt")
        )
    }

    /// A client certificate that another cluster's administrator (we) let it sign.
    fn certificates_of_the_cluster(&self) -> String {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{}", self.name));
        let key = rcgen::KeyPair::generate().expect("a key");
        let request = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        let name = format!("wasilet-test-{}", self.name);
        let manifest = format!(
            "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: {name}}}
spec:
  signerName: kubernetes.io/kube-apiserver-client-kubelet
  usages: [digital signature, client auth]
  request: {}
",
            BASE64.encode(request)
        );
        self.cluster.kubectl_with(&["apply", "--filename", "-"], &manifest);
        self.cluster.kubectl_ok(&["certificate", "approve", &name]);
        self.cluster.kubectl_ok(&["wait", "--for=jsonpath={.status.certificate}", "--timeout=60s", "csr", &name]);
        let path = "jsonpath={.status.certificate}";
        let certificate = self.cluster.kubectl_ok(&["get", "csr", &name, "--output", path]);
        let mut config: serde_json::Value = serde_json::from_str(&self.cluster.kubectl_ok(&[
            "config",
            "view",
            "--raw",
            "--minify",
            "--flatten",
            "--output",
            "json",
        ]))
        .expect("a kubeconfig");
        config["users"][0]["user"] = serde_json::json!({
            "client-certificate-data": certificate,
            "client-key-data": BASE64.encode(key.serialize_pem()),
        });
        fs::write(self.kubeconfig(), config.to_string()).expect("a file");
        // That the cluster looks at their certificates is possible.
        format!("port: {}\nhealthzPort: 0\nserverTLSBootstrap: true", self.port)
    }

    /// Lets a node of another cluster have the serving certificate it asked for, as an administrator does.
    fn approve_serving(&self) {
        let user = format!("system:node:{}", self.name);
        eventually("a serving certificate", || {
            let fields = ["get", "csr", "--field-selector", "spec.signerName=kubernetes.io/kubelet-serving"];
            let path =
                "jsonpath={range .items[*]}{.metadata.name} {.spec.username} {.status.conditions[*].type}{'\\n'}{end}";
            let all = self.cluster.kubectl_ok(&[&fields[..], &["--output", path]].concat());
            let asked = all.lines().filter_map(|line| line.split_once(' '));
            let mine: Vec<_> = asked.filter(|(_, rest)| rest.split(' ').next() == Some(user.as_str())).collect();
            for (name, _) in mine.iter().filter(|(_, rest)| !rest.contains("Approved")) {
                self.cluster.kubectl_ok(&["certificate", "approve", name]);
            }
            if mine.is_empty() { Err(all) } else { Ok(()) }
        });
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Its cluster.
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its InternalIP.
    pub fn address(&self) -> &str {
        self.address.get().map_or("", String::as_str)
    }

    /// The port of its HTTPS API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its commands run.
    pub fn at(&self) -> At<'_> {
        if self.cluster.try_plane().is_none() { At::Host } else { At::Machine(&self.name) }
    }

    fn load_tools(&self, guests: &[&str]) {
        let programs = self.dir.join("tools");
        fs::create_dir_all(programs.join("bin")).expect("a directory");
        for name in guests {
            fs::copy(guest(name), programs.join("bin").join(name)).expect("a guest is copied");
        }
        self.load_with(&programs, "test/tools:v1", &["--entrypoint", &format!("/bin/{}", guests[0])]);
    }

    /// Loads a wasm file or an archive under a name.
    pub fn load(&self, file: &Path, image: &str) {
        self.load_with(file, image, &[]);
    }

    fn load_with(&self, file: &Path, image: &str, more: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
        command.arg("--root-dir").arg(self.root()).args(["image", "load"]).arg(file).arg(image).args(more);
        let output = command.env_remove("WASILET_LOG").output().expect("the binary starts");
        assert!(output.status.success(), "loading {image}: {}", text(&output.stderr));
    }

    /// Starts its process with the configuration it was prepared with.
    pub fn run(&self) {
        self.run_with(&["run", "--config", &self.dir.join("config.yaml").to_string_lossy(), "--node-name", &self.name]);
    }

    /// Starts its process with these arguments.
    pub fn run_with(&self, args: &[&str]) {
        let mut all = vec!["--root-dir".to_owned(), self.root().to_string_lossy().into_owned()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let none: &[(&str, &str)] = if self.toolbox { &[] } else { &[("WASILET_TOOLBOX", "")] };
        let mut program = env!("CARGO_BIN_EXE_wasilet");
        if !self.mounts.is_empty() {
            let script = format!("set -e\n{}\nexec \"$@\"", self.mounts);
            let root = self.root().to_string_lossy().into_owned();
            let before = ["--mount", "--propagation", "private", "sh", "-c", &script, &root, program];
            all.splice(0..0, before.map(str::to_owned));
            program = "unshare";
        }
        let process = self.cluster.sandbox().daemon(self.at(), &self.log, Path::new(program), &all, none);
        *self.process.lock() = Some(process);
    }

    /// Waits until its Node says that it is Ready; its pods' addresses are routed to it then.
    pub fn wait_ready(&self) -> NodeObject {
        let nodes: Api<NodeObject> = Api::all(self.cluster.client());
        let ready = |node: Option<&NodeObject>| {
            node.is_some_and(|node| super::node_ready(node) == Some("True") && pod_cidr(node).is_some())
        };
        let node = super::api::wait(&nodes, &self.name, LONG, ready)
            .unwrap_or_else(|last| panic!("{} is Ready: it was\n{last}\n{}", self.name, self.tail()))
            .expect("it was seen");
        let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
        for range in ranges.filter(|_| self.cluster.try_plane().is_some()) {
            let by = if range.contains(':') { Sandbox::v6(self.address()) } else { self.address().to_owned() };
            self.cluster.sandbox().add_route(range, &by);
        }
        if self.cluster.try_plane().is_none() {
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            let internal = addresses.into_iter().find(|address| address.type_ == "InternalIP");
            self.address.get_or_init(|| internal.map(|one| one.address.clone()).unwrap_or_default());
            self.approve_serving();
        }
        node
    }

    /// Kills its process, as a machine's failure does.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().take() {
            process.kill();
        }
    }

    /// Runs a piece of shell that sees the files as its process does (`mounts`); its output.
    pub fn shell(&self, script: &str) -> String {
        let pid = self.process.lock().as_ref().expect("it runs").pid();
        let enter = r#"exec nsenter --target "$1" --mount -- sh -c "$2" "$3""#;
        self.cluster.sandbox().shell(At::Host, enter, &[&pid, script, &self.root().to_string_lossy()])
    }

    /// The CPU time that its process has used, as the kernel counts it: to a hundredth of a second.
    pub fn cpu_seconds(&self) -> f64 {
        let pid = self.process.lock().as_ref().expect("it runs").pid();
        let stat = self.cluster.sandbox().shell(At::Host, r#"cat "/proc/$1/stat""#, &[&pid]);
        // Behind the name, which may hold anything: state is field 3, utime and stime are 14 and 15.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let times = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
        times.sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
    }

    /// Stops its process as systemd does, and expects it to end well.
    pub fn stop(&self) {
        let Some(mut process) = self.process.lock().take() else { return };
        process.signal("TERM");
        let status = process.wait();
        assert!(status.success(), "the node ended with {status}:\n{}", process.tail());
    }

    /// The end of what its process said.
    pub fn tail(&self) -> String {
        format!("---- {}\n{}", self.log.display(), super::sandbox::tail(&self.log))
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        drop(self.process.lock().take());
        if self.cluster.try_plane().is_none() {
            self.cluster.kubectl(&["delete", "node", &self.name, "--ignore-not-found", "--wait=false"]);
        }
    }
}

fn pod_cidr(node: &NodeObject) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref()
}
