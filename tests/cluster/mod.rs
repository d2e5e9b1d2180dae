//! A real cluster for tests: the released control plane, and nodes that are the binary under test.
//!
//! One cluster is shared by all tests of the binary; each test has a namespace and nodes of its own in it ([`Space`]).
//! A test that breaks the control plane takes a cluster of its own ([`Cluster::own`]). With `WASILET_TEST_KUBECONFIG` the
//! same tests run in the cluster it names, those left out that need the control plane's own files. Nothing here depends
//! on how long a thing takes: what is waited for is pushed by the API server, and a wait that fails says what it saw.
//!
//! When this process ends, however it does, everything started here ends with it ([`sandbox`]). Logs stay in
//! `target/tmp/cluster-PID` until the next run.

mod api;
mod control_plane;
mod kubectl;
mod node;
mod pki;
mod sandbox;
mod space;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, ServiceAccount};
use kube::Api;

use super::support::eventually;

pub use api::block_on;
pub use control_plane::{ControlPlane, Extra, binaries};
pub use kubectl::Terminal;
pub use node::{KEEP, Node, NodeOptions};
pub use sandbox::{At, Daemon, HOST, Sandbox};
pub use space::{Space, is_ready, phase_of};

/// Long enough for everything at once on a busy two-core machine; a test that needs it all has failed.
pub const LONG: Duration = Duration::from_secs(180);

/// A cluster.
pub struct Cluster {
    // Dropped before the sandbox that they are in.
    proxy: Option<Daemon>,
    plane: Option<ControlPlane>,
    sandbox: Arc<Sandbox>,
    client: kube::Client,
    kubeconfig: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
    next_name: AtomicU16,
}

impl Cluster {
    /// The cluster that the tests share, started by the first that asks.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var_os("WASILET_TEST_KUBECONFIG") {
            Some(kubeconfig) => Self::elsewhere(Path::new(&kubeconfig)),
            None => Self::start(shared_settings()),
        })
    }

    /// The cluster of the tests of what is off by default, or not known to older API servers. `None`, and a word about it, when
    /// the tests run in a cluster whose settings are not theirs.
    pub fn gated() -> Option<&'static Self> {
        static GATED: OnceLock<Option<Cluster>> = OnceLock::new();
        let flags = [
            "--feature-gates=ContainerStopSignals=true,ClusterTrustBundle=true,ClusterTrustBundleProjection=true",
            "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
        ];
        let settings = || Extra { api_server: flags.map(str::to_owned).to_vec(), ..Extra::default() };
        GATED.get_or_init(|| Self::own(settings())).as_ref()
    }

    /// A cluster for one test, which may break it. `None`, and a word about it, when the tests run in a cluster that is
    /// not theirs to break.
    pub fn own(extra: Extra) -> Option<Self> {
        if std::env::var_os("WASILET_TEST_KUBECONFIG").is_some() {
            super::support::skipped("this test needs a control plane of its own");
            return None;
        }
        Some(Self::start(extra))
    }

    fn start(extra: Extra) -> Self {
        let (dir, logs) = new_directories();
        let sandbox = Arc::new(Sandbox::new(&dir, sandbox::Network::Own));
        let plane = ControlPlane::start(Arc::clone(&sandbox), &dir, &logs, extra);
        let kubeconfig = plane.kubeconfig();
        let cluster = Self::with_proxy(Some(plane), sandbox, kubeconfig, dir, logs);
        cluster.wait_api();
        cluster.plane().start_controllers();
        // Pods of a namespace cannot be created before its account is there.
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "default");
        cluster.wait_for(&accounts, "default", LONG, "is there", |account| account.is_some());
        cluster
    }

    fn elsewhere(kubeconfig: &Path) -> Self {
        let (dir, logs) = new_directories();
        let sandbox = Arc::new(Sandbox::new(&dir, sandbox::Network::OfTheMachine));
        let kubeconfig = fs::canonicalize(kubeconfig).expect("WASILET_TEST_KUBECONFIG names a file");
        let cluster = Self::with_proxy(None, sandbox, kubeconfig, dir, logs);
        cluster.wait_api();
        cluster
    }

    fn with_proxy(
        plane: Option<ControlPlane>,
        sandbox: Arc<Sandbox>,
        kubeconfig: PathBuf,
        dir: PathBuf,
        logs: PathBuf,
    ) -> Self {
        let socket = dir.join("api.sock");
        let args = ["--kubeconfig", &kubeconfig.to_string_lossy(), "proxy", "--unix-socket", &socket.to_string_lossy()];
        let log = logs.join("kubectl-proxy.log");
        let proxy = sandbox.daemon(At::Host, &log, &binaries().join("kubectl"), &args.map(str::to_owned), &[]);
        let client = api::client(&socket);
        let next_name = AtomicU16::new(1);
        Self { proxy: Some(proxy), plane, sandbox, client, kubeconfig, dir, logs, next_name }
    }

    /// Waits until the API server is ready.
    pub fn wait_api(&self) {
        eventually("the API server is ready", || {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            let asking =
                async { tokio::time::timeout(Duration::from_secs(5), self.client().request_text(request)).await };
            let asked = block_on(asking);
            let complaint = match asked {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(elapsed) => elapsed.to_string(),
            };
            // Besides what `eventually` waits: the server has work to do.
            std::thread::sleep(Duration::from_millis(80));
            Err(format!("{complaint}\n{}", self.plane.as_ref().map(ControlPlane::tails).unwrap_or_default()))
        });
    }

    /// The control plane, where it is ours.
    pub fn try_plane(&self) -> Option<&ControlPlane> {
        self.plane.as_ref()
    }

    /// The control plane of a cluster of ours.
    pub fn plane(&self) -> &ControlPlane {
        self.plane.as_ref().expect("only tests that have checked ask for it")
    }

    /// Whether the metrics API is served: by a metrics-server of ours, or one that is there. A word about the test when not.
    pub fn has_metrics(&self) -> bool {
        if let Some(plane) = &self.plane {
            plane.metrics_server(|manifest| drop(self.kubectl_with(&["apply", "--filename", "-"], manifest)));
            return true;
        }
        let there = self.kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io"]).code == Some(0);
        if !there {
            super::support::skipped("this cluster has no metrics-server");
        }
        there
    }

    /// The namespaces it is in.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The client of the tests, with every right.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory whose files stay for whoever looks for what went wrong.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Whether the API server is older than 1.`minor`, with a word about the test, which needs `what` of it.
    pub fn lacks(&self, minor: u32, what: &str) -> bool {
        let version: serde_json::Value =
            serde_json::from_str(&self.kubectl_ok(&["get", "--raw", "/version"])).expect("a version");
        let found = version["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse().unwrap_or(0);
        if found < minor {
            super::support::skipped(&format!("{what} is of Kubernetes 1.{minor}, this control plane of 1.{found}"));
        }
        found < minor
    }

    fn number(&self) -> u16 {
        self.next_name.fetch_add(1, Ordering::Relaxed)
    }

    /// A namespace for one test.
    pub fn space(&self, test: &str) -> Space<'_> {
        Space::new(self, test)
    }

    /// Runs a command to its end.
    pub fn run(command: Command) -> kubectl::Done {
        kubectl::run(command, b"")
    }

    /// A command beside the API server.
    pub fn command(&self, program: &str) -> Command {
        self.sandbox.command(At::Host, program)
    }

    /// Waits until an object, or its absence, is as `wanted` says.
    pub fn wait_for<K>(
        &self,
        api: &Api<K>,
        name: &str,
        patience: Duration,
        what: &str,
        wanted: impl Fn(Option<&K>) -> bool,
    ) -> Option<K>
    where
        K: Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + kube::Resource + 'static,
    {
        api::wait(api, name, patience, wanted).unwrap_or_else(|last| panic!("{name} {what}: it was\n{last}"))
    }

    /// Waits until the node's condition `Ready` has that status.
    pub fn wait_node(&self, name: &str, ready: &str) -> NodeObject {
        let nodes: Api<NodeObject> = Api::all(self.client());
        let node = self.wait_for(&nodes, name, LONG, &format!("is Ready={ready}"), |node| {
            node.is_some_and(|node| node_ready(node) == Some(ready))
        });
        node.expect("it was seen")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.proxy.take());
        drop(self.plane.take());
    }
}

fn node_ready(node: &NodeObject) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|condition| condition.type_ == "Ready")?.status.as_str())
}

/// An autoscaler that looks every second, for tests that wait for it.
fn shared_settings() -> Extra {
    let flags = [
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=5s",
    ];
    Extra { controller_manager: flags.map(str::to_owned).to_vec(), ..Extra::default() }
}

/// A short-named directory (of Unix sockets, too) for state, and one for logs below `target/`.
fn new_directories() -> (PathBuf, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if number == 0 {
        remove_old_logs(target);
    }
    let logs = target.join(format!("cluster-{}", std::process::id())).join(number.to_string());
    fs::create_dir_all(&logs).expect("a directory for logs");
    // Removed by the sandbox: this process may not live to do it.
    let dir = tempfile::Builder::new().prefix("wasilet-cluster-").tempdir().expect("a temporary directory").keep();
    (dir, logs)
}

fn remove_old_logs(target: &Path) {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("cluster-") else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
