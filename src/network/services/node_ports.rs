//! Opens and closes the node's ports of Services as these come and go.
//!
//! In: the table, and whether this node shall serve them. Out: one task a port, and word of ports that something else has.
//! TCP is on all addresses of the node, UDP on the node's address (an answer has to come from where was asked); an external
//! or load balancer's address is served where it is the node's: giving it to the node would make every node answer for it.
//! A Service without endpoints has no open port: who connects is refused.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::connections::{self, CONNECTIONS};
use super::table::{Door, Place};
use super::{datagrams, health};
use crate::errno::Errno;
use crate::network::kernel;
use crate::network::node::{NodeNetwork, Shared};
use crate::network::options::{TcpOptions, UdpOptions};
use crate::network::pod::Protocol;
use crate::network::route::Family;

/// Connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// How often a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Changes of one moment are looked at together.
const PAUSE: Duration = Duration::from_millis(20);

/// A port that could not be opened, said once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePortReport {
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
    /// Where on the node.
    pub address: SocketAddr,
    /// Its transport.
    pub protocol: Protocol,
    /// What the kernel said.
    pub error: String,
}

/// What is open.
#[derive(Default)]
struct Open {
    doors: HashMap<Door, AbortOnDropHandle<()>>,
    health: HashMap<u16, AbortOnDropHandle<()>>,
    /// Could not be opened, and was said.
    said: HashSet<SocketAddr>,
    failed: bool,
}

impl NodeNetwork {
    /// Serves Services' ports on the node for as long as `wanted` says so; ends when its sender is gone.
    pub async fn serve_services(self: Arc<Self>, mut wanted: watch::Receiver<bool>, report: impl Fn(NodePortReport)) {
        let shared = self.shared().clone();
        // The network's own life is not this task's affair.
        drop(self);
        let mut changes = shared.services.changes();
        let mut open = Open::default();
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            changes.borrow_and_update();
            if *wanted.borrow_and_update() {
                open.follow(&shared, &room, &report).await;
            } else {
                open = Open::default();
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                // Cancel-safe, all: what has changed is looked at anew.
                Ok(()) = changes.changed() => {}
                told = wanted.changed() => if told.is_err() { return },
                () = tokio::time::sleep(RETRY), if open.failed => {}
            }
        }
    }
}

impl Open {
    async fn follow(&mut self, shared: &Arc<Shared>, room: &Arc<Semaphore>, report: &impl Fn(NodePortReport)) {
        let (mut doors, health) = (shared.services.doors(), shared.services.health());
        let families: Vec<Family> = shared.node_ips().iter().copied().map(Family::of).collect();
        doors.retain(|(place, ..)| match place {
            Place::Every(family) => families.contains(family),
            Place::At(_) => true,
        });
        self.doors.retain(|door, _| doors.contains(door));
        self.health.retain(|port, _| health.contains_key(port));
        self.failed = false;
        for door in doors {
            if !self.doors.contains_key(&door) {
                let opened = open(shared, door, room);
                let service = || shared.services.behind(door).map(|frontend| frontend.backends.service.clone());
                let address = address(shared, door);
                if let Some(task) = self.check(opened, address, door.2, || service().unwrap_or_default(), report) {
                    self.doors.insert(door, task);
                }
            }
        }
        for (port, (service, _)) in health {
            if !self.health.contains_key(&port) {
                let v6 = shared.node_ips().iter().any(IpAddr::is_ipv6);
                let any = if v6 { Family::V6 } else { Family::V4 };
                let at = SocketAddr::new(any.unspecified(), port);
                let opened = health::open(at).await.map_err(|error| Errno::from(&error));
                let opened = opened.map(|listener| {
                    let serving = health::serve(listener, port, Arc::downgrade(shared));
                    AbortOnDropHandle::new(shared.factory.runtime().spawn(serving))
                });
                if let Some(task) = self.check(opened, at, Protocol::Tcp, || service, report) {
                    self.health.insert(port, task);
                }
            }
        }
    }

    fn check<T>(
        &mut self,
        opened: Result<T, Errno>,
        address: SocketAddr,
        protocol: Protocol,
        service: impl FnOnce() -> Arc<str>,
        report: &impl Fn(NodePortReport),
    ) -> Option<T> {
        let errno = match opened {
            Ok(opened) => {
                self.said.remove(&address);
                return Some(opened);
            }
            Err(errno) => errno,
        };
        self.failed = true;
        // The address is another machine's, or not given to this one yet.
        if errno != Errno::AddrNotAvail && self.said.insert(address) {
            report(NodePortReport { service: service(), address, protocol, error: errno.to_string() });
        }
        None
    }
}

fn address(shared: &Shared, (place, port, protocol): Door) -> SocketAddr {
    let ip = match (place, protocol) {
        (Place::At(ip), _) => ip,
        (Place::Every(family), Protocol::Tcp) => family.unspecified(),
        (Place::Every(family), Protocol::Udp) => shared.node_ip_towards(family.unspecified()),
    };
    SocketAddr::new(ip, port)
}

fn open(shared: &Arc<Shared>, door: Door, room: &Arc<Semaphore>) -> Result<AbortOnDropHandle<()>, Errno> {
    let (factory, at) = (&shared.factory, address(shared, door));
    let weak = Arc::downgrade(shared);
    let task = match door.2 {
        Protocol::Tcp => {
            // Each family has a door of its own.
            let options = TcpOptions { reuse_address: true, v6_only: true, ..TcpOptions::default() };
            let bound = factory.bind_tcp(kernel::Place::Node, at, &options)?;
            let (listener, _) = factory.listen(bound, BACKLOG, &TcpOptions::default())?;
            factory.runtime().spawn(connections::serve(door, listener, weak, room.clone()))
        }
        Protocol::Udp => {
            let (socket, _) = factory.udp_at(kernel::Place::Node, at, &UdpOptions::default())?;
            factory.runtime().spawn(datagrams::serve(door, socket, weak))
        }
    };
    Ok(AbortOnDropHandle::new(task))
}
