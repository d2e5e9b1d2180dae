//! Sockets made ahead of need.
//!
//! In: demand, from any thread. Out: sockets of the namespace of the thread that fills. A kind nobody asked for is never
//! made. Knows no addresses.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::Notify;

use super::super::route::Family;
use crate::errno::Errno;

/// Sockets of one kind kept ready: a burst of connects finds one each while the thread makes more. Each costs a
/// descriptor and a kilobyte or two of the kernel's memory.
const READY: usize = 16;
/// At so few the thread is told to make more.
const LOW: usize = 8;

/// The ready sockets, by family and kind.
#[derive(Default)]
pub(in crate::network) struct Stock {
    shelves: [Shelf; 4],
    wanted: Notify,
}

#[derive(Default)]
struct Shelf {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    sockets: Vec<OwnedFd>,
    /// Somebody asked once.
    in_use: bool,
    /// Who waits for a socket that is not there.
    waiting: usize,
    /// Why the last one could not be made; told to who waits.
    failure: Option<Errno>,
    closed: bool,
}

fn shelf_of(family: Family, kind: SocketType) -> usize {
    family as usize * 2 + usize::from(kind == SocketType::DGRAM)
}

impl Stock {
    /// Takes a socket, without waiting unless a burst or the first of its kind.
    pub(super) fn take(&self, family: Family, kind: SocketType) -> Result<OwnedFd, Errno> {
        let shelf = &self.shelves[shelf_of(family, kind)];
        let mut state = shelf.state.lock();
        state.in_use = true;
        loop {
            if let Some(socket) = state.sockets.pop() {
                if state.sockets.len() <= LOW {
                    self.wanted.notify_one();
                }
                return Ok(socket);
            }
            if state.closed {
                return Err(Errno::NetUnreach);
            }
            state.waiting += 1;
            state.failure = None;
            self.wanted.notify_one();
            while state.sockets.is_empty() && state.failure.is_none() && !state.closed {
                shelf.filled.wait(&mut state);
            }
            state.waiting -= 1;
            if state.sockets.is_empty()
                && let Some(errno) = state.failure
            {
                return Err(errno);
            }
        }
    }
}

/// The filling side.
pub(super) struct Stash {
    stock: Arc<Stock>,
}

impl Stash {
    pub(super) fn new(stock: Arc<Stock>) -> Self {
        Self { stock }
    }

    /// Waits until a kind runs low.
    pub(super) async fn wanted(&self) {
        self.stock.wanted.notified().await;
    }

    /// Makes what is missing, in the namespace of the calling thread.
    pub(super) fn fill(&self) {
        for family in [Family::V4, Family::V6] {
            for kind in [SocketType::STREAM, SocketType::DGRAM] {
                self.fill_shelf(family, kind);
            }
        }
    }

    fn fill_shelf(&self, family: Family, kind: SocketType) {
        let shelf = &self.stock.shelves[shelf_of(family, kind)];
        loop {
            {
                let state = shelf.state.lock();
                if !state.in_use || state.sockets.len() >= READY {
                    return;
                }
            }
            // Apart from the lock: who takes one that is ready does not wait for the next to be made.
            let made = make(family, kind);
            let mut state = shelf.state.lock();
            match made {
                Ok(socket) => state.sockets.push(socket),
                Err(errno) => {
                    state.failure = Some(errno);
                    shelf.filled.notify_all();
                    return;
                }
            }
            if state.waiting > 0 {
                shelf.filled.notify_one();
            }
        }
    }
}

impl Drop for Stash {
    fn drop(&mut self) {
        for shelf in &self.stock.shelves {
            let mut state = shelf.state.lock();
            state.closed = true;
            state.sockets.clear();
            shelf.filled.notify_all();
        }
    }
}

fn make(family: Family, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_more_than_is_ready_waits_for_the_thread_until_it_is_gone() {
        let stock = Arc::new(Stock::default());
        let stash = Stash::new(stock.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut stopped = stopped;
                loop {
                    tokio::select! {
                        () = stash.wanted() => stash.fill(),
                        _ = &mut stopped => return,
                    }
                }
            });
        });
        let taken: Vec<_> = (0..4 * READY).map(|_| stock.take(Family::V4, SocketType::STREAM)).collect();
        assert!(taken.iter().all(Result::is_ok));
        assert!(stock.take(Family::V4, SocketType::DGRAM).is_ok());
        stop.send(()).expect("the thread is there");
        thread.join().expect("the thread");
        assert_eq!(stock.take(Family::V4, SocketType::STREAM).err(), Some(Errno::NetUnreach));
    }
}
