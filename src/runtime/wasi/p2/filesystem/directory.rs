//! The resource behind `wasi:filesystem/types.directory-entry-stream`.
//!
//! In: a directory handle. Out: its entries one by one, without `.` and `..` as the interface wants. Reads a
//! batch at a time, so that neither a huge directory nor a slow guest holds much of it in memory.

use std::vec;

use super::super::bindings::filesystem::types::DirectoryEntry;
use super::super::errors::FsResult;
use super::convert;
use crate::vfs::{Dir, DirEntry};

/// A listing that is under way.
pub struct DirectoryEntryStream {
    dir: Dir,
    batch: vec::IntoIter<DirEntry>,
    cookie: u64,
    /// Set at the end, so that entries made later do not appear in a finished listing.
    ended: bool,
}

impl DirectoryEntryStream {
    /// Starts at the first entry.
    #[must_use]
    pub fn new(dir: Dir) -> Self {
        Self { dir, batch: Vec::new().into_iter(), cookie: 0, ended: false }
    }

    /// The next entry; `None` at the end, and from then on.
    ///
    /// # Errors
    /// What `vfs` says.
    pub async fn next(&mut self) -> FsResult<Option<DirectoryEntry>> {
        loop {
            if let Some(entry) = self.batch.next() {
                self.cookie = entry.next;
                if matches!(&*entry.name, "." | "..") {
                    continue;
                }
                let type_ = convert::descriptor_type(entry.kind);
                return Ok(Some(DirectoryEntry { type_, name: entry.name.into() }));
            }
            if self.ended {
                return Ok(None);
            }
            let batch = self.dir.read_dir(self.cookie).await?;
            self.ended = batch.is_empty();
            self.batch = batch.into_iter();
        }
    }
}
