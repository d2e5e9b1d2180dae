//! Static pods from a directory of manifests, or from one file.
//!
//! In: the files, when inotify says so and every `fileCheckFrequency`. Out: [`PodUpdate`]s. Ignores files whose name
//! begins with a dot, and all but `.yaml`, `.yml` and `.json`; follows symlinks, not subdirectories.
//!
//! One file never disturbs another. A file that becomes bad keeps its last good pods: the kubelet keeps them until its
//! next listing and drops them then; a half-written manifest is no reason to end a pod, so here they stay until the
//! file is right again or gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::ids::{PodRef, PodUid};
use crate::objects::{ObjectSet, ObjectStore};
use crate::pod::static_pod::{self, Origin};

use super::manifest::{self, Manifest};
use super::watch::{Changes, Extent, watch};
use super::{DesiredPod, PodSource, PodUpdate, StaticPod};

/// Changed files that are read where we are. Asking another thread and being asked back takes ten times as long as reading
/// one small file; a long list, or a directory, goes there.
const FEW: usize = 4;

/// Files looked at; more in one directory is a mistake.
const MAX_FILES: usize = 10_000;

/// Where manifests are and for whom.
#[derive(Debug, Clone)]
pub struct FileSourceConfig {
    /// A directory, or one file. May come and go.
    pub path: PathBuf,
    /// The node's name, appended to the pods'.
    pub node_name: String,
    /// How often to look without word of a change.
    pub period: Duration,
}

/// Reads manifests and tells what changed.
#[derive(Debug)]
pub struct FileSource {
    config: FileSourceConfig,
    clock: Clock,
    objects: ObjectStore,
    files: BTreeMap<PathBuf, FileState>,
    /// How many pods of all files have a name, and a UID: of two, only one may run.
    claims: (HashMap<PodRef, usize>, HashMap<PodUid, usize>),
    /// What changed since it was told.
    touched: Touched,
    /// What was told to be desired.
    told: BTreeMap<PodUid, Arc<StaticPod>>,
    /// Pods left out because another has their name, already told.
    duplicates: BTreeSet<PodUid>,
    /// What is wrong with files (or the directory) now.
    problems: BTreeMap<PathBuf, String>,
}

/// One file as it was last read.
#[derive(Debug, Default)]
struct FileState {
    /// Of the bytes last read, good or bad.
    sum: Option<[u8; 32]>,
    /// The last good pods.
    pods: Vec<Arc<StaticPod>>,
}

/// Pods of files that were read again or are gone.
#[derive(Debug, Default)]
struct Touched {
    /// What each is now.
    pods: BTreeMap<PodUid, Option<Arc<StaticPod>>>,
    /// Two of them, or one and another, have one name.
    contested: bool,
}

impl FileSource {
    /// A source that has read nothing yet. ConfigMaps and Secrets of the manifests go to `objects`.
    #[must_use]
    pub fn new(config: FileSourceConfig, clock: Clock, objects: ObjectStore) -> Self {
        Self {
            config,
            clock,
            objects,
            files: BTreeMap::new(),
            claims: Default::default(),
            touched: Touched::default(),
            told: BTreeMap::new(),
            duplicates: BTreeSet::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Reads and watches until cancelled, or until nobody listens. `updates` is bounded by its maker: a full queue
    /// makes this wait, and files are read again afterwards.
    pub async fn run(mut self, updates: mpsc::Sender<PodUpdate>, shutdown: CancellationToken) {
        let news = Arc::new(Changes::default());
        let (mut watcher, mut watched) = (None, None);
        let mut synced = false;
        let mut tick = tokio::time::interval(self.config.period.max(Duration::from_millis(10)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut extent = tokio::select! {
                // All arms only wait: dropping them loses nothing but a tick.
                () = shutdown.cancelled() => return,
                _ = tick.tick() => Extent::Everything,
                extent = news.next() => extent,
            };
            // A directory that was replaced is watched anew, before it is read.
            let now = identity(&self.config.path);
            if watched != now || watcher.is_none() {
                watcher = watch(&self.config.path, news.clone());
                watched = now;
                extent = Extent::Everything;
            }
            let mut changes = match extent {
                Extent::Files(paths) if paths.len() <= FEW && !self.is_swap(&paths) => self.scan_files(paths),
                extent => {
                    let scan = tokio::task::spawn_blocking(move || {
                        let changes = match extent {
                            Extent::Everything => self.scan(),
                            Extent::Files(paths) => self.scan_files(paths),
                        };
                        (self, changes)
                    });
                    let Ok((source, changes)) = scan.await else { return };
                    self = source;
                    changes
                }
            };
            if !synced {
                changes.push(PodUpdate::Synced(PodSource::Manifest));
                synced = true;
            }
            for change in changes {
                if updates.send(change).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Reads what changed since the last time. Blocking.
    pub fn scan(&mut self) -> Vec<PodUpdate> {
        let mut changes = Vec::new();
        let found = match self.list() {
            Ok(found) => found,
            Err(error) => {
                let path = self.config.path.clone();
                self.problem(&path, format!("{}: unable to read config path: {error}", path.display()), &mut changes);
                return changes;
            }
        };
        self.problems.remove(&self.config.path);
        let is_gone = |path: &&PathBuf| found.binary_search(path).is_err();
        let gone: Vec<PathBuf> = self.files.keys().filter(is_gone).cloned().collect();
        for path in gone {
            self.forget(&path);
        }
        for path in found {
            self.read(&path, &mut changes);
        }
        self.tell(&mut changes);
        changes
    }

    /// Looks at these files alone: with a thousand manifests, one new file must not cost reading them all. Blocking.
    pub fn scan_files(&mut self, paths: BTreeSet<PathBuf>) -> Vec<PodUpdate> {
        if self.is_swap(&paths) {
            return self.scan();
        }
        let named = paths.into_iter().filter(|path| *path == self.config.path || self.is_in_directory(path));
        let named: Vec<PathBuf> = named.collect();
        let mut changes = Vec::new();
        if named.is_empty() {
            return changes;
        }
        for path in named {
            let is_file = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
            match (is_file, self.files.contains_key(&path)) {
                (true, known) if known || self.files.len() < MAX_FILES => self.read(&path, &mut changes),
                (true, _) => return self.scan(),
                (false, _) => self.forget(&path),
            }
        }
        self.tell(&mut changes);
        changes
    }

    /// A directory filled as the kubelet fills volumes is swapped as a whole, by a link of such a name.
    fn is_swap(&self, paths: &BTreeSet<PathBuf>) -> bool {
        let is_link = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        paths.iter().any(|path| is_link(path))
    }

    fn is_in_directory(&self, path: &Path) -> bool {
        is_manifest(path) && path.parent() == Some(self.config.path.as_path())
    }

    /// A file that is gone.
    fn forget(&mut self, path: &Path) {
        self.problems.remove(path);
        if self.files.contains_key(path) {
            self.set_pods(path, Vec::new());
            self.files.remove(path);
            self.objects.replace(&path.display().to_string(), ObjectSet::default());
        }
    }

    /// The manifest files there are. An absent directory is an empty one, as for the kubelet.
    /// The manifests there are, sorted.
    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let path = &self.config.path;
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if !metadata.is_dir() {
            return Ok(vec![path.clone()]);
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            if is_manifest(&path) && std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                found.push(path);
            }
        }
        // The order decides which of two files with one pod is right: it must not depend on the disk.
        found.sort();
        found.truncate(MAX_FILES);
        Ok(found)
    }

    fn read(&mut self, path: &Path, changes: &mut Vec<PodUpdate>) {
        let bytes = match read_bounded(path) {
            Ok(bytes) => bytes,
            // Removed since it was listed: the next look sees that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.problem(path, format!("{}: {error}", path.display()), changes),
        };
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        let state = self.files.entry(path.to_owned()).or_default();
        if state.sum == Some(sum) {
            return;
        }
        state.sum = Some(sum);
        let read = manifest::parse(path, &bytes).map_err(|error| error.to_string());
        match read.and_then(|manifest| self.identify(path, manifest, changes)) {
            Ok(pods) => {
                self.problems.remove(path);
                self.set_pods(path, pods);
            }
            Err(message) => self.problem(path, message, changes),
        }
    }

    /// Gives pods their identity and objects to the store.
    fn identify(
        &self,
        path: &Path,
        manifest: Manifest,
        changes: &mut Vec<PodUpdate>,
    ) -> Result<Vec<Arc<StaticPod>>, String> {
        let origin = Origin { node: &self.config.node_name, path: &path.display().to_string(), seen: self.clock.now() };
        let mut pods = Vec::with_capacity(manifest.pods.len());
        for mut pod in manifest.pods {
            let uid = static_pod::identify(&mut pod, origin).map_err(|error| format!("{}: {error}", path.display()))?;
            pods.push(Arc::new(StaticPod { uid, pod: Arc::new(pod), manifest: path.to_owned() }));
        }
        let told = |message| PodUpdate::Warning { manifest: path.to_owned(), message };
        changes.extend(manifest.warnings.into_iter().map(told));
        let conflicts = self.objects.replace(&path.display().to_string(), manifest.objects);
        changes.extend(conflicts.into_iter().map(|conflict| told(format!("{}: {conflict}", path.display()))));
        Ok(pods)
    }

    /// Gives a file its pods, and notes whose they were and are.
    fn set_pods(&mut self, path: &Path, pods: Vec<Arc<StaticPod>>) {
        let file = self.files.entry(path.to_owned()).or_default();
        let before = std::mem::replace(&mut file.pods, pods);
        let (names, uids) = &mut self.claims;
        for pod in &before {
            let others = release(names, &pod.reference()) + release(uids, &pod.uid);
            self.touched.contested |= others > 0;
            self.touched.pods.insert(pod.uid.clone(), None);
        }
        for pod in &file.pods {
            let others = claim(names, pod.reference()) + claim(uids, pod.uid.clone());
            self.touched.contested |= others > 0;
            self.touched.pods.insert(pod.uid.clone(), Some(pod.clone()));
        }
    }

    /// Compares what is desired with what was told: pods of files that were touched, or all of them when names are
    /// contested. With ten thousand pods, one new one must not cost looking at all.
    fn tell(&mut self, changes: &mut Vec<PodUpdate>) {
        let touched = std::mem::take(&mut self.touched);
        if !touched.contested && self.duplicates.is_empty() {
            return self.tell_of(touched.pods, changes);
        }
        let (desired, duplicates) = self.desired();
        for (uid, (manifest, message)) in &duplicates {
            if !self.duplicates.contains(uid) {
                changes.push(PodUpdate::Warning { manifest: manifest.clone(), message: message.clone() });
            }
        }
        self.duplicates = duplicates.into_keys().collect();
        let gone = self.told.keys().filter(|uid| !desired.contains_key(uid)).map(|uid| (uid.clone(), None));
        let all = gone.chain(desired.iter().map(|(uid, pod)| (uid.clone(), Some(pod.clone())))).collect();
        self.tell_of(all, changes);
    }

    /// Removals first: a changed pod's successor has its name.
    fn tell_of(&mut self, pods: BTreeMap<PodUid, Option<Arc<StaticPod>>>, changes: &mut Vec<PodUpdate>) {
        for uid in pods.iter().filter(|(_, pod)| pod.is_none()).map(|(uid, _)| uid) {
            if let Some(pod) = self.told.remove(uid) {
                let (uid, pod, source) = (uid.clone(), pod.reference(), PodSource::Manifest);
                changes.push(PodUpdate::Remove { uid, pod, source });
            }
        }
        for (uid, pod) in pods.into_iter().filter_map(|(uid, pod)| Some((uid, pod?))) {
            let news = match self.told.get(&uid) {
                None => {
                    changes.push(PodUpdate::Add(Box::new(DesiredPod::from(&*pod))));
                    pod
                }
                // The file was not read again.
                Some(before) if Arc::ptr_eq(&pod, before) => continue,
                Some(before) => {
                    // Reading it again is not seeing it for the first time.
                    let mut again = StaticPod::clone(&pod);
                    keep_seen(&mut again, before);
                    if again == **before {
                        continue;
                    }
                    let again = Arc::new(again);
                    changes.push(PodUpdate::Update(Box::new(DesiredPod::from(&*again))));
                    again
                }
            };
            self.told.insert(uid, news);
        }
    }

    /// The pods of all files, and those left out because an earlier one has their name (with what to say).
    fn desired(&self) -> (BTreeMap<PodUid, Arc<StaticPod>>, BTreeMap<PodUid, (PathBuf, String)>) {
        let (mut desired, mut duplicates) = (BTreeMap::new(), BTreeMap::new());
        let mut names: BTreeMap<PodRef, &Path> = BTreeMap::new();
        for pod in self.files.values().flat_map(|file| &file.pods) {
            let reference = pod.reference();
            let first = names.get(&reference).copied();
            if first.is_none() && !desired.contains_key(&pod.uid) {
                names.insert(reference, &pod.manifest);
                desired.insert(pod.uid.clone(), pod.clone());
                continue;
            }
            let by = first.unwrap_or(&pod.manifest).display();
            let message = format!("{}: pod {reference} is already defined by {by}", pod.manifest.display());
            duplicates.insert(pod.uid.clone(), (pod.manifest.clone(), message));
        }
        (desired, duplicates)
    }

    /// A problem is told once, not at every look.
    fn problem(&mut self, path: &Path, message: String, changes: &mut Vec<PodUpdate>) {
        if self.problems.get(path) != Some(&message) {
            self.problems.insert(path.to_owned(), message.clone());
            changes.push(PodUpdate::Problem { manifest: path.to_owned(), message });
        }
    }
}

/// Counts one more; gives how many there were before.
fn claim<K: Hash + Eq>(claims: &mut HashMap<K, usize>, key: K) -> usize {
    let count = claims.entry(key).or_default();
    *count += 1;
    *count - 1
}

/// Counts one less; gives how many are left.
fn release<K: Hash + Eq>(claims: &mut HashMap<K, usize>, key: &K) -> usize {
    let Some(count) = claims.get_mut(key) else { return 0 };
    *count -= 1;
    let left = *count;
    if left == 0 {
        claims.remove(key);
    }
    left
}

fn keep_seen(pod: &mut StaticPod, before: &StaticPod) {
    let seen = before.pod.metadata.annotations.as_ref().and_then(|a| a.get(static_pod::SEEN_ANNOTATION)).cloned();
    if let Some((seen, annotations)) = seen.zip(Arc::make_mut(&mut pod.pod).metadata.annotations.as_mut()) {
        annotations.insert(static_pod::SEEN_ANNOTATION.to_owned(), seen);
    }
}

fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    !name.starts_with('.') && matches!(extension, "yaml" | "yml" | "json")
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    // One more than allowed, so that the parser sees that it's too much.
    let most = manifest::MAX_BYTES as u64 + 1;
    // A guess at the size saves growing into it: as a rule two reads do.
    let size = file.metadata()?.len().min(most);
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Which directory (or file) a path leads to now.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
