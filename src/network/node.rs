//! The network of the node: gives pods their addresses, and connects the node to them.
//!
//! In: pods that come and go. Out: one [`PodNetwork`] each. It holds the map of addresses that makes traffic
//! between pods stay in process. No task runs here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::io::Interest;
use tokio::time::Instant;

use super::address::{AddressPool, Unavailable};
use super::backlog::{Caller, Offer, Wire};
use super::config::{HostNetwork, IpRange, LowPorts, NetworkError, NodeNetworkConfig, PodLimits, PodNetworkSpec};
use super::kernel::{self, Connecting, Factory};
use super::options::TcpOptions;
use super::pod::PodNetwork;
use super::route::{Family, Routes};
use super::tcp::{TcpSocket, TcpStream, next_node_port};
use super::wait::until;
use crate::errno::Errno;
use crate::ids::PodUid;
use crate::pod::run::NetworkMode;

/// How long a dial waits for a listener whose queue is full, or for the kernel; the caller has its own, shorter one.
const DIAL_TIMEOUT: Duration = Duration::from_secs(127);

/// What pods need of their node.
pub(super) struct Shared {
    pub(super) routes: Routes,
    pub(super) limits: PodLimits,
    pub(super) low_ports: LowPorts,
    pub(super) dns_port: u16,
    pub(super) factory: Factory,
    by_ip: RwLock<HashMap<IpAddr, Weak<PodNetwork>>>,
}

impl Shared {
    pub(super) fn pod_at(&self, ip: IpAddr) -> Option<Arc<PodNetwork>> {
        self.by_ip.read().get(&ip)?.upgrade()
    }
}

/// The network of all pods of this node.
pub struct NodeNetwork {
    shared: Arc<Shared>,
    range: IpRange,
    host_network: HostNetwork,
    state: Mutex<State>,
}

struct State {
    addresses: AddressPool,
    pods: HashMap<PodUid, Arc<PodNetwork>>,
}

impl NodeNetwork {
    /// Call it inside the tokio runtime that shall drive kernel sockets.
    ///
    /// # Errors
    /// [`NetworkError::NoRuntime`] outside of one, [`NetworkError::BadRange`] for a range that is not loopback's.
    pub fn new(config: NodeNetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let factory = Factory::new().ok_or(NetworkError::NoRuntime)?;
        let range = config.pod_range;
        let mut addresses = AddressPool::new(range, config.quarantine).ok_or(NetworkError::BadRange { range })?;
        for ip in &config.reserved {
            let kept = match ip {
                IpAddr::V4(v4) => addresses.reserve(*v4),
                IpAddr::V6(_) => Err(Unavailable::OutOfRange),
            };
            if kept.is_err() {
                // The pod learns it when it asks for the address, and gets another.
                tracing::warn!(%ip, %range, "Could not keep the address of a pod of an earlier run");
            }
        }
        let shared = Arc::new(Shared {
            routes: Routes { pod_range: range, node_address: addresses.node_address(), denied: config.denied },
            limits: config.limits,
            low_ports: config.low_ports,
            dns_port: config.dns_port,
            factory,
            by_ip: RwLock::default(),
        });
        let state = Mutex::new(State { addresses, pods: HashMap::new() });
        Ok(Arc::new(Self { shared, range, host_network: config.host_network, state }))
    }

    /// Gives a pod its network.
    ///
    /// # Errors
    /// [`NetworkError`]: no address, the former one is taken, `hostNetwork` is not allowed, or the pod has one.
    pub fn add_pod(&self, spec: PodNetworkSpec) -> Result<Arc<PodNetwork>, NetworkError> {
        let mut state = self.state.lock();
        if state.pods.contains_key(&spec.uid) {
            return Err(NetworkError::PodExists { pod: spec.pod, uid: spec.uid });
        }
        let ip = match (spec.mode, self.host_network) {
            (NetworkMode::Pod, _) => IpAddr::V4(self.pod_address(&mut state.addresses, &spec)?),
            (NetworkMode::Host, HostNetwork::Denied) => return Err(NetworkError::HostNetworkDenied { pod: spec.pod }),
            // A machine without a route has no address but loopback, and says so.
            (NetworkMode::Host, HostNetwork::Allowed) => {
                kernel::primary_address().unwrap_or(Ipv4Addr::LOCALHOST.into())
            }
        };
        let uid = spec.uid.clone();
        let mode = spec.mode;
        let pod = Arc::new(PodNetwork::new(spec, ip, self.shared.clone()));
        if mode == NetworkMode::Pod {
            self.shared.by_ip.write().insert(ip, Arc::downgrade(&pod));
        }
        state.pods.insert(uid, pod.clone());
        Ok(pod)
    }

    fn pod_address(&self, addresses: &mut AddressPool, spec: &PodNetworkSpec) -> Result<Ipv4Addr, NetworkError> {
        let pod = spec.pod.clone();
        let range = self.range;
        let Some(ip) = spec.ip else {
            return addresses.allocate(Instant::now()).map_err(|_| NetworkError::NoAddressLeft { pod, range });
        };
        let adopted = match ip {
            IpAddr::V4(v4) => addresses.adopt(v4).map(|()| v4),
            IpAddr::V6(_) => Err(Unavailable::OutOfRange),
        };
        adopted.map_err(|why| match why {
            Unavailable::OutOfRange => NetworkError::AddressOutOfRange { pod, ip, range },
            Unavailable::Taken | Unavailable::Exhausted => NetworkError::AddressTaken { pod, ip },
        })
    }

    /// Closes every socket of a pod, wakes all who wait, and puts its address to rest. Unknown is fine.
    pub fn remove_pod(&self, uid: &PodUid) {
        let Some(pod) = self.state.lock().pods.remove(uid) else { return };
        pod.end();
        if let (NetworkMode::Pod, IpAddr::V4(ip)) = (pod.mode(), pod.ip()) {
            self.shared.by_ip.write().remove(&pod.ip());
            self.state.lock().addresses.release(ip, Instant::now());
        }
    }

    /// A pod's network.
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<PodNetwork>> {
        self.state.lock().pods.get(uid).cloned()
    }

    /// The address that pods see the node's own connections come from.
    pub fn node_address(&self) -> Ipv4Addr {
        self.shared.routes.node_address
    }

    /// Connects the node to a pod's address, in process: probes, the API server's proxy, tests.
    ///
    /// # Errors
    /// EHOSTUNREACH when no pod has the address, ECONNREFUSED when nobody listens, ETIMEDOUT.
    pub async fn dial(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        if let Some(pod) = self.shared.pod_at(to.ip()) {
            return pod.dial(to).await;
        }
        // A pod on the node's network is where the node is.
        let host_pod = {
            let state = self.state.lock();
            state.pods.values().find(|pod| pod.uses_node_sockets() && pod.ip() == to.ip()).cloned()
        };
        host_pod.ok_or(Errno::HostUnreach)?.dial(to).await
    }
}

impl Drop for NodeNetwork {
    fn drop(&mut self) {
        for pod in self.state.get_mut().pods.values() {
            pod.end();
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
            return self.dial_kernel(to).await;
        }
        self.check_local(to.ip())?;
        // Inside the pod the node comes from the pod's own loopback, as a port-forward in its namespace would.
        let source = match to.ip() {
            ip if ip == self.ip() => self.node_address().into(),
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

    async fn dial_kernel(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        let fd = kernel::unbound_tcp(Family::of(to.ip()))?;
        let socket = match self.factory().connect(fd, to, &TcpOptions::default())? {
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
}
