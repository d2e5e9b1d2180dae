//! The artifact cache: memory, disk, one flight, damage.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::config::RuntimeConfig;
use super::super::engine::Engines;
use super::super::testing::{compiler, hello};
use super::*;
use crate::clock::Clock;
use crate::logs::LogStore;

struct Cache {
    directory: tempfile::TempDir,
    engines: Engines,
}

impl Cache {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), engines: Engines::new().unwrap() }
    }

    /// As after a start of the agent: nothing in memory.
    fn programs(&self) -> Programs {
        self.programs_with(None)
    }

    fn programs_with(&self, baseline_from: Option<u64>) -> Programs {
        let logs = LogStore::open(self.directory.path().join("logs"), Clock::System).unwrap();
        let mut config = RuntimeConfig::new(self.directory.path().to_owned(), logs);
        config.compiler = compiler();
        config.baseline_from = baseline_from;
        Programs::new(self.engines.clone(), &config).unwrap()
    }

    fn artifact(&self, extension: &str) -> PathBuf {
        self.artifacts(extension).pop().unwrap()
    }

    fn artifacts(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path().join("artifacts")).unwrap().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }
}

/// Loads and tells whether the compiler was needed.
async fn load(programs: &Programs, wasm: &[u8]) -> (Result<Arc<Program>, ProgramError>, bool) {
    let compiled = AtomicU32::new(0);
    let progress = |step| {
        if matches!(step, CompileProgress::Compiling { .. }) {
            compiled.fetch_add(1, Ordering::Relaxed);
        }
    };
    let program = programs.load("guest", WasmSource::Bytes(Arc::from(wasm)), &progress).await;
    (program, compiled.load(Ordering::Relaxed) > 0)
}

#[tokio::test]
async fn a_program_is_compiled_once_and_then_found_on_disk_and_in_memory() {
    let cache = Cache::new();
    let programs = cache.programs();
    let (first, compiled) = load(&programs, &hello(1)).await;
    assert!(compiled);
    let (second, compiled) = load(&programs, &hello(1)).await;
    assert!(!compiled && Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
    let (_, compiled) = load(&cache.programs(), &hello(1)).await;
    assert!(!compiled, "an agent that starts again finds it on disk");
}

#[tokio::test]
async fn many_that_want_one_program_share_one_compilation() {
    let cache = Cache::new();
    let programs = cache.programs();
    let wasm = hello(2);
    let loads = (0..20).map(|_| load(&programs, &wasm));
    let loaded = futures::future::join_all(loads).await;
    let first = loaded[0].0.as_ref().unwrap();
    assert!(loaded.iter().all(|(program, _)| Arc::ptr_eq(first, program.as_ref().unwrap())));
    assert!(programs.0.memory.lock().flights.is_empty());
}

#[tokio::test]
async fn a_damaged_artifact_is_made_again() {
    let cache = Cache::new();
    load(&cache.programs(), &hello(3)).await.0.unwrap();
    let path = cache.artifact("cwasm");
    for (case, damage) in [
        ("a flipped bit", Box::new(|bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1) as Box<dyn Fn(&mut Vec<u8>)>),
        ("cut off", Box::new(|bytes: &mut Vec<u8>| bytes.truncate(100))),
        ("empty", Box::new(Vec::clear)),
    ] {
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        assert!(load(&cache.programs(), &hello(3)).await.0.is_ok(), "{case}");
        assert!(!load(&cache.programs(), &hello(3)).await.1, "{case}: whole again");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(load(&cache.programs(), &hello(3)).await.0.is_ok());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "others could have written to it");
    fs::remove_file(cache.artifact("sum")).unwrap();
    assert!(load(&cache.programs(), &hello(3)).await.0.is_ok(), "a missing checksum");
}

#[tokio::test]
async fn what_this_node_cannot_run_is_named() {
    let cache = Cache::new();
    let programs = cache.programs();
    for (text, expected) in [
        (
            r#"(module (import "env" "foo" (func)))"#,
            "module \"guest\" imports \"env::foo\" which this node does not provide",
        ),
        (r#"(module (import "env" "memory" (memory 1 2 shared)))"#, "shared memory \"env::memory\": wasi-threads"),
        (
            r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i64))))"#,
            "imports \"wasi_snapshot_preview1::fd_write\" with another type",
        ),
        ("(component)", "exports neither \"wasi:cli/run\" nor \"wasi:http/incoming-handler\""),
    ] {
        let wasm = wat::parse_str(text).unwrap();
        let error = load(&programs, &wasm).await.0.err().expect(text).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Loads until the program is optimised.
async fn optimised(programs: &Programs, wasm: &[u8]) -> Arc<Program> {
    for _ in 0..1000 {
        let program = load(programs, wasm).await.0.unwrap();
        if program.tier() == Tier::Optimised {
            return program;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it stays as the baseline compiler made it");
}

#[tokio::test]
async fn a_large_program_starts_with_baseline_code_and_is_upgraded_behind_it() {
    let cache = Cache::new();
    let wasm = hello(4);
    let programs = cache.programs_with(Some(wasm.len() as u64));
    let (first, compiled) = load(&programs, &wasm).await;
    let first = first.unwrap();
    assert!(compiled);
    assert_eq!(first.tier(), Tier::Baseline);
    let second = optimised(&programs, &wasm).await;
    assert!(!Arc::ptr_eq(&first, &second));
    // The upgrade tells of itself first and tidies then.
    for _ in 0..1000 {
        if cache.artifacts("cwasm").len() == 1 && cache.artifacts("lock").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cache.artifacts("cwasm").len(), 1, "baseline code is of no use beside it");
    assert!(cache.artifacts("lock").is_empty());
    let (again, compiled) = load(&cache.programs_with(Some(0)), &wasm).await;
    assert!(!compiled && again.unwrap().tier() == Tier::Optimised, "an agent that starts again");
    let small = hello(5);
    let programs = cache.programs_with(Some(small.len() as u64 + 1));
    assert_eq!(load(&programs, &small).await.0.unwrap().tier(), Tier::Optimised, "a small one waits");
}

#[tokio::test]
async fn an_upgrade_that_an_agent_did_not_live_to_see_is_made_by_the_next() {
    let cache = Cache::new();
    let wasm = hello(6);
    let programs = cache.programs_with(Some(0));
    // As an agent that ends would: nobody upgrades.
    let digest = Digest::of(&wasm);
    programs.0.upgrades.pretend_begun(digest.clone());
    assert_eq!(load(&programs, &wasm).await.0.unwrap().tier(), Tier::Baseline);
    let next = cache.programs_with(Some(0));
    let (program, compiled) = load(&next, &wasm).await;
    assert!(!compiled, "it is found");
    assert_eq!(program.unwrap().tier(), Tier::Baseline);
    optimised(&next, &wasm).await;
    // The first agent shares the directory and sees what the other made.
    assert_eq!(load(&programs, &wasm).await.0.unwrap().tier(), Tier::Optimised);
}

#[tokio::test]
async fn of_two_agents_with_one_directory_one_upgrades() {
    let cache = Cache::new();
    let wasm = hello(7);
    let programs = cache.programs_with(Some(0));
    let digest = Digest::of(&wasm);
    let hash = cache.engines.optimised().hash();
    let key = Key { digest: &digest, engine: hash };
    let claim = programs.0.store.claim(key).unwrap().unwrap();
    let other = cache.programs_with(Some(0));
    assert!(other.0.store.claim(key).unwrap().is_none());
    load(&other, &wasm).await.0.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(load(&other, &wasm).await.0.unwrap().tier(), Tier::Baseline, "somebody else is at it");
    programs.0.store.release(key, claim);
    optimised(&cache.programs_with(Some(0)), &wasm).await;
    optimised(&other, &wasm).await;
}

#[tokio::test]
async fn what_the_baseline_compiler_does_not_know_waits_for_the_other() {
    let cache = Cache::new();
    let programs = cache.programs_with(Some(0));
    // A tail call.
    let text = "(module (func $f (return_call $f)) (func (export \"_start\") (call $f)))";
    let program = load(&programs, &wat::parse_str(text).unwrap()).await.0.unwrap();
    assert_eq!(program.tier(), Tier::Optimised);
    let error = load(&programs, &wat::parse_str("(component)").unwrap()).await.0.err().unwrap().to_string();
    assert!(error.contains("exports neither"), "{error}");
}
