//! hostPath: what of the host a pod may see, and whether it is what the pod says.
//!
//! In: `hostPath` of a volume and the node's policy. Out: a path without symlinks that the policy allows, and what below it
//! stays hidden: places of the node's own. The check is of what the path leads to, not of how it is written; the host's owner,
//! who could still change it, is trusted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Where hostPath may point.
pub(super) struct Policy<'a> {
    pub(super) allowed: Vec<&'a Path>,
    pub(super) denied: &'a [PathBuf],
}

/// A path that may be shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) path: PathBuf,
    pub(super) hidden: Vec<PathBuf>,
}

/// Checks and, where the type says so, makes the path.
pub(super) fn setup(source: &HostPathVolumeSource, policy: &Policy<'_>) -> Result<Shown, String> {
    let path = Path::new(&source.path);
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(format!("invalid HostPath `{}`: must not contain '..'", source.path));
    }
    if !path.is_absolute() {
        return Err(format!("invalid HostPath `{}`: must be an absolute path", source.path));
    }
    let resolved = resolve(path).map_err(|error| format!("{}: {error}", source.path))?;
    let hidden = policy.check(path, &resolved)?;
    check_type(&source.path, &resolved, source.type_.as_deref().unwrap_or(""))?;
    check_usable(&source.path, &resolved)?;
    Ok(Shown { path: resolved, hidden })
}

impl Policy<'_> {
    /// What is hidden below a path that is allowed.
    fn check(&self, written: &Path, resolved: &Path) -> Result<Vec<PathBuf>, String> {
        let shown = written.display();
        let denied: Vec<PathBuf> =
            self.denied.iter().map(|denied| denied.canonicalize().unwrap_or_else(|_| denied.clone())).collect();
        if let Some(denied) = denied.iter().find(|denied| resolved.starts_with(denied)) {
            return Err(format!("hostPath {shown} is not allowed: {} belongs to the node", denied.display()));
        }
        let allowed = |prefix: &&Path| prefix.canonicalize().is_ok_and(|prefix| resolved.starts_with(prefix));
        if self.allowed.iter().any(allowed) {
            return Ok(denied.into_iter().filter(|denied| denied.starts_with(resolved)).collect());
        }
        let listed: Vec<String> = self.allowed.iter().map(|prefix| prefix.display().to_string()).collect();
        let listed = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
        Err(format!(
            "hostPath {shown} is not allowed on this node (allowed prefixes: {listed}; see hostPathAllowedPrefixes of \
             the node's configuration)"
        ))
    }
}

/// Follows symlinks as far as the path exists; the rest stays as written.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut existing = path;
    let mut missing = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(resolved) => return Ok(missing.iter().rev().fold(resolved, |path, name| path.join(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A symlink to nowhere exists itself, and what it would become is not ours to decide.
                if existing.symlink_metadata().is_ok() {
                    return Err(error);
                }
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else { return Err(error) };
                missing.push(name);
                existing = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The kubelet's `checkType`, in its words.
fn check_type(shown: &str, path: &Path, kind: &str) -> Result<(), String> {
    let failed = |what| Err(format!("hostPath type check failed: {shown} is not {what}"));
    let found = fs::metadata(path).map(|metadata| metadata.file_type());
    let make_dir = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| format!("mkdir {shown}: {error}"))
    };
    match (kind, found) {
        // Container runtimes make what isn't there when no type is given.
        ("" | "DirectoryOrCreate", Err(_)) => make_dir(),
        ("", Ok(_)) => Ok(()),
        ("DirectoryOrCreate" | "Directory", Ok(found)) if found.is_dir() => Ok(()),
        ("DirectoryOrCreate" | "Directory", _) => failed("a directory"),
        ("FileOrCreate", Err(_)) => {
            let file = fs::File::options().write(true).create_new(true).mode(0o644).open(path);
            file.map(drop).map_err(|error| format!("open {shown}: {error}"))
        }
        ("FileOrCreate" | "File", Ok(found)) if found.is_file() => Ok(()),
        ("FileOrCreate" | "File", _) => failed("a file"),
        ("Socket", Ok(found)) if found.is_socket() => Ok(()),
        ("Socket", _) => failed("a socket file"),
        ("CharDevice", Ok(found)) if found.is_char_device() => Ok(()),
        ("CharDevice", _) => failed("a character device"),
        ("BlockDevice", Ok(found)) if found.is_block_device() => Ok(()),
        ("BlockDevice", _) => failed("a block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

/// Only files and directories can be shown to a guest.
fn check_usable(shown: &str, path: &Path) -> Result<(), String> {
    let found = fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.file_type();
    let kind = match found {
        found if found.is_dir() || found.is_file() => return Ok(()),
        found if found.is_socket() => "a socket",
        found if found.is_fifo() => "a pipe",
        _ => "a device",
    };
    Err(format!("hostPath {shown} is {kind} of the host, which WASI containers on this node cannot use"))
}
