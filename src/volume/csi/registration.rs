//! Plugins that register by a socket in the `plugins_registry` directory, as the kubelet's plugin watcher has them.
//!
//! In: the directory, looked at every second. Out: drivers that are known or forgotten; each is told whether it was taken.
//! A socket that is made anew registers anew.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::Socket;
use super::drivers::{DriverFacts, Drivers};
use super::wire::RegistrationStatus;

/// The kubelet's reconciler looks as often.
const PERIOD: Duration = Duration::from_secs(1);
/// Waits after a registration that failed, as the kubelet's operation executor.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(122);
/// The plugin type of drivers.
const CSI_PLUGIN: &str = "CSIPlugin";

/// A socket as it was when it was last looked at.
#[derive(Debug)]
struct Seen {
    id: SocketId,
    state: State,
}

/// Inode and time of making: a socket of the same name that is another one differs.
type SocketId = (u64, i64, i64);

#[derive(Debug)]
enum State {
    Registered { name: String },
    Failed { again_at: Instant, wait: Duration },
}

/// Registers drivers until `stop`.
pub(super) async fn run(drivers: Drivers, dir: PathBuf, stop: CancellationToken) {
    let mut seen: HashMap<PathBuf, Seen> = HashMap::new();
    let work = async {
        loop {
            let listing = dir.clone();
            let found = tokio::task::spawn_blocking(move || sockets(&listing)).await.unwrap_or_default();
            look(&drivers, &mut seen, found).await;
            tokio::time::sleep(PERIOD).await;
        }
    };
    // Cancel-safe: drivers that registered are known, others do so to the next agent.
    let _: Option<()> = stop.run_until_cancelled(work).await;
}

async fn look(drivers: &Drivers, seen: &mut HashMap<PathBuf, Seen>, found: HashMap<PathBuf, SocketId>) {
    seen.retain(|path, before| {
        let stays = found.get(path) == Some(&before.id);
        if let (false, State::Registered { name }) = (stays, &before.state) {
            tracing::info!(driver = name, socket = %path.display(), "Forgot a CSI driver");
            drivers.remove(name, path);
        }
        stays
    });
    for (path, id) in found {
        let wait = match seen.get(&path).map(|seen| &seen.state) {
            None => FIRST_RETRY,
            Some(State::Failed { again_at, wait }) if *again_at <= Instant::now() => (*wait * 2).min(LAST_RETRY),
            Some(_) => continue,
        };
        let state = match register(drivers, &path).await {
            Ok(name) => {
                tracing::info!(driver = name, socket = %path.display(), "Registered a CSI driver");
                State::Registered { name }
            }
            Err(reason) => {
                tracing::warn!(socket = %path.display(), err = reason, "Failed to register a plugin, will retry");
                State::Failed { again_at: Instant::now() + wait, wait }
            }
        };
        seen.insert(path, Seen { id, state });
    }
}

async fn register(drivers: &Drivers, path: &Path) -> Result<String, String> {
    let registrar = Socket::new(path);
    let info = registrar.plugin_info().await.map_err(|error| format!("failed to get plugin info: {error}"))?;
    let taken = async {
        if info.kind != CSI_PLUGIN {
            return Err(format!("no handler registered for plugin type: {} at socket {}", info.kind, path.display()));
        }
        check_versions(&info.name, &info.supported_versions)?;
        let endpoint = if info.endpoint.is_empty() { path } else { Path::new(&info.endpoint) };
        let socket = Socket::new(endpoint);
        let node = socket.node_info().await.map_err(|error| error.to_string())?;
        if node.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        let facts = DriverFacts {
            node_id: node.node_id,
            max_volumes: i32::try_from(node.max_volumes_per_node).ok().filter(|most| *most > 0),
            topology: node
                .accessible_topology
                .map(|topology| topology.segments.into_iter().collect())
                .unwrap_or_default(),
        };
        drivers.add(&info.name, path.to_owned(), socket, facts);
        Ok(())
    };
    let result: Result<(), String> = taken.await;
    let error = result.as_ref().err().map(|reason| format!("plugin registration failed with err: {reason}"));
    let told = RegistrationStatus { plugin_registered: result.is_ok(), error: error.unwrap_or_default() };
    if let Err(error) = registrar.notify(told).await {
        tracing::warn!(socket = %path.display(), err = %error, "Could not tell a plugin how its registration went");
    }
    result.map(|()| info.name)
}

/// A driver must speak some version 1.
fn check_versions(name: &str, versions: &[String]) -> Result<(), String> {
    let is_one = |version: &String| {
        let major = version.trim_start_matches('v').split('.').next();
        major.and_then(|major| major.parse::<u32>().ok()) == Some(1)
    };
    if versions.is_empty() {
        return Err(format!(
            "kubernetes.io/csi: RegisterPlugin for CSI driver {name:?} failed. Plugin returned an empty list for supported versions"
        ));
    }
    if versions.iter().any(is_one) {
        return Ok(());
    }
    Err(format!(
        "kubernetes.io/csi: RegisterPlugin for CSI driver {name:?} failed. None of the versions specified {versions:?} are supported"
    ))
}

/// The sockets in a directory and those below it, as drivers of several sockets have them; hidden ones are not meant.
fn sockets(dir: &Path) -> HashMap<PathBuf, SocketId> {
    let mut found = HashMap::new();
    let mut todo = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.file_type().is_socket() {
                found.insert(entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
            } else if metadata.is_dir() && depth < 2 {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_speaks_a_version_one() {
        let check = |versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|version| (*version).to_owned()).collect();
            check_versions("d", &versions).is_ok()
        };
        for (versions, expected) in
            [(&["1.0.0"][..], true), (&["v1"], true), (&["0.3.0", "1.9.0"], true), (&["2.0.0"], false), (&[], false)]
        {
            assert_eq!(check(versions), expected, "{versions:?}");
        }
    }

    #[test]
    fn sockets_are_found_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let _here = std::os::unix::net::UnixListener::bind(dir.path().join("a-reg.sock")).unwrap();
        let _below = std::os::unix::net::UnixListener::bind(dir.path().join("sub/b.sock")).unwrap();
        let _hidden = std::os::unix::net::UnixListener::bind(dir.path().join(".c.sock")).unwrap();
        std::fs::write(dir.path().join("d.sock"), "").unwrap();
        let mut names: Vec<PathBuf> = sockets(dir.path()).into_keys().collect();
        names.sort();
        assert_eq!(names, [dir.path().join("a-reg.sock"), dir.path().join("sub/b.sock")]);
    }
}
