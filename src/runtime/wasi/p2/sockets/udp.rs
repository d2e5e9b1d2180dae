//! `wasi:sockets/udp`: a socket, and the pair of datagram streams that sends and receives for it.
//!
//! In: a socket of `network`. Out: datagrams, at most [`MAX_DATAGRAMS`] or about [`CHUNK`] bytes a call. The
//! streams share the socket; connecting it is done while no pair of streams exists.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::super::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::super::bindings::sockets::udp::{self, IncomingDatagram, OutgoingDatagram};
use super::super::errors::{SocketError, SocketResult};
use super::super::filesystem::CHUNK;
use super::tcp_options::nonzero;
use super::{Network, View, address};
use crate::errno::Errno;
use crate::network::{self, UdpOption};

/// Datagrams moved by one call: enough to make the call's own cost small, few enough to bound its time.
const MAX_DATAGRAMS: usize = 16;
/// Largest payload of a datagram over IPv4.
const MAX_DATAGRAM_BYTES: usize = 65_507;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unbound,
    Binding,
    Bound,
}

/// The resource behind `udp-socket`.
pub struct UdpSocket {
    socket: Arc<network::UdpSocket>,
    phase: Phase,
    remote: Option<SocketAddr>,
}

impl UdpSocket {
    /// A new socket.
    #[must_use]
    pub fn new(socket: Arc<network::UdpSocket>) -> Self {
        Self { socket, phase: Phase::Unbound, remote: None }
    }
}

/// The resource behind `incoming-datagram-stream`.
pub struct IncomingDatagramStream {
    socket: Arc<network::UdpSocket>,
    /// Datagrams that were queued before the socket was connected may be from others.
    only_from: Option<SocketAddr>,
}

/// The resource behind `outgoing-datagram-stream`.
pub struct OutgoingDatagramStream {
    socket: Arc<network::UdpSocket>,
    remote: Option<SocketAddr>,
    /// Datagrams that the last `check-send` permitted.
    permits: usize,
}

#[async_trait]
impl Pollable for UdpSocket {
    /// No operation of the socket itself waits.
    async fn ready(&mut self) {}
}

#[async_trait]
impl Pollable for IncomingDatagramStream {
    async fn ready(&mut self) {
        self.socket.readable().await;
    }
}

#[async_trait]
impl Pollable for OutgoingDatagramStream {
    async fn ready(&mut self) {
        self.socket.writable().await;
    }
}

impl OutgoingDatagramStream {
    fn send(&self, datagram: &OutgoingDatagram) -> Result<(), SocketError> {
        let to = datagram.remote_address.map(address::host);
        if let Some(to) = to {
            address::check_family(to, self.socket.family())?;
            address::check_remote(to)?;
        }
        let to = match (self.remote, to) {
            (Some(connected), Some(to)) if to != connected => return Err(ErrorCode::InvalidArgument.into()),
            (Some(_), _) => None,
            (None, Some(to)) => Some(to),
            (None, None) => return Err(ErrorCode::InvalidArgument.into()),
        };
        if datagram.data.len() > MAX_DATAGRAM_BYTES {
            return Err(ErrorCode::DatagramTooLarge.into());
        }
        self.socket.try_send_to(&datagram.data, to)?;
        Ok(())
    }
}

impl View<'_> {
    fn udp(&mut self, socket: &Resource<UdpSocket>) -> SocketResult<&mut UdpSocket> {
        Ok(self.table.get_mut(socket)?)
    }

    fn udp_connect(&mut self, socket: &Resource<UdpSocket>, remote: Option<SocketAddr>) -> SocketResult<()> {
        let socket = self.udp(socket)?;
        if socket.phase != Phase::Bound {
            return Err(ErrorCode::InvalidState.into());
        }
        match remote {
            Some(remote) => {
                address::check_family(remote, socket.socket.family())?;
                address::check_remote(remote)?;
                socket.socket.connect(remote)?;
            }
            None if socket.remote.is_some() => socket.socket.disconnect()?,
            None => {}
        }
        socket.remote = remote;
        Ok(())
    }
}

impl udp::Host for View<'_> {}

impl udp::HostUdpSocket for View<'_> {
    fn start_bind(
        &mut self,
        socket: Resource<UdpSocket>,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let socket = self.udp(&socket)?;
        match socket.phase {
            Phase::Unbound => {}
            Phase::Binding => return Err(ErrorCode::ConcurrencyConflict.into()),
            Phase::Bound => return Err(ErrorCode::InvalidState.into()),
        }
        let local = address::host(local);
        address::check_family(local, socket.socket.family())?;
        socket.socket.bind(local)?;
        socket.phase = Phase::Binding;
        Ok(())
    }

    fn finish_bind(&mut self, socket: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.udp(&socket)?;
        if socket.phase != Phase::Binding {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.phase = Phase::Bound;
        Ok(())
    }

    fn stream(
        &mut self,
        resource: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>)> {
        let taken =
            |child: &dyn std::any::Any| child.is::<IncomingDatagramStream>() || child.is::<OutgoingDatagramStream>();
        if self.table.iter_children(&resource)?.any(|child| taken(child)) {
            return Err(SocketError::Trap(wasmtime::format_err!(
                "udp-socket.stream called while streams of an earlier call exist"
            )));
        }
        self.udp_connect(&resource, remote.map(address::host))?;
        let socket = self.udp(&resource)?;
        let incoming = IncomingDatagramStream { socket: socket.socket.clone(), only_from: socket.remote };
        let outgoing = OutgoingDatagramStream { socket: socket.socket.clone(), remote: socket.remote, permits: 0 };
        Ok((self.table.push_child(incoming, &resource)?, self.table.push_child(outgoing, &resource)?))
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = self.udp(&socket)?;
        if socket.phase != Phase::Bound {
            return Err(ErrorCode::InvalidState.into());
        }
        Ok(address::guest(socket.socket.local_addr()?))
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let remote = self.udp(&socket)?.remote.ok_or(ErrorCode::InvalidState)?;
        Ok(address::guest(remote))
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(address::guest_family(self.table.get(&socket)?.socket.family()))
    }

    fn unicast_hop_limit(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.udp(&socket)?.socket.options().hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, socket: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        let option = UdpOption::HopLimit(nonzero(value)?);
        Ok(self.udp(&socket)?.socket.set_option(option)?)
    }

    fn receive_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&socket)?.socket.options().receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        let option = UdpOption::ReceiveBuffer(nonzero(value)?);
        Ok(self.udp(&socket)?.socket.set_option(option)?)
    }

    fn send_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&socket)?.socket.options().send_buffer)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        let option = UdpOption::SendBuffer(nonzero(value)?);
        Ok(self.udp(&socket)?.socket.set_option(option)?)
    }

    fn subscribe(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

impl udp::HostIncomingDatagramStream for View<'_> {
    fn receive(&mut self, stream: Resource<IncomingDatagramStream>, max: u64) -> SocketResult<Vec<IncomingDatagram>> {
        let stream = self.table.get_mut(&stream)?;
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(MAX_DATAGRAMS);
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while datagrams.len() < max && bytes < CHUNK {
            match stream.socket.try_recv() {
                Ok((_, from)) if stream.only_from.is_some_and(|only| only != from) => {}
                Ok((data, from)) => {
                    bytes += data.len();
                    datagrams.push(IncomingDatagram { data: data.into(), remote_address: address::guest(from) });
                }
                Err(Errno::Again) => break,
                // What was received is delivered; a lasting error comes again.
                Err(_) if !datagrams.is_empty() => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, stream: Resource<IncomingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

impl udp::HostOutgoingDatagramStream for View<'_> {
    fn check_send(&mut self, stream: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        let stream = self.table.get_mut(&stream)?;
        stream.permits = if stream.socket.readiness().writable { MAX_DATAGRAMS } else { 0 };
        Ok(stream.permits as u64)
    }

    fn send(
        &mut self,
        stream: Resource<OutgoingDatagramStream>,
        datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let stream = self.table.get_mut(&stream)?;
        if datagrams.is_empty() {
            return Ok(0);
        }
        if datagrams.len() > stream.permits {
            return Err(SocketError::Trap(wasmtime::format_err!(
                "send of {} datagrams where check-send permitted {}",
                datagrams.len(),
                stream.permits
            )));
        }
        stream.permits = 0;
        let mut sent = 0;
        for datagram in &datagrams {
            match stream.send(datagram) {
                Ok(()) => sent += 1,
                Err(SocketError::Code(ErrorCode::WouldBlock)) => break,
                // As the interface says: after one success the error waits for the next call.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, stream: Resource<OutgoingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}
