//! What is removed, and when: by name, by being unused, by a full disk.
//!
//! In: which images pods use, thresholds, the time. Out: what was removed. Deciding is
//! [`plan_collection`], pure; removing goes names, records, content, so that a crash leaves only content
//! that the next run finds unreferenced. What a pod uses is never removed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::ids::Digest;

use super::super::reference::ImageRef;
use super::super::types::{DiskUsage, Removed};
use super::records::{Change, Content, ImageRecord};
use super::{Store, StoreError, disk_bytes};

/// Unreferenced content younger than this may belong to a pull that was interrupted and will go on
/// (containerd's default lease is as long).
const LEFTOVER_AGE: Duration = Duration::from_hours(24);

/// The kubelet's image garbage collection settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// `imageGCHighThresholdPercent`: collect when the disk is fuller (85).
    pub high_percent: u8,
    /// `imageGCLowThresholdPercent`: collect down to this (80).
    pub low_percent: u8,
    /// `imageMinimumGCAge`: keep what was used more recently (2 min).
    pub min_age: Duration,
    /// `imageMaximumGCAge`: remove what was not used for longer, however much room there is (no limit).
    pub max_age: Option<Duration>,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_mins(2), max_age: None }
    }
}

/// One image as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its manifest.
    pub manifest: Digest,
    /// Bytes it takes.
    pub bytes: u64,
    /// When it was used last.
    pub last_used: SystemTime,
}

/// What [`plan_collection`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcPlan {
    /// Manifests to remove, longest unused first.
    pub remove: Vec<Digest>,
    /// Bytes that should be freed; more than the images hold when the disk is full of other things.
    pub wanted_bytes: u64,
}

/// Decides which images go, as the kubelet's image manager: those past the maximum age, and nothing else below the high
/// threshold, else the longest unused until the low one is reached, never what is in use, younger than the minimum age, or
/// used since `now`, the time at which `in_use` was known.
#[must_use]
pub fn plan_collection(
    policy: GcPolicy,
    disk: DiskUsage,
    mut candidates: Vec<Candidate>,
    in_use: &HashSet<Digest>,
    now: SystemTime,
) -> GcPlan {
    let used = disk.capacity_bytes.saturating_sub(disk.available_bytes);
    let threshold = |percent: u8| (u128::from(disk.capacity_bytes) * u128::from(percent) / 100) as u64;
    let is_full = disk.capacity_bytes > 0 && policy.high_percent < 100 && used >= threshold(policy.high_percent);
    let wanted_bytes = if is_full { used.saturating_sub(threshold(policy.low_percent)) } else { 0 };
    candidates.sort_by(|a, b| a.last_used.cmp(&b.last_used).then_with(|| a.manifest.cmp(&b.manifest)));
    let mut freed = 0;
    let mut remove = Vec::new();
    for candidate in candidates {
        let age = now.duration_since(candidate.last_used).unwrap_or_default();
        let is_too_old = policy.max_age.is_some_and(|most| age > most);
        // Longest unused first: behind one that need not go is none that must.
        if freed >= wanted_bytes && !is_too_old {
            break;
        }
        if in_use.contains(&candidate.manifest) || age < policy.min_age {
            continue;
        }
        if candidate.last_used > now {
            // A container is being started from it, since it was asked who uses what.
            continue;
        }
        freed += candidate.bytes;
        remove.push(candidate.manifest);
    }
    GcPlan { remove, wanted_bytes }
}

impl Store {
    /// Removes these images with all their names, and content nobody refers to any more.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while content is being added, [`StoreError::Io`].
    pub fn remove_images(&self, manifests: &HashSet<Digest>) -> Result<Removed, StoreError> {
        let _guard = self.removing()?;
        let mut removed = Removed::default();
        self.change_names(|refs| {
            let gone: Vec<ImageRef> = refs
                .iter()
                .filter(|(_, entry)| manifests.contains(&entry.manifest))
                .map(|(name, _)| name.clone())
                .collect();
            for name in &gone {
                refs.remove(name);
            }
            removed.untagged = gone;
            if removed.untagged.is_empty() { Change::None } else { Change::Some }
        })?;
        let (gone, kept): (Vec<ImageRecord>, Vec<ImageRecord>) =
            self.records()?.into_iter().partition(|record| manifests.contains(&record.manifest));
        let live: HashSet<PathBuf> = kept.iter().flat_map(|record| self.files_of(record)).collect();
        for record in gone {
            removed.freed_bytes += self.remove_record(&record.manifest)?;
            // A file of two removed images is gone the second time.
            for file in self.files_of(&record).iter().filter(|file| !live.contains(*file)) {
                removed.freed_bytes += self.remove_file(file)?;
            }
            removed.deleted.push(record.image_id);
        }
        removed.freed_bytes += self.remove_unreferenced(Leftovers::Old)?;
        Ok(removed)
    }

    /// Takes a name away; the image goes with its last name unless it is in use.
    ///
    /// # Errors
    /// As [`Self::remove_images`].
    pub fn remove_name(&self, name: &ImageRef, in_use: &HashSet<Digest>) -> Result<Removed, StoreError> {
        let mut orphan = None;
        let mut untagged = Vec::new();
        self.change_names(|refs| {
            let Some(entry) = refs.remove(name) else { return Change::None };
            untagged.push(name.clone());
            let other_name = refs.values().any(|other| other.manifest == entry.manifest);
            if !other_name && !in_use.contains(&entry.manifest) {
                orphan = Some(entry.manifest);
            }
            Change::Some
        })?;
        let mut removed = match orphan {
            Some(manifest) => self.remove_images(&HashSet::from([manifest]))?,
            None => Removed::default(),
        };
        removed.untagged.append(&mut untagged);
        Ok(removed)
    }

    /// Removes all content that no record names, however young: for `prune`, when nobody adds.
    ///
    /// # Errors
    /// As [`Self::remove_images`].
    pub fn remove_leftovers(&self) -> Result<u64, StoreError> {
        let _guard = self.removing()?;
        self.remove_unreferenced(Leftovers::All)
    }

    /// Images as garbage collection sees them.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn candidates(&self) -> Result<Vec<Candidate>, StoreError> {
        let records = self.records()?;
        Ok(records
            .into_iter()
            .map(|record| Candidate {
                bytes: self.files_of(&record).iter().map(size_on_disk).sum(),
                last_used: self.last_used(&record),
                manifest: record.manifest,
            })
            .collect())
    }

    /// What the store takes, and what its file system has.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        let io = |source: std::io::Error| StoreError::Io { step: "measuring", path: self.root.clone(), source };
        let stats = rustix::fs::statvfs(&self.root).map_err(|error| io(error.into()))?;
        let mut usage = DiskUsage {
            images: self.records()?.len() as u64,
            bytes: 0,
            capacity_bytes: stats.f_blocks * stats.f_frsize,
            available_bytes: stats.f_bavail * stats.f_frsize,
        };
        for dir in ["blobs/sha256", "layers", "records"] {
            for entry in fs::read_dir(self.root.join(dir)).map_err(io)? {
                // A file that goes while we count is not there.
                usage.bytes += entry.and_then(|entry| entry.metadata()).map_or(0, |metadata| disk_bytes(&metadata));
            }
        }
        Ok(usage)
    }

    fn files_of(&self, record: &ImageRecord) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = record.blobs.iter().map(|(digest, _)| self.blob_path(digest)).collect();
        if let Content::Layers(diff_ids) = &record.content {
            for diff_id in diff_ids {
                let spec = self.layer_spec(diff_id);
                files.extend([spec.tar, spec.index]);
            }
        }
        files
    }

    /// Removes blobs and layers no record names. The caller holds [`Store::removing`].
    ///
    /// A record that is damaged or incomplete names nothing: its image is pulled again.
    fn remove_unreferenced(&self, leftovers: Leftovers) -> Result<u64, StoreError> {
        let records = self.records()?;
        let live: HashSet<PathBuf> = records.iter().flat_map(|record| self.files_of(record)).collect();
        let mut freed = 0;
        for dir in ["blobs/sha256", "layers"] {
            let path = self.root.join(dir);
            let io = |source| StoreError::Io { step: "listing", path: path.clone(), source };
            for entry in fs::read_dir(&path).map_err(io)? {
                let file = entry.map_err(io)?.path();
                if !live.contains(&file) && leftovers.include(&file) {
                    freed += self.remove_file(&file)?;
                }
            }
        }
        Ok(freed)
    }

    /// Names by the manifest they point at.
    ///
    /// # Errors
    /// As [`Self::names`].
    pub fn names_by_manifest(&self) -> Result<BTreeMap<Digest, Vec<ImageRef>>, StoreError> {
        let mut by_manifest: BTreeMap<Digest, Vec<ImageRef>> = BTreeMap::new();
        for (name, entry) in self.names()? {
            by_manifest.entry(entry.manifest).or_default().push(name);
        }
        Ok(by_manifest)
    }
}

fn size_on_disk(path: &PathBuf) -> u64 {
    fs::metadata(path).map_or(0, |metadata| disk_bytes(&metadata))
}

/// Which unreferenced files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftovers {
    /// Those no interrupted pull will come back for.
    Old,
    /// All.
    All,
}

impl Leftovers {
    fn include(self, file: &std::path::Path) -> bool {
        match self {
            Self::All => true,
            Self::Old => fs::metadata(file)
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > LEFTOVER_AGE)),
        }
    }
}
