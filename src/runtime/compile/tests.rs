//! The compile subprocess, run for real.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use super::super::artifact::WasmSource;
use super::super::config::CompileLimits;
use super::super::engine::Tier;
use super::super::error::ProgramError;
use super::super::testing::{COMPILE_VARIABLE, compiler, hello};
use super::{Job, child, run};

/// Not a test of its own: the others start this binary again with the variable set.
#[test]
fn the_test_binary_is_the_compiler_when_asked() {
    if std::env::var_os(COMPILE_VARIABLE).is_some() {
        std::process::exit(i32::from(child::run()));
    }
}

async fn compile(bytes: &[u8], limits: &CompileLimits) -> Result<Vec<u8>, ProgramError> {
    compile_by(Tier::Optimised, bytes, limits).await
}

async fn compile_by(tier: Tier, bytes: &[u8], limits: &CompileLimits) -> Result<Vec<u8>, ProgramError> {
    let source = WasmSource::Bytes(Arc::from(bytes));
    let mut file = run(&compiler(), limits, Job::for_start(tier, "guest"), source).await?;
    let mut artifact = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut artifact).unwrap();
    Ok(artifact)
}

#[tokio::test]
async fn a_module_becomes_an_artifact() {
    for tier in [Tier::Baseline, Tier::Optimised] {
        let artifact = compile_by(tier, &hello(0), &CompileLimits::default()).await.unwrap();
        assert_eq!(&artifact[..4], b"\x7fELF", "{tier:?}");
    }
}

#[tokio::test]
async fn bad_input_is_told_apart() {
    let module = hello(0);
    let limits = CompileLimits::default();
    for (case, bytes, expected) in [
        ("half a module", &module[..module.len() / 2], "truncated"),
        ("only the magic", &module[..5], "truncated"),
        ("nothing", &[], "truncated"),
        ("a script", b"#!/bin/sh\necho", "not a WebAssembly module or component"),
        ("an ELF file", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0", "linux/amd64 executable"),
        ("a wrong section", b"\0asm\x01\0\0\0\x7f\x01\0", "not valid WebAssembly"),
        ("a newer version", b"\0asm\x09\0\0\0", "unknown binary version"),
    ] {
        let error = compile(bytes, &limits).await.expect_err(case).to_string();
        assert!(error.contains(expected), "{case}: {error}");
    }
}

#[tokio::test]
async fn a_compiler_over_its_memory_is_an_error_with_that_reason() {
    let limits = CompileLimits { max_memory_bytes: 40 << 20, ..CompileLimits::default() };
    let error = compile(&hello(0), &limits).await.expect_err("40 MiB are too few for Cranelift's threads");
    assert!(matches!(error, ProgramError::Compile { .. }), "{error}");
}

#[tokio::test]
async fn wasm_over_the_limit_is_refused_before_a_subprocess_is_made() {
    let limits = CompileLimits { max_wasm_bytes: 10, max_cpu: Duration::from_secs(1), ..CompileLimits::default() };
    let error = compile(&hello(0), &limits).await.expect_err("more than ten bytes");
    assert!(matches!(error, ProgramError::TooLarge { limit: 10, .. }), "{error}");
}
