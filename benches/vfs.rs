//! The filesystem's hot paths: lookups, and 64 KiB reads and writes, on each backend, beside the bare system call.
//!
//! `cargo bench --bench vfs`. The `syscall` rows are the floor of the same run; ratios to them travel between machines.

use std::hint::black_box;
use std::os::unix::fs::FileExt;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wasilet::pod::run::{Access, Medium};
use wasilet::vfs::layer::LayerStack;
use wasilet::vfs::{
    Credentials, Dir, File, Follow, Namespace, NamespaceBuilder, OpenFlags, OpenOptions, Opened, Upper, Volume,
};

const BLOCK: usize = 64 * 1024;
const FILE: usize = 64 << 20;

struct Case {
    name: &'static str,
    ns: Namespace,
    at: Dir,
    file: File,
    _dir: tempfile::TempDir,
}

async fn case(name: &'static str) -> Case {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cred = Credentials::root();
    let upper = match name {
        "disk root" => Upper::Directory(dir.path().join("upper")),
        _ => Upper::Memory { limit: 1 << 30 },
    };
    let builder = NamespaceBuilder::new(LayerStack::empty(), upper, Access::ReadWrite);
    let builder = match name {
        "emptyDir" => {
            let volume = Volume::node_directory(dir.path(), Medium::Disk, None).await.expect("a volume");
            builder.mount("/w", volume, "", Access::ReadWrite)
        }
        "hostPath" => {
            builder.mount("/w", Volume::host_path(dir.path(), &[]).await.expect("a volume"), "", Access::ReadWrite)
        }
        _ => builder,
    };
    let ns = builder.build().await.expect("a namespace");
    for path in ["/w", "/w/a", "/w/a/b"] {
        let _ = ns.mkdir(&cred, &ns.root(), path, 0o755).await;
    }
    let options = OpenOptions::new(OpenFlags::READ | OpenFlags::WRITE | OpenFlags::CREATE);
    let Ok(Opened::File(file)) = ns.open(&cred, &ns.root(), "/w/a/b/file", options).await else { panic!("a file") };
    let block = vec![1; BLOCK];
    for offset in (0..FILE).step_by(BLOCK) {
        file.write_at(&block, offset as u64).await.expect("written");
    }
    let Ok(Opened::Dir(at)) = ns.open(&cred, &ns.root(), "/w", OpenOptions::read()).await else {
        panic!("a directory")
    };
    Case { name, ns, at, file, _dir: dir }
}

fn metadata(c: &mut Criterion, runtime: &tokio::runtime::Runtime, cases: &[Case]) {
    let mut group = c.benchmark_group("stat a/b/file");
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
    let path = dir.path().join("a/b/file");
    std::fs::write(&path, b"").expect("written");
    group.bench_function("syscall", |b| b.iter(|| black_box(std::fs::metadata(&path)).is_ok()));
    let cred = Credentials::root();
    for case in cases {
        group.bench_function(case.name, |b| {
            b.to_async(runtime)
                .iter(|| async { black_box(case.ns.stat(&cred, &case.at, "a/b/file", Follow::Yes).await).is_ok() });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("stat missing");
    for case in cases {
        group.bench_function(case.name, |b| {
            b.to_async(runtime)
                .iter(|| async { black_box(case.ns.stat(&cred, &case.at, "a/none", Follow::Yes).await).is_err() });
        });
    }
    group.finish();
}

fn bytes(c: &mut Criterion, runtime: &tokio::runtime::Runtime, cases: &[Case]) {
    let mut buffer = vec![0; BLOCK];
    let real = tempfile::tempfile().expect("a temporary file");
    real.set_len(FILE as u64).expect("sized");
    for writes in ["read", "write"] {
        let mut group = c.benchmark_group(format!("{writes} 64 KiB"));
        group.throughput(Throughput::Bytes(BLOCK as u64));
        let mut at = 0;
        let mut next = move || {
            at = (at + BLOCK) % FILE;
            at as u64
        };
        group.bench_function("syscall", |b| {
            b.iter(|| match writes {
                "read" => real.read_at(&mut buffer, next()).expect("read"),
                _ => real.write_at(&buffer, next()).expect("written"),
            });
        });
        for case in cases {
            group.bench_function(case.name, |b| {
                b.iter(|| {
                    runtime.block_on(async {
                        match writes {
                            "read" => case.file.read_at(&mut buffer, next()).await.expect("read"),
                            _ => case.file.write_at(&buffer, next()).await.expect("written"),
                        }
                    })
                });
            });
        }
        group.finish();
    }
}

fn all(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let names = ["memory root", "disk root", "emptyDir", "hostPath"];
    let cases: Vec<Case> = names.into_iter().map(|name| runtime.block_on(case(name))).collect();
    metadata(c, &runtime, &cases);
    bytes(c, &runtime, &cases);
}

criterion_group!(benches, all);
criterion_main!(benches);
