//! The store against crashes, damage and hostile layers.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::types::ImageConfigData;
use super::*;
use crate::state::NoFaults;

fn open(dir: &Path) -> Store {
    Store::open(dir.join("images"), ImageLimits::default(), Arc::new(NoFaults)).unwrap()
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An artifact with its record and name, as a pull leaves it.
fn add_artifact(store: &Store, name: &str, wasm: &[u8]) -> Result<Digest, StoreError> {
    let config = store.put_blob(b"{}")?;
    let blob = store.put_blob(wasm)?;
    let manifest = store.put_blob(format!("manifest of {blob}").as_bytes())?;
    let blobs = vec![
        (manifest.clone(), format!("manifest of {blob}").len() as u64),
        (config.clone(), 2),
        (blob.clone(), wasm.len() as u64),
    ];
    let record = ImageRecord::new(manifest.clone(), config, blobs, Content::Artifact(blob), ImageConfigData::default());
    store.put_record(&record)?;
    let entry = RefEntry { manifest: manifest.clone(), repo_digest: manifest.clone() };
    store.set_name(&name.parse().unwrap(), &entry)?;
    Ok(manifest)
}

#[test]
fn a_blob_gets_its_name_only_when_it_is_whole_and_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::of(b"content");
    let put = |bytes: &[u8], size| store.put_reader(&mut &*bytes, &digest, size);
    assert!(matches!(put(b"cont", 7), Err(StoreError::Truncated { expected: 7, actual: 4, .. })));
    assert!(matches!(put(b"CONTENT", 7), Err(StoreError::DigestMismatch { .. })));
    assert!(matches!(put(b"content and more", 7), Err(StoreError::TooLarge { limit: 7, .. })));
    assert!(!store.has_blob(&digest, 7));
    put(b"content", 7).unwrap();
    assert_eq!(store.read_blob(&digest, 100).unwrap(), b"content");
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    fs::write(store.blob_path(&digest), b"CONTENT").unwrap();
    assert!(matches!(store.verify_blob(&digest), Err(StoreError::DigestMismatch { .. })));
    let huge = store.ingest(&digest, u64::MAX).map(drop);
    assert!(matches!(huge, Err(StoreError::TooLarge { .. })), "refused before a byte is transferred");
}

#[test]
fn a_lookup_is_remembered_until_the_names_or_the_blobs_change() {
    let dir = tempfile::tempdir().unwrap();
    let (store, other_process) = (open(dir.path()), open(dir.path()));
    let name = "docker.io/test/app:v1".parse().unwrap();
    let first = add_artifact(&store, "test/app:v1", b"one").unwrap();
    let known = || store.lookup_known(&name).map(|image| image.manifest_digest);
    assert_eq!(known(), None, "nobody has asked yet");
    assert_eq!(store.lookup_and_know(&name).unwrap(), store.lookup(&name).unwrap());
    assert_eq!(store.lookup_known(&name), store.lookup(&name).unwrap());
    assert_eq!(known(), Some(first.clone()));
    let second = add_artifact(&other_process, "test/app:v1", b"two").unwrap();
    assert_eq!(known(), None, "another process has loaded another image");
    store.lookup_and_know(&name).unwrap();
    assert_eq!(known(), Some(second.clone()));
    other_process.remove_name(&name, &HashSet::new()).unwrap();
    assert_eq!(known(), None, "another process has removed it");
    assert_eq!(store.lookup_and_know(&name).unwrap(), None);
    add_artifact(&store, "test/app:v1", b"one").unwrap();
    store.lookup_and_know(&name).unwrap();
    assert_eq!(known(), Some(first));
    fs::write(store.blob_path(&Digest::of(b"one")), b"o").unwrap();
    assert_eq!(known(), None, "a blob was cut");
}

/// Fails the step of this number, as a full disk would, and every later one, as a dead process would.
#[derive(Debug)]
struct DieAt {
    step: usize,
    seen: AtomicUsize,
}

impl Faults for DieAt {
    fn before(&self, _step: IoStep, _path: &Path) -> io::Result<()> {
        if self.seen.fetch_add(1, Ordering::SeqCst) >= self.step {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_store_that_works() {
    let mut step = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let first = add_artifact(&open(dir.path()), "first", b"\0asm first").unwrap();
        let faults = Arc::new(DieAt { step, seen: AtomicUsize::new(0) });
        let dying = Store::open(dir.path().join("images"), ImageLimits::default(), faults).unwrap();
        let died = add_artifact(&dying, "second", b"\0asm second")
            .and_then(|_| dying.remove_images(&HashSet::from([first.clone()])).map(drop))
            .is_err();
        drop(dying);
        let store = open(dir.path());
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "step {step}: leftovers are swept");
        for (name, entry) in store.names().unwrap() {
            assert!(store.record(&entry.manifest).unwrap().is_some(), "step {step}: {name} points at nothing whole");
        }
        for record in store.records().unwrap() {
            for (digest, _) in &record.blobs {
                store.verify_blob(digest).unwrap();
            }
        }
        add_artifact(&store, "second", b"\0asm second").unwrap();
        assert!(store.lookup(&"second".parse().unwrap()).unwrap().is_some());
        if !died {
            assert!(store.lookup(&"first".parse().unwrap()).unwrap().is_none());
            assert!(step > 20, "every step was tried");
            break;
        }
        step += 1;
    }
}

#[test]
fn a_writer_that_lives_keeps_its_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::of(b"content");
    let mut ingest = store.ingest(&digest, 7).unwrap();
    ingest.write(&store, b"cont").unwrap();
    fs::write(store.root().join("tmp/left-by-a-crash"), b"x").unwrap();
    let other = open(dir.path());
    ingest.write(&store, b"ent").unwrap();
    ingest.commit(&store).unwrap();
    assert!(other.has_blob(&digest, 7));
    assert!(!store.root().join("tmp/left-by-a-crash").exists());
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("images/format"), "7\n").unwrap();
    let error = Store::open(dir.path().join("images"), ImageLimits::default(), Arc::new(NoFaults)).unwrap_err();
    assert!(matches!(error, StoreError::Format { found, .. } if found == "7"));
}

#[test]
fn layers_of_every_compression_unpack_to_the_same_tar() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let tar = tar_of(&[("a.wasm", b"\0asm")]);
    let diff_id = Digest::of(&tar);
    let zstd = zstd::encode_all(&*tar, 1).unwrap();
    let two_members = [gzip(&tar[..100]), gzip(&tar[100..])].concat();
    for blob in [tar.clone(), gzip(&tar), zstd, two_members] {
        let digest = store.put_blob(&blob).unwrap();
        let spec = store.unpack_layer(&digest, &diff_id).unwrap();
        assert_eq!(fs::read(&spec.tar).unwrap(), tar);
        fs::remove_file(&spec.index).unwrap();
        fs::remove_file(&spec.tar).unwrap();
    }
}

#[test]
fn a_layer_that_is_not_what_it_claims_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let tar = tar_of(&[("a.wasm", b"\0asm")]);
    let other = Digest::of(b"other");
    let blob = store.put_blob(&gzip(&tar)).unwrap();
    let error = store.unpack_layer(&blob, &other).unwrap_err();
    assert!(matches!(error, StoreError::DiffId { ref digest, .. } if *digest == blob), "{error}");
    let whole = gzip(&[0xabu8; 100_000].map(|_| rand::random::<u8>()));
    let cut = store.put_blob(&whole[..whole.len() / 2]).unwrap();
    let error = store.unpack_layer(&cut, &other).unwrap_err();
    assert!(matches!(error, StoreError::Decompress { ref digest, .. } if *digest == cut), "{error}");
    let plain = store.put_blob(&tar).unwrap();
    assert!(matches!(store.unpack_layer(&plain, &other).unwrap_err(), StoreError::DiffId { .. }));
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_decompression_bomb_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ImageLimits { layer_ratio: 10, ..ImageLimits::default() };
    let store = Store::open(dir.path().join("images"), limits, Arc::new(NoFaults)).unwrap();
    let zeros = vec![0u8; (ImageLimits::RATIO_SLACK_BYTES as usize) + (20 << 20)];
    for blob in [gzip(&zeros), zstd::encode_all(&*zeros, 1).unwrap()] {
        let digest = store.put_blob(&blob).unwrap();
        let error = store.unpack_layer(&digest, &Digest::of(&zeros)).unwrap_err();
        assert!(matches!(error, StoreError::Bomb { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn content_shared_by_two_images_goes_with_the_second() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let one = add_artifact(&store, "one", b"\0asm 1").unwrap();
    let two = add_artifact(&store, "two", b"\0asm 2").unwrap();
    let shared = Digest::of(b"{}");
    store.remove_images(&HashSet::from([one])).unwrap();
    assert!(store.has_blob(&shared, 2));
    assert!(!store.has_blob(&Digest::of(b"\0asm 1"), 6));
    store.remove_images(&HashSet::from([two])).unwrap();
    assert_eq!(fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn removal_waits_for_no_pull_and_a_name_is_not_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let manifest = add_artifact(&store, "one", b"\0asm 1").unwrap();
    add_artifact(&store, "alias", b"\0asm 1").unwrap();
    let removed = store.remove_name(&"one".parse().unwrap(), &HashSet::new()).unwrap();
    assert!(removed.deleted.is_empty(), "another name keeps it");
    let used = store.remove_name(&"alias".parse().unwrap(), &HashSet::from([manifest.clone()])).unwrap();
    assert!(used.deleted.is_empty(), "a pod keeps it");
    assert!(store.record(&manifest).unwrap().is_some());
    let guard = store.adding().unwrap();
    assert!(matches!(store.removing(), Err(StoreError::Busy { .. })));
    drop(guard);
    assert!(store.removing().is_ok());
}

#[test]
fn garbage_collection_takes_the_longest_unused_until_the_low_threshold() {
    use std::time::{Duration, SystemTime};
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let candidate = |name: &str, bytes, minutes: u64| super::gc::Candidate {
        manifest: Digest::of(name.as_bytes()),
        bytes,
        last_used: now.checked_sub(Duration::from_secs(minutes * 60)).unwrap(),
    };
    let all =
        vec![candidate("new", 10, 1), candidate("used", 10, 90), candidate("old", 10, 60), candidate("older", 5, 70)];
    let in_use = HashSet::from([Digest::of(b"used")]);
    let plan = |used: u64| {
        let disk =
            super::super::types::DiskUsage { images: 4, bytes: 35, capacity_bytes: 100, available_bytes: 100 - used };
        let plan = plan_collection(GcPolicy::default(), disk, all.clone(), &in_use, now);
        (plan.remove, plan.wanted_bytes)
    };
    let digest = |name: &str| Digest::of(name.as_bytes());
    for (case, used, expected) in [
        ("below the high threshold nothing goes", 84, (vec![], 0)),
        ("the longest unused goes first", 85, (vec![digest("older")], 5)),
        ("until enough is free", 90, (vec![digest("older"), digest("old")], 10)),
        ("what is used or new stays, whatever is wanted", 100, (vec![digest("older"), digest("old")], 20)),
    ] {
        assert_eq!(plan(used), expected, "{case}");
    }
    let mut since = all.clone();
    since[2].last_used = now + Duration::from_secs(1);
    let disk = super::super::types::DiskUsage { images: 4, bytes: 35, capacity_bytes: 100, available_bytes: 0 };
    let ageless = GcPolicy { min_age: Duration::ZERO, ..GcPolicy::default() };
    let meanwhile = plan_collection(ageless, disk, since, &in_use, now);
    assert_eq!(meanwhile.remove, [digest("older"), digest("new")], "what was used since stays, without any age");
    let policy = GcPolicy { max_age: Some(Duration::from_secs(65 * 60)), high_percent: 100, ..GcPolicy::default() };
    let empty = super::super::types::DiskUsage { images: 4, bytes: 35, capacity_bytes: 100, available_bytes: 100 };
    let aged = plan_collection(policy, empty, all.clone(), &in_use, now);
    assert_eq!(aged.remove, [digest("older")], "past the maximum age, and not used");
}
