//! Addresses for pods, out of one range.
//!
//! In: a wish for any address, or for the one a pod had. Out: an address that no other pod has. Of a podCIDR, which
//! the control plane gives to one node alone, all but the first two and the last are for pods.
//!
//! A range of 127.0.0.0/8 is shared by every agent of the machine, so it is leased in blocks of 256 addresses. The
//! lease is a bound abstract Unix socket named after the block: the kernel gives a name once per network namespace,
//! which is exactly how far 127.0.0.0/8 reaches, and takes it back when the agent dies, however it dies. So two agents
//! on one machine take different blocks, whoever runs them, and one descriptor covers 256 pods; probing ports would
//! say nothing of idle pods. A local user can squat on names and so exhaust the range; it is no more than squatting on
//! the ports.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

/// The addresses of one range.
pub(super) struct AddressPool {
    range: IpRange,
    first: u128,
    last: u128,
    quarantine: Duration,
    /// `None` when the whole range is ours.
    blocks: Option<Vec<Block>>,
    used: HashSet<u128>,
    reserved: HashSet<u128>,
    resting: VecDeque<(Instant, u128)>,
    /// The last address given, to go round.
    cursor: u128,
}

struct Block {
    /// Its address shifted by [`BLOCK_BITS`].
    number: u128,
    _lease: OwnedFd,
}

/// An address as a number.
fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl AddressPool {
    /// Out of a range of 127.0.0.0/8; `None` when the range is not one that can be given away.
    pub(super) fn leased(range: IpRange, quarantine: Duration) -> Option<Self> {
        let IpAddr::V4(base) = range.base() else { return None };
        let usable =
            base.is_loopback() && (8..=30).contains(&range.prefix()) && !range.contains(Ipv4Addr::LOCALHOST.into());
        usable.then(|| Self::new(range, quarantine, Some(Vec::new())))
    }

    /// Out of a podCIDR, or why it is none.
    pub(super) fn owned(range: IpRange, quarantine: Duration) -> Result<Self, &'static str> {
        let (longest, special) = match range.base() {
            IpAddr::V4(v4) => {
                (30, v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0 || v4.octets()[0] >= 224)
            }
            IpAddr::V6(v6) => (126, v6.is_unicast_link_local() || v6.is_multicast() || v6.segments()[..4] == [0; 4]),
        };
        if special {
            return Err("it is not a range of unicast addresses");
        }
        if range.prefix() > longest || range.prefix() < 4 {
            return Err("its prefix leaves no address for a pod, or is shorter than /4");
        }
        Ok(Self::new(range, quarantine, None))
    }

    fn new(range: IpRange, quarantine: Duration, blocks: Option<Vec<Block>>) -> Self {
        let width = if range.base().is_ipv4() { 32 } else { 128 };
        let first = bits_of(range.base());
        Self {
            range,
            first,
            last: first + ((1u128 << (width - u32::from(range.prefix()))) - 1),
            quarantine,
            blocks,
            used: HashSet::new(),
            reserved: HashSet::new(),
            resting: VecDeque::new(),
            cursor: first + 1,
        }
    }

    pub(super) fn range(&self) -> IpRange {
        self.range
    }

    /// How many addresses pods have.
    pub(super) fn in_use(&self) -> usize {
        self.used.len()
    }

    /// Whether no pod has an address of it.
    pub(super) fn is_unused(&self) -> bool {
        self.used.is_empty()
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.range.base() {
            IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// The address that stands for the node: the range's second, as a bridge's is.
    pub(super) fn node_address(&self) -> IpAddr {
        self.address(self.first + 1)
    }

    /// Keeps an address for the pod that had it, and leases its block now, before another agent does.
    pub(super) fn reserve(&mut self, ip: IpAddr) -> Result<(), Unavailable> {
        let bits = self.check(ip)?;
        self.lease(bits >> BLOCK_BITS)?;
        self.reserved.insert(bits);
        Ok(())
    }

    /// Gives a pod the address it had.
    pub(super) fn adopt(&mut self, ip: IpAddr) -> Result<IpAddr, Unavailable> {
        let bits = self.check(ip)?;
        self.lease(bits >> BLOCK_BITS)?;
        if !self.used.insert(bits) {
            return Err(Unavailable::Taken);
        }
        self.reserved.remove(&bits);
        self.resting.retain(|(_, other)| *other != bits);
        Ok(ip)
    }

    /// Gives any address that is free and rested. A small podCIDR gives one that has not rested before it gives none.
    pub(super) fn allocate(&mut self, now: Instant) -> Result<IpAddr, Unavailable> {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.resting.pop_front();
        }
        let bits = match self.next_free() {
            Some(bits) => bits,
            None if self.blocks.is_none() => self.resting.pop_front().ok_or(Unavailable::Exhausted)?.1,
            None => {
                self.lease_any()?;
                self.next_free().ok_or(Unavailable::Exhausted)?
            }
        };
        self.used.insert(bits);
        self.cursor = bits;
        Ok(self.address(bits))
    }

    /// Takes an address back and lets it rest.
    pub(super) fn release(&mut self, ip: IpAddr, now: Instant) {
        let bits = bits_of(ip);
        if self.used.remove(&bits) {
            self.resting.push_back((now + self.quarantine, bits));
        }
    }

    /// Keeps an address no longer for a pod that did not ask for it, and lets it rest, unless another pod has it.
    pub(super) fn give_up(&mut self, ip: IpAddr, now: Instant) {
        let bits = bits_of(ip);
        if self.reserved.remove(&bits) && !self.used.contains(&bits) {
            self.resting.push_back((now + self.quarantine, bits));
        }
    }

    fn check(&self, ip: IpAddr) -> Result<u128, Unavailable> {
        let bits = bits_of(ip);
        if self.range.contains(ip) && self.is_for_pods(bits) { Ok(bits) } else { Err(Unavailable::OutOfRange) }
    }

    /// The first address names the network and the second the node; the last is a broadcast elsewhere.
    fn is_for_pods(&self, bits: u128) -> bool {
        bits > self.first + 1 && bits < self.last
    }

    /// The next free address behind the cursor in what is ours, going round.
    fn next_free(&self) -> Option<u128> {
        let resting: HashSet<u128> = self.resting.iter().map(|(_, bits)| *bits).collect();
        let free = |bits: &u128| {
            self.is_for_pods(*bits)
                && !self.used.contains(bits)
                && !self.reserved.contains(bits)
                && !resting.contains(bits)
        };
        let Some(blocks) = &self.blocks else {
            return (self.cursor + 1..self.last).find(free).or_else(|| (self.first + 2..self.last).find(free));
        };
        let mut numbers: Vec<u128> = blocks.iter().map(|block| block.number).collect();
        numbers.sort_unstable();
        let all =
            || numbers.iter().flat_map(|number| (0..1 << BLOCK_BITS).map(move |host| (number << BLOCK_BITS) + host));
        all().find(|bits| *bits > self.cursor && free(bits)).or_else(|| all().find(free))
    }

    fn lease(&mut self, number: u128) -> Result<(), Unavailable> {
        let name = format!("wasilet/pod-addresses/{}", self.address(number << BLOCK_BITS));
        let Some(blocks) = &mut self.blocks else { return Ok(()) };
        if blocks.iter().any(|block| block.number == number) {
            return Ok(());
        }
        let lease = kernel::lease_name(&name).map_err(|_| Unavailable::Taken)?;
        blocks.push(Block { number, _lease: lease });
        Ok(())
    }

    fn lease_any(&mut self) -> Result<(), Unavailable> {
        let mut numbers = (self.first >> BLOCK_BITS)..=(self.last >> BLOCK_BITS);
        let ours: HashSet<u128> = self.blocks.iter().flatten().map(|block| block.number).collect();
        let leased = numbers.find(|number| !ours.contains(number) && self.lease(*number).is_ok());
        leased.map(|_| ()).ok_or(Unavailable::Exhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str) -> AddressPool {
        AddressPool::leased(range.parse().expect(range), Duration::from_secs(60)).expect(range)
    }

    #[test]
    fn two_agents_take_different_addresses_and_a_dead_agents_are_free() {
        let range = "127.63.0.0/23";
        let (mut one, mut two) = (pool(range), pool(range));
        let first = one.allocate(Instant::now()).expect("an address");
        let second = two.allocate(Instant::now()).expect("an address");
        assert_ne!(bits_of(first) >> 8, bits_of(second) >> 8);
        assert_eq!(two.adopt(first), Err(Unavailable::Taken));
        assert_eq!(pool(range).allocate(Instant::now()), Err(Unavailable::Exhausted));
        drop(one);
        assert_eq!(two.adopt(first), Ok(first));
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let mut pool = pool("127.62.0.0/29");
        let now = Instant::now();
        let all: Vec<_> = (0..5).map(|_| pool.allocate(now).expect("an address")).collect();
        assert_eq!(all[0], IpAddr::from([127, 62, 0, 2]));
        assert_eq!(all[4], IpAddr::from([127, 62, 0, 6]));
        assert_eq!(pool.allocate(now), Err(Unavailable::Exhausted));
        pool.release(all[2], now);
        assert_eq!(pool.allocate(now), Err(Unavailable::Exhausted));
        assert_eq!(pool.allocate(now + Duration::from_secs(60)), Ok(all[2]));
    }

    #[test]
    fn a_reserved_address_is_given_only_to_who_asks_for_it() {
        let mut pool = pool("127.61.0.0/29");
        let kept = IpAddr::from([127, 61, 0, 2]);
        assert_eq!(pool.reserve(kept), Ok(()));
        assert_ne!(pool.allocate(Instant::now()), Ok(kept));
        assert_eq!(pool.adopt(kept), Ok(kept));
        assert_eq!(pool.adopt(kept), Err(Unavailable::Taken));
        assert_eq!(pool.adopt(IpAddr::from([127, 61, 0, 1])), Err(Unavailable::OutOfRange));
        let unasked = IpAddr::from([127, 61, 0, 6]);
        let now = Instant::now();
        assert_eq!(pool.reserve(unasked), Ok(()));
        pool.give_up(unasked, now);
        pool.give_up(kept, now);
        assert_eq!(pool.adopt(kept), Err(Unavailable::Taken), "its pod has it");
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate(now).ok()).collect();
        assert!(!all.contains(&unasked), "it rests first: {all:?}");
        assert_eq!(
            pool.allocate(now + Duration::from_secs(60)),
            Ok(unasked),
            "nobody asked for it before its pod went"
        );
    }

    #[test]
    fn only_ranges_of_loopback_are_given_away() {
        for bad in ["10.0.0.0/8", "127.0.0.0/8", "127.0.0.0/16", "127.64.0.0/31", "::1/128", "0.0.0.0/0"] {
            assert!(AddressPool::leased(bad.parse().expect(bad), Duration::ZERO).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_pod_cidr_is_given_away_whole_in_either_family() {
        for (range, first, node) in [
            ("10.244.1.0/30", "10.244.1.2", "10.244.1.1"),
            ("10.244.1.0/24", "10.244.1.2", "10.244.1.1"),
            ("fd00:10:244:1::/64", "fd00:10:244:1::2", "fd00:10:244:1::1"),
        ] {
            let mut pool = AddressPool::owned(range.parse().expect(range), Duration::from_secs(60)).expect(range);
            let given = pool.allocate(Instant::now()).expect("an address");
            assert_eq!((given.to_string(), pool.node_address().to_string()), (first.to_owned(), node.to_owned()));
        }
        let mut small =
            AddressPool::owned("10.1.0.0/30".parse().expect("range"), Duration::from_secs(60)).expect("pool");
        let now = Instant::now();
        let only = small.allocate(now).expect("the only address");
        assert_eq!(small.allocate(now), Err(Unavailable::Exhausted));
        small.release(only, now);
        assert_eq!(small.allocate(now), Ok(only), "rather one that did not rest than none");
        for bad in ["10.0.0.0/31", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/8", "fe80::/64", "::/96", "10.0.0.0/2"] {
            assert!(AddressPool::owned(bad.parse().expect(bad), Duration::ZERO).is_err(), "{bad}");
        }
    }
}
