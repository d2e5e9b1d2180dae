//! The `tcp` interface's trait: options here, the protocol in [`super::tcp`].
//!
//! Values are checked as the interface says (0 is `invalid-argument`) and clamped as Linux clamps.

use std::time::Duration;

use wasmtime::component::Resource;
use wasmtime_wasi_io::poll::DynPollable;
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::super::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::super::bindings::sockets::tcp::{self, ShutdownType};
use super::super::errors::SocketResult;
use super::tcp::Phase;
use super::{Network, TcpSocket, View, address};
use crate::network::{TcpOption, TcpOptions};

/// Linux's bounds of keep-alive times (seconds) and counts; outside them setsockopt(2) fails.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(i16::MAX as u64);
const MAX_KEEP_ALIVE_COUNT: u32 = i8::MAX as u32;

/// A keep-alive time as Linux can hold it: whole seconds, at least one.
///
/// # Errors
/// `invalid-argument` for 0.
fn keep_alive_time(nanoseconds: u64) -> SocketResult<Duration> {
    if nanoseconds == 0 {
        return Err(ErrorCode::InvalidArgument.into());
    }
    let seconds = Duration::from_secs(nanoseconds.div_ceil(1_000_000_000));
    Ok(seconds.min(MAX_KEEP_ALIVE))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Refuses 0.
pub(super) fn nonzero<T: Default + PartialEq>(value: T) -> SocketResult<T> {
    if value == T::default() { Err(ErrorCode::InvalidArgument.into()) } else { Ok(value) }
}

impl View<'_> {
    fn tcp_options(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<TcpOptions> {
        Ok(self.tcp(socket)?.socket.options())
    }

    fn set_tcp_option(&mut self, socket: &Resource<TcpSocket>, option: TcpOption) -> SocketResult<()> {
        Ok(self.tcp(socket)?.socket.set_option(option)?)
    }
}

impl tcp::Host for View<'_> {}

impl tcp::HostTcpSocket for View<'_> {
    fn start_bind(
        &mut self,
        socket: Resource<TcpSocket>,
        network: Resource<Network>,
        local: IpSocketAddress,
    ) -> SocketResult<()> {
        self.tcp_start_bind(&socket, &network, local)
    }

    fn finish_bind(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp_finish(&socket, Phase::Binding, Phase::Bound)
    }

    fn start_connect(
        &mut self,
        socket: Resource<TcpSocket>,
        network: Resource<Network>,
        remote: IpSocketAddress,
    ) -> SocketResult<()> {
        self.tcp_start_connect(&socket, &network, remote)
    }

    fn finish_connect(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        self.tcp_finish_connect(&socket)
    }

    fn start_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp_start_listen(&socket)
    }

    fn finish_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.tcp_finish(&socket, Phase::Starting, Phase::Listening)
    }

    fn accept(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        self.tcp_accept(&socket)
    }

    fn local_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        self.tcp_local_address(&socket)
    }

    fn remote_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        self.tcp_remote_address(&socket)
    }

    fn is_listening(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&socket)?.phase == Phase::Listening)
    }

    fn address_family(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(address::guest_family(self.table.get(&socket)?.socket.family()))
    }

    fn set_listen_backlog_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        let value = u32::try_from(nonzero(value)?).unwrap_or(u32::MAX);
        let socket = self.tcp(&socket)?;
        match socket.phase {
            Phase::Connecting | Phase::Connected | Phase::Closed => return Err(ErrorCode::InvalidState.into()),
            // A second listen(2) only changes the backlog.
            Phase::Starting | Phase::Listening => {
                socket.socket.listen(value).map_err(|_| ErrorCode::NotSupported)?;
            }
            Phase::Unbound | Phase::Binding | Phase::Bound => {}
        }
        socket.backlog = value;
        Ok(())
    }

    fn keep_alive_enabled(&mut self, socket: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.tcp_options(&socket)?.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, socket: Resource<TcpSocket>, value: bool) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::KeepAlive(value))
    }

    fn keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(nanoseconds(self.tcp_options(&socket)?.keep_alive_idle))
    }

    fn set_keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::KeepAliveIdle(keep_alive_time(value)?))
    }

    fn keep_alive_interval(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(nanoseconds(self.tcp_options(&socket)?.keep_alive_interval))
    }

    fn set_keep_alive_interval(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::KeepAliveInterval(keep_alive_time(value)?))
    }

    fn keep_alive_count(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.tcp_options(&socket)?.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, socket: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        let count = nonzero(value)?.min(MAX_KEEP_ALIVE_COUNT);
        self.set_tcp_option(&socket, TcpOption::KeepAliveCount(count))
    }

    fn hop_limit(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.tcp_options(&socket)?.hop_limit)
    }

    fn set_hop_limit(&mut self, socket: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::HopLimit(nonzero(value)?))
    }

    fn receive_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_options(&socket)?.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::ReceiveBuffer(nonzero(value)?))
    }

    fn send_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp_options(&socket)?.send_buffer)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.set_tcp_option(&socket, TcpOption::SendBuffer(nonzero(value)?))
    }

    fn subscribe(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        self.tcp_subscribe(socket)
    }

    fn shutdown(&mut self, socket: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        self.tcp_shutdown(&socket, how)
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_times_are_whole_seconds_within_linux_bounds() {
        assert!(keep_alive_time(0).is_err());
        for (nanos, seconds) in [(1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (u64::MAX, 32_767)] {
            assert_eq!(keep_alive_time(nanos).unwrap(), Duration::from_secs(seconds), "{nanos}");
        }
    }
}
