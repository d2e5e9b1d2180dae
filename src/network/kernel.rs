//! The socket factory: the only place that makes a real socket for a guest.
//!
//! In: where to listen, connect or bind in the kernel, and in which namespace. Out: non-blocking sockets registered with
//! the node's tokio runtime. Decides nothing about who may reach what; `route` has decided before. No task is spawned:
//! an idle socket costs its descriptor and one registration.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown as KernelShutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::namespace::Stock;
use super::options::{Shutdown, TcpOptions, UdpOptions};
use super::route::Family;
use crate::errno::Errno;

/// A kernel socket that tokio watches.
pub(super) struct KernelSocket {
    fd: AsyncFd<OwnedFd>,
}

/// Makes kernel sockets on one tokio runtime.
#[derive(Clone)]
pub(super) struct Factory {
    runtime: Handle,
    /// Sockets of the pods' namespace, where there is one.
    pods: Option<Arc<Stock>>,
}

/// In which network namespace a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The agent's own.
    Node,
    /// Where pod addresses are: the same without a namespace for them.
    Pods,
}

/// Whether a kernel connect is done.
pub(super) enum Connecting {
    /// At once.
    Done(KernelSocket),
    /// Not yet: it is when the socket is writable.
    Started(KernelSocket),
}

fn socket(family: Family, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// A new TCP socket of the node that goes wherever it is connected to.
pub(super) fn unbound_tcp(family: Family) -> Result<OwnedFd, Errno> {
    socket(family, SocketType::STREAM)
}

pub(super) fn local_addr(fd: impl std::os::fd::AsFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(rustix::net::getsockname(fd)?).map_err(|_| Errno::AfNoSupport)
}

impl Factory {
    /// On the runtime that calls; `None` outside of one.
    pub(super) fn new(pods: Option<Arc<Stock>>) -> Option<Self> {
        Handle::try_current().ok().map(|runtime| Self { runtime, pods })
    }

    /// A bound but not yet listening or connected TCP socket.
    pub(super) fn bind_tcp(&self, place: Place, local: SocketAddr, options: &TcpOptions) -> Result<OwnedFd, Errno> {
        let family = Family::of(local.ip());
        let fd = match self.stock(place) {
            Some(stock) => stock.tcp(family)?,
            None => socket(family, SocketType::STREAM)?,
        };
        sockopt::set_socket_reuseaddr(&fd, options.reuse_address)?;
        self.bind(place, &fd, local, options.v6_only)?;
        Ok(fd)
    }

    fn stock(&self, place: Place) -> Option<&Stock> {
        self.pods.as_deref().filter(|_| place == Place::Pods)
    }

    fn bind(&self, place: Place, fd: &OwnedFd, local: SocketAddr, v6_only: bool) -> Result<(), Errno> {
        if local.is_ipv6() {
            sockopt::set_ipv6_v6only(fd, v6_only)?;
            if self.stock(place).is_some() {
                // For IPv6 an AnyIP route makes an address reachable, but not one to bind.
                sockopt::set_ipv6_freebind(fd, true)?;
            }
        }
        Ok(rustix::net::bind(fd, &local)?)
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    #[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor's life; ownership keeps it")]
    fn register(&self, fd: OwnedFd) -> Result<KernelSocket, Errno> {
        let _entered = self.runtime.enter();
        // SAFETY: `OwnedFd` is open for as long as it lives, always names the same descriptor, and is owned by the
        // `AsyncFd` from here on; it is never taken out or replaced.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
        registered.map(|fd| KernelSocket { fd }).map_err(|error| Errno::from(error.into_parts().1))
    }

    /// Listens on a pod's address, or on another of its ports when the kernel has a reason against the first.
    pub(super) fn listen_on_pod(
        &self,
        want: SocketAddr,
        choice: PortChoice,
        backlog: u32,
        options: &TcpOptions,
    ) -> Result<(KernelSocket, SocketAddr), Errno> {
        let mut last = Errno::AddrInUse;
        for port in choice.candidates(want.port()) {
            match self.listen_at(SocketAddr::new(want.ip(), port), backlog, options) {
                Ok(done) => return Ok(done),
                // EACCES: a low port without the privilege. EADDRINUSE: the pod's own table had no objection,
                // so somebody outside the pod is there, as a server of the node's on 0.0.0.0.
                Err(errno @ (Errno::Acces | Errno::Perm | Errno::AddrInUse)) => last = errno,
                Err(errno) => return Err(errno),
            }
        }
        Err(last)
    }

    fn listen_at(
        &self,
        local: SocketAddr,
        backlog: u32,
        options: &TcpOptions,
    ) -> Result<(KernelSocket, SocketAddr), Errno> {
        let shared = TcpOptions { reuse_address: true, ..*options };
        self.listen(self.bind_tcp(Place::Pods, local, &shared)?, backlog, options)
    }

    /// Makes a bound socket listen.
    pub(super) fn listen(
        &self,
        fd: OwnedFd,
        backlog: u32,
        options: &TcpOptions,
    ) -> Result<(KernelSocket, SocketAddr), Errno> {
        apply_tcp(fd.as_fd(), &TcpOptions::default(), options)?;
        rustix::net::listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
        let local = local_addr(&fd)?;
        Ok((self.register(fd)?, local))
    }

    /// Starts to connect a new or bound socket.
    pub(super) fn connect(&self, fd: OwnedFd, remote: SocketAddr, options: &TcpOptions) -> Result<Connecting, Errno> {
        apply_tcp(fd.as_fd(), &TcpOptions::default(), options)?;
        match rustix::net::connect(&fd, &remote) {
            Ok(()) => Ok(Connecting::Done(self.register(fd)?)),
            Err(rustix::io::Errno::INPROGRESS) => Ok(Connecting::Started(self.register(fd)?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the next connection of a listener.
    pub(super) fn accept(&self, listener: &KernelSocket) -> Result<(KernelSocket, SocketAddr), Errno> {
        let (fd, peer) = listener.attempt(Interest::READABLE, |fd| {
            Ok(rustix::net::acceptfrom_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
        })?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::ConnAborted)?;
        Ok((self.register(fd)?, peer))
    }

    /// Binds a UDP socket to a pod's address, on another port when the kernel has a reason against the first.
    pub(super) fn udp_on_pod(
        &self,
        want: SocketAddr,
        choice: PortChoice,
        options: &UdpOptions,
    ) -> Result<(KernelSocket, SocketAddr), Errno> {
        let mut last = Errno::AddrInUse;
        for port in choice.candidates(want.port()) {
            match self.udp_at(Place::Pods, SocketAddr::new(want.ip(), port), options) {
                Ok(done) => return Ok(done),
                Err(errno @ (Errno::Acces | Errno::Perm | Errno::AddrInUse)) => last = errno,
                Err(errno) => return Err(errno),
            }
        }
        Err(last)
    }

    /// A UDP socket at an address; the unspecified one with port 0 for a client.
    pub(super) fn udp_at(
        &self,
        place: Place,
        local: SocketAddr,
        options: &UdpOptions,
    ) -> Result<(KernelSocket, SocketAddr), Errno> {
        let family = Family::of(local.ip());
        let fd = match self.stock(place) {
            Some(stock) => stock.udp(family)?,
            None => socket(family, SocketType::DGRAM)?,
        };
        sockopt::set_socket_reuseaddr(&fd, options.reuse_address)?;
        apply_udp(fd.as_fd(), &UdpOptions::default(), options)?;
        self.bind(place, &fd, local, options.v6_only)?;
        let local = local_addr(&fd)?;
        Ok((self.register(fd)?, local))
    }
}

/// Which ports to try for a listener of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortChoice {
    /// The wanted one: the pod's address is a true one, which others expect it on.
    Exact,
    /// The wanted one, then others.
    WantedFirst,
    /// Others only.
    OthersOnly,
}

impl PortChoice {
    /// For 80 that is 80, 10080, any: a person guesses the second, `listeners` shows what it became.
    fn candidates(self, port: u16) -> impl Iterator<Item = u16> {
        let wanted = (self != Self::OthersOnly).then_some(port);
        let others = (self != Self::Exact).then(|| port.checked_add(10_000).into_iter().chain([0]));
        wanted.into_iter().chain(others.into_iter().flatten())
    }
}

impl KernelSocket {
    pub(super) fn borrow(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Tries a call; on EAGAIN once more under tokio's eyes, so that its cached readiness is cleared without
    /// losing an edge that came in between.
    fn attempt<R>(&self, interest: Interest, call: impl Fn(BorrowedFd<'_>) -> io::Result<R>) -> Result<R, Errno> {
        match call(self.borrow()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return Ok(other?),
        }
        match self.fd.try_io(interest, |fd| call(fd.as_fd())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::Again),
            other => Ok(other?),
        }
    }

    pub(super) fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let into = std::cell::RefCell::new(into);
        self.attempt(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut **into.borrow_mut())?))
    }

    pub(super) fn peek(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let into = std::cell::RefCell::new(into);
        self.attempt(Interest::READABLE, |fd| Ok(rustix::net::recv(fd, &mut **into.borrow_mut(), RecvFlags::PEEK)?.0))
    }

    pub(super) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        self.attempt(Interest::WRITABLE, |fd| Ok(rustix::net::send(fd, from, SendFlags::NOSIGNAL)?))
    }

    /// One datagram: bytes copied, its whole length, its sender.
    pub(super) fn receive_from(&self, into: &mut [u8]) -> Result<(usize, SocketAddr), Errno> {
        let into = std::cell::RefCell::new(into);
        let (n, _, from) = self.attempt(Interest::READABLE, |fd| {
            Ok(rustix::net::recvfrom(fd, &mut **into.borrow_mut(), RecvFlags::empty())?)
        })?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok()).ok_or(Errno::Io)?;
        Ok((n, from))
    }

    pub(super) fn send_to(&self, data: &[u8], to: SocketAddr) -> Result<usize, Errno> {
        self.attempt(Interest::WRITABLE, |fd| Ok(rustix::net::sendto(fd, data, SendFlags::NOSIGNAL, &to)?))
    }

    pub(super) fn connect_datagrams(&self, remote: SocketAddr) -> Result<(), Errno> {
        Ok(rustix::net::connect(self.borrow(), &remote)?)
    }

    pub(super) fn disconnect_datagrams(&self) -> Result<(), Errno> {
        Ok(rustix::net::connect_unspec(self.borrow())?)
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        let how = match how {
            Shutdown::Read => KernelShutdown::Read,
            Shutdown::Write => KernelShutdown::Write,
            Shutdown::Both => KernelShutdown::Both,
        };
        Ok(rustix::net::shutdown(self.borrow(), how)?)
    }

    /// Ends a connection with a RST when the descriptor is closed, which the caller does next.
    pub(super) fn reset(&self) {
        // It fails for a connection that is over already.
        let _ = sockopt::set_socket_linger(self.borrow(), Some(std::time::Duration::ZERO));
    }

    pub(super) fn take_error(&self) -> Option<Errno> {
        match sockopt::socket_error(self.borrow()) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno.into()),
        }
    }

    pub(super) fn local_addr(&self) -> Result<SocketAddr, Errno> {
        local_addr(self.borrow())
    }

    /// Bytes a read would return.
    pub(super) fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(self.borrow()).unwrap_or(0)
    }

    /// What poll(2) says now.
    pub(super) fn poll_now(&self) -> PollFlags {
        let mut fds = [PollFd::from_borrowed_fd(self.borrow(), PollFlags::IN | PollFlags::OUT)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::ERR,
        }
    }

    fn is_ready(&self, interest: Interest) -> bool {
        let wanted = if interest.is_readable() { PollFlags::IN } else { PollFlags::OUT };
        self.poll_now().intersects(wanted | PollFlags::HUP | PollFlags::ERR)
    }

    /// Waits until the kernel itself says ready: tokio's cached readiness may be stale, and a front-end must
    /// never be woken for nothing. Cancel-safe.
    pub(super) async fn ready(&self, interest: Interest) {
        loop {
            if self.is_ready(interest) {
                return;
            }
            // The registration fails only when the runtime is shutting down; the guest ends with it.
            let Ok(mut guard) = self.fd.ready(interest).await else { return };
            if self.is_ready(interest) {
                guard.retain_ready();
                return;
            }
            guard.clear_ready();
        }
    }

    /// As [`Self::ready`] for a task that polls; remembers one task a direction.
    pub(super) fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let polled =
                if interest.is_readable() { self.fd.poll_read_ready(cx) } else { self.fd.poll_write_ready(cx) };
            let Poll::Ready(guard) = polled else { return Poll::Pending };
            let Ok(mut guard) = guard else { return Poll::Ready(()) };
            if self.is_ready(interest) {
                guard.retain_ready();
                return Poll::Ready(());
            }
            guard.clear_ready();
        }
    }

    /// Sets what differs from `before`.
    pub(super) fn apply_tcp(&self, before: &TcpOptions, options: &TcpOptions) -> Result<(), Errno> {
        apply_tcp(self.borrow(), before, options)
    }

    /// Sets what differs from `before`.
    pub(super) fn apply_udp(&self, before: &UdpOptions, options: &UdpOptions) -> Result<(), Errno> {
        apply_udp(self.borrow(), before, options)
    }
}

fn apply_tcp(fd: BorrowedFd<'_>, before: &TcpOptions, options: &TcpOptions) -> Result<(), Errno> {
    if options.no_delay != before.no_delay {
        sockopt::set_tcp_nodelay(fd, options.no_delay)?;
    }
    if options.keep_alive != before.keep_alive {
        sockopt::set_socket_keepalive(fd, options.keep_alive)?;
    }
    if options.keep_alive_idle != before.keep_alive_idle {
        sockopt::set_tcp_keepidle(fd, options.keep_alive_idle)?;
    }
    if options.keep_alive_interval != before.keep_alive_interval {
        sockopt::set_tcp_keepintvl(fd, options.keep_alive_interval)?;
    }
    if options.keep_alive_count != before.keep_alive_count {
        sockopt::set_tcp_keepcnt(fd, options.keep_alive_count)?;
    }
    if options.linger != before.linger {
        sockopt::set_socket_linger(fd, options.linger)?;
    }
    apply_hop_limit(fd, options.hop_limit, before.hop_limit)?;
    apply_buffers(
        fd,
        (options.receive_buffer != before.receive_buffer).then_some(options.receive_buffer),
        (options.send_buffer != before.send_buffer).then_some(options.send_buffer),
    )
}

fn apply_udp(fd: BorrowedFd<'_>, before: &UdpOptions, options: &UdpOptions) -> Result<(), Errno> {
    apply_hop_limit(fd, options.hop_limit, before.hop_limit)?;
    apply_buffers(
        fd,
        (options.receive_buffer != before.receive_buffer).then_some(options.receive_buffer),
        (options.send_buffer != before.send_buffer).then_some(options.send_buffer),
    )
}

fn apply_hop_limit(fd: BorrowedFd<'_>, hops: u8, before: u8) -> Result<(), Errno> {
    if hops == before {
        return Ok(());
    }
    match sockopt::socket_domain(fd)? {
        AddressFamily::INET6 => Ok(sockopt::set_ipv6_unicast_hops(fd, Some(hops))?),
        _ => Ok(sockopt::set_ip_ttl(fd, u32::from(hops))?),
    }
}

/// The kernel's own sizes tune themselves; only what the guest asked for is set.
fn apply_buffers(fd: BorrowedFd<'_>, receive: Option<u64>, send: Option<u64>) -> Result<(), Errno> {
    if let Some(bytes) = receive {
        sockopt::set_socket_recv_buffer_size(fd, bytes as usize)?;
    }
    if let Some(bytes) = send {
        sockopt::set_socket_send_buffer_size(fd, bytes as usize)?;
    }
    Ok(())
}

/// Takes a name in the abstract namespace of Unix sockets; it is free again when the descriptor is closed.
pub(super) fn lease_name(name: &str) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(fd)
}

/// The node's own address towards the world: what the kernel would send from, IPv4 before IPv6. Sends nothing.
pub fn primary_address() -> Option<IpAddr> {
    let towards = |anywhere: IpAddr| {
        let fd = socket(Family::of(anywhere), SocketType::DGRAM).ok()?;
        rustix::net::connect(&fd, &SocketAddr::new(anywhere, 9)).ok()?;
        local_addr(&fd).ok().map(|addr| addr.ip()).filter(|ip| !ip.is_unspecified())
    };
    // TEST-NET-1 and the prefix of examples: routed by the default route and by nothing else.
    towards(Ipv4Addr::new(192, 0, 2, 1).into())
        .or_else(|| towards(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()))
}
