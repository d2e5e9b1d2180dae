//! All Services and their endpoints, and the way from a Service's address to one endpoint.
//!
//! In: news in any order. Out: one lookup per connection, under a read lock and in constant time. An endpoint costs about
//! forty bytes: once as it was read, once in the list of usable ones. Changes are counted and told to who serves ports.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::affinity::Affinity;
use crate::errno::Errno;
use crate::network::Protocol;
use crate::network::route::Family;
use crate::pod::run::PortProtocol;
use crate::pod::services::{
    Candidate, ServiceKey, ServiceNews, ServicePort, ServiceSpec, SliceSpec, SourceRange, Target, TrafficPolicy,
    Usable, usable,
};

/// In the order of their places in pairs.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A pod or the node itself: `externalTrafficPolicy` is not for it.
    Inside(IpAddr),
    /// Another machine.
    Outside(IpAddr),
}

impl Source {
    fn ip(self) -> IpAddr {
        match self {
            Self::Inside(ip) | Self::Outside(ip) => ip,
        }
    }
}

/// What an address of a Service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cluster,
    External,
    /// `loadBalancerSourceRanges` holds for it.
    Balancer,
}

/// One port of a Service with its endpoints, replaced as a whole.
pub(super) struct Backends {
    pub(super) service: ServiceKey,
    pub(super) usable: Usable,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    source_ranges: Box<[SourceRange]>,
    affinity: Option<(Duration, Arc<Mutex<Affinity>>)>,
}

/// One address and port of a Service.
#[derive(Clone)]
pub(super) struct Frontend {
    kind: Kind,
    pub(super) backends: Arc<Backends>,
}

impl Frontend {
    fn targets(&self, source: Source) -> &[Target] {
        let Usable { cluster, local, .. } = &self.backends.usable;
        let policy = match (self.kind, source) {
            (Kind::Cluster, _) => self.backends.internal,
            (_, Source::Inside(_)) => TrafficPolicy::Cluster,
            (_, Source::Outside(_)) => self.backends.external,
        };
        if policy == TrafficPolicy::Local { local } else { cluster }
    }

    /// Whether anybody could be served by it now.
    pub(super) fn is_served(&self, source: Source) -> bool {
        !self.targets(source).is_empty()
    }

    /// Picks an endpoint.
    ///
    /// # Errors
    /// ECONNREFUSED when there is none, or the source may not use the address.
    pub(super) fn pick(&self, source: Source) -> Result<Target, Errno> {
        let ranges = &self.backends.source_ranges;
        if self.kind == Kind::Balancer && !ranges.is_empty() && !ranges.iter().any(|range| holds(range, source.ip())) {
            return Err(Errno::ConnRefused);
        }
        let targets = self.targets(source);
        let random = || targets.get(rand::random_range(0..targets.len().max(1))).copied().ok_or(Errno::ConnRefused);
        let Some((timeout, affinity)) = &self.backends.affinity else { return random() };
        let (mut affinity, now) = (affinity.lock(), Instant::now());
        let known = affinity.find(source.ip(), *timeout, now).filter(|target| targets.contains(target));
        let target = known.map_or_else(random, Ok)?;
        affinity.note(source.ip(), target, *timeout, now);
        Ok(target)
    }

    /// Whether a flow may stay with an endpoint.
    pub(super) fn still_has(&self, source: Source, target: Target) -> bool {
        self.targets(source).contains(&target)
    }
}

fn holds(range: &SourceRange, ip: IpAddr) -> bool {
    crate::network::IpRange::new(range.base, range.prefix).is_ok_and(|range| range.contains(ip))
}

/// Where the node listens for a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Every address of the node of a family.
    Every(Family),
    /// One address.
    At(IpAddr),
}

/// An address and port that the node listens on for a Service.
pub(super) type Door = (Place, u16, Protocol);

/// All Services.
#[derive(Default)]
pub struct ServiceTable {
    state: RwLock<State>,
    /// Set once both kinds were read.
    in_use: AtomicBool,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    services: HashMap<ServiceKey, Entry>,
    /// By Service, which may not be known yet.
    slices: HashMap<ServiceKey, Vec<SliceSpec>>,
    /// Whose a slice is.
    owners: HashMap<Arc<str>, ServiceKey>,
    /// Cluster IPs.
    inner: HashMap<(IpAddr, u16, Protocol), Frontend>,
    /// External and load balancers' addresses.
    outer: HashMap<(IpAddr, u16, Protocol), Frontend>,
    node_ports: HashMap<(u16, Protocol, Family), Frontend>,
    /// Whose a cluster IP is: ports that the Service does not have are refused.
    cluster_ips: HashMap<IpAddr, ServiceKey>,
    services_read: bool,
    slices_read: bool,
    generation: u64,
}

struct Entry {
    spec: ServiceSpec,
    /// As many as the spec has ports, each for endpoints of IPv4 and of IPv6.
    ports: Vec<[Arc<Backends>; 2]>,
}

fn transport(protocol: PortProtocol) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
    }
}

impl ServiceTable {
    /// Takes news over.
    pub fn apply(&self, news: ServiceNews) {
        let mut state = self.state.write();
        match news {
            ServiceNews::Services(all) => state.replace_services(all),
            ServiceNews::Service(spec) => state.put_service(spec),
            ServiceNews::ServiceGone(key) => state.remove_service(&key),
            ServiceNews::Slices(all) => state.replace_slices(all),
            ServiceNews::Slice(slice) => state.put_slice(slice),
            ServiceNews::SliceGone(key) => state.remove_slice(&key),
            ServiceNews::PodRanges(_) | ServiceNews::Forbidden { .. } | ServiceNews::Allowed { .. } => return,
        }
        state.generation += 1;
        let (generation, in_use) = (state.generation, state.services_read && state.slices_read);
        drop(state);
        self.in_use.store(in_use, Ordering::Release);
        self.changes.send_replace(generation);
    }

    /// Whether it knows Services at all.
    pub fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    /// Told at each change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Counts changes: a flow of an older count looks whether its endpoint is still there.
    pub(super) fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    /// The endpoint for a connection to an address of a Service; `None` when it is no Service's. `is_node` is whether the
    /// address is the node's own, where NodePorts are.
    ///
    /// # Errors
    /// ECONNREFUSED without an endpoint, and for a port that the Service of a cluster IP does not have.
    pub fn pick(
        &self,
        to: SocketAddr,
        protocol: Protocol,
        source: Source,
        is_node: impl FnOnce(IpAddr) -> bool,
    ) -> Option<Result<Target, Errno>> {
        match self.find(to, protocol, is_node)? {
            Ok(frontend) => Some(frontend.pick(source)),
            Err(errno) => Some(Err(errno)),
        }
    }

    pub(super) fn find(
        &self,
        to: SocketAddr,
        protocol: Protocol,
        is_node: impl FnOnce(IpAddr) -> bool,
    ) -> Option<Result<Frontend, Errno>> {
        if !self.is_in_use() {
            return None;
        }
        let state = self.state.read();
        let at = (to.ip(), to.port(), protocol);
        if let Some(frontend) = state.inner.get(&at).or_else(|| state.outer.get(&at)) {
            return Some(Ok(frontend.clone()));
        }
        if state.cluster_ips.contains_key(&to.ip()) {
            return Some(Err(Errno::ConnRefused));
        }
        let frontend = state.node_ports.get(&(to.port(), protocol, Family::of(to.ip())))?.clone();
        drop(state);
        is_node(to.ip()).then_some(Ok(frontend))
    }

    /// The frontend behind a door.
    pub(super) fn behind(&self, door: Door) -> Option<Frontend> {
        let state = self.state.read();
        match door {
            (Place::At(ip), port, protocol) => state.outer.get(&(ip, port, protocol)).cloned(),
            (Place::Every(family), port, protocol) => state.node_ports.get(&(port, protocol, family)).cloned(),
        }
    }

    /// What the node has to listen on: NodePorts and external addresses that somebody outside would be served at. One
    /// without endpoints is closed: who connects to it is refused, as by kube-proxy.
    pub(super) fn doors(&self) -> HashSet<Door> {
        let state = self.state.read();
        let anybody = Source::Outside(IpAddr::from([0, 0, 0, 0]));
        let inside = Source::Inside(IpAddr::from([0, 0, 0, 0]));
        let served = |frontend: &Frontend| frontend.is_served(anybody) || frontend.is_served(inside);
        let ports = state.node_ports.iter().filter(|(_, frontend)| served(frontend));
        let ports = ports.map(|((port, protocol, family), _)| (Place::Every(*family), *port, *protocol));
        let external = state.outer.iter().filter(|(_, frontend)| served(frontend));
        ports.chain(external.map(|((ip, port, protocol), _)| (Place::At(*ip), *port, *protocol))).collect()
    }

    /// Health check ports: the Service, and how many ready endpoints it has on this node.
    pub(super) fn health(&self) -> BTreeMap<u16, (ServiceKey, usize)> {
        let state = self.state.read();
        let checked = state.services.values().filter_map(|entry| Some((entry.spec.health_check_port?, entry)));
        let health = checked.map(|(port, entry)| {
            let ready = entry.ports.iter().flatten().map(|backends| backends.usable.local_ready).max().unwrap_or(0);
            (port, (entry.spec.key.clone(), ready))
        });
        health.collect()
    }

    /// The health check behind one port.
    pub(super) fn health_at(&self, port: u16) -> Option<(ServiceKey, usize)> {
        self.health().remove(&port)
    }
}

impl State {
    fn replace_services(&mut self, all: Vec<ServiceSpec>) {
        let there: HashSet<ServiceKey> = all.iter().map(|spec| spec.key.clone()).collect();
        let gone: Vec<ServiceKey> = self.services.keys().filter(|key| !there.contains(*key)).cloned().collect();
        for key in gone {
            self.remove_service(&key);
        }
        for spec in all {
            self.put_service(spec);
        }
        self.services_read = true;
    }

    fn put_service(&mut self, spec: ServiceSpec) {
        let before = self.take_service(&spec.key);
        let affinities = before.iter().flat_map(|entry| entry.spec.ports.iter().zip(&entry.ports));
        // Both families share one: a client has an address of one of them.
        let affinities: Vec<_> = affinities
            .filter_map(|(port, backends)| Some((port.name.clone(), port.protocol, backends[0].affinity.clone()?.1)))
            .collect();
        let ports = spec.ports.iter().map(|port| {
            let known = affinities.iter().find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
            let affinity = known.map(|(_, _, affinity)| affinity.clone()).unwrap_or_default();
            FAMILIES.map(|family| Arc::new(self.backends(&spec, port, family, affinity.clone())))
        });
        let ports: Vec<[Arc<Backends>; 2]> = ports.collect();
        for (port, backends) in spec.ports.iter().zip(&ports) {
            let protocol = transport(port.protocol);
            let frontend = |kind, family: Family| Frontend { kind, backends: backends[family as usize].clone() };
            for ip in &spec.cluster_ips {
                self.inner.insert((*ip, port.port, protocol), frontend(Kind::Cluster, Family::of(*ip)));
            }
            for (kind, ips) in [(Kind::Balancer, &spec.balancer_ips), (Kind::External, &spec.external_ips)] {
                for ip in ips {
                    self.outer.insert((*ip, port.port, protocol), frontend(kind, Family::of(*ip)));
                }
            }
            for (node_port, family) in port.node_port.into_iter().flat_map(|port| FAMILIES.map(|family| (port, family)))
            {
                self.node_ports.insert((node_port, protocol, family), frontend(Kind::External, family));
            }
        }
        for ip in &spec.cluster_ips {
            self.cluster_ips.insert(*ip, spec.key.clone());
        }
        self.services.insert(spec.key.clone(), Entry { spec, ports });
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        drop(self.take_service(key));
    }

    /// Takes a Service and all its addresses out; those that another has meanwhile stay.
    fn take_service(&mut self, key: &ServiceKey) -> Option<Entry> {
        let entry = self.services.remove(key)?;
        let spec = &entry.spec;
        for port in &spec.ports {
            let protocol = transport(port.protocol);
            for ip in spec.cluster_ips.iter().chain(&spec.external_ips).chain(&spec.balancer_ips) {
                let at = (*ip, port.port, protocol);
                for map in [&mut self.inner, &mut self.outer] {
                    if map.get(&at).is_some_and(|frontend| frontend.backends.service == *key) {
                        map.remove(&at);
                    }
                }
            }
            let all = port.node_port.into_iter().flat_map(|port| FAMILIES.map(|family| (port, protocol, family)));
            for at in all {
                if self.node_ports.get(&at).is_some_and(|one| one.backends.service == *key) {
                    self.node_ports.remove(&at);
                }
            }
        }
        for ip in &spec.cluster_ips {
            if self.cluster_ips.get(ip) == Some(key) {
                self.cluster_ips.remove(ip);
            }
        }
        Some(entry)
    }

    /// The endpoints of one family: those behind a Service's addresses of that family.
    fn backends(
        &self,
        spec: &ServiceSpec,
        port: &ServicePort,
        family: Family,
        affinity: Arc<Mutex<Affinity>>,
    ) -> Backends {
        let slices = self.slices.get(&spec.key).map(Vec::as_slice).unwrap_or_default();
        let mut candidates: Vec<Candidate> = Vec::new();
        for slice in slices {
            let matching = slice.ports.iter().filter(|one| one.name == port.name && one.protocol == port.protocol);
            for number in matching.map(|one| one.port) {
                let found = slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.ip) == family);
                candidates.extend(found.map(|endpoint| Candidate {
                    target: Target { ip: endpoint.ip, port: number },
                    facts: endpoint.facts,
                }));
            }
        }
        if slices.len() > 1 {
            // One endpoint can be in two slices for a moment, when it moves.
            candidates.sort_by_key(|one| one.target);
            candidates.dedup_by_key(|one| one.target);
        }
        Backends {
            service: spec.key.clone(),
            usable: usable(&candidates, spec.uses()),
            internal: spec.internal,
            external: spec.external,
            source_ranges: spec.source_ranges.clone().into(),
            affinity: spec.affinity.map(|timeout| (timeout, affinity)),
        }
    }

    /// Makes the lists of a Service anew.
    fn refresh(&mut self, key: &ServiceKey) {
        if let Some(spec) = self.services.get(key).map(|entry| entry.spec.clone()) {
            self.put_service(spec);
        }
    }

    fn replace_slices(&mut self, all: Vec<SliceSpec>) {
        let mut concerned: HashSet<ServiceKey> = std::mem::take(&mut self.slices).into_keys().collect();
        self.owners.clear();
        for slice in all {
            concerned.insert(slice.service.clone());
            self.owners.insert(slice.key.clone(), slice.service.clone());
            self.slices.entry(slice.service.clone()).or_default().push(slice);
        }
        for key in concerned {
            self.refresh(&key);
        }
        self.slices_read = true;
    }

    fn put_slice(&mut self, slice: SliceSpec) {
        let service = slice.service.clone();
        match self.owners.insert(slice.key.clone(), service.clone()) {
            Some(before) if before != service => self.forget_slice(&before, &slice.key),
            _ => {}
        }
        let slices = self.slices.entry(service.clone()).or_default();
        match slices.iter_mut().find(|one| one.key == slice.key) {
            Some(known) => *known = slice,
            None => slices.push(slice),
        }
        self.refresh(&service);
    }

    fn remove_slice(&mut self, key: &Arc<str>) {
        if let Some(service) = self.owners.remove(key) {
            self.forget_slice(&service, key);
        }
    }

    fn forget_slice(&mut self, service: &ServiceKey, key: &Arc<str>) {
        if let Some(slices) = self.slices.get_mut(service) {
            slices.retain(|slice| slice.key != *key);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        self.refresh(service);
    }
}
