//! Before the machine goes down its pods are ended, by priority and in their time; the machine waits for that and no longer.
//!
//! A bus of the test's own carries a logind that is the test: the words of systemd's "Inhibitor Locks", nothing of this
//! machine's.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use zbus::{Connection, Fd, MessageStream, Variant};

use super::support::{PATIENCE, Place, Process, container, eventually};

const MANAGER: &str = "org.freedesktop.login1.Manager";

/// A logind whose machine shuts down when the test says so.
pub(super) struct Logind {
    runtime: Runtime,
    connection: Connection,
    address: String,
    /// Arguments of `Inhibit`, and our ends of the locks that were given.
    locks: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    _bus: Process,
}

impl Logind {
    /// Starts a bus in `dir`; `None`, and a word about it, where there is none to start.
    pub(super) fn start(dir: &Path) -> Option<Self> {
        if Command::new("dbus-daemon").arg("--version").output().is_err() {
            crate::support::skipped("no dbus-daemon (Debian: dbus-daemon)");
            return None;
        }
        let socket = dir.join("bus");
        let config = dir.join("bus.conf");
        std::fs::write(
            &config,
            format!(
                "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>",
                socket.display()
            ),
        )
        .expect("a file");
        let bus = Process::spawn(Command::new("dbus-daemon").arg("--nofork").arg("--config-file").arg(&config));
        eventually("the bus listens", || if socket.exists() { Ok(()) } else { Err(bus.output()) });
        let address = format!("unix:path={}", socket.display());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let locks = Arc::new(Mutex::new(Vec::new()));
        let connection = runtime.block_on(async {
            let builder = zbus::connection::Builder::address(address.as_str()).name("org.freedesktop.login1");
            // A bus that lets nobody hear anything would be waited for without an end.
            let connection = tokio::time::timeout(PATIENCE, builder.build()).await.expect("the bus answers");
            let connection = connection.expect("a connection");
            tokio::spawn(answer(connection.clone(), MessageStream::from(&connection), locks.clone()));
            connection
        });
        Some(Self { runtime, connection, address, locks, _bus: bus })
    }

    /// What `DBUS_SYSTEM_BUS_ADDRESS` has to be.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The machine is about to go down, or is not any more.
    pub(super) fn prepare_for_shutdown(&self, starting: bool) {
        let path = "/org/freedesktop/login1";
        let emitted = self.connection.emit_signal(None::<&str>, path, MANAGER, "PrepareForShutdown", &starting);
        self.runtime.block_on(emitted).expect("a signal");
    }

    /// Waits for so many locks to have been asked for.
    pub(super) fn wait_locks(&self, count: usize, said: impl Fn() -> String) {
        eventually("the shutdown is held up", || if self.locks.lock().len() >= count { Ok(()) } else { Err(said()) });
    }

    /// Whether a lock is still held: our end of its pipe sees the other close.
    pub(super) fn is_held(&self, number: usize) -> bool {
        let end = self.locks.lock()[number].1.try_clone().expect("a descriptor");
        rustix::io::ioctl_fionbio(&end, true).expect("non-blocking");
        let read = std::fs::File::from(end).read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

async fn answer(connection: Connection, mut calls: MessageStream, locks: Arc<Mutex<Vec<(String, OwnedFd)>>>) {
    while let Some(Ok(message)) = calls.next().await {
        let header = message.header();
        let member = header.member().map(ToString::to_string).unwrap_or_default();
        let done = match member.as_str() {
            "Get" => connection.reply(&header, &Variant::from(30_000_000_u64)).await,
            "Inhibit" => {
                let arguments: (String, String, String, String) = message.body().deserialize().expect("four words");
                let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
                let (what, who, _, mode) = arguments;
                locks.lock().push((format!("{what} {who} {mode}"), ours));
                connection.reply(&header, &Fd::from(theirs)).await
            }
            _ => Ok(()),
        };
        done.expect("an answer");
    }
}

/// A pod of a sleeper.
fn pod(name: &str, priority: i32, grace: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  priority: {priority}\n  \
         terminationGracePeriodSeconds: {grace}\n  containers: [{{name: main, image: \"test/sleeper:v1\"}}]\n"
    )
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

#[test]
fn pods_end_before_the_machine_goes_down_and_critical_ones_last() {
    let place = Place::with_images(&["sleeper"]);
    let Some(logind) = Logind::start(place.path()) else { return };
    let config = place.path().join("config.yaml");
    std::fs::write(
        &config,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nshutdownGracePeriod: 3s\nshutdownGracePeriodCriticalPods: 1s\n",
    )
    .expect("a configuration");
    place.write_manifest("usual.yaml", &pod("usual", 0, 30));
    place.write_manifest("critical.yaml", &pod("critical", 2_000_000_000, 30));
    let config = config.to_string_lossy().into_owned();
    let manifests = place.manifests().to_string_lossy().into_owned();
    let mut command = place.command(&["run", "--node-name", "node", "--manifests", &manifests, "--config", &config]);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", &logind.address);
    let mut node = Process::spawn(&mut command);
    logind.wait_locks(1, || node.output());
    assert_eq!(logind.locks.lock()[0].0, "shutdown wasilet delay");
    let pods = || match serde_json::from_slice::<List<Pod>>(&place.run(&["ps", "--output", "json"]).stdout) {
        Ok(list) => list.items,
        Err(_) => Vec::new(),
    };
    let run = |pods: &[Pod]| pods.iter().filter(|pod| phase(pod) == "Running").count();
    eventually("both run", || if run(&pods()) == 2 { Ok(()) } else { Err(node.output()) });
    assert!(logind.is_held(0));

    logind.prepare_for_shutdown(true);
    eventually("the machine may go", || if logind.is_held(0) { Err(node.output()) } else { Ok(()) });
    // The last word about a container comes a moment after its end.
    let over = |name: &str| {
        let pod = pods().into_iter().find(|pod| pod.metadata.name.as_deref() == Some(&format!("{name}-node")));
        let pod = pod.ok_or("it is not known any longer")?;
        let state = container(&pod, "main").state.clone();
        if state.is_some_and(|state| state.terminated.is_some()) { Ok(pod) } else { Err(node.output()) }
    };
    let ended = |name: &str| {
        let pod = eventually(&format!("{name} has ended"), || over(name));
        let status = pod.status.as_ref().expect("a status");
        assert_eq!((phase(&pod), status.reason.as_deref()), ("Failed", Some("Terminated")), "{status:?}");
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(status.message.as_deref(), Some(message));
        let state = container(&pod, "main").state.clone().and_then(|state| state.terminated).expect("it has ended");
        state.finished_at.expect("a time").0
    };
    assert!(ended("usual") <= ended("critical"), "the critical one is last\n{}", node.output());
    // Times are of seconds: what was said tells more.
    let said = node.output();
    let killing = |name: &str| {
        let line = |line: &str| line.contains(&format!("object=default/{name}-node")) && line.contains("\"Killing\"");
        said.lines().position(line).unwrap_or_else(|| panic!("{name} was not ended\n{said}"))
    };
    assert!(killing("usual") < killing("critical"), "the critical one is last\n{said}");
    logind.prepare_for_shutdown(false);
    logind.wait_locks(2, || node.output());
    assert!(logind.is_held(1), "a shutdown that was called off is held up the next time");
    node.signal(rustix::process::Signal::TERM);
    assert!(node.wait().success(), "{}", node.output());
    assert!(!logind.is_held(1), "the node's end lets go");
}
