//! `wasi:sockets` over the pod's network.
//!
//! In: a process's pod network. Out: `Host` traits on [`View`] and the resources behind `tcp-socket`,
//! `udp-socket`, datagram streams and lookups. Addresses, ports, policy and the choice between loopback and
//! kernel are `network`'s; only the start/finish protocol of 0.2 and its argument checks are kept here.

mod address;
mod lookup;
mod tcp;
mod tcp_options;
mod udp;

pub use lookup::ResolveAddressStream;
pub use tcp::TcpSocket;
pub use udp::{IncomingDatagramStream, OutgoingDatagramStream, UdpSocket};

use wasmtime::component::Resource;

use super::View;
use super::bindings::sockets::network::{self, ErrorCode};
use super::bindings::sockets::{instance_network, tcp_create_socket, udp_create_socket};
use super::errors::{SocketError, SocketResult, net_code};
use crate::errno::Errno;

/// The capability to use the network. Every process of a pod has it; rules are the pod's.
pub struct Network;

impl network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.into_code()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<Errno>().copied().map(net_code))
    }
}

impl network::HostNetwork for View<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl instance_network::Host for View<'_> {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<Network>> {
        Ok(self.table.push(Network)?)
    }
}

impl tcp_create_socket::Host for View<'_> {
    fn create_tcp_socket(&mut self, family: network::IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let socket = self.network().tcp_socket(self.owner(), address::family(family))?;
        Ok(self.table.push(TcpSocket::new(socket))?)
    }
}

impl udp_create_socket::Host for View<'_> {
    fn create_udp_socket(&mut self, family: network::IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let socket = self.network().udp_socket(self.owner(), address::family(family))?;
        Ok(self.table.push(UdpSocket::new(socket))?)
    }
}
