//! From `argv[0]` to a program, as `execvp` finds it.
//!
//! In: a name, `PATH`, a working directory. Out: where the wasm bytes are, or an error in runc's words. `.wasm` may be
//! left out, and a file needs no execute bit: tools that build wasm images do not set it.

use std::path::PathBuf;

use super::super::artifact::WasmSource;
use super::super::error::{LookupError, ProgramError, StartError};
use super::Container;
use crate::errno::Errno;
use crate::ids::Digest;
use crate::pod::run::ImageSpec;
use crate::vfs::{AccessMode, FileType, Follow, Metadata};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that was found.
pub(super) struct Found {
    /// For messages and backtraces.
    pub(super) name: String,
    /// Its bytes.
    pub(super) source: Source,
    /// The function to call instead of `_start`: what follows `#` in `argv[0]`.
    pub(super) function: Option<String>,
}

/// Where a program's bytes are.
pub(super) enum Source {
    /// The image's artifact, a file of the node whose digest is known.
    Artifact { digest: Digest, path: PathBuf },
    /// A file of the container's tree, read.
    Bytes(Vec<u8>),
}

impl From<Source> for WasmSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Artifact { digest, path } => Self::File { digest, path },
            Source::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

/// What to do when nothing is at `argv[0]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallback {
    /// The first process of a bare artifact: whatever its `argv[0]` says, there is one program.
    Artifact,
    /// Fail.
    None,
}

impl Container {
    /// Finds and reads the program `name`.
    pub(super) async fn find_program(
        &self,
        name: &str,
        env: &[(String, String)],
        cwd: &str,
        fallback: Fallback,
    ) -> Result<Found, StartError> {
        let (path, function) = match name.split_once('#') {
            Some((path, function)) if !function.is_empty() => (path, Some(function.to_owned())),
            _ => (name, None),
        };
        if path.is_empty() {
            return Err(LookupError::Empty.into());
        }
        let located = if path.contains('/') {
            self.locate(&join(cwd, path)).await.map_err(|errno| match errno {
                Errno::NoEnt | Errno::NotDir => LookupError::NoSuchFile { name: name.to_owned() },
                errno => denied_or_read(name, errno),
            })
        } else {
            self.search(path, env, cwd).await
        };
        let (path, metadata) = match (located, &self.spec.image.artifact, fallback) {
            (Ok(located), _, _) => located,
            (Err(_), Some(_), Fallback::Artifact) => return Ok(self.artifact(function)),
            (Err(error), _, _) => return Err(error.into()),
        };
        if self.spec.image.artifact.is_some() && path == ImageSpec::ARTIFACT_PATH && !self.is_mounted_over(&path) {
            return Ok(self.artifact(function));
        }
        let limit = self.services.programs.max_wasm_bytes();
        if metadata.size > limit {
            return Err(ProgramError::TooLarge { program: path, size: metadata.size, limit }.into());
        }
        let root = self.namespace.root();
        let bytes = self
            .namespace
            .read(&self.credentials, &root, &path, limit)
            .await
            .map_err(|errno| denied_or_read(name, errno))?;
        Ok(Found { name: path, source: Source::Bytes(bytes), function })
    }

    fn artifact(&self, function: Option<String>) -> Found {
        let artifact = self.spec.image.artifact.as_ref().expect("callers checked that the image is an artifact");
        Found {
            name: self.spec.image.reference.clone(),
            source: Source::Artifact { digest: artifact.digest.clone(), path: artifact.path.clone() },
            function,
        }
    }

    fn is_mounted_over(&self, path: &str) -> bool {
        self.spec.mounts.iter().any(|mount| mount.mount_path.trim_end_matches('/') == path)
    }

    async fn search(&self, name: &str, env: &[(String, String)], cwd: &str) -> Result<(String, Metadata), LookupError> {
        let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        let mut denied = false;
        for directory in path.split(':') {
            let directory = if directory.is_empty() { cwd } else { directory };
            match self.locate(&join(cwd, &join(directory, name))).await {
                Ok(found) => return Ok(found),
                Err(Errno::Acces) => denied = true,
                Err(_) => {}
            }
        }
        let name = name.to_owned();
        Err(if denied { LookupError::Denied { name } } else { LookupError::NotOnPath { name } })
    }

    /// The regular file at `path` or `path.wasm`.
    async fn locate(&self, path: &str) -> Result<(String, Metadata), Errno> {
        let root = self.namespace.root();
        let mut first_error = None;
        for candidate in [path.to_owned(), format!("{path}.wasm")] {
            match self.namespace.stat(&self.credentials, &root, &candidate, Follow::Yes).await {
                Ok(metadata) if metadata.kind == FileType::Regular => {
                    self.namespace.access(&self.credentials, &root, &candidate, AccessMode::READ).await?;
                    return Ok((candidate, metadata));
                }
                Ok(_) => first_error = first_error.or(Some(Errno::Acces)),
                Err(errno) => first_error = first_error.or(Some(errno)),
            }
        }
        Err(first_error.unwrap_or(Errno::NoEnt))
    }
}

fn denied_or_read(name: &str, errno: Errno) -> LookupError {
    let name = name.to_owned();
    match errno {
        Errno::Acces | Errno::Perm => LookupError::Denied { name },
        errno => LookupError::Read { name, errno },
    }
}

/// `path` seen from `base`. Lexical joining only; `..` is the filesystem's to resolve.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", base.trim_end_matches('/'))
}
