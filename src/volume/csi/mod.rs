//! Volumes of CSI drivers that run beside this node: found, staged, published, and all of that undone.
//!
//! In: volumes of drivers, the API server's word about them. Out: directories the driver mounted, the drivers for CSINode,
//! the names of volumes in use for the Node's status. As the kubelet's `pkg/volume/csi`, in its places below the root
//! directory and with its records, so that an agent that does not remember a mount can undo it.
//! Invariant: a directory is removed only when it is empty; what a driver mounted is the driver's to unmount.

mod client;
mod drivers;
mod expander;
mod growth;
mod mounter;
mod record;
mod registration;
mod request;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::drivers::{DriverFacts, DriversFacts};
pub use self::expander::VolumeNotice;
pub(super) use self::mounter::{Publishing, Source, Wanted};

use self::client::CallError;
use self::drivers::Drivers;
use self::record::{Lifecycle, Record};
use self::wire::VolumePath;
use crate::ids::PodUid;

/// Waits between tries to undo a mount.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(122);
/// A mount that nobody tried for so long is not wanted any more; the worker tries every few seconds.
const GIVEN_UP: Duration = Duration::from_secs(180);
/// How often mounts of pods that are gone are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// How full a volume is, as its driver says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fullness {
    /// Bytes that may still be written, in all, used.
    pub bytes: (u64, u64, u64),
    /// The same of files.
    pub inodes: (u64, u64, u64),
}

/// The drivers and their volumes on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Csi {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    drivers: Drivers,
    in_use: watch::Sender<BTreeSet<String>>,
    /// Volumes that are on their way into a pod.
    attaching: Mutex<HashMap<String, Attaching>>,
    /// One volume is staged or unstaged by one at a time.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// How large volumes are here; those that pods have.
    sizes: Mutex<HashMap<String, growth::Known>>,
}

/// Since when a volume is waited for, and when that was last tried.
#[derive(Debug, Clone, Copy)]
struct Attaching {
    began: Instant,
    tried: Instant,
}

impl Csi {
    /// Over the node's root directory. What pods had mounted when the last agent ended counts as in use.
    pub(super) fn new(root: &Path) -> Self {
        let persistent = |record: &Record| record.volume_lifecycle_mode == Lifecycle::Persistent;
        let found = record::of_all_pods(root).into_iter().map(|(_, record)| record).filter(persistent);
        let in_use: BTreeSet<String> = found.map(|record| record.unique_name()).collect();
        let inner = Inner {
            root: root.to_owned(),
            drivers: Drivers::default(),
            in_use: watch::Sender::new(in_use),
            attaching: Mutex::default(),
            locks: Mutex::default(),
            sizes: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What the drivers say of this node.
    #[must_use]
    pub fn drivers(&self) -> watch::Receiver<DriversFacts> {
        self.inner.drivers.facts()
    }

    /// Volumes that no controller may detach: `status.volumesInUse`.
    #[must_use]
    pub fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.inner.in_use.subscribe()
    }

    /// Registers drivers and undoes mounts that no pod has, until `stop`. `is_known` says whether a pod is still this
    /// node's business; `forget` takes what else is left of one that is not.
    pub(super) async fn run(
        &self,
        is_known: impl Fn(&PodUid) -> bool + Send + Sync,
        forget: impl Fn(&PodUid) + Send + Sync,
        stop: CancellationToken,
    ) {
        let registry = self.inner.root.join("plugins_registry");
        for dir in [&registry, &self.inner.root.join("plugins")] {
            if let Err(error) = tokio::fs::create_dir_all(dir).await {
                tracing::error!(path = %dir.display(), err = %error, "Cannot make the directory that CSI drivers register in");
            }
        }
        let sweeping = async {
            loop {
                tokio::time::sleep(SWEEP_PERIOD).await;
                self.sweep(&is_known, &forget).await;
            }
        };
        let sweeping = stop.run_until_cancelled(sweeping);
        let registering = registration::run(self.inner.drivers.clone(), registry, stop.clone());
        let _: (Option<()>, ()) = tokio::join!(sweeping, registering);
    }

    /// Undoes all mounts of a pod, again and again until it is done; at once when it has none.
    pub async fn unmount(&self, pod_root: &Path) {
        let mut wait = FIRST_RETRY;
        while let Err(reason) = self.try_unmount(pod_root).await {
            tracing::warn!(pod = %pod_root.display(), err = reason, "Failed to unmount a CSI volume, will retry");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    /// Whether a pod's directory has mounts of drivers in it.
    #[must_use]
    pub fn has_mounts(pod_root: &Path) -> bool {
        !record::of_pod(pod_root).is_empty()
    }

    async fn try_unmount(&self, pod_root: &Path) -> Result<(), String> {
        let root = pod_root.to_owned();
        let mounts = tokio::task::spawn_blocking(move || record::of_pod(&root)).await.unwrap_or_default();
        let mut failed = Vec::new();
        for (dir, record) in mounts {
            let unique = record.unique_name();
            let lock = self.lock_of(&unique);
            let _alone = lock.lock().await;
            let gone = self.unpublish(&dir, &record).await;
            let gone = match gone {
                Ok(()) if record.volume_lifecycle_mode == Lifecycle::Persistent => self.unstage_unused(&record).await,
                other => other,
            };
            failed.extend(gone.err());
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    async fn unpublish(&self, dir: &Path, record: &Record) -> Result<(), String> {
        let socket = self.inner.drivers.socket(&record.driver_name);
        let socket = socket.map_err(|error| told("Unmounter.TearDownAt failed to get CSI client", &error))?;
        let target = dir.join("mount");
        let request = VolumePath { volume_id: record.volume_handle.clone(), path: target.display().to_string() };
        match socket.unpublish(request).await {
            // What the driver does not know is not there.
            Err(CallError { code: tonic::Code::NotFound, .. }) | Ok(()) => {}
            Err(error) => return Err(told("Unmounter.TearDownAt failed", &error)),
        }
        let dir = dir.to_owned();
        let removed = tokio::task::spawn_blocking(move || {
            record::remove_target(&dir.join("mount"))?;
            record::remove(&dir)
        });
        removed
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| told("Unmounter.TearDownAt failed to clean mount dir", &error))
    }

    /// Unstages a volume that no pod of this node has any more, and says that it is not in use. To be called under its lock.
    async fn unstage_unused(&self, record: &Record) -> Result<(), String> {
        let root = self.inner.root.clone();
        let all = tokio::task::spawn_blocking(move || record::of_all_pods(&root)).await.unwrap_or_default();
        let unique = record.unique_name();
        if all.iter().any(|(_, other)| other.unique_name() == unique) {
            return Ok(());
        }
        let dir = record::global_dir(&self.inner.root, &record.driver_name, &record.volume_handle);
        if tokio::fs::try_exists(&dir).await.unwrap_or(true) {
            self.unstage(&dir, record).await?;
        }
        self.inner.in_use.send_if_modified(|all| all.remove(&unique));
        self.inner.sizes.lock().remove(&unique);
        Ok(())
    }

    async fn unstage(&self, dir: &Path, record: &Record) -> Result<(), String> {
        let socket = self.inner.drivers.socket(&record.driver_name);
        let socket =
            socket.map_err(|error| told("attacher.UnmountDevice failed to create newCsiDriverClient", &error))?;
        let can = socket.capabilities().await;
        let can = can
            .map_err(|error| told("attacher.UnmountDevice failed to check whether STAGE_UNSTAGE_VOLUME set", &error))?;
        let staged = dir.join("globalmount");
        if request::Can(can).stage() {
            let request = VolumePath { volume_id: record.volume_handle.clone(), path: staged.display().to_string() };
            match socket.unstage(request).await {
                Err(CallError { code: tonic::Code::NotFound, .. }) | Ok(()) => {}
                Err(error) => return Err(told("attacher.UnmountDevice failed", &error)),
            }
        }
        let dir = dir.to_owned();
        let removed = tokio::task::spawn_blocking(move || {
            record::remove_target(&staged)?;
            record::remove(&dir)
        });
        removed
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| told("failed to clean up global mount", &error))
    }

    /// Undoes what was left: mounts of pods that nobody knows, staged volumes that no pod has.
    async fn sweep(&self, is_known: &(impl Fn(&PodUid) -> bool + Sync), forget: &(impl Fn(&PodUid) + Sync)) {
        let root = self.inner.root.clone();
        let left = tokio::task::spawn_blocking(move || (pods_with_mounts(&root), record::staged(&root)));
        let (pods, staged) = left.await.unwrap_or_default();
        for (uid, dir) in pods {
            if is_known(&uid) {
                continue;
            }
            match self.try_unmount(&dir).await {
                Ok(()) => {
                    tracing::info!(podUID = %uid, "Unmounted CSI volumes of a pod that is gone");
                    forget(&uid);
                }
                Err(reason) => {
                    tracing::warn!(podUID = %uid, err = reason, "Failed to unmount a CSI volume of a pod that is gone");
                }
            }
        }
        self.release_unused().await;
        for (_, record) in staged {
            let lock = self.lock_of(&record.unique_name());
            // Somebody who is at it has a use for it.
            let Ok(_alone) = lock.try_lock() else { continue };
            if let Err(reason) = self.unstage_unused(&record).await {
                tracing::debug!(volume = record.unique_name(), err = reason, "Failed to unstage a CSI volume");
            }
        }
    }

    /// Says that volumes are not in use whose pods went before they were mounted.
    async fn release_unused(&self) {
        let root = self.inner.root.clone();
        let all = tokio::task::spawn_blocking(move || record::of_all_pods(&root)).await.unwrap_or_default();
        let mounted: BTreeSet<String> = all.iter().map(|(_, record)| record.unique_name()).collect();
        let mut attaching = self.inner.attaching.lock();
        attaching.retain(|_, since| since.tried.elapsed() < GIVEN_UP);
        self.inner.in_use.send_if_modified(|names| {
            let before = names.len();
            names.retain(|name| mounted.contains(name) || attaching.contains_key(name));
            names.len() != before
        });
    }

    fn lock_of(&self, unique: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.locks.lock();
        // Only those somebody holds or waits for are kept: this bounds the map.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(unique.to_owned()).or_default().clone()
    }

    /// How full a pod's volume is, if its driver tells.
    pub async fn fullness(&self, pod_root: &Path, spec_name: &str) -> Option<Fullness> {
        let dir = record::pod_dir(pod_root, spec_name);
        let reading = dir.clone();
        let record = tokio::task::spawn_blocking(move || Record::read(&reading).ok()).await.ok()??;
        let socket = self.inner.drivers.socket(&record.driver_name).ok()?;
        if !request::Can(socket.capabilities().await.ok()?).stats() {
            return None;
        }
        let path = dir.join("mount").display().to_string();
        let stats = socket.stats(VolumePath { volume_id: record.volume_handle, path }).await.ok()?;
        let mut fullness = Fullness::default();
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        for usage in stats.usage {
            let all = (count(usage.available), count(usage.total), count(usage.used));
            match usage.unit {
                1 => fullness.bytes = all,
                2 => fullness.inodes = all,
                _ => {}
            }
        }
        Some(fullness)
    }
}

/// As the kubelet's CSI plugin begins what it says.
fn told(what: &str, error: &impl std::fmt::Display) -> String {
    format!("kubernetes.io/csi: {what}: {error}")
}

fn pods_with_mounts(root: &Path) -> Vec<(PodUid, PathBuf)> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let named = pods.filter_map(|pod| Some((PodUid::new(pod.file_name().into_string().ok()?).ok()?, pod.path())));
    named.filter(|(_, path)| Csi::has_mounts(path)).collect()
}
