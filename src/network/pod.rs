//! One pod's network: its address, its two port tables, its sockets and their owners.
//!
//! In: wishes for sockets and names by the runtime, for addresses by the sockets. Out: sockets, lookups, texts of
//! /etc files, lists for people. All containers of the pod share it. It moves no bytes and makes no kernel sockets.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::account::{Account, OwnerId, PodBuffers, SocketCharge};
use super::backlog::Backlog;
use super::config::{LowPorts, PodLimits, PodNetworkSpec};
use super::host_ports::HostUdp;
use super::kernel::{Factory, PortChoice};
use super::names;
use super::node::{Addressing, Shared};
use super::policy::PolicyTable;
use super::ports::{Ports, SocketId};
use super::refusals::{Refusal, Refusals};
use super::resolver::{self, ResolveError, Resolver};
use super::route::{Destination, Family, Routes};
use super::services::ServiceTable;
use super::tcp::{CLOSED, POD_GONE, TcpSocket, loopback_for_unspecified};
use super::traffic::{Counters, Span, Traffic};
use super::udp::{Inbox, UdpSocket};
use crate::descriptors::{PodDescriptors, Slot};
use crate::errno::Errno;
use crate::ids::{PodRef, PodUid};
use crate::pod::run::{DnsConfig, HostPort, NetworkMode, PortProtocol};

/// Names sockets over all pods.
static NEXT_SOCKET: AtomicU64 = AtomicU64::new(1);

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl From<Protocol> for PortProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// One open port of a pod, for `wasilet ps` and statuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerInfo {
    /// The container attempt it belongs to.
    pub owner: OwnerId,
    /// TCP listener or bound UDP socket.
    pub protocol: Protocol,
    /// What the guest bound.
    pub local: SocketAddr,
    /// Where the node reaches it with a kernel socket; its port differs from `local` when remapped.
    pub node: Option<SocketAddr>,
}

/// The network of one pod, shared by its containers.
pub struct PodNetwork {
    spec: PodNetworkSpec,
    /// The primary one first, one a family at most; never empty.
    ips: Vec<IpAddr>,
    shared: Arc<Shared>,
    tcp: Mutex<Ports<Arc<Backlog>>>,
    udp: Mutex<Ports<Arc<Inbox>>>,
    registry: Mutex<Registry>,
    buffers: Arc<PodBuffers>,
    refusals: Arc<Refusals>,
    descriptors: Arc<PodDescriptors>,
    resolver: Resolver,
    traffic: Counters,
    /// UDP ports of the node that lead here.
    host_udp: OnceLock<Vec<Arc<HostUdp>>>,
}

/// What exists. A socket takes itself out when it ends.
#[derive(Default)]
struct Registry {
    sockets: BTreeMap<SocketId, Registered>,
    owners: HashMap<OwnerId, Arc<Account>>,
    life: Life,
}

/// A socket, whose it is, and its part of the pod's descriptors.
struct Registered {
    owner: OwnerId,
    member: Member,
    _slot: Slot,
}

#[derive(Default, PartialEq, Eq)]
enum Life {
    #[default]
    Here,
    Gone,
}

/// A socket in the registry.
#[derive(Clone)]
enum Member {
    Tcp(Weak<TcpSocket>),
    Udp(Weak<UdpSocket>),
}

/// A socket that is there.
pub(super) enum Socket {
    Tcp(Arc<TcpSocket>),
    Udp(Arc<UdpSocket>),
}

impl Socket {
    fn end_with(&self, end: u8) {
        match self {
            Self::Tcp(socket) => socket.end_with(end),
            Self::Udp(socket) => socket.end_with(end),
        }
    }
}

impl PodNetwork {
    pub(super) fn new(spec: PodNetworkSpec, ips: Vec<IpAddr>, shared: Arc<Shared>) -> Self {
        let refusals = Arc::new(Refusals::new(spec.pod.clone(), spec.uid.clone(), shared.limit_sink.clone()));
        let buffers = Arc::new(PodBuffers::new(shared.limits.buffer_bytes, refusals.clone()));
        let descriptors = shared.descriptors.pod();
        Self {
            spec,
            ips,
            shared,
            tcp: Mutex::default(),
            udp: Mutex::default(),
            registry: Mutex::default(),
            buffers,
            refusals,
            descriptors,
            resolver: Resolver::default(),
            traffic: Counters::default(),
            host_udp: OnceLock::new(),
        }
    }

    /// Addresses of the pod, the primary one first (for `hostNetwork`: the node's).
    pub fn ips(&self) -> Vec<IpAddr> {
        self.ips.clone()
    }

    /// Own addresses or the node's.
    pub fn mode(&self) -> NetworkMode {
        self.spec.mode
    }

    /// The pod's UID.
    pub fn uid(&self) -> &PodUid {
        &self.spec.uid
    }

    /// The pod's namespace and name.
    pub fn name(&self) -> &PodRef {
        &self.spec.pod
    }

    /// What the pod may hold open: its sockets take from it, and the files of its containers.
    pub fn descriptors(&self) -> &Arc<PodDescriptors> {
        &self.descriptors
    }

    pub(super) fn host_ports(&self) -> &[HostPort] {
        &self.spec.host_ports
    }

    /// Content of `/etc/hosts`, as the kubelet writes it. For `hostNetwork` it reads the node's.
    pub fn etc_hosts(&self) -> String {
        match self.spec.mode {
            NetworkMode::Pod => names::hosts_of_pod(&self.ips(), &self.spec.names, &self.spec.host_aliases),
            NetworkMode::Host => {
                // The kubelet fails the pod here; a node without the file still has localhost by RFC 6761.
                let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                names::hosts_of_node(&node, &self.spec.host_aliases)
            }
        }
    }

    /// Content of `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        names::resolv_conf(&self.spec.dns)
    }

    /// Addresses of a name, in the order to try them: hosts content, literals, then the name servers.
    ///
    /// # Errors
    /// [`ResolveError`]: not a name, no such host, or servers that do not answer.
    pub async fn resolve(self: &Arc<Self>, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        resolver::resolve(self, name).await
    }

    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) fn dns(&self) -> &DnsConfig {
        &self.spec.dns
    }

    pub(super) fn dns_port(&self) -> u16 {
        self.shared.dns_port
    }

    /// Names a charge for a container attempt's socket buffers; without it only the pod's limit holds.
    pub fn add_owner(&self, owner: OwnerId, charge: Arc<dyn SocketCharge>) {
        let account = Arc::new(Account::new(self.buffers.clone(), Some(charge)));
        self.registry.lock().owners.insert(owner, account);
    }

    /// Closes every socket of a container attempt and forgets it.
    pub fn remove_owner(&self, owner: OwnerId) {
        for socket in self.sockets_of(owner) {
            socket.end_with(CLOSED);
        }
        self.registry.lock().owners.remove(&owner);
    }

    /// A new TCP socket.
    ///
    /// # Errors
    /// EMFILE at the pod's limit, ENFILE at the node's, ENETUNREACH when the pod is gone.
    pub fn tcp_socket(self: &Arc<Self>, owner: OwnerId, family: Family) -> Result<Arc<TcpSocket>, Errno> {
        self.register(owner, |id, account| {
            let socket = Arc::new(TcpSocket::new(id, self.clone(), owner, account, family));
            let member = Member::Tcp(Arc::downgrade(&socket));
            (socket, member)
        })
    }

    /// A new UDP socket.
    ///
    /// # Errors
    /// EMFILE at the pod's limit, ENFILE at the node's, ENETUNREACH when the pod is gone.
    pub fn udp_socket(self: &Arc<Self>, owner: OwnerId, family: Family) -> Result<Arc<UdpSocket>, Errno> {
        self.register(owner, |id, account| {
            let socket = Arc::new(UdpSocket::new(id, self.clone(), owner, account, family));
            let member = Member::Udp(Arc::downgrade(&socket));
            (socket, member)
        })
    }

    fn register<S>(
        &self,
        owner: OwnerId,
        make: impl FnOnce(SocketId, Arc<Account>) -> (S, Member),
    ) -> Result<S, Errno> {
        let mut registry = self.registry.lock();
        let room = self.check_registry(&registry).and_then(|()| match self.descriptors.take() {
            Err(Errno::MFile) => Err((Errno::MFile, Some(Refusal::PodFiles))),
            Err(errno) => Err((errno, Some(Refusal::NodeFiles))),
            Ok(slot) => Ok(slot),
        });
        let slot = match room {
            Ok(slot) => slot,
            Err(refused) => {
                drop(registry);
                return Err(self.refuse(refused));
            }
        };
        let account = registry.owners.get(&owner).cloned();
        let account = account.unwrap_or_else(|| Arc::new(Account::new(self.buffers.clone(), None)));
        let id = SocketId(NEXT_SOCKET.fetch_add(1, Ordering::Relaxed));
        let (socket, member) = make(id, account);
        registry.sockets.insert(id, Registered { owner, member, _slot: slot });
        Ok(socket)
    }

    /// Whether another socket may be made; if not, why, and which limit it is.
    fn check_registry(&self, registry: &Registry) -> Result<(), (Errno, Option<Refusal>)> {
        let limit = self.shared.limits.sockets;
        match registry.life {
            Life::Gone => Err((Errno::NetUnreach, None)),
            Life::Here if registry.sockets.len() >= limit => Err((Errno::MFile, Some(Refusal::Socket { limit }))),
            Life::Here => Ok(()),
        }
    }

    fn refuse(&self, (errno, refusal): (Errno, Option<Refusal>)) -> Errno {
        if let Some(refusal) = refusal {
            self.refusals.note(refusal);
        }
        errno
    }

    /// Whether another socket may be made.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        let checked = self.check_registry(&self.registry.lock());
        checked.map_err(|refused| self.refuse(refused))
    }

    pub(super) fn unregister(&self, id: SocketId) {
        self.registry.lock().sockets.remove(&id);
    }

    /// Every socket that is there. Collected first: the last `Arc` of one must not be dropped under the lock.
    fn sockets_where(&self, wanted: impl Fn(OwnerId) -> bool) -> Vec<Socket> {
        let registry = self.registry.lock();
        let members: Vec<Member> = registry
            .sockets
            .values()
            .filter(|socket| wanted(socket.owner))
            .map(|socket| socket.member.clone())
            .collect();
        drop(registry);
        let there = members.into_iter().filter_map(|member| match member {
            Member::Tcp(socket) => socket.upgrade().map(Socket::Tcp),
            Member::Udp(socket) => socket.upgrade().map(Socket::Udp),
        });
        there.collect()
    }

    pub(super) fn sockets_of(&self, owner: OwnerId) -> Vec<Socket> {
        self.sockets_where(|other| other == owner)
    }

    /// Whether a container attempt has an open socket.
    pub fn has_sockets(&self, owner: OwnerId) -> bool {
        self.registry.lock().sockets.values().any(|socket| socket.owner == owner)
    }

    /// Open ports, sorted.
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        let infos = self.sockets_where(|_| true).into_iter().filter_map(|socket| match socket {
            Socket::Tcp(socket) => socket.listener_info(),
            Socket::Udp(socket) => socket.listener_info(),
        });
        let mut infos: Vec<_> = infos.collect();
        infos.sort_by_key(|info| (info.local.port(), info.protocol, info.local.ip()));
        infos
    }

    /// Ends every socket; none can be made any more.
    pub(super) fn end(&self) {
        self.registry.lock().life = Life::Gone;
        for socket in self.sockets_where(|_| true) {
            socket.end_with(POD_GONE);
        }
        self.registry.lock().owners.clear();
    }

    pub(super) fn uses_node_sockets(&self) -> bool {
        self.spec.mode == NetworkMode::Host
    }

    /// Whether the pod has no address of its own, but the node's, and sockets of its own all the same.
    pub(super) fn shares_node_address(&self) -> bool {
        self.spec.mode == NetworkMode::Pod && self.shared.addressing == Addressing::Node
    }

    /// EADDRNOTAVAIL for an address a socket of this pod cannot have.
    pub(super) fn check_local(&self, ip: IpAddr) -> Result<(), Errno> {
        let own = self.has(ip) || matches!(self.routes().classify(ip), Destination::Loopback(_));
        if own { Ok(()) } else { Err(Errno::AddrNotAvail) }
    }

    /// Bytes to and from other pods, the node and the world.
    pub fn traffic(&self) -> Traffic {
        self.traffic.read()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.traffic
    }

    /// Whether what an in-process peer sends comes from another pod or the node.
    pub(super) fn span(&self, peer: IpAddr) -> Span {
        let inside = self.has(peer) || matches!(self.routes().classify(peer), Destination::Loopback(_));
        if inside || self.uses_node_sockets() { Span::Inside } else { Span::Leaves }
    }

    /// A peer on the node's loopback must not look like one of the pod's own: programs trust 127.0.0.1.
    pub(super) fn shown_peer(&self, peer: SocketAddr) -> SocketAddr {
        if peer.ip().is_loopback() { SocketAddr::new(self.node_address(peer.ip()), peer.port()) } else { peer }
    }

    pub(super) fn set_host_udp(&self, ports: Vec<Arc<HostUdp>>) {
        // Once, when the pod is made.
        if !ports.is_empty() {
            drop(self.host_udp.set(ports));
        }
    }

    /// Sends an answer to who asked through a port of the node.
    pub(super) fn answer_by_node(&self, from: u16, to: SocketAddr, data: &[u8]) -> Option<Result<usize, Errno>> {
        let by_host_port = || self.host_udp.get()?.iter().find_map(|port| port.answer(from, to, data));
        self.shared.replies.answer(SocketAddr::new(self.ip_towards(to.ip()), from), to, data).or_else(by_host_port)
    }

    /// What Services there are.
    pub(super) fn services(&self) -> &ServiceTable {
        &self.shared.services
    }

    /// The pod of this node that has an address.
    pub(super) fn neighbour(&self, ip: IpAddr) -> Option<Arc<PodNetwork>> {
        self.shared.pod_at(ip)
    }

    pub(super) fn find_listener(&self, to: SocketAddr) -> Result<Arc<Backlog>, Errno> {
        self.tcp.lock().find(loopback_for_unspecified(to)).cloned().ok_or(Errno::ConnRefused)
    }

    pub(super) fn find_inbox(&self, to: SocketAddr) -> Option<Arc<Inbox>> {
        self.udp.lock().find(to).cloned()
    }

    pub(super) fn tcp_ports(&self) -> MutexGuard<'_, Ports<Arc<Backlog>>> {
        self.tcp.lock()
    }

    pub(super) fn udp_ports(&self) -> MutexGuard<'_, Ports<Arc<Inbox>>> {
        self.udp.lock()
    }

    /// Its primary address.
    pub(super) fn ip(&self) -> IpAddr {
        self.ips.first().copied().unwrap_or(Family::V4.unspecified())
    }

    /// Its address of a family.
    pub(super) fn ip_of(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// Its address as others of that one's family know it; without one the primary.
    pub(super) fn ip_towards(&self, other: IpAddr) -> IpAddr {
        self.ip_of(Family::of(other)).unwrap_or_else(|| self.ip())
    }

    /// Whether an address is the pod's own.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip)
    }

    pub(super) fn limits(&self) -> PodLimits {
        self.shared.limits
    }

    /// Which ports of the pod's address to try in the kernel for one that a guest wants.
    pub(super) fn port_choice(&self, port: u16) -> PortChoice {
        match self.shared.addressing {
            Addressing::Namespace | Addressing::Node => PortChoice::Exact,
            Addressing::Loopback if port < 1024 && self.shared.low_ports == LowPorts::Remap => PortChoice::OthersOnly,
            Addressing::Loopback => PortChoice::WantedFirst,
        }
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.shared.routes()
    }

    /// The address that the node's own connections come from, as the pod sees it, of the family of `like`.
    pub(super) fn node_address(&self, like: IpAddr) -> IpAddr {
        let routes = self.routes();
        let range = routes.pod_range(self.ip_towards(like)).or(routes.pods.first());
        range.map_or_else(|| self.shared.node_ip_towards(like), |range| range.node)
    }

    pub(super) fn policies(&self) -> &PolicyTable {
        &self.shared.policies
    }

    /// Whether an address is the node's, as the world or its pods know it.
    pub(super) fn is_node(&self, ip: IpAddr) -> bool {
        self.shared.is_node_address(ip)
    }

    pub(super) fn factory(&self) -> &Factory {
        &self.shared.factory
    }

    #[cfg(test)]
    pub(super) fn buffered(&self) -> u64 {
        self.buffers.used()
    }
}
