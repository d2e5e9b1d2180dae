//! Turns a pod's volumes into what the runtime mounts.
//!
//! In: the pod, the objects it refers to, its downward values. Out: `pod::run::VolumeSpec`s, and new content when an
//! object changes. Three steps: [`VolumeManager::fetch_first`] asks the API server for what only it has, [`VolumeManager::mount`]
//! has CSI drivers mount what is theirs, [`VolumeManager::setup`] and [`VolumeManager::refresh`] do the rest, which
//! blocks. Mounts nothing itself; makes the directories it owns and removes them with the pod.
//! Invariant: what a failing volume says is what the kubelet's `FailedMount` event says.

mod automatic;
mod csi;
mod empty_dir;
mod env_file;
mod error;
mod expansion;
mod fetched;
mod host_path;
mod payload;
mod persistent;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, Volume};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ids::PodUid;
use crate::objects::{ApiObjects, Change, ObjectKey, ObjectOrigin, ObjectStore};
use crate::pod::downward::Downward;
use crate::pod::run::{Access, Projection, VolumeSource, VolumeSpec};
use crate::pod::volumes::{memory_limit, mounted, source_types};
use crate::state::StateStore;
use crate::vfs::{self, GroupChange};

use self::csi::Publishing;
pub use self::csi::{Csi, DriverFacts, DriversFacts, Fullness, VolumeNotice};
pub use self::env_file::read_env_file;
pub use self::error::{VolumeError, VolumeErrors};
pub use self::expansion::Moment;
pub use self::fetched::Fetched;
use self::fetched::Tokens;

/// How long a volume that nobody looks at is left alone: its pod starts meanwhile.
const UNASKED_DELAY: Duration = Duration::from_secs(1);
/// How many volumes that nobody looks at are fetched at once.
const UNASKED_AT_ONCE: usize = 2;
/// How long it waits for others that matter more.
const CROWD_PATIENCE: Duration = Duration::from_secs(60);
/// How often the one whose turn it is looks whether there is time.
const CROWD_CHECK: Duration = Duration::from_millis(50);

/// Node settings of volumes.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Parent of memory emptyDirs: a directory on a tmpfs that the node owns. Made when first needed.
    pub memory_root: PathBuf,
    /// Prefixes that hostPath may use, besides the folder of the pod's manifest.
    pub host_path_allowed: Vec<PathBuf>,
    /// Paths that hostPath never gets whatever is allowed, nor what they are in: certificates, sockets. The root
    /// directory, the memory root, `/proc`, `/sys` and `/dev` are always among them.
    pub host_path_denied: Vec<PathBuf>,
}

/// Makes, refreshes and removes the volumes of pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct VolumeManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: VolumeConfig,
    state: StateStore,
    objects: ObjectStore,
    /// Which pods of this node have which persistent volume.
    users: Mutex<HashMap<String, HashSet<PodUid>>>,
    /// Where the claims of pods are, by volume.
    places: Mutex<HashMap<PodUid, HashMap<String, Place>>>,
    csi: Csi,
    /// Who asks for what no guest has asked for.
    unasked: Semaphore,
}

/// Where the volume of a claim is.
#[derive(Debug, Clone)]
enum Place {
    /// A directory of this node.
    Directory(PathBuf),
    /// A driver's, under the name of its PersistentVolume.
    Driver(String),
}

/// What setup needs to know about one pod.
#[derive(Debug, Clone, Copy)]
pub struct VolumeContext<'a> {
    /// Its UID.
    pub uid: &'a PodUid,
    /// Whose objects it sees.
    pub origin: ObjectOrigin,
    /// The folder of its manifest: hostPath may point there. `None` for a pod of an API server.
    pub manifest_dir: Option<&'a Path>,
    /// Volumes whose content is still to come ([`VolumeManager::content`]): they are not refreshed.
    pub pending: &'a [String],
    /// The pod, defaults applied, and the values of its fields for downward API files.
    pub downward: Downward<'a>,
}

impl<'a> VolumeContext<'a> {
    fn pod(&self) -> &'a Pod {
        self.downward.pod
    }

    /// Those of the pod's volumes that have all there is to them.
    fn volumes(self) -> impl Iterator<Item = &'a Volume> {
        volumes(self.downward.pod).filter(move |volume| !self.pending.contains(&volume.name))
    }

    fn namespace(&self) -> &str {
        self.pod().metadata.namespace.as_deref().unwrap_or("default")
    }

    fn fs_group(&self) -> Option<i64> {
        self.pod().spec.as_ref()?.security_context.as_ref()?.fs_group
    }

    fn group_change(&self) -> GroupChange {
        let context = self.pod().spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        match context.and_then(|context| context.fs_group_change_policy.as_deref()) {
            Some("OnRootMismatch") => GroupChange::OnRootMismatch,
            _ => GroupChange::Always,
        }
    }
}

/// The volumes that are made for a pod as a whole: those some container mounts, but for images, which are pulled for each
/// container.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let wanted = pod.spec.as_ref().map(mounted).unwrap_or_default();
    let all = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    all.filter(move |volume| wanted.contains(volume.name.as_str()) && volume.image.is_none())
}

impl VolumeManager {
    /// A manager over the node's state directory.
    #[must_use]
    pub fn new(mut config: VolumeConfig, state: StateStore, objects: ObjectStore) -> Self {
        let always = [state.root(), &config.memory_root, Path::new("/proc"), Path::new("/sys"), Path::new("/dev")];
        let always: Vec<PathBuf> = always.iter().map(|path| path.to_path_buf()).collect();
        config.host_path_denied.extend(always);
        let csi = Csi::new(state.root());
        let (users, places, unasked) = (Mutex::default(), Mutex::default(), Semaphore::new(UNASKED_AT_ONCE));
        Self { inner: Arc::new(Inner { config, state, objects, users, places, csi, unasked }) }
    }

    /// Makes all volumes that containers of a pod mount; idempotent, so that a restarted agent finds the same
    /// directories. Blocking.
    ///
    /// # Errors
    /// Every volume that cannot be made, in the order of the spec. What was made stays for the next try.
    pub fn setup(&self, context: VolumeContext<'_>, fetched: &Fetched) -> Result<Vec<VolumeSpec>, VolumeErrors> {
        let (mut made, mut failed) = (Vec::new(), Vec::new());
        for volume in volumes(context.downward.pod) {
            match self.setup_one(context, volume, fetched) {
                Ok(spec) => made.push(spec),
                Err(error) => failed.push(error),
            }
        }
        if failed.is_empty() { Ok(made) } else { Err(VolumeErrors(failed)) }
    }

    /// Asks the API server for what setup needs of it. A volume that the API server added to the pod on its own, for its
    /// token, becomes [`VolumeSource::Deferred`]: [`Self::content`] asks for that.
    ///
    /// Never fails: what was refused is told by the step after.
    pub async fn fetch_first(&self, context: VolumeContext<'_>) -> Fetched {
        self.fetch_of(context, None, Tokens::MayWait).await
    }

    /// Asks the API server for what refresh needs of it: everything, or what `changed` calls for.
    ///
    /// Never fails: what was refused is told by the step after.
    pub async fn fetch(&self, context: VolumeContext<'_>, changed: Option<&Change>) -> Fetched {
        self.fetch_of(context, changed, Tokens::Now).await
    }

    /// The content of a volume that is [`VolumeSource::Deferred`].
    ///
    /// # Errors
    /// The API server refused the token, or an object that it is made of is not there any more.
    pub async fn content(&self, context: VolumeContext<'_>, name: &str) -> Result<Projection, VolumeError> {
        let Some(volume) = volumes(context.downward.pod).find(|volume| volume.name == name) else {
            return Err(VolumeError::set_up(name, "the pod has no such volume"));
        };
        let mut fetched = Fetched::default();
        if let (ObjectOrigin::ApiServer, Some(api)) = (context.origin, self.inner.objects.api()) {
            fetched.fetch_parts(api, context, (volume, Tokens::Now)).await;
        }
        self.projection(context, volume, &fetched)
    }

    /// Waits until there is time for what no guest has asked for yet: a moment, and while `is_crowd`, though not for ever. For as
    /// long as the answer is kept only few others go on.
    pub async fn turn(&self, is_crowd: impl Fn() -> bool) -> Option<SemaphorePermit<'_>> {
        tokio::time::sleep(UNASKED_DELAY).await;
        let since = Instant::now();
        let turn = self.inner.unasked.acquire().await.ok()?;
        while is_crowd() && since.elapsed() < CROWD_PATIENCE {
            tokio::time::sleep(CROWD_CHECK).await;
        }
        Some(turn)
    }

    async fn fetch_of(&self, context: VolumeContext<'_>, changed: Option<&Change>, tokens: Tokens) -> Fetched {
        let mut fetched = Fetched::default();
        let (ObjectOrigin::ApiServer, Some(api)) = (context.origin, self.inner.objects.api()) else { return fetched };
        let concerned = |volume: &&Volume| changed.is_none_or(|change| is_concerned(context, volume, change));
        for volume in context.volumes().filter(concerned) {
            fetched.fetch_parts(api, context, (volume, tokens)).await;
            if changed.is_none() {
                fetched.fetch_claim(api, context, volume).await;
            }
        }
        fetched
    }

    /// Has CSI drivers mount the volumes that are theirs; [`Self::setup`] tells how that went. A driver takes its time.
    pub async fn mount(&self, context: VolumeContext<'_>, fetched: &mut Fetched) {
        let mounted = self.mount_all(context, fetched, Publishing::First).await;
        fetched.mounted.extend(mounted);
    }

    /// Whether drivers have volumes of this pod, once they are made.
    #[must_use]
    pub fn has_driver_volumes(&self, context: VolumeContext<'_>) -> bool {
        let places = self.inner.places.lock();
        let of_driver = |volume: &Volume| {
            let place = places.get(context.uid).and_then(|places| places.get(&volume.name));
            volume.csi.is_some() || matches!(place, Some(Place::Driver(_)))
        };
        volumes(context.downward.pod).any(of_driver)
    }

    /// Whether the pod has volumes to be refreshed every `syncFrequency`, as the kubelet mounts all of them again: those of
    /// ClusterTrustBundles, which are not watched.
    #[must_use]
    pub fn is_polled(&self, context: VolumeContext<'_>) -> bool {
        context.origin == ObjectOrigin::ApiServer && volumes(context.downward.pod).any(fetched::is_polled)
    }

    /// Has the drivers that want to be asked again and again (`requiresRepublish`) publish their volumes once more. What
    /// is mounted stays, whatever they answer.
    pub async fn republish(&self, context: VolumeContext<'_>, fetched: &Fetched) -> Vec<VolumeError> {
        let mounted = self.mount_all(context, fetched, Publishing::Again).await;
        mounted.into_iter().filter_map(|(_, result)| result.err()).collect()
    }

    async fn mount_all(
        &self,
        context: VolumeContext<'_>,
        fetched: &Fetched,
        publishing: Publishing,
    ) -> Vec<(String, Result<VolumeSpec, VolumeError>)> {
        let (ObjectOrigin::ApiServer, Some(api)) = (context.origin, self.inner.objects.api()) else {
            return Vec::new();
        };
        let mounts = volumes(context.downward.pod).filter_map(|volume| {
            let source = driver_source(volume, fetched)?;
            let mounted = self.mount_one(api, context, (volume, source), publishing);
            Some(async move { (volume.name.clone(), mounted.await) })
        });
        futures::future::join_all(mounts.collect::<Vec<_>>()).await
    }

    async fn mount_one(
        &self,
        api: &ApiObjects,
        context: VolumeContext<'_>,
        (volume, source): (&Volume, csi::Source<'_>),
        publishing: Publishing,
    ) -> Result<VolumeSpec, VolumeError> {
        let (access, group) = match source {
            csi::Source::Persistent { volume: persistent, access, .. } => {
                persistent::filesystem(&volume.name, persistent)?;
                self.take_into_use(context.uid, persistent)?;
                (access, persistent::group(persistent))
            }
            csi::Source::Inline(csi) if csi.read_only == Some(true) => (Access::ReadOnly, None),
            csi::Source::Inline(_) => (Access::ReadWrite, None),
        };
        let wanted = self.wanted(context, volume, source);
        let path = self.inner.csi.mount(api, &wanted, publishing).await?;
        if let csi::Source::Persistent { volume: persistent, .. } = source {
            self.note(context.uid, &volume.name, Place::Driver(persistent::name(persistent).to_owned()));
        }
        let source = VolumeSource::HostPath { path, hidden: Vec::new() };
        Ok(VolumeSpec { name: volume.name.clone(), source, access, group })
    }

    fn wanted<'a>(&self, context: VolumeContext<'a>, volume: &'a Volume, source: csi::Source<'a>) -> csi::Wanted<'a> {
        csi::Wanted {
            uid: context.uid,
            pod: context.pod(),
            node: &context.downward.node.name,
            pod_root: self.inner.state.paths(context.uid).root().to_owned(),
            volume: &volume.name,
            source,
            fs_group: context.fs_group(),
            change: context.group_change(),
            token_owner: fetched::owner(context),
        }
    }

    /// The CSI drivers of this node.
    #[must_use]
    pub fn csi(&self) -> &Csi {
        &self.inner.csi
    }

    /// Registers CSI drivers until `stop`, and undoes what they mounted for pods that `is_known` does not know.
    pub async fn run(&self, is_known: impl Fn(&PodUid) -> bool + Send + Sync, stop: CancellationToken) {
        let forget = |uid: &PodUid| {
            if let Err(error) = self.inner.state.remove_pod(uid) {
                tracing::warn!(podUID = %uid, err = %error, "Could not remove the directory of a pod that is gone");
            }
        };
        self.inner.csi.run(is_known, forget, stop).await;
    }

    /// Has drivers undo what they mounted for a pod, until it is done. To come before [`Self::teardown`].
    pub async fn unmount(&self, uid: &PodUid) {
        let root = self.inner.state.paths(uid).root().to_owned();
        self.inner.csi.unmount(&root).await;
    }

    /// New content of the pod's projections that `changed` takes part in; of all of them when `None` (the pod's
    /// labels changed, or changes were missed). On an error the old content stays, as on the kubelet.
    #[must_use]
    pub fn refresh(
        &self,
        context: VolumeContext<'_>,
        changed: Option<&Change>,
        fetched: &Fetched,
    ) -> Vec<(String, Result<Projection, VolumeError>)> {
        context
            .volumes()
            .filter(|volume| payload::is_projection(volume))
            .filter(|volume| changed.is_none_or(|change| is_concerned(context, volume, change)))
            .map(|volume| (volume.name.clone(), self.projection(context, volume, fetched)))
            .collect()
    }

    /// The objects that the pod's volumes refer to; a change of one of them calls for [`Self::refresh`].
    #[must_use]
    pub fn references(&self, context: VolumeContext<'_>) -> BTreeSet<ObjectKey> {
        volumes(context.downward.pod).flat_map(|volume| payload::references(volume, context.namespace())).collect()
    }

    /// Removes the pod's memory volumes (the rest goes with [`StateStore::remove_pod`]) and forgets which persistent ones
    /// it had. Absence is fine. Blocking.
    ///
    /// # Errors
    /// The file system refused.
    pub fn teardown(&self, uid: &PodUid) -> std::io::Result<()> {
        self.inner.users.lock().retain(|_, users| {
            users.remove(uid);
            !users.is_empty()
        });
        self.inner.places.lock().remove(uid);
        empty_dir::remove_memory(&self.inner.config.memory_root, uid)
    }

    /// Pods that have memory volumes now; those that no record knows are to be torn down. Blocking.
    #[must_use]
    pub fn pods_with_memory(&self) -> Vec<PodUid> {
        empty_dir::memory_pods(&self.inner.config.memory_root)
    }

    fn setup_one(
        &self,
        context: VolumeContext<'_>,
        volume: &Volume,
        fetched: &Fetched,
    ) -> Result<VolumeSpec, VolumeError> {
        let fail = |reason: String| VolumeError::set_up(&volume.name, reason);
        if let Some(mounted) = fetched.mounted.get(&volume.name) {
            return mounted.clone();
        }
        let source = match source_types(volume).as_slice() {
            ["emptyDir"] => self.empty_dir(context, volume).map_err(fail)?,
            ["hostPath"] => self.host_path(context, volume).map_err(fail)?,
            ["configMap" | "secret" | "projected" | "downwardAPI"] => {
                match (self.projection(context, volume, fetched)?, fetched.is_deferred(&volume.name)) {
                    (content, false) => VolumeSource::Projection(content),
                    // All but the token is there.
                    (_, true) => VolumeSource::Deferred,
                }
            }
            ["persistentVolumeClaim" | "ephemeral"] => match fetched.claim(&volume.name) {
                Some(claim) => {
                    return self.persistent(context, volume, claim?);
                }
                None => return Err(fail("claims come from an API server, which this pod has none of".to_owned())),
            },
            ["csi"] => return Err(fail("CSI volumes need an API server, which this pod has none of".to_owned())),
            [other] => return Err(fail(format!("volumes of type {other} are not supported by this node"))),
            [] => return Err(fail("no volume plugin matched: the volume has no source".to_owned())),
            several => return Err(fail(format!("the volume has {} sources: {}", several.len(), several.join(", ")))),
        };
        Ok(VolumeSpec { name: volume.name.clone(), source, access: Access::ReadWrite, group: None })
    }

    fn projection(
        &self,
        context: VolumeContext<'_>,
        volume: &Volume,
        fetched: &Fetched,
    ) -> Result<Projection, VolumeError> {
        payload::projection(context, volume, &self.inner.objects, fetched)
            .map_err(|reason| VolumeError::set_up(&volume.name, reason))
    }

    fn empty_dir(&self, context: VolumeContext<'_>, volume: &Volume) -> Result<VolumeSource, String> {
        let Some(source) = &volume.empty_dir else { return Err("the volume has no emptyDir".to_owned()) };
        let allocatable = u64::try_from(context.downward.node.allocatable_memory_bytes).unwrap_or(u64::MAX);
        empty_dir::setup(empty_dir::Request {
            state: &self.inner.state,
            memory_root: &self.inner.config.memory_root,
            uid: context.uid,
            volume: &volume.name,
            source,
            fs_group: context.fs_group(),
            memory: context.pod().spec.as_ref().and_then(memory_limit).unwrap_or(u64::MAX).min(allocatable),
        })
    }

    fn host_path(&self, context: VolumeContext<'_>, volume: &Volume) -> Result<VolumeSource, String> {
        let Some(source) = &volume.host_path else { return Err("the volume has no hostPath".to_owned()) };
        host_path::setup(source, &self.host_path_policy(context))
            .map(|host_path::Shown { path, hidden }| VolumeSource::HostPath { path, hidden })
    }

    fn host_path_policy<'a>(&'a self, context: VolumeContext<'a>) -> host_path::Policy<'a> {
        let allowed = self.inner.config.host_path_allowed.iter().map(PathBuf::as_path);
        host_path::Policy {
            allowed: allowed.chain(context.manifest_dir).collect(),
            denied: &self.inner.config.host_path_denied,
        }
    }

    fn persistent(
        &self,
        context: VolumeContext<'_>,
        volume: &Volume,
        given: &PersistentVolume,
    ) -> Result<VolumeSpec, VolumeError> {
        let spec = persistent::filesystem(&volume.name, given)?;
        let name = persistent::name(given);
        self.take_into_use(context.uid, given)?;
        let directory = persistent::setup(given, spec, &self.host_path_policy(context))?;
        let read_only = volume.persistent_volume_claim.as_ref().and_then(|claim| claim.read_only) == Some(true);
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        if let Some(group) = context.fs_group().and_then(|group| u32::try_from(group).ok())
            && directory.takes_group
            && !read_only
            && self.is_only_user(context.uid, name)
        {
            vfs::give_to_group(&directory.path, group, access, context.group_change())
                .map_err(|error| VolumeError::set_up(name, error.to_string()))?;
        }
        if directory.takes_group {
            self.note(context.uid, &volume.name, Place::Directory(directory.path.clone()));
        }
        let source = VolumeSource::HostPath { path: directory.path, hidden: directory.hidden };
        Ok(VolumeSpec { name: volume.name.clone(), source, access, group: persistent::group(given) })
    }

    fn note(&self, uid: &PodUid, volume: &str, place: Place) {
        self.inner.places.lock().entry(uid.clone()).or_default().insert(volume.to_owned(), place);
    }

    /// How full the volume of a claim is: as its driver says, or the file system a local volume is on. As at the kubelet,
    /// of a hostPath nothing is said.
    pub async fn fullness(&self, uid: &PodUid, volume: &str) -> Option<Fullness> {
        let place = self.inner.places.lock().get(uid)?.get(volume)?.clone();
        match place {
            Place::Driver(name) => {
                let root = self.inner.state.paths(uid).root().to_owned();
                self.inner.csi.fullness(&root, &name).await
            }
            Place::Directory(path) => {
                let told = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)).await.ok()?.ok()?;
                let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
                let used = told.f_blocks.saturating_sub(told.f_bfree);
                Some(Fullness {
                    bytes: (bytes(told.f_bavail), bytes(told.f_blocks), bytes(used)),
                    inodes: (told.f_ffree, told.f_files, told.f_files.saturating_sub(told.f_ffree)),
                })
            }
        }
    }

    /// Notes that a pod has a persistent volume, unless another has it for itself.
    fn take_into_use(&self, uid: &PodUid, given: &PersistentVolume) -> Result<(), VolumeError> {
        let name = persistent::name(given);
        let mut users = self.inner.users.lock();
        let users = users.entry(name.to_owned()).or_default();
        if persistent::is_for_one_pod(given) && users.iter().any(|other| other != uid) {
            let reason = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(VolumeError::set_up(name, reason));
        }
        users.insert(uid.clone());
        Ok(())
    }

    fn is_only_user(&self, uid: &PodUid, name: &str) -> bool {
        self.inner.users.lock().get(name).is_none_or(|users| users.iter().all(|user| user == uid))
    }
}

/// Where a driver's volume is described; none for other volumes.
fn driver_source<'a>(volume: &'a Volume, fetched: &'a Fetched) -> Option<csi::Source<'a>> {
    if let Some(csi) = &volume.csi {
        return Some(csi::Source::Inline(csi));
    }
    let persistent = fetched.claim(&volume.name)?.ok()?;
    let csi = persistent.spec.as_ref()?.csi.as_ref()?;
    let claim = volume.persistent_volume_claim.as_ref();
    let read_only = claim.and_then(|claim| claim.read_only) == Some(true);
    let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
    Some(csi::Source::Persistent { volume: persistent, csi, access })
}

/// Whether a volume is made from what changed.
fn is_concerned(context: VolumeContext<'_>, volume: &Volume, change: &Change) -> bool {
    match change {
        Change::Object(origin, key) => {
            *origin == context.origin && payload::references(volume, context.namespace()).contains(key)
        }
        Change::Tokens(_) => fetched::is_concerned(volume, change),
        Change::Services => false,
    }
}
