//! Bytes of a memory-medium volume: its limit, and who pays for each file.
//!
//! In: changes of files on a tmpfs the node owns. Out: ENOSPC at the volume's limit, the charge's error at the
//! writer's. A file is charged to the container that first grew it, as Linux charges a page to its first toucher.
//! The tmpfs itself is the truth: each change is measured by the file's own block count.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::errno::Errno;
use crate::vfs::Charge;

const PAGE: u64 = 4096;
/// Writers of different files rarely meet on a lock.
const STRIPES: usize = 8;

/// The account of one volume.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: u64,
    used: AtomicU64,
    files: [Mutex<HashMap<u64, Entry>>; STRIPES],
}

/// One file that is open or charged.
#[derive(Debug)]
struct Entry {
    payer: Option<Arc<dyn Charge>>,
    /// What the payer was charged.
    charged: u64,
    opens: u32,
    linked: bool,
}

impl Entry {
    const fn new() -> Self {
        Self { payer: None, charged: 0, opens: 0, linked: true }
    }
}

impl Ledger {
    /// `used` is what is there already, from before this agent; nobody is charged for it.
    pub(crate) fn new(limit: Option<u64>, used: u64) -> Self {
        Self {
            limit: limit.unwrap_or(u64::MAX),
            used: AtomicU64::new(used),
            files: std::array::from_fn(|_| Mutex::default()),
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn stripe(&self, ino: u64) -> &Mutex<HashMap<u64, Entry>> {
        &self.files[(ino % STRIPES as u64) as usize]
    }

    pub(crate) fn opened(&self, ino: u64) {
        self.stripe(ino).lock().entry(ino).or_insert_with(Entry::new).opens += 1;
    }

    pub(crate) fn closed(&self, ino: u64, fd: impl AsFd) {
        let mut files = self.stripe(ino).lock();
        let Some(entry) = files.get_mut(&ino) else { return };
        entry.opens = entry.opens.saturating_sub(1);
        if entry.opens > 0 {
            return;
        }
        if !entry.linked {
            let stored = stored(fd);
            self.settle(entry, stored, 0);
        }
        if !entry.linked || entry.payer.is_none() {
            files.remove(&ino);
        }
    }

    /// The last name of a file of `stored` bytes is gone.
    pub(crate) fn unlinked(&self, ino: u64, stored: u64) {
        let mut files = self.stripe(ino).lock();
        let entry = files.entry(ino).or_insert_with(Entry::new);
        entry.linked = false;
        if entry.opens == 0 {
            self.settle(entry, stored, 0);
            files.remove(&ino);
        }
    }

    /// Runs a change of the file's bytes that may need up to `end` from `offset`; measures what it took.
    pub(crate) fn change<T>(
        &self,
        ino: u64,
        fd: impl AsFd + Copy,
        payer: Option<&Arc<dyn Charge>>,
        range: std::ops::Range<u64>,
        act: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut files = self.stripe(ino).lock();
        let entry = files.entry(ino).or_insert_with(Entry::new);
        let stat = rustix::fs::fstat(fd)?;
        let before = stat.st_blocks as u64 * 512;
        let need = most_growth(stat.st_size as u64, before, &range);
        if need > 0 {
            if self.used().saturating_add(need) > self.limit {
                return Err(Errno::NoSpc);
            }
            if entry.payer.is_none() {
                entry.payer = payer.cloned();
            }
            if let Some(payer) = &entry.payer {
                payer.charge(need)?;
                entry.charged += need;
            }
        }
        let result = act();
        let after = stored(fd);
        // What was charged ahead and not taken is given back along with any shrinking.
        self.used.fetch_add(need, Ordering::Relaxed);
        self.settle(entry, before + need, after);
        result
    }

    /// Moves the account from `from` stored bytes to `to`.
    fn settle(&self, entry: &mut Entry, from: u64, to: u64) {
        if to > from {
            // A huge page, or a writer that came around us: measured, no longer refusable.
            self.used.fetch_add(to - from, Ordering::Relaxed);
            return;
        }
        let less = from - to;
        let take = |used: u64| Some(used.saturating_sub(less));
        // The closure always answers, so this cannot fail.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let back = less.min(entry.charged);
        if let Some(payer) = &entry.payer
            && back > 0
        {
            payer.release(back);
            entry.charged -= back;
        }
    }
}

fn stored(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_blocks as u64 * 512)
}

/// The most bytes that writing `range` can add to a file of `size` with `stored` bytes of pages. Pure.
fn most_growth(size: u64, stored: u64, range: &std::ops::Range<u64>) -> u64 {
    if range.is_empty() {
        return 0;
    }
    let up = |n: u64| n.div_ceil(PAGE) * PAGE;
    let full = up(size);
    let start = range.start / PAGE * PAGE;
    // Without holes everything up to the end of the file is there already.
    let start = if stored >= full { start.max(full) } else { start };
    up(range.end).saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwriting_needs_no_room_and_appending_whole_pages() {
        assert_eq!(most_growth(8192, 8192, &(0..8192)), 0);
        assert_eq!(most_growth(8192, 8192, &(8192..8193)), PAGE);
        assert_eq!(most_growth(100, PAGE, &(100..4096)), 0);
        assert_eq!(most_growth(100, PAGE, &(100..4097)), PAGE);
        assert_eq!(most_growth(1 << 30, 0, &(10..20)), PAGE, "a hole");
        assert_eq!(most_growth(0, 0, &(5..5)), 0);
    }
}
