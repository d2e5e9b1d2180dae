//! `wasi:sockets/tcp`: the start/finish protocol over a socket of `network`.
//!
//! ```text
//! Unbound --start-bind--> Binding --finish-bind--> Bound --start-listen--> Starting --finish-listen--> Listening
//!    \                                              /                                     \--accept--> Connected
//!     `--------------start-connect-----------------'--> Connecting --finish-connect--> Connected | Closed
//! ```
//! Binding and listening are done when started; the states in between only keep the guest's side of the
//! protocol, because a second operation before `finish` is `concurrency-conflict`.

use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::super::bindings::sockets::network::{ErrorCode, IpSocketAddress};
use super::super::bindings::sockets::tcp::ShutdownType;
use super::super::errors::SocketResult;
use super::super::streams::{Sink, SinkOutput, Source, SourceInput};
use super::{Network, View, address};
use crate::errno::Errno;
use crate::network::{self, Shutdown};

/// Linux's customary backlog, and the standard library's.
const DEFAULT_BACKLOG: u32 = 128;

/// Where a socket is in the guest's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// New.
    Unbound,
    /// `start-bind` was called.
    Binding,
    /// Has a local address.
    Bound,
    /// `start-listen` was called.
    Starting,
    /// Accepts.
    Listening,
    /// `start-connect` was called.
    Connecting,
    /// Has a peer.
    Connected,
    /// Its connect failed; POSIX leaves such a socket unusable.
    Closed,
}

/// The resource behind `tcp-socket`.
pub struct TcpSocket {
    pub(super) socket: Arc<network::TcpSocket>,
    pub(super) phase: Phase,
    pub(super) backlog: u32,
}

impl TcpSocket {
    /// A new socket.
    #[must_use]
    pub fn new(socket: Arc<network::TcpSocket>) -> Self {
        Self { socket, phase: Phase::Unbound, backlog: DEFAULT_BACKLOG }
    }

    fn accepted(socket: Arc<network::TcpSocket>) -> Self {
        Self { socket, phase: Phase::Connected, backlog: DEFAULT_BACKLOG }
    }

    /// Refuses a second operation while one is under way.
    fn idle(&self) -> Result<(), ErrorCode> {
        match self.phase {
            Phase::Binding | Phase::Starting | Phase::Connecting => Err(ErrorCode::ConcurrencyConflict),
            _ => Ok(()),
        }
    }

    fn streams(&self) -> (DynInputStream, DynOutputStream) {
        let input = SourceInput::new(Source::Tcp(self.socket.clone()));
        let output = SinkOutput::new(Sink::Tcp(self.socket.clone()));
        (Box::new(input), Box::new(output))
    }
}

impl View<'_> {
    pub(super) fn tcp(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<&mut TcpSocket> {
        Ok(self.table.get_mut(socket)?)
    }

    pub(super) fn tcp_start_bind(
        &mut self,
        socket: &Resource<TcpSocket>,
        network: &Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(network)?;
        let socket = self.tcp(socket)?;
        socket.idle()?;
        if socket.phase != Phase::Unbound {
            return Err(ErrorCode::InvalidState.into());
        }
        let local = address::host(local);
        address::check_family(local, socket.socket.family())?;
        address::check_unicast(local)?;
        socket.socket.bind(local).map_err(|errno| match errno {
            // bind(2) on Linux answers so for an address of another family, which the checks above let through.
            Errno::AfNoSupport => Errno::Inval,
            errno => errno,
        })?;
        socket.phase = Phase::Binding;
        Ok(())
    }

    pub(super) fn tcp_start_connect(
        &mut self,
        socket: &Resource<TcpSocket>,
        network: &Resource<Network>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(network)?;
        let socket = self.tcp(socket)?;
        socket.idle()?;
        if !matches!(socket.phase, Phase::Unbound | Phase::Bound) {
            return Err(ErrorCode::InvalidState.into());
        }
        let remote = address::host(remote);
        address::check_family(remote, socket.socket.family())?;
        address::check_unicast(remote)?;
        address::check_remote(remote)?;
        match socket.socket.start_connect(remote) {
            Ok(()) | Err(Errno::InProgress) => {
                socket.phase = Phase::Connecting;
                Ok(())
            }
            Err(errno) => {
                socket.phase = Phase::Closed;
                Err(errno.into())
            }
        }
    }

    pub(super) fn tcp_finish_connect(
        &mut self,
        resource: &Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.tcp(resource)?;
        if socket.phase != Phase::Connecting {
            return Err(ErrorCode::NotInProgress.into());
        }
        match socket.socket.try_finish_connect() {
            Ok(()) => socket.phase = Phase::Connected,
            Err(Errno::Again | Errno::InProgress | Errno::Already) => return Err(ErrorCode::WouldBlock.into()),
            Err(errno) => {
                socket.phase = Phase::Closed;
                return Err(errno.into());
            }
        }
        let (input, output) = socket.streams();
        Ok((self.table.push_child(input, resource)?, self.table.push_child(output, resource)?))
    }

    pub(super) fn tcp_start_listen(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.tcp(socket)?;
        socket.idle()?;
        if socket.phase != Phase::Bound {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.socket.listen(socket.backlog)?;
        socket.phase = Phase::Starting;
        Ok(())
    }

    /// Ends a `start-bind` or `start-listen`.
    pub(super) fn tcp_finish(&mut self, socket: &Resource<TcpSocket>, from: Phase, to: Phase) -> SocketResult<()> {
        let socket = self.tcp(socket)?;
        if socket.phase != from {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.phase = to;
        Ok(())
    }

    pub(super) fn tcp_accept(
        &mut self,
        socket: &Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.tcp(socket)?;
        if socket.phase != Phase::Listening {
            return Err(ErrorCode::InvalidState.into());
        }
        let accepted = TcpSocket::accepted(socket.socket.try_accept()?);
        let (input, output) = accepted.streams();
        let accepted = self.table.push(accepted)?;
        let input = self.table.push_child(input, &accepted)?;
        let output = self.table.push_child(output, &accepted)?;
        Ok((accepted, input, output))
    }

    pub(super) fn tcp_local_address(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = self.tcp(socket)?;
        match socket.phase {
            Phase::Unbound | Phase::Binding | Phase::Closed => Err(ErrorCode::InvalidState.into()),
            _ => Ok(address::guest(socket.socket.local_addr()?)),
        }
    }

    pub(super) fn tcp_remote_address(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = self.tcp(socket)?;
        match socket.phase {
            Phase::Connected => Ok(address::guest(socket.socket.peer_addr()?)),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    pub(super) fn tcp_shutdown(&mut self, socket: &Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let socket = self.tcp(socket)?;
        if socket.phase != Phase::Connected {
            return Err(ErrorCode::InvalidState.into());
        }
        let ended = socket.socket.shutdown(match how {
            ShutdownType::Receive => Shutdown::Read,
            ShutdownType::Send => Shutdown::Write,
            ShutdownType::Both => Shutdown::Both,
        });
        match ended {
            // Its peer has reset the connection. `invalid-state` would say that there never was one, and wasi-libc
            // ends the program with abort() when it hears that of a socket that it knows to be connected.
            Err(Errno::NotConn) => Err(ErrorCode::ConnectionReset.into()),
            other => Ok(other?),
        }
    }

    pub(super) fn tcp_subscribe(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }
}

#[async_trait]
impl Pollable for TcpSocket {
    /// Ready when the operation that is under way can be finished, or a connection can be accepted.
    async fn ready(&mut self) {
        match self.phase {
            Phase::Connecting => self.socket.writable().await,
            Phase::Listening => self.socket.readable().await,
            _ => {}
        }
    }
}
