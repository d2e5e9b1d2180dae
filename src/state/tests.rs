//! Records through crashes, faults, damage and second agents.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ids::PodUid;

use super::*;

fn record(uid: &str, attempts: u32) -> PodRecord {
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    let mut record = PodRecord::new(PodUid::new(uid).unwrap(), k8s_openapi::api::core::v1::Pod::default(), now);
    record.ips.push("127.1.2.3".parse().unwrap());
    record.containers.insert("app".to_owned(), Box::new(ContainerRecord { attempts, ..ContainerRecord::default() }));
    record
}

fn open(root: &Path) -> StateStore {
    StateStore::open(root, Arc::new(NoFaults)).unwrap()
}

#[test]
fn records_come_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.save(&record("a", 1)).unwrap();
    store.save(&record("b", 7)).unwrap();
    store.save(&record("a", 2)).unwrap();
    drop(store);
    let loaded = open(dir.path()).load().unwrap();
    assert_eq!(loaded.pods, [record("a", 2), record("b", 7)]);
    assert!(loaded.quarantined.is_empty() && loaded.orphans.is_empty());
}

#[test]
fn a_second_agent_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = StateStore::open(dir.path(), Arc::new(NoFaults)).unwrap_err();
    assert!(error.to_string().contains(&format!("another wasilet agent (pid {})", std::process::id())), "{error}");
    drop(first);
    open(dir.path());
}

#[test]
fn a_newer_or_unreadable_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    for (content, part) in [
        ("{\"version\":2}", "knows formats up to 1"),
        ("junk", "does not say which"),
        ("{\"version\":0}", "no version 0"),
    ] {
        fs::write(dir.path().join("format.json"), content).unwrap();
        let error = StateStore::open(dir.path(), Arc::new(NoFaults)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("format.json")).unwrap(), content);
    }
}

#[test]
fn a_damaged_record_is_put_aside_and_the_others_load() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (uid, damage) in [("cut", "{\"uid\":\"cut\""), ("empty", ""), ("alien", "{}")] {
        store.save(&record(uid, 1)).unwrap();
        fs::write(store.paths(&PodUid::new(uid).unwrap()).root().join("record.json"), damage).unwrap();
    }
    store.save(&record("good", 1)).unwrap();
    fs::copy(dir.path().join("pods/good/record.json"), dir.path().join("pods/empty/record.json")).unwrap();
    fs::create_dir(dir.path().join("pods/orphan")).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.pods, [record("good", 1)]);
    assert_eq!(loaded.orphans, [PodUid::new("orphan").unwrap()]);
    assert_eq!(loaded.quarantined.len(), 3);
    assert!(loaded.quarantined.iter().any(|q| q.reason.contains("it is the record of pod good")));
    assert!(
        loaded
            .quarantined
            .iter()
            .all(|q| q.moved_to.starts_with(store.root().join("quarantine")) && q.moved_to.exists())
    );
    // The next start finds directories without records.
    assert_eq!(store.load().unwrap().orphans.len(), 4);
}

/// Fails the n-th step.
#[derive(Debug)]
struct FailAt {
    step: AtomicUsize,
    at: usize,
}

impl Faults for FailAt {
    fn before(&self, step: IoStep, _path: &Path) -> io::Result<()> {
        if step != IoStep::Read && self.step.fetch_add(1, Ordering::SeqCst) == self.at {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

#[test]
fn a_write_that_fails_at_any_step_leaves_the_old_record_or_the_new_one() {
    for at in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.save(&record("a", 1)).unwrap();
        drop(store);
        let faulty = StateStore::open(dir.path(), Arc::new(FailAt { step: AtomicUsize::new(0), at })).unwrap();
        let error = faulty.save(&record("a", 2)).unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
        let attempts = |store: &StateStore| store.load().unwrap().pods[0].containers["app"].attempts;
        // Only after the rename can the new one be there; the caller was told that it may not last.
        assert_eq!(attempts(&faulty), if at == 4 { 2 } else { 1 }, "step {at}");
        faulty.save(&record("a", 3)).unwrap();
        drop(faulty);
        let store = open(dir.path());
        assert_eq!(attempts(&store), 3);
        let names: Vec<_> = fs::read_dir(dir.path().join("pods/a")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["record.json"], "no temporary file stays");
    }
}

#[test]
fn a_record_that_was_staged_outlives_the_agent_and_half_of_one_does_not_hide_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let staged = dir.path().join("pods/a/.record.json.staged.tmp");
    let attempts = |store: &StateStore| store.load().unwrap().pods[0].containers["app"].attempts;
    let store = open(dir.path());
    store.save(&record("a", 1)).unwrap();
    // The agent is killed between the two halves: nothing of it runs any more, not even what removes the file.
    std::mem::forget(store.stage(&record("a", 2)).unwrap());
    assert!(staged.exists());
    assert_eq!(attempts(&store), 2);
    assert!(!staged.exists() && fs::read(dir.path().join("pods/a/record.json")).is_ok());
    // The machine died: the file has some of its bytes.
    let whole = fs::read(dir.path().join("pods/a/record.json")).unwrap();
    for kept in 0..whole.len() {
        fs::write(&staged, &whole[..kept]).unwrap();
        assert_eq!(attempts(&store), 2, "{kept} bytes");
        assert!(!staged.exists());
    }
    fs::write(&staged, vec![0; whole.len()]).unwrap();
    assert_eq!(attempts(&store), 2, "zeros");
    // One that is given up leaves the record before it, and the next save is not taken for unchanged.
    drop(store.stage(&record("a", 3)).unwrap());
    assert_eq!(attempts(&store), 2);
    store.save(&record("a", 3)).unwrap();
    assert_eq!(attempts(&store), 3);
    // A first record, too, is there before it is in its place.
    std::mem::forget(store.stage(&record("b", 1)).unwrap());
    assert_eq!(store.load().unwrap().pods.len(), 2);
}

/// A disk that cannot be waited for.
#[derive(Debug)]
struct NoSync;

impl Faults for NoSync {
    fn before(&self, step: IoStep, _path: &Path) -> io::Result<()> {
        if step == IoStep::SyncFile { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

#[test]
fn only_a_pods_first_record_is_placed_without_waiting_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let store = StateStore::open(dir.path(), Arc::new(NoSync)).unwrap();
    let attempts = |store: &StateStore| store.load().unwrap().pods[0].containers["app"].attempts;
    assert_eq!(store.stage(&record("a", 1)).unwrap().place().unwrap(), Outlives::Agent);
    assert_eq!(attempts(&store), 1);
    assert!(store.stage(&record("a", 2)).unwrap().place().is_err(), "it would replace one that may be on the disk");
    assert_eq!(attempts(&store), 1);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.stage(&record("c", 1)).unwrap().place().unwrap(), Outlives::Agent);
    fs::write(dir.path().join("pods/c/record.json"), b"").unwrap();
    let LoadedState { quarantined, orphans, .. } = store.load().unwrap();
    assert!(quarantined.is_empty() && orphans == [PodUid::new("c").unwrap()], "the machine died");
    assert_eq!(store.stage(&record("b", 1)).unwrap().place().unwrap(), Outlives::Agent);
    assert_eq!(store.stage(&record("b", 1)).unwrap().place().unwrap(), Outlives::Machine);
    assert_eq!(store.stage(&record("a", 3)).unwrap().place().unwrap(), Outlives::Machine);
    let names: Vec<_> = fs::read_dir(dir.path().join("pods/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() == 2, "the same record again was written, to stay: {names:?}");
    assert_eq!(attempts(&store), 3);
}

#[test]
fn temporaries_and_half_removed_trees_of_a_crash_are_cleaned_up_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.save(&record("a", 1)).unwrap();
    fs::write(dir.path().join("pods/a/.record.json.7.tmp"), "{\"ui").unwrap();
    fs::create_dir_all(dir.path().join("pods/.removing-b-3/deep/er")).unwrap();
    assert_eq!(store.load().unwrap().pods.len(), 1);
    assert!(!dir.path().join("pods/.removing-b-3").exists());
    assert!(!dir.path().join("pods/a/.record.json.7.tmp").exists());
}

#[test]
fn directories_and_files_of_a_pod_stay_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let uid = PodUid::new("a").unwrap();
    let paths = store.paths(&uid);
    store.make_dir(&uid, &paths.writable_dir("app", 0)).unwrap();
    store.write_file(&uid, &paths.etc_hosts(), b"127.0.0.1 localhost\n").unwrap();
    assert!(paths.writable_dir("app", 0).is_dir());
    fs::create_dir(dir.path().join("precious")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("precious"), paths.root().join("link")).unwrap();
    for bad in
        [store.root().to_owned(), paths.root().to_owned(), paths.root().join("../b/x"), paths.root().join("link/x")]
    {
        assert!(store.make_dir(&uid, &bad).is_err(), "{bad:?}");
        assert!(store.remove_tree(&uid, &bad).is_err() || !bad.exists(), "{bad:?}");
    }
    store.remove_tree(&uid, &paths.root().join("link")).unwrap();
    store.remove_tree(&uid, &paths.attempt_dir("app", 0)).unwrap();
    assert!(dir.path().join("precious").is_dir() && !paths.attempt_dir("app", 0).exists());
    store.save(&record("a", 1)).unwrap();
    store.remove_pod(&uid).unwrap();
    store.remove_pod(&uid).unwrap();
    assert!(store.load().unwrap().pods.is_empty() && !paths.root().exists());
    store.save(&record("a", 1)).unwrap();
    assert_eq!(store.load().unwrap().pods.len(), 1, "saved again although the bytes are as before");
}

/// A bind mount that goes with the test, however it ends.
struct Bound(String);

impl Bound {
    /// Binds below `dir`.
    fn new(from: &Path, to: &Path, dir: &Path) -> Option<Self> {
        let done = std::process::Command::new("mount").arg("--bind").arg(from).arg(to).output().ok()?;
        done.status.success().then(|| Self(dir.to_string_lossy().into_owned()))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It may have been moved with the directory that it is in.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&self.0))
        {
            let _ = std::process::Command::new("umount").arg(point).status();
        }
    }
}

#[test]
fn what_is_mounted_in_a_pods_directory_is_never_removed_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let precious = tempfile::tempdir().unwrap();
    fs::write(precious.path().join("data"), "kept").unwrap();
    let store = open(dir.path());
    let uid = PodUid::new("a").unwrap();
    for place in ["volumes/kubernetes.io~csi/pv/mount", "mounted"] {
        let target = store.paths(&uid).root().join(place);
        store.make_dir(&uid, &target).unwrap();
        let Some(bound) = Bound::new(precious.path(), &target, dir.path()) else {
            eprintln!("SKIPPED: this machine lets nothing be mounted");
            return;
        };
        assert!(store.remove_tree(&uid, &target).is_err(), "{place}: a mount point");
        assert!(store.remove_pod(&uid).is_err(), "{place}: what it is in");
        assert_eq!(fs::read_to_string(precious.path().join("data")).unwrap(), "kept", "{place}");
        drop(bound);
        // What the failed removal moved aside is finished at the next start.
        store.load().unwrap();
        store.remove_pod(&uid).unwrap();
        assert_eq!(fs::read_to_string(precious.path().join("data")).unwrap(), "kept", "{place}");
    }
}

#[test]
fn saving_again_writes_the_file_of_the_record_before() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = store.paths(&PodUid::new("a").unwrap()).root().join("record.json");
    let inodes: Vec<u64> = (0..5)
        .map(|attempts| {
            // Longer ones and shorter ones: nothing of the last but one may be left.
            let mut record = record("a", attempts);
            record.ips.truncate(usize::from(attempts % 2 == 0));
            store.save(&record).unwrap();
            assert_eq!(open_again(&store).pods, [record]);
            fs::metadata(&path).unwrap().ino()
        })
        .collect();
    assert_eq!(inodes[2..], [inodes[0], inodes[1], inodes[0]]);
}

/// What the next agent would find, of a copy.
fn open_again(store: &StateStore) -> LoadedState {
    let copy = tempfile::tempdir().unwrap();
    let pods = copy.path().join("pods/a");
    fs::create_dir_all(&pods).unwrap();
    for entry in fs::read_dir(store.root().join("pods/a")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), pods.join(entry.file_name())).unwrap();
    }
    open(copy.path()).load().unwrap()
}

#[test]
fn a_machine_that_dies_between_the_renames_of_a_save_has_one_record_or_the_other() {
    let [staged, spare] = [".record.json.staged.tmp", ".record.json.spare.tmp"];
    let bytes = |attempts| serde_json::to_vec(&record("a", attempts)).unwrap();
    for (files, expected) in [
        (vec![(staged, bytes(2)), (spare, bytes(1))], Some(2)),
        (vec![(staged, b"{\"uid\":".to_vec()), (spare, bytes(1))], Some(1)),
        (vec![(spare, bytes(1))], Some(1)),
        (vec![("record.json", bytes(2)), (spare, bytes(1))], Some(2)),
        (vec![(spare, b"{}".to_vec())], None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pods/a");
        fs::create_dir_all(&pod).unwrap();
        for (name, bytes) in &files {
            fs::write(pod.join(name), bytes).unwrap();
        }
        let loaded = open(dir.path()).load().unwrap();
        let names: Vec<_> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(
            loaded.pods,
            expected.map(|attempts| record("a", attempts)).into_iter().collect::<Vec<_>>(),
            "{names:?}"
        );
        assert!(!pod.join(spare).exists() && !pod.join(staged).exists(), "{names:?}");
    }
}
