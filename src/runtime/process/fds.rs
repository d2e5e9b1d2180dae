//! The fd table of a process: small numbers to shared open file descriptions.
//!
//! In: descriptions. Out: the lowest free number for each, as POSIX promises. Bounded by the container's limit
//! on open files. A table belongs to one process; descriptions may be in several tables.

use std::sync::Arc;

use parking_lot::Mutex;

use super::FileDescription;
use crate::errno::Errno;

/// A descriptor number.
pub type Fd = u32;

/// The descriptors of one process.
pub struct FdTable {
    slots: Mutex<Vec<Option<Arc<FileDescription>>>>,
    limit: u32,
}

impl FdTable {
    /// An empty table for at most `limit` descriptors.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self { slots: Mutex::new(Vec::new()), limit }
    }

    /// The description behind `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: Fd) -> Result<Arc<FileDescription>, Errno> {
        self.slots.lock().get(fd as usize).cloned().flatten().ok_or(Errno::BadF)
    }

    /// Puts `description` at the lowest free number.
    ///
    /// # Errors
    /// `EMFILE` at the limit.
    pub fn insert(&self, description: Arc<FileDescription>) -> Result<Fd, Errno> {
        let mut slots = self.slots.lock();
        let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        place(&mut slots, self.limit, free, description).map(|_| free as Fd)
    }

    /// Puts `description` at `fd`, returning what was there.
    ///
    /// # Errors
    /// `EBADF` when `fd` is not below the limit.
    pub fn set(&self, fd: Fd, description: Arc<FileDescription>) -> Result<Option<Arc<FileDescription>>, Errno> {
        place(&mut self.slots.lock(), self.limit, fd as usize, description).map_err(|_| Errno::BadF)
    }

    /// Takes `fd` out. The file closes when no table or running call holds its description.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&self, fd: Fd) -> Result<Arc<FileDescription>, Errno> {
        self.slots.lock().get_mut(fd as usize).and_then(Option::take).ok_or(Errno::BadF)
    }

    /// Moves `from` over `to`, closing what `to` was.
    ///
    /// # Errors
    /// `EBADF` when either is not open: preview 1 has no way to claim a closed number.
    pub fn renumber(&self, from: Fd, to: Fd) -> Result<(), Errno> {
        let replaced = {
            let mut slots = self.slots.lock();
            let open = |fd: Fd| slots.get(fd as usize).is_some_and(Option::is_some);
            if !open(from) || !open(to) {
                return Err(Errno::BadF);
            }
            if from == to {
                return Ok(());
            }
            let moved = slots[from as usize].take();
            std::mem::replace(&mut slots[to as usize], moved)
        };
        drop(replaced); // Closing may take another lock, so not under ours.
        Ok(())
    }

    /// Closes everything, as exit does.
    pub fn clear(&self) {
        let slots = std::mem::take(&mut *self.slots.lock());
        drop(slots);
    }

    /// Whether any open description satisfies `test`.
    pub fn any(&self, test: impl Fn(&FileDescription) -> bool) -> bool {
        self.slots.lock().iter().flatten().any(|description| test(description))
    }

    /// Every open description, by number.
    pub fn list(&self) -> Vec<(Fd, Arc<FileDescription>)> {
        let slots = self.slots.lock();
        slots.iter().enumerate().filter_map(|(fd, slot)| Some((fd as Fd, slot.clone()?))).collect()
    }

    /// How many descriptors are open.
    pub fn open_count(&self) -> usize {
        self.slots.lock().iter().flatten().count()
    }
}

/// Grows `slots` as far as needed and fills one.
fn place(
    slots: &mut Vec<Option<Arc<FileDescription>>>,
    limit: u32,
    index: usize,
    description: Arc<FileDescription>,
) -> Result<Option<Arc<FileDescription>>, Errno> {
    if index >= limit as usize {
        return Err(Errno::MFile);
    }
    if index >= slots.len() {
        slots.resize(index + 1, None);
    }
    Ok(slots[index].replace(description))
}
