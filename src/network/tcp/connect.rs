//! connect: in process to the pod's own loopback and to pods of this node, through the kernel elsewhere.
//!
//! In: a destination. Out: a connected socket, or Linux's error. No task drives an attempt: it makes progress
//! when somebody asks for its outcome or waits for it, which a guest that wants to be connected does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::Instant;

use super::super::backlog::{Backlog, Caller, Offer, Wire};
use super::super::kernel::{self, Connecting, KernelSocket, Place};
use super::super::options::TcpOptions;
use super::super::pod::PodNetwork;
use super::super::route::{Destination, Family, present};
use super::super::wait::until;
use super::listen::next_node_port;
use super::{Local, Phase, TcpSocket};
use crate::errno::Errno;
use crate::pod::run::PortProtocol;
use rustix::event::PollFlags;

/// How long Linux sends SYNs to a full listener with the default `tcp_syn_retries`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);

/// A connect on its way.
pub(super) struct Attempt {
    way: Way,
    /// As the guest sees it.
    local: SocketAddr,
    remote: SocketAddr,
    /// What it is really connected to: another one when `remote` is a Service's.
    target: SocketAddr,
    bound: Binding,
}

/// What the pod's table has for this socket.
enum Binding {
    /// The guest's own bind; a failure goes back to it.
    Asked(Local),
    /// An ephemeral port that goes with the attempt.
    Ephemeral(u16),
    /// None: the kernel chose, or the node's own end.
    None,
}

enum Way {
    InProcess { backlog: Arc<Backlog>, deadline: Instant },
    Kernel(Arc<KernelSocket>),
}

/// What `progress` found.
enum Step {
    Waiting,
    Connected(Wire),
    Failed(Errno),
}

/// Where a connect goes.
enum Plan {
    InProcess { target: Arc<PodNetwork>, source: IpAddr },
    Kernel { from: From },
}

/// Where a kernel socket of a connect leaves from.
#[derive(Clone, Copy)]
enum From {
    /// From the node, wherever the kernel chooses; the guest is shown the pod's address, if there is one to show.
    Node { shown: Option<IpAddr> },
    /// From the pod's address, which is the kernel's too.
    Pod(IpAddr),
}

impl Attempt {
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The port to release when the attempt is dropped.
    pub(super) fn port(&self) -> Option<u16> {
        self.bound.port()
    }
}

impl Binding {
    fn port(&self) -> Option<u16> {
        match self {
            Self::Asked(local) => Some(local.addr.port()),
            Self::Ephemeral(port) => Some(*port),
            Self::None => None,
        }
    }
}

impl TcpSocket {
    /// connect(2) without waiting: `Ok` when connected at once, EINPROGRESS when [`Self::try_finish_connect`]
    /// will tell.
    ///
    /// # Errors
    /// ECONNREFUSED, ENETUNREACH and EHOSTUNREACH by destination, EADDRNOTAVAIL when ports are used up, EISCONN,
    /// EALREADY, EINVAL for a loopback source to elsewhere, and the outcome of an earlier attempt not fetched yet.
    pub fn start_connect(&self, remote: SocketAddr) -> Result<(), Errno> {
        self.check_open()?;
        let mut phase = self.phase.lock();
        match &*phase {
            Phase::Unbound | Phase::Bound(_) => {}
            Phase::Connecting(_) => return Err(Errno::Already),
            Phase::Failed { .. } => return Err(take_failure(&mut phase).unwrap_or(Errno::Inval)),
            Phase::Connected | Phase::Listening(_) => return Err(Errno::IsConn),
            Phase::Closed => return Err(Errno::BadF),
        }
        let remote = self.checked(remote)?;
        let target = self.pod()?.service_target(remote)?;
        let bound = match std::mem::replace(&mut *phase, Phase::Unbound) {
            Phase::Bound(local) => Some(local),
            _ => None,
        };
        let attempt = match self.begin(remote, target, bound) {
            Ok(attempt) => attempt,
            Err((errno, back)) => {
                *phase = back.map_or(Phase::Unbound, Phase::Bound);
                return Err(errno);
            }
        };
        *phase = Phase::Connecting(attempt);
        self.advance(&mut phase);
        let outcome = match &*phase {
            Phase::Connected => Ok(()),
            Phase::Failed { .. } => Err(take_failure(&mut phase).unwrap_or(Errno::Inval)),
            _ => Err(Errno::InProgress),
        };
        drop(phase);
        self.announce_change();
        outcome
    }

    /// The outcome of [`Self::start_connect`]. `Ok` again and again once connected.
    ///
    /// # Errors
    /// EAGAIN while there is none, why it failed (once), ENOTCONN without an attempt.
    pub fn try_finish_connect(&self) -> Result<(), Errno> {
        self.check_open()?;
        let mut phase = self.phase.lock();
        self.advance(&mut phase);
        match &*phase {
            Phase::Connected => Ok(()),
            Phase::Connecting(_) => Err(Errno::Again),
            Phase::Failed { .. } => Err(take_failure(&mut phase).unwrap_or(Errno::NotConn)),
            _ => Err(Errno::NotConn),
        }
    }

    /// Connects and waits for the outcome. When cancelled the attempt goes on.
    ///
    /// # Errors
    /// As [`Self::start_connect`], without EINPROGRESS.
    pub async fn connect(&self, remote: SocketAddr) -> Result<(), Errno> {
        match self.start_connect(remote) {
            Err(Errno::InProgress) => {}
            other => return other,
        }
        loop {
            match self.try_finish_connect() {
                Err(Errno::Again) => self.settled().await,
                other => return other,
            }
        }
    }

    pub(super) fn take_connect_error(&self) -> Option<Errno> {
        let mut phase = self.phase.lock();
        self.advance(&mut phase);
        take_failure(&mut phase)
    }

    /// Waits until the attempt has an outcome. Cancel-safe.
    pub(super) async fn settled(&self) {
        loop {
            let (way, deadline) = {
                let mut phase = self.phase.lock();
                self.advance(&mut phase);
                match &*phase {
                    Phase::Connecting(Attempt { way: Way::InProcess { backlog, deadline }, .. }) => {
                        (Ok(backlog.clone()), *deadline)
                    }
                    Phase::Connecting(Attempt { way: Way::Kernel(socket), .. }) => {
                        (Err(socket.clone()), Instant::now())
                    }
                    _ => return,
                }
            };
            let generation = self.generation.load(Ordering::SeqCst);
            let changed = || self.has_ended() || self.generation.load(Ordering::SeqCst) != generation;
            match way {
                Ok(backlog) => {
                    let answer = until([&backlog.room, &self.changed], || backlog.would_answer() || changed());
                    // A timeout is found by `advance` on the next turn.
                    drop(tokio::time::timeout_at(deadline, answer).await);
                }
                // Both arms only look; nothing is lost when the other wins.
                Err(socket) => tokio::select! {
                    () = until([&self.changed], changed) => {}
                    () = socket.ready(Interest::WRITABLE) => {}
                },
            }
        }
    }

    /// Finds the way and takes a local port; gives a failed attempt's bind back.
    fn begin(
        &self,
        remote: SocketAddr,
        target: SocketAddr,
        bound: Option<Local>,
    ) -> Result<Attempt, (Errno, Option<Local>)> {
        let plan = match self.plan(target, bound.as_ref()) {
            Ok(plan) => plan,
            Err(errno) => return Err((errno, bound)),
        };
        let made = match &plan {
            Plan::InProcess { target: pod, .. } => pod
                .find_listener(target)
                .map(|backlog| Way::InProcess { backlog, deadline: Instant::now() + CONNECT_TIMEOUT }),
            Plan::Kernel { from } => self.begin_in_kernel(target, bound.as_ref(), *from),
        };
        let way = match made {
            Ok(way) => way,
            Err(errno) => return Err((errno, bound)),
        };
        match self.take_port(&plan, &way, target, bound) {
            Ok((local, bound)) => Ok(Attempt { way, local, remote, target, bound }),
            Err(refused) => Err(refused),
        }
    }

    fn plan(&self, remote: SocketAddr, bound: Option<&Local>) -> Result<Plan, Errno> {
        let pod = self.pod()?;
        if pod.uses_node_sockets() {
            // A pod's address is reached as by a dial: its real port, whatever the kernel's listener has.
            return Ok(match pod.neighbour(remote.ip()) {
                Some(target) => Plan::InProcess { target, source: pod.node_address(remote.ip()) },
                None => Plan::Kernel { from: From::Node { shown: None } },
            });
        }
        pod.check_out(remote, PortProtocol::Tcp)?;
        let asked = bound.map(|local| local.addr.ip()).filter(|ip| !ip.is_unspecified());
        let own_ip = pod.ip_towards(remote.ip());
        if remote.ip() == own_ip && pod.find_listener(remote).is_ok() {
            return Ok(Plan::InProcess { target: pod.clone(), source: asked.unwrap_or(own_ip) });
        }
        let destination = pod.routes().classify(remote.ip());
        match destination {
            Destination::Loopback(to) => {
                let source = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
                Ok(Plan::InProcess { target: pod.clone(), source: asked.unwrap_or(source) })
            }
            Destination::Pod(to) if to == own_ip => {
                Ok(Plan::InProcess { target: pod.clone(), source: asked.unwrap_or(own_ip) })
            }
            // Linux: a loopback source cannot leave (`ip_route_output` says EINVAL).
            _ if asked.is_some_and(|ip| ip != own_ip) => Err(Errno::Inval),
            Destination::Pod(to) => {
                let target = pod.neighbour(to).ok_or(Errno::HostUnreach)?;
                Ok(Plan::InProcess { target, source: own_ip })
            }
            Destination::Node => Err(Errno::ConnRefused),
            Destination::Denied(errno) => Err(errno),
            // The other family leaves from the node's own address: the pod has none.
            Destination::Cluster | Destination::Outside => {
                let shown = (remote.is_ipv4() == own_ip.is_ipv4()).then_some(own_ip);
                let own = destination == Destination::Cluster || pod.shares_node_address();
                let from = match shown {
                    Some(ip) if own => From::Pod(ip),
                    shown => From::Node { shown },
                };
                Ok(Plan::Kernel { from })
            }
        }
    }

    fn begin_in_kernel(&self, remote: SocketAddr, bound: Option<&Local>, from: From) -> Result<Way, Errno> {
        let options = *self.options.lock();
        let factory = self.pod()?.factory();
        let fd = match (bound.and_then(|local| local.kernel.as_ref()), from) {
            (Some(fd), _) => fd.try_clone()?,
            (None, From::Node { .. }) => kernel::unbound_tcp(Family::of(remote.ip()))?,
            (None, From::Pod(ip)) => {
                // Shared with the pod's listeners of the same port, as connections are.
                let shared = TcpOptions { reuse_address: true, ..options };
                let port = bound.map_or(0, |local| local.addr.port());
                factory.bind_tcp(Place::Pods, SocketAddr::new(ip, port), &shared)?
            }
        };
        let remote = match bound.and_then(|local| local.kernel.as_ref()) {
            Some(_) => present(remote, self.family),
            None => remote,
        };
        let (Connecting::Done(socket) | Connecting::Started(socket)) = factory.connect(fd, remote, &options)?;
        Ok(Way::Kernel(Arc::new(socket)))
    }

    /// The local address the guest sees, with a port of the pod's table behind it.
    fn take_port(
        &self,
        plan: &Plan,
        way: &Way,
        remote: SocketAddr,
        bound: Option<Local>,
    ) -> Result<(SocketAddr, Binding), (Errno, Option<Local>)> {
        let kernel_local = match way {
            Way::Kernel(socket) => socket.local_addr().unwrap_or(SocketAddr::new(self.family.unspecified(), 0)),
            Way::InProcess { .. } => SocketAddr::new(self.family.unspecified(), 0),
        };
        let pod = match self.pod() {
            Ok(pod) => pod,
            Err(errno) => return Err((errno, bound)),
        };
        let source = match plan {
            Plan::InProcess { source, .. } | Plan::Kernel { from: From::Node { shown: Some(source) } } => *source,
            Plan::Kernel { from: From::Node { shown: None } | From::Pod(_) } => {
                return Ok((kernel_local, bound.map_or(Binding::None, Binding::Asked)));
            }
        };
        if pod.uses_node_sockets() {
            let local = SocketAddr::new(source, next_node_port());
            return Ok((local, bound.map_or(Binding::None, Binding::Asked)));
        }
        let (local, binding) = match bound {
            Some(local) => (SocketAddr::new(source, local.addr.port()), Binding::Asked(local)),
            None => match self.take_address(SocketAddr::new(source, 0)) {
                Ok(local) => (local.addr, Binding::Ephemeral(local.addr.port())),
                // connect(2) words a lack of ports differently from bind(2).
                Err(Errno::AddrInUse) => return Err((Errno::AddrNotAvail, None)),
                Err(errno) => return Err((errno, None)),
            },
        };
        // Apart from the match, which would hold the table's lock while the port is given back.
        let noted = pod.tcp_ports().connect(self.id, local.port(), remote);
        match noted {
            Ok(()) => Ok((local, binding)),
            Err(errno) => Err((errno, self.give_back(binding))),
        }
    }

    /// Releases an ephemeral port; an asked one stays the socket's.
    fn give_back(&self, binding: Binding) -> Option<Local> {
        let Some(pod) = &self.pod else { return None };
        match binding {
            Binding::Asked(local) => {
                pod.tcp_ports().disconnect(self.id, local.addr.port());
                Some(local)
            }
            Binding::Ephemeral(port) => {
                pod.tcp_ports().release(self.id, port);
                None
            }
            Binding::None => None,
        }
    }

    /// Moves an attempt on, if it can.
    pub(super) fn advance(&self, phase: &mut Phase) {
        let Phase::Connecting(attempt) = phase else { return };
        let step = match &attempt.way {
            Way::InProcess { backlog, deadline } => self.try_offer(backlog, attempt, *deadline),
            Way::Kernel(socket) => kernel_step(socket),
        };
        if matches!(step, Step::Waiting) {
            return;
        }
        let Phase::Connecting(attempt) = std::mem::replace(phase, Phase::Connected) else { return };
        match step {
            Step::Connected(wire) => {
                let port =
                    attempt.bound.port().filter(|_| !self.pod.as_ref().is_some_and(|pod| pod.uses_node_sockets()));
                let link = self.link_of(wire, attempt.local, attempt.remote, port);
                if self.link.set(link).is_err() {
                    unreachable!("a connecting socket has no link yet");
                }
            }
            Step::Failed(errno) => *phase = Phase::Failed { errno, back: self.give_back(attempt.bound) },
            Step::Waiting => {}
        }
    }

    fn try_offer(&self, backlog: &Backlog, attempt: &Attempt, deadline: Instant) -> Step {
        let options = *self.options.lock();
        let caller = Caller {
            account: self.account.clone(),
            options: &options,
            addr: attempt.local,
            to: loopback_for_unspecified(attempt.target),
        };
        match backlog.offer(&caller) {
            Offer::Connected(endpoint) => Step::Connected(Wire::Local(endpoint)),
            Offer::Refused => Step::Failed(Errno::ConnRefused),
            Offer::Full if Instant::now() >= deadline => Step::Failed(Errno::TimedOut),
            Offer::Full => Step::Waiting,
        }
    }
}

/// Linux connects 0.0.0.0 and `::` to loopback, and says so in getpeername.
pub(in crate::network) fn loopback_for_unspecified(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr.port()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port()),
        _ => addr,
    }
}

fn kernel_step(socket: &Arc<KernelSocket>) -> Step {
    if !socket.poll_now().intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
        return Step::Waiting;
    }
    match socket.take_error() {
        None => Step::Connected(Wire::Kernel(socket.clone())),
        Some(errno) => Step::Failed(errno),
    }
}

fn take_failure(phase: &mut Phase) -> Option<Errno> {
    match std::mem::replace(phase, Phase::Unbound) {
        Phase::Failed { errno, back } => {
            *phase = back.map_or(Phase::Unbound, Phase::Bound);
            Some(errno)
        }
        other => {
            *phase = other;
            None
        }
    }
}
