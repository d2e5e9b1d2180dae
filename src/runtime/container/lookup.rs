//! From `argv[0]` to a program, as `execvp` finds it.
//!
//! In: a name, `PATH`, a working directory. Out: where the wasm bytes are, or an error in runc's words. `.wasm` may be
//! left out, and a wasm file needs no execute bit: tools that build wasm images do not set it. A script (`#!`) needs one,
//! and becomes its interpreter's argument. For what the image lacks the toolbox stands in, where the pod lets it.

use std::path::PathBuf;

use super::super::artifact::WasmSource;
use super::super::error::{LookupError, ProgramError, StartError};
use super::super::toolbox;
use super::{Container, Launch};
use crate::errno::Errno;
use crate::ids::Digest;
use crate::pod::run::ImageSpec;
use crate::pod::toolbox::{TOOLBOX_PATH, ToolboxUse, stands_in_for};
use crate::vfs::{AccessMode, FileType, Follow, Metadata};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Interpreters of interpreters that are followed: Linux's own bound.
const MAX_INTERPRETERS: usize = 5;
/// Bytes of a `#!` line that count, Linux's `BINPRM_BUF_SIZE`.
const MAX_INTERPRETER_LINE: usize = 256;

/// A program that was found.
pub(super) struct Found {
    /// For messages and backtraces.
    pub(super) name: String,
    /// Where it is in the container, for `/proc/PID/exe`.
    pub(super) path: String,
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
    /// The node's toolbox.
    Toolbox,
}

impl Source {
    /// For the loader of programs; none for the toolbox, which is loaded already.
    pub(super) fn wasm(self) -> Option<WasmSource> {
        match self {
            Self::Artifact { digest, path } => Some(WasmSource::File { digest, path }),
            Self::Bytes(bytes) => Some(WasmSource::Bytes(bytes.into())),
            Self::Toolbox => None,
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
    /// Finds and reads the program of `launch`. Of a script it is the interpreter's, and the arguments are changed as
    /// execve(2) changes them.
    pub(super) async fn find_program(&self, launch: &mut Launch, fallback: Fallback) -> Result<Found, StartError> {
        let asked = launch.program.clone();
        for _ in 0..MAX_INTERPRETERS {
            let found = self.find_file(launch, fallback).await?;
            let Source::Bytes(bytes) = &found.source else { return Ok(found) };
            let Some((interpreter, argument)) = interpreter(bytes) else { return Ok(found) };
            self.may_execute(&found.name).await?;
            if interpreter == TOOLBOX_PATH {
                return self.toolbox(&asked, || LookupError::NoSuchFile { name: TOOLBOX_PATH.to_owned() });
            }
            let rest = std::mem::take(&mut launch.argv).into_iter().skip(1);
            launch.argv = [interpreter.clone()].into_iter().chain(argument).chain([found.name]).chain(rest).collect();
            launch.program = interpreter;
        }
        Err(LookupError::TooManyInterpreters { name: asked }.into())
    }

    /// The toolbox standing in for `name`, or what is `missing` where there is none.
    fn toolbox(&self, name: &str, missing: impl FnOnce() -> LookupError) -> Result<Found, StartError> {
        if self.services.toolbox.exists() {
            let (name, path) = (toolbox::NAME.to_owned(), TOOLBOX_PATH.to_owned());
            return Ok(Found { name, path, source: Source::Toolbox, function: None });
        }
        Err(LookupError::NoToolbox { name: name.to_owned(), missing: Box::new(missing()) }.into())
    }

    /// Scripts must be executable: a shell reads them either way, and says so.
    async fn may_execute(&self, path: &str) -> Result<(), LookupError> {
        let access = self.namespace.access(&self.credentials, &self.namespace.root(), path, AccessMode::EXECUTE).await;
        access.map_err(|errno| denied_or_read(path, errno))
    }

    async fn find_file(&self, launch: &Launch, fallback: Fallback) -> Result<Found, StartError> {
        let Launch { program: name, env, cwd, .. } = launch;
        let (path, function) = match name.split_once('#') {
            Some((path, function)) if !function.is_empty() => (path, Some(function.to_owned())),
            _ => (name.as_str(), None),
        };
        if path.is_empty() {
            return Err(LookupError::Empty.into());
        }
        let offered = self.spec.toolbox == ToolboxUse::Offered;
        let no_such_file = || LookupError::NoSuchFile { name: name.clone() };
        if path == TOOLBOX_PATH && offered {
            return self.toolbox(name, no_such_file);
        }
        let located = if path.contains('/') {
            self.locate(&join(cwd, path)).await.map_err(|errno| match errno {
                Errno::NoEnt | Errno::NotDir => no_such_file(),
                errno => denied_or_read(name, errno),
            })
        } else {
            self.search(path, env, cwd).await
        };
        let (path, metadata) = match (located, &self.spec.image.artifact, fallback) {
            (Ok(located), _, _) => located,
            (Err(_), Some(_), Fallback::Artifact) => return Ok(self.artifact(function)),
            (Err(missing @ (LookupError::NotOnPath { .. } | LookupError::NoSuchFile { .. })), _, _)
                if offered && stands_in_for(path) =>
            {
                return self.toolbox(name, || missing);
            }
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
        Ok(Found { name: path.clone(), path, source: Source::Bytes(bytes), function })
    }

    fn artifact(&self, function: Option<String>) -> Found {
        let artifact = self.spec.image.artifact.as_ref().expect("callers checked that the image is an artifact");
        Found {
            name: self.spec.image.reference.clone(),
            path: ImageSpec::ARTIFACT_PATH.to_owned(),
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

/// The interpreter that a script names, and its one argument.
fn interpreter(head: &[u8]) -> Option<(String, Option<String>)> {
    let line = head.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(&line[..line.len().min(MAX_INTERPRETER_LINE)]).ok()?.trim();
    let (path, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let argument = Some(argument.trim().to_owned()).filter(|argument| !argument.is_empty());
    Some((path.to_owned(), argument)).filter(|(path, _)| !path.is_empty())
}

/// `path` seen from `base`. Lexical joining only; `..` is the filesystem's to resolve.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", base.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_what_the_kernel_would_start() {
        let is = |path: &str, argument: Option<&str>| Some((path.to_owned(), argument.map(str::to_owned)));
        for (script, expected) in [
            ("#!/bin/sh\necho", is("/bin/sh", None)),
            ("#! /bin/sh -e -x \n", is("/bin/sh", Some("-e -x"))),
            ("#!/usr/bin/env\tawk", is("/usr/bin/env", Some("awk"))),
            ("#!\n", None),
            ("echo", None),
            ("", None),
        ] {
            assert_eq!(interpreter(script.as_bytes()), expected, "{script:?}");
        }
    }
}
