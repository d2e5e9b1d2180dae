//! The network of the node: gives pods their addresses, and connects the node to them.
//!
//! In: pods that come and go, and the podCIDR once the Node object has one. Out: one [`PodNetwork`] each. It holds the map
//! of addresses that makes traffic between pods stay in process. No task runs here but those of `hostPort`s.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::io::Interest;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::address::{AddressPool, Unavailable};
use super::backlog::{Caller, Offer, Wire};
use super::config::{
    AddressMode, HostNetwork, IpRange, LowPorts, NetworkError, NodeNetworkConfig, PodLimits, PodNetworkSpec,
};
use super::forwarding;
use super::host_ports;
use super::kernel::{self, Connecting, Factory, primary_address};
use super::namespace::Namespace;
use super::options::TcpOptions;
use super::pod::PodNetwork;
use super::policy::PolicyTable;
use super::refusals::LimitSink;
use super::route::{Destination, Family, NodeEnd, PodRange, Routes};
use super::services::{Replies, ServiceTable};
use super::tcp::{TcpSocket, TcpStream, next_node_port};
use super::traffic::Traffic;
use super::wait::until;
use crate::descriptors::NodeDescriptors;
use crate::errno::Errno;
use crate::ids::PodUid;
use crate::pod::run::{HostPort, NetworkMode};

/// How long a dial waits for a listener whose queue is full, or for the kernel; the caller has its own, shorter one.
const DIAL_TIMEOUT: Duration = Duration::from_secs(127);

/// How long pods wait for policies at the node's first start, when no earlier run has read any.
const POLICY_PATIENCE: Duration = Duration::from_secs(10);

/// Where pod addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// In 127.0.0.0/8.
    Loopback,
    /// In a namespace of their own.
    Namespace,
    /// Nowhere: pods have the node's.
    Node,
}

/// What pods need of their node.
pub(super) struct Shared {
    routes: RwLock<Arc<Routes>>,
    pub(super) addressing: Addressing,
    pub(super) limits: PodLimits,
    pub(super) limit_sink: Arc<OnceLock<LimitSink>>,
    pub(super) descriptors: Arc<NodeDescriptors>,
    pub(super) low_ports: LowPorts,
    pub(super) dns_port: u16,
    pub(super) factory: Factory,
    /// Empty: whatever the kernel sends from at the moment.
    node_ips: Vec<IpAddr>,
    by_ip: RwLock<HashMap<IpAddr, Weak<PodNetwork>>>,
    pub(super) services: ServiceTable,
    pub(super) replies: Replies,
    pub(super) policies: PolicyTable,
}

impl Shared {
    pub(super) fn pod_at(&self, ip: IpAddr) -> Option<Arc<PodNetwork>> {
        self.by_ip.read().get(&ip)?.upgrade()
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }

    /// The node's own addresses, the primary one first; never empty. A machine without a route has no address but loopback, and says so.
    pub(super) fn node_ips(&self) -> Cow<'_, [IpAddr]> {
        if self.node_ips.is_empty() {
            return vec![primary_address().unwrap_or(std::net::Ipv4Addr::LOCALHOST.into())].into();
        }
        self.node_ips.as_slice().into()
    }

    /// The primary one.
    pub(super) fn node_ip(&self) -> IpAddr {
        self.node_ips()[0]
    }

    /// The one of the family of `like`; without such a one the primary.
    pub(super) fn node_ip_towards(&self, like: IpAddr) -> IpAddr {
        let all = self.node_ips();
        all.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4()).unwrap_or(all[0])
    }

    /// Whether an address is the node's, to the world or to its pods.
    pub(super) fn is_node_address(&self, ip: IpAddr) -> bool {
        self.routes().pods.iter().any(|range| range.node == ip) || self.node_ips().contains(&ip)
    }

    /// Whether an address is the node's or a pod's of the cluster.
    pub(super) fn is_inside(&self, ip: IpAddr) -> bool {
        let routes = self.routes();
        ip.is_loopback()
            || routes.pod_range(ip).is_some()
            || routes.cluster.iter().any(|range| range.contains(ip))
            || self.node_ips().contains(&ip)
    }
}

/// The network of all pods of this node.
pub struct NodeNetwork {
    shared: Arc<Shared>,
    host_network: HostNetwork,
    quarantine: Duration,
    /// Of pods of an earlier run that have not gone.
    reserved: Mutex<HashMap<PodUid, Vec<IpAddr>>>,
    primary_family: Option<Family>,
    namespace: Option<Namespace>,
    /// One change of the range at a time.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    /// Those that new pods get addresses of come first, one a family, the primary one before the other; the others have pods
    /// left.
    pools: Vec<AddressPool>,
    /// How many of them new pods get addresses of.
    current: usize,
    pods: HashMap<PodUid, Present>,
}

/// A pod that is there.
struct Present {
    network: Arc<PodNetwork>,
    /// Dropped with the pod.
    _host_ports: Vec<AbortOnDropHandle<()>>,
}

/// One port of the node that a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInUse {
    /// The pod.
    pub pod: PodUid,
    /// `TCP` or `UDP`.
    pub protocol: crate::pod::run::PortProtocol,
    /// Which address of the node; the unspecified one for all.
    pub address: SocketAddr,
}

impl NodeNetwork {
    /// Call it inside the tokio runtime that shall drive kernel sockets. With a namespace it takes some milliseconds.
    ///
    /// # Errors
    /// [`NetworkError::NoRuntime`] outside of one, [`NetworkError::BadRange`] and [`NetworkError::BadPodCidr`] for a range
    /// without addresses for pods, [`NetworkError::Namespace`] when the kernel refuses one.
    pub fn new(config: NodeNetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let NodeNetworkConfig { mode, quarantine, denied, reserved, primary_family, name_servers, .. } = config;
        // What answers there tells secrets of the machine, whatever it knows of names.
        let metadata = |ip: &IpAddr| *ip == IpAddr::from([169, 254, 169, 254]);
        let name_servers: Vec<IpAddr> =
            name_servers.into_iter().filter(|ip| !ip.is_loopback() && !metadata(ip)).collect();
        let (addressing, ranges, cluster) = match &mode {
            AddressMode::Loopback { range } => (Addressing::Loopback, vec![*range], Vec::new()),
            AddressMode::Namespace { ranges, cluster, .. } => {
                (Addressing::Namespace, one_a_family(ranges, primary_family), cluster.clone())
            }
            AddressMode::NodeAddress { .. } => (Addressing::Node, Vec::new(), Vec::new()),
        };
        let node_ips = match &mode {
            AddressMode::NodeAddress { ip } if config.node_ips.is_empty() => vec![*ip],
            _ => config.node_ips,
        };
        // Before the namespace is made: nothing is left behind by a bad setting.
        let pools = ranges.iter().map(|range| new_pool(addressing, *range, quarantine));
        let pools = pools.collect::<Result<Vec<_>, _>>()?;
        let namespace = match &mode {
            AddressMode::Namespace { seed, .. } => Some(Namespace::new(seed)?),
            _ => None,
        };
        let stock = namespace.as_ref().map(|namespace| namespace.stock().clone());
        let factory = Factory::new(stock).ok_or(NetworkError::NoRuntime)?;
        if let Some(namespace) = &namespace {
            for range in &ranges {
                forwarding::enable(Family::of(range.base()));
                namespace.add_now(*range)?;
            }
        }
        let node_end = if addressing == Addressing::Loopback { NodeEnd::Fiction } else { NodeEnd::Link };
        let shared = Arc::new(Shared {
            routes: RwLock::new(Arc::new(Routes { pods: Vec::new(), node_end, cluster, denied, name_servers })),
            addressing,
            limits: config.limits,
            limit_sink: Arc::default(),
            descriptors: config.descriptors,
            low_ports: config.low_ports,
            dns_port: config.dns_port,
            factory,
            node_ips,
            by_ip: RwLock::default(),
            services: ServiceTable::default(),
            replies: Replies::default(),
            policies: PolicyTable::default(),
        });
        let network = Self {
            shared,
            host_network: config.host_network,
            quarantine,
            reserved: Mutex::new(reserved.into_iter().collect()),
            primary_family,
            namespace,
            changing: tokio::sync::Mutex::default(),
            state: Mutex::new(State { pools: Vec::new(), current: 0, pods: HashMap::new() }),
        };
        network.use_pools(pools, &ranges);
        Ok(Arc::new(network))
    }

    /// Takes pod addresses from `ranges` from now on: the Node object's `podCIDRs`, the primary one first where the node has no
    /// family of its own ([`NodeNetworkConfig::primary_family`]). Pods that have an address keep it. Asking again for the same ranges changes nothing, and neither does it where addresses do not come from
    /// a podCIDR. Of each family only the first counts, as the API server has no more.
    ///
    /// # Errors
    /// [`NetworkError::BadPodCidr`] for a range without addresses for pods or one that overlaps a former one with pods
    /// left, [`NetworkError::Namespace`] when the kernel refuses the routes. The ranges before stay in use then.
    pub async fn set_pod_ranges(&self, ranges: &[IpRange]) -> Result<(), NetworkError> {
        let Some(namespace) = &self.namespace else { return Ok(()) };
        let _changing = self.changing.lock().await;
        let ranges = one_a_family(ranges, self.primary_family);
        if ranges.is_empty() || self.pod_ranges() == ranges {
            return Ok(());
        }
        let mut new = Vec::new();
        for range in ranges.iter().copied().filter(|range| !self.knows(*range)) {
            let state = self.state.lock();
            if state.pools.iter().any(|pool| pool.range().overlaps(&range) && !pool.is_unused()) {
                let reason = "it overlaps an earlier one, of which pods have addresses";
                return Err(NetworkError::BadPodCidr { range, reason });
            }
            drop(state);
            new.push(new_pool(Addressing::Namespace, range, self.quarantine)?);
        }
        // First what they may overlap.
        self.drop_unused_pools(&ranges);
        let mut usable = ranges.clone();
        for range in new.iter().map(AddressPool::range) {
            forwarding::enable(Family::of(range.base()));
            match namespace.add(range).await {
                // A kernel without IPv6: the pods have the other family at least.
                Err(error) if usable.len() > 1 => {
                    tracing::warn!(%range, err = %error, "Could not use one of the podCIDRs");
                    usable.retain(|other| *other != range);
                }
                other => other?,
            }
        }
        new.retain(|pool| usable.contains(&pool.range()));
        let ranges = usable;
        for range in &ranges {
            tracing::info!(%range, "Pods get addresses of a podCIDR");
        }
        self.use_pools(new, &ranges);
        self.drop_unused_pools(&ranges);
        Ok(())
    }

    fn knows(&self, range: IpRange) -> bool {
        self.state.lock().pools.iter().any(|pool| pool.range() == range)
    }

    /// Where new pods get addresses from, one range a family, the primary one first; empty before the podCIDR is known, and
    /// where pods have the node's address.
    pub fn pod_ranges(&self) -> Vec<IpRange> {
        let state = self.state.lock();
        state.pools.iter().take(state.current).map(AddressPool::range).collect()
    }

    /// Ranges of other nodes' pods: reached from pods' own addresses from now on, where they have any.
    pub fn set_cluster_ranges(&self, ranges: Vec<IpRange>) {
        if self.shared.addressing != Addressing::Namespace {
            return;
        }
        let mut routes = self.shared.routes.write();
        if routes.cluster != ranges {
            *routes = Arc::new(Routes { cluster: ranges, ..(**routes).clone() });
        }
    }

    /// The Services that its pods reach.
    pub fn services(&self) -> &ServiceTable {
        &self.shared.services
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits for a while until it is known whether policies are in force: a pod that begins before would find every door
    /// closed. Where nobody says it the pod begins all the same. Cancel-safe.
    pub async fn policies_decided(&self) {
        drop(tokio::time::timeout(POLICY_PATIENCE, self.shared.policies.decided()).await);
    }

    /// The policies that its pods are subject to.
    pub fn policies(&self) -> &PolicyTable {
        &self.shared.policies
    }

    /// Names to `sink` the limits that pods hit from now on; of two sinks the first stays.
    pub fn tell_limits(&self, sink: LimitSink) {
        drop(self.shared.limit_sink.set(sink));
    }

    /// Whether pods can have a network: the kubelet's `networkReady`.
    ///
    /// # Errors
    /// [`NetworkError::NotReady`] while there is no podCIDR.
    pub fn check_ready(&self) -> Result<(), NetworkError> {
        let waits = self.shared.addressing != Addressing::Node && self.state.lock().current == 0;
        if waits { Err(NetworkError::NotReady) } else { Ok(()) }
    }

    /// Whether all pods have the node's own address.
    pub fn shares_node_address(&self) -> bool {
        self.shared.addressing == Addressing::Node
    }

    /// How many pods can have an address at once; `None` when addresses are no limit.
    pub fn capacity(&self) -> Option<u64> {
        let ranges = self.pod_ranges();
        let addresses = ranges.iter().filter(|_| self.shared.addressing == Addressing::Namespace).map(|range| {
            let bits = if range.base().is_ipv4() { 32 } else { 128 } - u32::from(range.prefix());
            1u64.checked_shl(bits).map_or(u64::MAX, |all| all - 3)
        });
        addresses.min()
    }

    /// Adds pools; new pods get addresses of those of `ranges`.
    fn use_pools(&self, mut pools: Vec<AddressPool>, ranges: &[IpRange]) {
        for pool in &mut pools {
            let range = pool.range();
            for ip in
                self.reserved.lock().values().flatten().filter(|ip| range.contains(**ip) || self.namespace.is_none())
            {
                if pool.reserve(*ip).is_err() {
                    // The pod learns it when it asks for the address.
                    tracing::warn!(%ip, %range, "Could not keep the address of a pod of an earlier run");
                }
            }
        }
        let mut state = self.state.lock();
        state.pools.extend(pools);
        let place = |pool: &AddressPool| ranges.iter().position(|range| *range == pool.range()).unwrap_or(usize::MAX);
        // Stable: those of before stay in their order.
        state.pools.sort_by_key(place);
        state.current = state.pools.iter().filter(|pool| place(pool) < usize::MAX).count();
        self.route(&state);
    }

    /// Tells sockets which ranges are pods'.
    fn route(&self, state: &State) {
        let range = |pool: &AddressPool| PodRange { range: pool.range(), node: pool.node_address() };
        let mut routes = self.shared.routes.write();
        *routes = Arc::new(Routes { pods: state.pools.iter().map(range).collect(), ..(**routes).clone() });
    }

    /// Forgets former ranges without pods: their addresses are another node's now.
    fn drop_unused_pools(&self, keep: &[IpRange]) {
        let mut state = self.state.lock();
        let unused = |pool: &AddressPool| !keep.contains(&pool.range()) && pool.is_unused();
        if !state.pools.iter().any(unused) {
            return;
        }
        for pool in state.pools.iter().filter(|pool| unused(pool)) {
            if let Some(namespace) = &self.namespace {
                namespace.remove(pool.range());
            }
        }
        state.current -= state.pools.iter().take(state.current).filter(|pool| unused(pool)).count();
        state.pools.retain(|pool| !unused(pool));
        self.route(&state);
    }

    /// Gives a pod its network.
    ///
    /// # Errors
    /// [`NetworkError`]: no podCIDR yet, no address, the former one is taken, `hostNetwork` is not allowed, a `hostPort` is
    /// in use, or the pod has a network already.
    pub fn add_pod(&self, spec: PodNetworkSpec) -> Result<Arc<PodNetwork>, NetworkError> {
        let mut state = self.state.lock();
        if state.pods.contains_key(&spec.uid) {
            return Err(NetworkError::PodExists { pod: spec.pod, uid: spec.uid });
        }
        let ips = match (spec.mode, self.host_network) {
            (NetworkMode::Host, HostNetwork::Denied) => return Err(NetworkError::HostNetworkDenied { pod: spec.pod }),
            (NetworkMode::Host, HostNetwork::Allowed) => self.shared.node_ips().into_owned(),
            (NetworkMode::Pod, _) if self.shared.addressing == Addressing::Node => self.shared.node_ips().into_owned(),
            (NetworkMode::Pod, _) => self.pod_addresses(&mut state, &spec)?,
        };
        let ports = spec.host_ports.iter().filter(|port| self.needs_forwarding(port));
        let opened = host_ports::open(&spec.pod, ports, &ips, &self.shared.factory);
        let opened = opened.inspect_err(|_| release(&mut state.pools, &ips))?;
        let uid = spec.uid.clone();
        let has_own_address = spec.mode == NetworkMode::Pod && self.shared.addressing != Addressing::Node;
        let network = Arc::new(PodNetwork::new(spec, ips.clone(), self.shared.clone()));
        if has_own_address {
            self.shared.by_ip.write().extend(ips.into_iter().map(|ip| (ip, Arc::downgrade(&network))));
        }
        let tasks = host_ports::serve(opened, &network, &self.shared);
        state.pods.insert(uid, Present { network: network.clone(), _host_ports: tasks });
        Ok(network)
    }

    /// A port that is the pod's on the node's address anyway needs no forwarding.
    fn needs_forwarding(&self, port: &HostPort) -> bool {
        let same = || {
            port.host_port == port.container_port && port.host_ip.is_none_or(|ip| self.shared.node_ips().contains(&ip))
        };
        self.shared.addressing != Addressing::Node || !same()
    }

    /// One address of each current range.
    fn pod_addresses(&self, state: &mut State, spec: &PodNetworkSpec) -> Result<Vec<IpAddr>, NetworkError> {
        let pools = &mut state.pools[..state.current];
        if pools.is_empty() {
            return Err(NetworkError::NotReady);
        }
        let mut ips = Vec::with_capacity(pools.len());
        for pool in &mut *pools {
            match self.pod_address(pool, spec) {
                Ok(ip) => ips.push(ip),
                Err(error) => {
                    release(pools, &ips);
                    return Err(error);
                }
            }
        }
        Ok(ips)
    }

    fn pod_address(&self, addresses: &mut AddressPool, spec: &PodNetworkSpec) -> Result<IpAddr, NetworkError> {
        let (pod, range) = (spec.pod.clone(), addresses.range());
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == range.base().is_ipv4();
        let former = spec.ips.iter().find(same_family).map(|ip| (*ip, addresses.adopt(*ip)));
        match former {
            Some((_, Ok(ip))) => return Ok(ip),
            Some((ip, Err(Unavailable::OutOfRange))) if self.shared.addressing == Addressing::Loopback => {
                return Err(NetworkError::AddressOutOfRange { pod, ip, range });
            }
            // The Node object was made anew: as when the kubelet makes a new sandbox, the pod's address changes.
            Some((ip, Err(Unavailable::OutOfRange))) => {
                tracing::info!(pod = %spec.pod, %ip, %range, "Pod gets another address: its former one is of another podCIDR");
            }
            Some((ip, Err(Unavailable::Taken | Unavailable::Exhausted))) => {
                return Err(NetworkError::AddressTaken { pod, ip });
            }
            None => {}
        }
        addresses.allocate(Instant::now()).map_err(|_| NetworkError::NoAddressLeft { pod, range })
    }

    /// Closes every socket of a pod and its `hostPort`s, wakes all who wait, and puts its address to rest. Unknown is fine; of
    /// a pod of an earlier run that never asked for its address, that one rests from now on.
    pub fn remove_pod(&self, uid: &PodUid) {
        self.give_up(uid);
        let Some(Present { network: pod, .. }) = self.state.lock().pods.remove(uid) else { return };
        pod.end();
        if pod.mode() == NetworkMode::Host || self.shared.addressing == Addressing::Node {
            return;
        }
        let ips = pod.ips();
        {
            let mut by_ip = self.shared.by_ip.write();
            for ip in &ips {
                by_ip.remove(ip);
            }
        }
        release(&mut self.state.lock().pools, &ips);
        self.drop_unused_pools(&self.pod_ranges());
    }

    /// Keeps nothing any more for a pod of an earlier run.
    fn give_up(&self, uid: &PodUid) {
        let mut reserved = self.reserved.lock();
        let Some(mut kept) = reserved.remove(uid) else { return };
        // One that ended long ago may name the address that another was given since.
        kept.retain(|ip| !reserved.values().flatten().any(|other| other == ip));
        drop(reserved);
        let mut state = self.state.lock();
        for ip in kept {
            if let Some(pool) = state.pools.iter_mut().find(|pool| pool.range().contains(ip)) {
                pool.give_up(ip, Instant::now());
            }
        }
    }

    /// A pod's network.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<PodNetwork>> {
        self.state.lock().pods.get(uid).map(|present| present.network.clone())
    }

    /// What a pod sent and received; `None` without a network, or without one of its own.
    pub fn traffic(&self, uid: &PodUid) -> Option<Traffic> {
        self.pod(uid).filter(|pod| pod.mode() == NetworkMode::Pod).map(|pod| pod.traffic())
    }

    /// How many addresses pods have now; none of them where pods share the node's.
    pub fn addresses_in_use(&self) -> usize {
        self.state.lock().pools.iter().map(AddressPool::in_use).sum()
    }

    /// Ports of the node that pods have now: `hostPort`s, and what pods that share the node's address listen on. For
    /// admission; who starts to listen later can still be the second, and gets EADDRINUSE.
    pub fn ports_in_use(&self) -> Vec<PortInUse> {
        let pods: Vec<_> = self.state.lock().pods.values().map(|present| present.network.clone()).collect();
        pods.iter().flat_map(|pod| pod.ports_of_node()).collect()
    }

    /// The address that pods see the node's own connections come from where their addresses are loopback's; elsewhere the
    /// node's own. `status.hostIP` of a standalone node.
    pub fn node_address(&self) -> IpAddr {
        let routes = self.shared.routes();
        let fiction = routes.pods.first().filter(|_| self.shared.addressing == Addressing::Loopback);
        fiction.map_or_else(|| self.shared.node_ip(), |range| range.node)
    }

    /// Connects the node to an address: to a pod of this node in process, elsewhere through the kernel. For probes,
    /// lifecycle hooks and the API server's proxy. Cancel-safe: a dropped dial leaves nothing behind.
    ///
    /// # Errors
    /// EHOSTUNREACH when no pod has an address of the pods' range, ECONNREFUSED when nobody listens, ETIMEDOUT, and what
    /// the kernel says.
    pub async fn dial(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        if let Some(pod) = self.shared.pod_at(to.ip()) {
            return pod.dial(to).await;
        }
        if matches!(self.shared.routes().classify(to.ip()), Destination::Pod(_) | Destination::Node) {
            return Err(Errno::HostUnreach);
        }
        // Of the pods that share the node's address the one that listens; a pod on the node's network is where the node is.
        let sharing = {
            let state = self.state.lock();
            let mut pods = state.pods.values().map(|present| &present.network);
            pods.find(|pod| pod.shares_node_address() && pod.has(to.ip()) && pod.find_listener(to).is_ok()).cloned()
        };
        match sharing {
            Some(pod) => pod.dial(to).await,
            None => dial_kernel(&self.shared.factory, to).await,
        }
    }

    /// Connects the node to a port of a pod's loopback, as `kubectl port-forward` expects: 127.0.0.1, then `::1` (the order
    /// of containerd). For a `hostNetwork` pod that is the node's loopback. Cancel-safe.
    ///
    /// # Errors
    /// EHOSTUNREACH when the pod has no network, ECONNREFUSED when nobody listens, ETIMEDOUT.
    pub async fn dial_localhost(&self, uid: &PodUid, port: u16) -> Result<TcpStream, Errno> {
        let pod = self.pod(uid).ok_or(Errno::HostUnreach)?;
        match pod.dial(SocketAddr::new(Family::V4.localhost(), port)).await {
            Err(Errno::ConnRefused) => pod.dial(SocketAddr::new(Family::V6.localhost(), port)).await,
            other => other,
        }
    }
}

fn new_pool(addressing: Addressing, range: IpRange, quarantine: Duration) -> Result<AddressPool, NetworkError> {
    if addressing == Addressing::Loopback {
        return AddressPool::leased(range, quarantine).ok_or(NetworkError::BadRange { range });
    }
    AddressPool::owned(range, quarantine).map_err(|reason| NetworkError::BadPodCidr { range, reason })
}

/// The first range of each family, that of the primary one first.
fn one_a_family(ranges: &[IpRange], primary: Option<Family>) -> Vec<IpRange> {
    let mut first: Vec<IpRange> = Vec::with_capacity(2);
    for range in ranges {
        if !first.iter().any(|other| other.base().is_ipv4() == range.base().is_ipv4()) {
            first.push(*range);
        }
    }
    // Stable: without a primary family they stay as they are.
    first.sort_by_key(|range| primary.is_some_and(|primary| Family::of(range.base()) != primary));
    first
}

/// Puts addresses to rest, in whichever pools they are of.
fn release(pools: &mut [AddressPool], ips: &[IpAddr]) {
    for ip in ips {
        if let Some(pool) = pools.iter_mut().find(|pool| pool.range().contains(*ip)) {
            pool.release(*ip, Instant::now());
        }
    }
}

impl Drop for NodeNetwork {
    fn drop(&mut self) {
        for present in self.state.get_mut().pods.values() {
            present.network.end();
        }
    }
}

impl PodNetwork {
    /// Connects the node to an address inside the pod, its loopback included (port-forward). For `hostNetwork`,
    /// to an address of the node.
    ///
    /// # Errors
    /// EADDRNOTAVAIL for an address the pod does not have, ECONNREFUSED when nobody listens, ETIMEDOUT.
    pub async fn dial(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        if self.uses_node_sockets() {
            return dial_kernel(self.factory(), to).await;
        }
        self.check_local(to.ip())?;
        // Inside the pod the node comes from the pod's own loopback, as a port-forward in its namespace would.
        let source = match to.ip() {
            ip if self.has(ip) => self.node_address(ip),
            ip => Family::of(ip).localhost(),
        };
        let from = SocketAddr::new(source, next_node_port());
        let options = TcpOptions::default();
        let backlog = self.find_listener(to)?;
        let deadline = Instant::now() + DIAL_TIMEOUT;
        loop {
            match backlog.offer(&Caller { account: None, options: &options, addr: from, to }) {
                Offer::Connected(endpoint) => {
                    return Ok(TcpSocket::of_node(Wire::Local(endpoint), from, to).into_stream());
                }
                Offer::Refused => return Err(Errno::ConnRefused),
                Offer::Full => {
                    let answer = until([&backlog.room], || backlog.would_answer());
                    tokio::time::timeout_at(deadline, answer).await.map_err(|_| Errno::TimedOut)?;
                }
            }
        }
    }

    /// Ports of the node that are this pod's.
    fn ports_of_node(&self) -> Vec<PortInUse> {
        let port = |protocol, address| PortInUse { pod: self.uid().clone(), protocol, address };
        let any = Family::of(self.ip()).unspecified();
        let declared = self.host_ports().iter();
        let mut ports: Vec<_> = declared
            .map(|port_| port(port_.protocol, SocketAddr::new(port_.host_ip.unwrap_or(any), port_.host_port)))
            .collect();
        if self.shares_node_address() || self.uses_node_sockets() {
            ports.extend(self.listeners().iter().filter_map(|info| Some(port(info.protocol.into(), info.node?))));
        }
        ports
    }
}

pub(super) async fn dial_kernel(factory: &Factory, to: SocketAddr) -> Result<TcpStream, Errno> {
    let fd = kernel::unbound_tcp(Family::of(to.ip()))?;
    let socket = match factory.connect(fd, to, &TcpOptions::default())? {
        Connecting::Done(socket) => socket,
        Connecting::Started(socket) => {
            let ready = socket.ready(Interest::WRITABLE);
            tokio::time::timeout(DIAL_TIMEOUT, ready).await.map_err(|_| Errno::TimedOut)?;
            socket.take_error().map_or(Ok(()), Err)?;
            socket
        }
    };
    let local = socket.local_addr()?;
    Ok(TcpSocket::of_node(Wire::Kernel(Arc::new(socket)), local, to).into_stream())
}
