//! `GET /logs/PATH`: files and directories of the machine's `/var/log`, as Go's `http.FileServer` shows them
//! (kubelet.go, `logServer`). Off with `enableSystemLogHandler: false`.
//!
//! In: a path. Out: a file's bytes, or a page of links. A link leads nowhere outside the directory: what pods may write of
//! it, by a hostPath volume, would show whoever reads logs every file of the machine.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::Path;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

/// The machine's logs (kubelet.go, `nodeLogDir`).
const DIRECTORY: &str = "/var/log";
/// How much of a file tells its kind.
const SNIFFED: usize = 512;

/// The directory itself.
pub(super) async fn root(uri: Uri) -> Response {
    file(Path(String::new()), uri).await
}

/// What is below it.
pub(super) async fn file(Path(path): Path<String>, uri: Uri) -> Response {
    let looked = tokio::task::spawn_blocking(move || look(FilePath::new(DIRECTORY), &path)).await;
    let found = looked.expect("looking does not panic");
    match found {
        Ok(Found::Directory(_)) if !uri.path().ends_with('/') => see_other(&uri),
        Ok(Found::Directory(names)) => ([(CONTENT_TYPE, "text/html; charset=utf-8")], page(&names)).into_response(),
        Ok(Found::File { file, length, kind }) => {
            // As long as it was when it was looked at: a log grows while it is read.
            let bytes = ReaderStream::new(tokio::fs::File::from_std(file).take(length));
            let headers = [(CONTENT_TYPE, kind.to_owned()), (CONTENT_LENGTH, length.to_string())];
            (headers, Body::from_stream(bytes)).into_response()
        }
        Err(error) => refused(&error),
    }
}

/// What is at a path.
enum Found {
    /// Its names, directories with a slash.
    Directory(Vec<String>),
    /// An open file.
    File { file: File, length: u64, kind: &'static str },
}

fn look(directory: &FilePath, path: &str) -> io::Result<Found> {
    let root = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = path.trim_matches('/');
    let relative = if path.is_empty() { PathBuf::from(".") } else { PathBuf::from(path) };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut file = File::from(rustix::fs::openat2(&root, relative, flags, Mode::empty(), resolve)?);
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Ok(Found::Directory(names(&file)?));
    }
    if !metadata.is_file() {
        // A pipe or a device: reading it would take something away, or never end.
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let mut head = Vec::with_capacity(SNIFFED);
    (&mut file).take(SNIFFED as u64).read_to_end(&mut head)?;
    io::Seek::rewind(&mut file)?;
    Ok(Found::File { file, length: metadata.len(), kind: kind(&head) })
}

fn names(directory: &File) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if matches!(&*name, "." | "..") {
            continue;
        }
        let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
        names.push(format!("{name}{slash}"));
    }
    names.sort();
    Ok(names)
}

/// Go's `http.DetectContentType`, of which logs need two: text has no control characters but white space and escapes.
fn kind(head: &[u8]) -> &'static str {
    let binary = |byte: &u8| matches!(byte, 0x00..=0x08 | 0x0B | 0x0E..=0x1A | 0x1C..=0x1F);
    if head.iter().any(binary) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

/// The page of a directory, with Go's markup.
fn page(names: &[String]) -> String {
    let mut page = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let link = name.split('/').map(encoded).collect::<Vec<_>>().join("/");
        // A name with a colon before any slash would be a scheme.
        let dot = if link.contains(':') { "./" } else { "" };
        page.push_str(&format!("<a href=\"{dot}{link}\">{}</a>\n", escaped(name)));
    }
    page.push_str("</pre>\n");
    page
}

/// A name as part of a link: everything that is not plain is percent-encoded.
fn encoded(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~:@$&+,".contains(byte);
    name.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&#34;"),
            '\'' => text.push_str("&#39;"),
            other => text.push(other),
        }
    }
    text
}

/// To the directory's own address, which its links are relative to.
fn see_other(uri: &Uri) -> Response {
    let name = uri.path().rsplit('/').next().unwrap_or_default();
    (StatusCode::MOVED_PERMANENTLY, [(LOCATION, format!("{name}/"))]).into_response()
}

/// Go's words for it (`toHTTPError`).
fn refused(error: &io::Error) -> Response {
    match error.raw_os_error().unwrap_or(libc::EACCES) {
        libc::ENOENT | libc::ENOTDIR => (StatusCode::NOT_FOUND, "404 page not found\n"),
        // EXDEV: a link leads out of the directory. ELOOP: links lead in a circle.
        libc::EACCES | libc::EPERM | libc::EXDEV | libc::ELOOP => (StatusCode::FORBIDDEN, "403 Forbidden\n"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
    }
    .into_response()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_directory_is_shown() {
        let machine = tempfile::tempdir().unwrap();
        let logs = machine.path().join("log");
        fs::create_dir_all(logs.join("pods/a b")).unwrap();
        fs::write(machine.path().join("shadow"), "secret").unwrap();
        fs::write(logs.join("syslog"), "hello\n").unwrap();
        fs::write(logs.join("wtmp"), [0, 1, 2]).unwrap();
        symlink("../shadow", logs.join("out")).unwrap();
        symlink(machine.path().join("shadow"), logs.join("absolute")).unwrap();
        symlink("syslog", logs.join("inside")).unwrap();
        symlink("circle", logs.join("circle")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, logs.join("pipe"), Mode::RWXU).unwrap();
        let text = |path: &str| match look(&logs, path) {
            Ok(Found::File { mut file, length, kind }) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                format!("{kind} {length} {}", String::from_utf8_lossy(&bytes).escape_debug())
            }
            Ok(Found::Directory(names)) => names.join(" "),
            Err(error) => refused(&error).status().as_u16().to_string(),
        };
        for (path, expected) in [
            ("syslog", "text/plain; charset=utf-8 6 hello\\n"),
            ("/inside", "text/plain; charset=utf-8 6 hello\\n"),
            ("wtmp", "application/octet-stream 3 \\0\\u{1}\\u{2}"),
            ("", "absolute circle inside out pipe pods/ syslog wtmp"),
            ("pods/", "a b/"),
            ("pods/../syslog", "text/plain; charset=utf-8 6 hello\\n"),
            ("../shadow", "403"),
            ("out", "403"),
            ("absolute", "403"),
            ("circle", "403"),
            ("pipe", "403"),
            ("none", "404"),
            ("syslog/none", "404"),
        ] {
            assert_eq!(text(path), expected, "{path}");
        }
    }

    #[test]
    fn a_page_links_to_names_of_every_kind() {
        let names = ["a b/", "c&<d>", "e:f", "g%h"].map(str::to_owned);
        let page = page(&names);
        for line in [
            "<a href=\"a%20b/\">a b/</a>",
            "<a href=\"c&%3Cd%3E\">c&amp;&lt;d&gt;</a>",
            "<a href=\"./e:f\">e:f</a>",
            "<a href=\"g%25h\">g%h</a>",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
