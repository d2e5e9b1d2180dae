//! The artifact cache: memory, disk, one flight, damage.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::config::RuntimeConfig;
use super::super::engine::GuestEngine;
use super::super::testing::{compiler, hello};
use super::*;
use crate::clock::Clock;
use crate::logs::LogStore;

struct Cache {
    directory: tempfile::TempDir,
    engine: GuestEngine,
}

impl Cache {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), engine: GuestEngine::new().unwrap() }
    }

    /// As after a start of the agent: nothing in memory.
    fn programs(&self) -> Programs {
        let logs = LogStore::open(self.directory.path().join("logs"), Clock::System).unwrap();
        let mut config = RuntimeConfig::new(self.directory.path().to_owned(), logs);
        config.compiler = compiler();
        Programs::new(self.engine.clone(), &config).unwrap()
    }

    fn artifact(&self, extension: &str) -> PathBuf {
        let entries = fs::read_dir(self.directory.path().join("artifacts")).unwrap().flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|found| found == extension)).unwrap()
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
