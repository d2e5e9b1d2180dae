//! Which endpoint the datagrams of one socket to a Service go to, and back.
//!
//! In: Services' addresses, endpoints, time. Out: the same endpoint for one address as long as datagrams go there, as the
//! kernel's conntrack gives a kube-proxy, and the Service's address for what the endpoint answers. Bounded.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::services::Target;

/// Flows of one socket: a resolver has a few; the one idle longest goes first.
const FLOWS: usize = 64;
/// `nf_conntrack_udp_timeout_stream`: a flow that was idle for longer is another one.
const IDLE: Duration = Duration::from_secs(120);

/// The flows of one socket. Empty, and without memory, for nearly all.
#[derive(Debug, Default)]
pub(in crate::network) struct Flows {
    all: Vec<Flow>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    service: SocketAddr,
    target: Target,
    last: Instant,
    generation: u64,
}

impl Flows {
    /// The endpoint of a flow that goes on; `still_has` is asked when Services have changed since.
    pub(super) fn find(
        &mut self,
        service: SocketAddr,
        generation: u64,
        still_has: impl FnOnce(Target) -> bool,
    ) -> Option<Target> {
        let now = Instant::now();
        let at = self.all.iter().position(|flow| flow.service == service)?;
        let flow = &mut self.all[at];
        if now.duration_since(flow.last) < IDLE && (flow.generation == generation || still_has(flow.target)) {
            (flow.last, flow.generation) = (now, generation);
            return Some(flow.target);
        }
        self.all.swap_remove(at);
        None
    }

    pub(super) fn note(&mut self, service: SocketAddr, target: Target, generation: u64) {
        if self.all.len() >= FLOWS
            && let Some(oldest) = self.all.iter().enumerate().min_by_key(|(_, flow)| flow.last).map(|(at, _)| at)
        {
            self.all.swap_remove(oldest);
        }
        self.all.push(Flow { service, target, last: Instant::now(), generation });
    }

    /// How an endpoint that answers is shown.
    pub(in crate::network) fn shown(&self, from: SocketAddr) -> SocketAddr {
        let flow = self.all.iter().find(|flow| SocketAddr::from(flow.target) == from);
        flow.map_or(from, |flow| flow.service)
    }

    /// Where datagrams to an address go now.
    pub(in crate::network) fn current(&self, service: SocketAddr) -> Option<SocketAddr> {
        self.all.iter().find(|flow| flow.service == service).map(|flow| flow.target.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_keeps_its_endpoint_while_it_is_used_and_there() {
        let (service, mut flows) = ("10.0.0.1:53".parse().expect("address"), Flows::default());
        let target = |n: u8| Target { ip: [10, 1, 0, n].into(), port: 5353 };
        assert_eq!(flows.find(service, 1, |_| true), None);
        flows.note(service, target(1), 1);
        tokio::time::advance(Duration::from_secs(119)).await;
        assert_eq!(flows.find(service, 1, |_| panic!("nothing has changed")), Some(target(1)));
        tokio::time::advance(Duration::from_secs(119)).await;
        assert_eq!(flows.find(service, 2, |_| true), Some(target(1)));
        assert_eq!(flows.shown(target(1).into()), service);
        assert_eq!(flows.shown(target(2).into()), SocketAddr::from(target(2)));
        assert_eq!(flows.find(service, 3, |_| false), None, "its endpoint is gone");
        flows.note(service, target(2), 3);
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_eq!(flows.find(service, 3, |_| true), None, "it was idle");
        for port in 1..1000 {
            flows.note(SocketAddr::from(([10, 0, 0, 2], port)), target(3), 3);
        }
        assert_eq!(flows.all.len(), FLOWS);
        assert_eq!(flows.current(SocketAddr::from(([10, 0, 0, 2], 999))), Some(target(3).into()));
    }
}
