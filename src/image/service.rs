//! The image service: what the worker, the agent and the commands call.
//!
//! In: names, policies, credentials, paths. Out: [`Image`]s, or errors in the kubelet's words. Puts
//! reference, policy, back-off, registry and store together; each of them decides its own part. Pulling is
//! in `pull`, files in and out in `transfer`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ids::Digest;
use crate::state::{Faults, NoFaults};

use super::backoff::PullBackoff;
use super::busybox::ToolboxImages;
use super::complete::blocking;
use super::credential::Credential;
use super::error::{ImageError, PullError};
use super::flight::{FlightKey, Flights};
use super::limits::ImageLimits;
use super::policy::{Decision, Presence, PullPolicy};
use super::pull::Puller;
use super::reference::ImageRef;
use super::registry::RegistryConfig;
use super::store::{GcPolicy, ImageRecord, Store, StoreError, plan_collection};
use super::types::{DiskUsage, Image, ImageSummary, Progress, PullProgress, Removed};

/// Settings of the [`ImageService`].
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// The store is `<root_dir>/images`.
    pub root_dir: PathBuf,
    /// containerd's `certs.d` directories; the first that knows a registry decides.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker configuration files or directories of the node itself, read anew for each pull.
    pub docker_configs: Vec<PathBuf>,
    /// Names that mean the node's toolbox, if it has one.
    pub toolbox: ToolboxImages,
    /// Bounds on images.
    pub limits: ImageLimits,
    /// Where tests make the disk fail.
    pub faults: Arc<dyn Faults>,
}

impl ImageConfig {
    /// The usual places: `/etc/wasilet/certs.d`, then containerd's and Docker's; the credentials of this
    /// root directory, of the user (`$DOCKER_CONFIG`, `$REGISTRY_AUTH_FILE`, `~/.docker`) and of the kubelet.
    #[must_use]
    pub fn new(root_dir: impl Into<PathBuf>) -> Self {
        let root_dir = root_dir.into();
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let mut docker_configs = vec![root_dir.join("config.json")];
        docker_configs.extend(variable("REGISTRY_AUTH_FILE"));
        docker_configs.extend(variable("DOCKER_CONFIG"));
        docker_configs.extend(variable("HOME").map(|home| home.join(".docker")));
        docker_configs.extend(variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
        docker_configs.push(PathBuf::from("/var/lib/kubelet/config.json"));
        let mut hosts_dirs: Vec<PathBuf> = variable("WASILET_CERTS_DIR").into_iter().collect();
        hosts_dirs
            .extend(["/etc/wasilet/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
        Self {
            root_dir,
            hosts_dirs,
            docker_configs,
            toolbox: ToolboxImages::default(),
            limits: ImageLimits::default(),
            faults: Arc::new(NoFaults),
        }
    }
}

/// Everything about images on this node. Shared as an `Arc`; all calls take `&self`.
#[derive(Debug)]
pub struct ImageService {
    pub(super) store: Arc<Store>,
    pub(super) registry: RegistryConfig,
    puller: Arc<Puller>,
    toolbox: ToolboxImages,
    flights: Flights,
    back_off: Mutex<PullBackoff>,
}

/// Which images [`ImageService::prune`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneScope {
    /// Those without a name, and what interrupted pulls left.
    Dangling,
    /// All that no pod uses.
    Unused,
}

impl ImageService {
    /// Opens (and makes) the store. Blocking, and quick.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub fn open(config: ImageConfig) -> Result<Arc<Self>, ImageError> {
        let store = Arc::new(Store::open(config.root_dir.join("images"), config.limits, config.faults)?);
        let registry = RegistryConfig { hosts_dirs: config.hosts_dirs, docker_configs: config.docker_configs };
        let puller = Arc::new(Puller::new(Arc::clone(&store), registry.clone()));
        Ok(Arc::new(Self {
            store,
            registry,
            puller,
            toolbox: config.toolbox,
            flights: Flights::default(),
            back_off: Mutex::default(),
        }))
    }

    /// Makes the image `name` ready, as the kubelet's image manager: by policy, once for all who ask, with
    /// back-off after failures. `credentials` are those of the pod's imagePullSecrets, best first.
    ///
    /// # Errors
    /// [`PullError`]; its [`reason`](PullError::reason) and [`message`](PullError::message) are for the
    /// container's status.
    pub async fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        credentials: &[Credential],
        progress: Progress,
    ) -> Result<Image, Arc<PullError>> {
        let image: ImageRef = name.parse().map_err(|error| Arc::new(PullError::InvalidName(error)))?;
        let here = self
            .find(&image)
            .await
            .map_err(|source| Arc::new(PullError::Inspect { image: name.to_owned(), source }))?;
        if here.is_none() && self.toolbox.contains(&image) {
            return self.pull(&image, credentials, progress).await; // No registry is asked, whatever the policy says.
        }
        let presence = if here.is_some() { Presence::Present } else { Presence::Absent };
        match (policy.decide(presence), here) {
            (Decision::UseLocal, Some(image)) => {
                self.store.touch(&image.manifest_digest);
                progress(PullProgress::AlreadyPresent);
                return Ok(image);
            }
            (Decision::UseLocal | Decision::Refuse, _) => {
                return Err(Arc::new(PullError::NeverPull { image: name.to_owned() }));
            }
            (Decision::Pull, _) => {}
        }
        if let Some(waiting) = self.back_off.lock().waiting(&image, Instant::now()) {
            return Err(Arc::new(PullError::BackOff {
                image: name.to_owned(),
                remaining: waiting.remaining,
                last_failure: waiting.last_failure,
            }));
        }
        let result = self.pull(&image, credentials, progress).await;
        let mut back_off = self.back_off.lock();
        match &result {
            Ok(_) => back_off.succeeded(&image),
            // Of many who waited for one pull, each sees its failure; it counts once.
            Err(error) if back_off.waiting(&image, Instant::now()).is_none() => {
                back_off.failed(&image, format!("{}: {}", error.reason(), error.message()), Instant::now());
            }
            Err(_) => {}
        }
        result
    }

    /// Whether `image` is a name of the node's toolbox, which no registry is asked for.
    #[must_use]
    pub fn is_toolbox(&self, image: &ImageRef) -> bool {
        self.toolbox.contains(image)
    }

    /// Pulls `image` now, whatever is here and however often it failed: the command.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn pull(
        &self,
        image: &ImageRef,
        credentials: &[Credential],
        progress: Progress,
    ) -> Result<Image, Arc<PullError>> {
        if self.toolbox.contains(image) {
            return self.toolbox_image(image, &progress).await.map_err(Arc::new);
        }
        let key = FlightKey { image: image.clone(), credentials: credentials.to_vec() };
        let (puller, image, credentials) = (Arc::clone(&self.puller), image.clone(), credentials.to_vec());
        let start = move |tell: Progress| async move { puller.pull(&image, &credentials, &tell).await };
        self.flights.join(key, progress, start).await
    }

    async fn find(&self, image: &ImageRef) -> Result<Option<Image>, StoreError> {
        if let Some(known) = self.store.lookup_known(image) {
            return Ok(Some(known));
        }
        let (store, image) = (Arc::clone(&self.store), image.clone());
        blocking(move || store.lookup_and_know(&image)).await
    }

    /// Every image, newest last.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let store = Arc::clone(&self.store);
        blocking(move || {
            let mut names = store.names_by_manifest()?;
            let shown = |record: ImageRecord| summary(&mut names, store.is_pinned(&record.manifest), record);
            Ok(store.records()?.into_iter().map(shown).collect())
        })
        .await
    }

    /// An image by name, or by the first digits of its id or digest.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Ambiguous`], [`ImageError::Store`].
    pub async fn inspect(&self, name_or_id: &str) -> Result<Image, ImageError> {
        let (store, asked) = (Arc::clone(&self.store), name_or_id.to_owned());
        blocking(move || resolve(&store, &asked).map(|(image, _)| image)).await
    }

    /// Takes a name away, and the image with its last name; by id, all its names. What is `in_use` (by
    /// manifest digest) stays.
    ///
    /// # Errors
    /// [`ImageError::InUse`], [`ImageError::NotFound`], [`ImageError::Ambiguous`], [`ImageError::Store`].
    pub async fn remove(&self, name_or_id: &str, in_use: &HashSet<Digest>) -> Result<Removed, ImageError> {
        let (store, asked, in_use) = (Arc::clone(&self.store), name_or_id.to_owned(), in_use.clone());
        blocking(move || {
            let (image, by) = resolve(&store, &asked)?;
            let names = store.names_by_manifest()?.remove(&image.manifest_digest).unwrap_or_default();
            // A used image keeps its last name, or nothing would tell which image the pod runs.
            let last = by == FoundBy::Id || names.len() <= 1;
            if last && in_use.contains(&image.manifest_digest) {
                return Err(ImageError::InUse { image: asked });
            }
            Ok(match by {
                FoundBy::Name => store.remove_name(&image.reference, &in_use)?,
                FoundBy::Id => store.remove_images(&HashSet::from([image.manifest_digest]))?,
            })
        })
        .await
    }

    /// Removes images nobody needs, never one `in_use` (by manifest digest), one used since `as_of`, when that was known, or a
    /// pinned one.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn prune(
        &self,
        scope: PruneScope,
        in_use: &HashSet<Digest>,
        as_of: SystemTime,
    ) -> Result<Removed, ImageError> {
        let (store, in_use) = (Arc::clone(&self.store), in_use.clone());
        blocking(move || {
            let names = store.names_by_manifest()?;
            let goes = |record: &ImageRecord| match scope {
                PruneScope::Unused => true,
                PruneScope::Dangling => !names.contains_key(&record.manifest),
            };
            let stays = |record: &ImageRecord| {
                let manifest = &record.manifest;
                in_use.contains(manifest) || store.is_pinned(manifest) || store.last_used(record) > as_of
            };
            let records = store.records()?.into_iter().filter(|record| !stays(record) && goes(record));
            let manifests: HashSet<Digest> = records.map(|record| record.manifest).collect();
            let mut removed = store.remove_images(&manifests)?;
            removed.freed_bytes += store.remove_leftovers()?;
            Ok(removed)
        })
        .await
    }

    /// Frees disk as the kubelet's image garbage collection: above the high threshold, the longest unused
    /// go until the low one is reached, never one `in_use` (by manifest digest), one used since `as_of`, when that was known,
    /// or a pinned one.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn collect_garbage(
        &self,
        policy: GcPolicy,
        in_use: &HashSet<Digest>,
        as_of: SystemTime,
    ) -> Result<Removed, ImageError> {
        let (store, in_use) = (Arc::clone(&self.store), in_use.clone());
        blocking(move || {
            let mut candidates = store.candidates()?;
            candidates.retain(|candidate| !store.is_pinned(&candidate.manifest));
            let plan = plan_collection(policy, store.disk_usage()?, candidates, &in_use, as_of);
            if plan.remove.is_empty() {
                return Ok(Removed::default());
            }
            let removed = store.remove_images(&plan.remove.iter().cloned().collect())?;
            if removed.freed_bytes < plan.wanted_bytes {
                tracing::warn!(
                    wanted_bytes = plan.wanted_bytes,
                    freed_bytes = removed.freed_bytes,
                    "Freed less disk than wanted, the rest is in use or not ours"
                );
            }
            Ok(removed)
        })
        .await
    }

    /// Keeps an image from every collection and [`Self::prune`], until it is removed by name.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn pin(&self, image: &Image) -> Result<(), ImageError> {
        let (store, manifest) = (Arc::clone(&self.store), image.manifest_digest.clone());
        blocking(move || Ok(store.pin(&manifest)?)).await
    }

    /// What images take on the disk.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn disk_usage(&self) -> Result<DiskUsage, ImageError> {
        let store = Arc::clone(&self.store);
        blocking(move || Ok(store.disk_usage()?)).await
    }

    /// Reads every blob of an image through and compares it with its digest.
    ///
    /// # Errors
    /// [`ImageError::Store`] naming the blob that differs.
    pub async fn verify(&self, image: &Image) -> Result<(), ImageError> {
        let (store, manifest) = (Arc::clone(&self.store), image.manifest_digest.clone());
        blocking(move || {
            let record = store.record(&manifest)?;
            let record = record.ok_or_else(|| ImageError::NotFound { image: manifest.to_string() })?;
            record.blobs.iter().try_for_each(|(digest, _)| Ok(store.verify_blob(digest)?))
        })
        .await
    }
}

fn summary(
    names: &mut std::collections::BTreeMap<Digest, Vec<ImageRef>>,
    pinned: bool,
    record: ImageRecord,
) -> ImageSummary {
    ImageSummary {
        names: names.remove(&record.manifest).unwrap_or_default(),
        size: record.size(),
        kind: record.kind(),
        manifest_digest: record.manifest,
        image_id: record.image_id,
        stored_at: record.stored_at,
        pinned,
    }
}

/// How an image was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FoundBy {
    Name,
    Id,
}

/// Finds an image by name, else by digits. Blocking.
fn resolve(store: &Store, asked: &str) -> Result<(Image, FoundBy), ImageError> {
    /// Fewer digits would be somebody's typing error, not an id.
    const MIN_DIGITS: usize = 4;
    if let Ok(name) = asked.parse::<ImageRef>()
        && let Some(image) = store.lookup(&name)?
    {
        return Ok((image, FoundBy::Name));
    }
    let digits = asked.strip_prefix("sha256:").unwrap_or(asked);
    let not_found = || ImageError::NotFound { image: asked.to_owned() };
    if digits.len() < MIN_DIGITS || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Err(not_found());
    }
    let matches =
        |record: &ImageRecord| record.image_id.hex().starts_with(digits) || record.manifest.hex().starts_with(digits);
    let mut found = store.records()?.into_iter().filter(matches);
    let record = found.next().ok_or_else(not_found)?;
    if found.next().is_some() {
        return Err(ImageError::Ambiguous { prefix: asked.to_owned() });
    }
    let named = store.names()?.into_iter().find(|(_, entry)| entry.manifest == record.manifest);
    let (name, repo_digest) = match named {
        Some((name, entry)) => (name, entry.repo_digest),
        None => (nameless(&record.manifest), record.manifest.clone()),
    };
    Ok((store.image(&name, &repo_digest, &record), FoundBy::Id))
}

/// A name for an image that has lost its own.
fn nameless(manifest: &Digest) -> ImageRef {
    let none: ImageRef = "localhost/none".parse().expect("it is a valid name");
    none.at_digest(manifest.clone())
}
