//! `sessionAffinity: ClientIP`: which endpoint a client had last.
//!
//! In: clients, endpoints, time. Out: the endpoint of a client until its time is over, counted from its last connection, as
//! iptables' `recent` does for kube-proxy. Bounded: when full, clients whose time is over go, then the oldest half.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::services::Target;

/// Clients of one port of a Service; iptables' own list has 100 by default, IPVS's is not bounded.
const CLIENTS: usize = 4096;

/// The clients of one port of a Service.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    clients: HashMap<IpAddr, (Target, Instant)>,
}

impl Affinity {
    /// The endpoint that a client had, if its time is not over.
    pub(super) fn find(&self, client: IpAddr, timeout: Duration, now: Instant) -> Option<Target> {
        let (target, last) = self.clients.get(&client)?;
        (now.duration_since(*last) < timeout).then_some(*target)
    }

    /// Remembers what a client got.
    pub(super) fn note(&mut self, client: IpAddr, target: Target, timeout: Duration, now: Instant) {
        if self.clients.len() >= CLIENTS && !self.clients.contains_key(&client) {
            self.clients.retain(|_, (_, last)| now.duration_since(*last) < timeout);
            if self.clients.len() >= CLIENTS {
                let mut times: Vec<Instant> = self.clients.values().map(|(_, last)| *last).collect();
                let (_, middle, _) = times.select_nth_unstable(CLIENTS / 2);
                let middle = *middle;
                self.clients.retain(|_, (_, last)| *last > middle);
            }
        }
        self.clients.insert(client, (target, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_keeps_its_endpoint_until_its_time_is_over_and_memory_is_bounded() {
        let mut affinity = Affinity::default();
        let ip = |n: u32| IpAddr::from(n.to_be_bytes());
        let target = |port| Target { ip: ip(7), port };
        let timeout = Duration::from_secs(10);
        affinity.note(ip(1), target(1), timeout, Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(affinity.find(ip(1), timeout, Instant::now()), Some(target(1)));
        affinity.note(ip(1), target(1), timeout, Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(affinity.find(ip(1), timeout, Instant::now()), Some(target(1)), "each connection renews it");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(affinity.find(ip(1), timeout, Instant::now()), None);
        for n in 0..20_000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            affinity.note(ip(n), target(2), Duration::from_secs(3600), Instant::now());
        }
        assert!(affinity.clients.len() <= CLIENTS);
        assert!(affinity.find(ip(19_999), timeout, Instant::now()).is_some());
    }
}
