//! Turns a request target into a file. In: the served directory and a target as sent. Out: an open file, a redirect,
//! or a status. No target leads out of the directory: `..` is resolved before any file is looked at, and what a
//! symbolic link may reach is the container's own tree, which its node guards.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use guest_support::target::normalize;

/// What a target leads to.
pub enum Found {
    /// This file.
    File(Served),
    /// A directory that was asked for without its last slash; relative links on its page need it.
    Elsewhere(String),
    /// Nothing to serve; the status that says why.
    Nothing(u16),
}

/// An open file and what the headers say of it.
pub struct Served {
    /// Positioned at its start.
    pub file: File,
    /// Size and times, of the open file and not of its name: a rename may have replaced that by now.
    pub metadata: Metadata,
    /// Its Content-Type.
    pub content_type: &'static str,
}

/// Finds what `target` names under `root`.
#[must_use]
pub fn find(root: &Path, target: &str) -> Found {
    let Some(relative) = normalize(target) else { return Found::Nothing(400) };
    let mut path = root.join(&relative);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            if !relative.is_empty() && !relative.ends_with('/') {
                let raw = target.split(['?', '#']).next().unwrap_or_default();
                return Found::Elsewhere(format!("{raw}/"));
            }
            path.push("index.html");
            match open(&path) {
                Ok(served) => Found::File(served),
                // Listing a directory is not asked for: forbidden, as with nginx.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Found::Nothing(if relative.is_empty() { 404 } else { 403 })
                }
                Err(error) => refused(&error),
            }
        }
        Ok(_) if relative.ends_with('/') => Found::Nothing(404),
        Ok(_) => open(&path).map_or_else(|error| refused(&error), Found::File),
        Err(error) => refused(&error),
    }
}

fn open(path: &PathBuf) -> io::Result<Served> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    // Devices and the like have no length to promise.
    if !metadata.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(Served { file, metadata, content_type: content_type(path) })
}

fn refused(error: &io::Error) -> Found {
    Found::Nothing(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => 404,
        io::ErrorKind::PermissionDenied => 403,
        io::ErrorKind::InvalidFilename => 414,
        _ => 500,
    })
}

fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "log" | "md" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "json" => "application/json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}
