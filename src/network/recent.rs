//! Peers seen lately, so that an answer leaves by the door the question came through.
//!
//! In: peers as they are shown to the guest, and where they really are. Out: the latter by the former. Bounded: the
//! oldest are forgotten, all of a generation at once, which costs nothing per datagram.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Peers of one generation; two are kept. A DNS server has about as many clients within its answer's time.
const GENERATION: usize = 1024;

/// Recent peers of one socket.
#[derive(Default)]
pub(super) struct Recent {
    now: HashMap<SocketAddr, SocketAddr>,
    before: HashMap<SocketAddr, SocketAddr>,
}

impl Recent {
    /// Remembers a peer.
    pub(super) fn note(&mut self, shown: SocketAddr, real: SocketAddr) {
        if self.now.len() >= GENERATION && !self.now.contains_key(&shown) {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(shown, real);
    }

    /// Where a peer really is.
    pub(super) fn find(&self, shown: SocketAddr) -> Option<SocketAddr> {
        self.now.get(&shown).or_else(|| self.before.get(&shown)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_peers_are_found_and_memory_is_bounded() {
        let mut recent = Recent::default();
        let peer = |n: u32| SocketAddr::from((n.to_be_bytes(), 53));
        for n in 0..10_000 {
            recent.note(peer(n), peer(n + 1));
        }
        assert_eq!(recent.find(peer(9_999)), Some(peer(10_000)));
        assert_eq!(recent.find(peer(9_000)), Some(peer(9_001)));
        assert_eq!(recent.find(peer(1)), None);
        assert!(recent.now.len() + recent.before.len() <= 2 * GENERATION);
    }
}
