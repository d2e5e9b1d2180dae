//! `wasilet go`: the user's own go command, for wasip1 with the standard library that this node's containers can use.
//!
//! In: the arguments of go. Out: what go does, and its exit code. What is changed in the library, and how go is run, is
//! `wasm-samples/go-overlay`, a program in Go that this binary carries and that is built once on the user's machine:
//! whoever builds Go programs has a Go compiler.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

/// Arguments of `wasilet go`.
#[derive(Debug, clap::Args)]
pub struct GoArguments {
    /// A command of go with its arguments: 'build -o app.wasm .', 'vet ./...', 'list -deps', 'install ./cmd/app'
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../wasm-samples/go-overlay/", $name)))),*]
    };
}

/// The generator and the files it adds to the library.
const SOURCES: &[(&str, &str)] = sources![
    "go.mod",
    "main.go",
    "command.go",
    "std/crypto/x509/wasilet_wasip1.go",
    "std/internal/syscall/unix/wasilet_wasip1.go",
    "std/net/wasilet_wasip1.go",
    "std/os/signal/signal_wasip1.go",
    "std/os/wasilet_wasip1.go",
    "std/syscall/sockets_wasip1.go",
    "std/syscall/wasilet_wasip1.go",
    "xnet/internal/socket/cmsghdr_stub.go",
    "xnet/ipv4/control_stub.go",
    "xnet/ipv6/control_stub.go",
    "xreadline/wasilet_wasip1.go",
    "xsys/unix/wasilet_wasip1.go",
];
const TOOL: &str = "go-overlay";

/// Runs go and returns its exit code.
///
/// # Errors
/// When there is no go, or the generator cannot be built or kept.
pub async fn go(args: GoArguments) -> anyhow::Result<ExitCode> {
    let cache = cache_dir(|name| std::env::var_os(name))?;
    let tool = tool(&cache).await?;
    let status = Command::new(&tool).args(&args.arguments).status().await;
    Ok(exit_code(status.with_context(|| format!("running {}", tool.display()))?))
}

/// Where the generator and its files are kept: the place that go's own cache is beside.
fn cache_dir(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("WASILET_GO_CACHE") {
        return Ok(dir);
    }
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("wasilet/go-overlay"))
        .context("no place for generated files: set WASILET_GO_CACHE, XDG_CACHE_HOME or HOME")
}

/// The generator, built if this version of it has not been.
async fn tool(cache: &Path) -> anyhow::Result<PathBuf> {
    let hash = SOURCES.iter().fold(Sha256::new(), |hash, (name, text)| hash.chain_update(name).chain_update(text));
    let dir = cache.join(format!("tool-{}", &hex::encode(hash.finalize())[..16]));
    let tool = dir.join(TOOL);
    if tool.exists() {
        return Ok(tool);
    }
    write_sources(&dir)
        .with_context(|| format!("writing to {} (WASILET_GO_CACHE names another place)", dir.display()))?;
    // Under another name until it is whole: two may be at it.
    let unfinished = dir.join(format!("{TOOL}-{}", std::process::id()));
    let built = Command::new("go")
        .arg("build")
        .arg("-o")
        .arg(&unfinished)
        .arg(".")
        .current_dir(&dir)
        // The user's settings are for the user's program.
        .envs([("GOFLAGS", ""), ("GOOS", ""), ("GOARCH", ""), ("GOWORK", "off"), ("CGO_ENABLED", "0")])
        .status()
        .await;
    match built {
        Ok(status) if status.success() => {}
        Ok(status) => bail!("go could not build the overlay's generator in {} ({status})", dir.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no go on PATH: install Go 1.24, 1.25 or 1.26 (https://go.dev/dl)")
        }
        Err(error) => return Err(error).context("running go"),
    }
    fs::rename(&unfinished, &tool).with_context(|| format!("writing {}", tool.display()))?;
    Ok(tool)
}

fn write_sources(dir: &Path) -> io::Result<()> {
    for (name, text) in SOURCES {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// Go's own code; ended by a signal it is a failure.
fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_generator_is_carried() {
        fn walk(dir: &Path, root: &Path, into: &mut BTreeSet<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, into);
                } else {
                    into.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("wasm-samples/go-overlay");
        let mut there = BTreeSet::new();
        walk(&root, &root, &mut there);
        there.retain(|name| !name.ends_with("_test.go"));
        assert_eq!(there, SOURCES.iter().map(|(name, _)| (*name).to_owned()).collect());
    }

    #[test]
    fn the_cache_is_where_it_was_asked_for_or_where_caches_are() {
        for (case, set, expected) in [
            ("asked for", &[("WASILET_GO_CACHE", "/c"), ("HOME", "/h")][..], Some("/c")),
            ("XDG", &[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")][..], Some("/x/wasilet/go-overlay")),
            ("home", &[("XDG_CACHE_HOME", ""), ("HOME", "/h")][..], Some("/h/.cache/wasilet/go-overlay")),
            ("nowhere", &[][..], None),
        ] {
            let dir = cache_dir(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
            assert_eq!(dir.ok().as_deref(), expected.map(Path::new), "{case}");
        }
    }
}
