//! Addresses for pods, out of one range of 127.0.0.0/8.
//!
//! In: a wish for any address, or for the one a pod had. Out: an address that no other pod of this machine has.
//!
//! The range is leased in blocks of 256 addresses. The lease is a bound abstract Unix socket named after the
//! block: the kernel gives a name once per network namespace, which is exactly how far 127.0.0.0/8 reaches,
//! and takes it back when the agent dies, however it dies. So two agents on one machine take different blocks,
//! whoever runs them, and one descriptor covers 256 pods; probing ports would say nothing of idle pods.
//! A local user can squat on names and so exhaust the range; it is no more than squatting on the ports.

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;

use super::config::IpRange;
use super::kernel;

/// Host bits of a block.
const BLOCK_BITS: u32 = 8;

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// Every address is in use or resting.
    Exhausted,
    /// The wanted one is outside the range, or not for pods.
    OutOfRange,
    /// The wanted one is in use here, or its block is another agent's.
    Taken,
}

/// The addresses of one agent.
pub(super) struct AddressPool {
    first: u32,
    last: u32,
    quarantine: Duration,
    blocks: Vec<Block>,
    used: HashSet<u32>,
    reserved: HashSet<u32>,
    resting: VecDeque<(Instant, u32)>,
    /// The last address given, to go round.
    cursor: u32,
}

struct Block {
    /// Its address shifted by [`BLOCK_BITS`].
    number: u32,
    _lease: OwnedFd,
}

impl AddressPool {
    /// `None` when the range is not one this pool can give away.
    pub(super) fn new(range: IpRange, quarantine: Duration) -> Option<Self> {
        let std::net::IpAddr::V4(base) = range.base() else { return None };
        let size = 1u32.checked_shl(32 - u32::from(range.prefix()))?;
        let usable =
            base.is_loopback() && (8..=30).contains(&range.prefix()) && !range.contains(Ipv4Addr::LOCALHOST.into());
        let first = base.to_bits();
        usable.then(|| Self {
            first,
            last: first + (size - 1),
            quarantine,
            blocks: Vec::new(),
            used: HashSet::new(),
            reserved: HashSet::new(),
            resting: VecDeque::new(),
            cursor: first + 1,
        })
    }

    /// The address that stands for the node: the range's second, as a bridge's is.
    pub(super) fn node_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + 1)
    }

    /// Keeps an address for the pod that had it, and leases its block now, before another agent does.
    pub(super) fn reserve(&mut self, ip: Ipv4Addr) -> Result<(), Unavailable> {
        let bits = self.check(ip)?;
        self.lease(bits >> BLOCK_BITS)?;
        self.reserved.insert(bits);
        Ok(())
    }

    /// Gives a pod the address it had.
    pub(super) fn adopt(&mut self, ip: Ipv4Addr) -> Result<(), Unavailable> {
        let bits = self.check(ip)?;
        self.lease(bits >> BLOCK_BITS)?;
        if !self.used.insert(bits) {
            return Err(Unavailable::Taken);
        }
        self.reserved.remove(&bits);
        self.resting.retain(|(_, other)| *other != bits);
        Ok(())
    }

    /// Gives any address that is free and rested.
    pub(super) fn allocate(&mut self, now: Instant) -> Result<Ipv4Addr, Unavailable> {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.resting.pop_front();
        }
        let bits = match self.next_free() {
            Some(bits) => bits,
            None => {
                self.lease_any()?;
                self.next_free().ok_or(Unavailable::Exhausted)?
            }
        };
        self.used.insert(bits);
        self.cursor = bits;
        Ok(Ipv4Addr::from_bits(bits))
    }

    /// Takes an address back and lets it rest.
    pub(super) fn release(&mut self, ip: Ipv4Addr, now: Instant) {
        if self.used.remove(&ip.to_bits()) {
            self.resting.push_back((now + self.quarantine, ip.to_bits()));
        }
    }

    fn check(&self, ip: Ipv4Addr) -> Result<u32, Unavailable> {
        let bits = ip.to_bits();
        // The first address names the network and the second the node; the last is a broadcast elsewhere.
        if bits > self.first + 1 && bits < self.last { Ok(bits) } else { Err(Unavailable::OutOfRange) }
    }

    /// The next free address behind the cursor in the blocks that are ours, going round.
    fn next_free(&self) -> Option<u32> {
        let resting: HashSet<u32> = self.resting.iter().map(|(_, bits)| *bits).collect();
        let mut numbers: Vec<u32> = self.blocks.iter().map(|block| block.number).collect();
        numbers.sort_unstable();
        let all =
            || numbers.iter().flat_map(|number| (0..1 << BLOCK_BITS).map(move |host| (number << BLOCK_BITS) + host));
        let free = |bits: &u32| {
            self.check(Ipv4Addr::from_bits(*bits)).is_ok()
                && !self.used.contains(bits)
                && !self.reserved.contains(bits)
                && !resting.contains(bits)
        };
        all().find(|bits| *bits > self.cursor && free(bits)).or_else(|| all().find(free))
    }

    fn lease(&mut self, number: u32) -> Result<(), Unavailable> {
        if self.blocks.iter().any(|block| block.number == number) {
            return Ok(());
        }
        let name = format!("wasilet/pod-addresses/{}", Ipv4Addr::from_bits(number << BLOCK_BITS));
        let lease = kernel::lease_name(&name).map_err(|_| Unavailable::Taken)?;
        self.blocks.push(Block { number, _lease: lease });
        Ok(())
    }

    fn lease_any(&mut self) -> Result<(), Unavailable> {
        let mut numbers = (self.first >> BLOCK_BITS)..=(self.last >> BLOCK_BITS);
        let ours: HashSet<u32> = self.blocks.iter().map(|block| block.number).collect();
        let leased = numbers.find(|number| !ours.contains(number) && self.lease(*number).is_ok());
        leased.map(|_| ()).ok_or(Unavailable::Exhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str) -> AddressPool {
        AddressPool::new(range.parse().expect(range), Duration::from_secs(60)).expect(range)
    }

    #[test]
    fn two_agents_take_different_addresses_and_a_dead_agents_are_free() {
        let range = "127.63.0.0/23";
        let (mut one, mut two) = (pool(range), pool(range));
        let first = one.allocate(Instant::now()).expect("an address");
        let second = two.allocate(Instant::now()).expect("an address");
        assert_ne!(first.to_bits() >> 8, second.to_bits() >> 8);
        assert_eq!(two.adopt(first), Err(Unavailable::Taken));
        assert_eq!(pool(range).allocate(Instant::now()), Err(Unavailable::Exhausted));
        drop(one);
        assert_eq!(two.adopt(first), Ok(()));
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let mut pool = pool("127.62.0.0/29");
        let now = Instant::now();
        let all: Vec<_> = (0..5).map(|_| pool.allocate(now).expect("an address")).collect();
        assert_eq!(all[0], Ipv4Addr::new(127, 62, 0, 2));
        assert_eq!(all[4], Ipv4Addr::new(127, 62, 0, 6));
        assert_eq!(pool.allocate(now), Err(Unavailable::Exhausted));
        pool.release(all[2], now);
        assert_eq!(pool.allocate(now), Err(Unavailable::Exhausted));
        assert_eq!(pool.allocate(now + Duration::from_secs(60)), Ok(all[2]));
    }

    #[test]
    fn a_reserved_address_is_given_only_to_who_asks_for_it() {
        let mut pool = pool("127.61.0.0/29");
        let kept = Ipv4Addr::new(127, 61, 0, 2);
        assert_eq!(pool.reserve(kept), Ok(()));
        assert_ne!(pool.allocate(Instant::now()), Ok(kept));
        assert_eq!(pool.adopt(kept), Ok(()));
        assert_eq!(pool.adopt(kept), Err(Unavailable::Taken));
        assert_eq!(pool.adopt(Ipv4Addr::new(127, 61, 0, 1)), Err(Unavailable::OutOfRange));
    }

    #[test]
    fn only_ranges_of_loopback_are_given_away() {
        for bad in ["10.0.0.0/8", "127.0.0.0/8", "127.0.0.0/16", "127.64.0.0/31", "::1/128", "0.0.0.0/0"] {
            assert!(AddressPool::new(bad.parse().expect(bad), Duration::ZERO).is_none(), "{bad}");
        }
    }
}
