//! TCP on the wstd reactor: a listener for either address family and connections that know their peer.
//!
//! In: socket addresses. Out: byte streams, with WASI's error codes as `io::Error`s. It owns no buffers and no
//! timeouts; whoever reads and writes decides both.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wstd::io::{AsyncInputStream, AsyncOutputStream};
use wstd::runtime::AsyncPollable;

/// A listening socket.
pub struct Listener {
    // Before the socket: WASI wants children dropped first.
    pollable: AsyncPollable,
    socket: TcpSocket,
}

impl Listener {
    /// Binds `address` and listens on it.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 };
        let socket = create_tcp_socket(family).map_err(io_error)?;
        let pollable = AsyncPollable::new(socket.subscribe());
        socket.start_bind(&instance_network(), to_wasi(address)).map_err(io_error)?;
        pollable.wait_for().await;
        socket.finish_bind().map_err(io_error)?;
        socket.start_listen().map_err(io_error)?;
        pollable.wait_for().await;
        socket.finish_listen().map_err(io_error)?;
        Ok(Self { pollable, socket })
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            match self.socket.accept() {
                Ok((socket, input, output)) => {
                    let peer = socket.remote_address().map(from_wasi).map_err(io_error)?;
                    let (input, output) = (AsyncInputStream::new(input), AsyncOutputStream::new(output));
                    return Ok(Connection { input, output, socket, peer });
                }
                Err(ErrorCode::WouldBlock) => self.pollable.wait_for().await,
                Err(error) => return Err(io_error(error)),
            }
        }
    }
}

/// An accepted connection.
pub struct Connection {
    // Streams before their socket, as above.
    input: AsyncInputStream,
    output: AsyncOutputStream,
    socket: TcpSocket,
    peer: SocketAddr,
}

impl Connection {
    /// The other side's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Reads what is there, waiting for at least one byte; 0 when the peer has finished.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer).await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes).await
    }

    /// Waits until the host has taken what was written, then tells the peer that no more comes. Without this the
    /// bytes still on their way would be lost when the connection is dropped.
    pub async fn finish(&self) -> io::Result<()> {
        self.output.flush().await?;
        self.socket.shutdown(ShutdownType::Send).map_err(io_error)
    }
}

fn to_wasi(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: v4.ip().octets().into() })
        }
        SocketAddr::V6(v6) => {
            let address = v6.ip().segments().into();
            let (flow_info, scope_id) = (v6.flowinfo(), v6.scope_id());
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port: v6.port(), flow_info, address, scope_id })
        }
    }
}

fn from_wasi(address: IpSocketAddress) -> SocketAddr {
    let (ip, port) = match address {
        IpSocketAddress::Ipv4(v4) => (IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::from(v4.address))), v4.port),
        IpSocketAddress::Ipv6(v6) => (IpAddr::V6(Ipv6Addr::from(<[u16; 8]>::from(v6.address))), v6.port),
    };
    SocketAddr::new(ip, port)
}

fn io_error(code: ErrorCode) -> io::Error {
    let kind = match code {
        ErrorCode::AccessDenied => io::ErrorKind::PermissionDenied,
        ErrorCode::NotSupported => io::ErrorKind::Unsupported,
        ErrorCode::InvalidArgument => io::ErrorKind::InvalidInput,
        ErrorCode::OutOfMemory => io::ErrorKind::OutOfMemory,
        ErrorCode::Timeout => io::ErrorKind::TimedOut,
        ErrorCode::AddressNotBindable => io::ErrorKind::AddrNotAvailable,
        ErrorCode::AddressInUse => io::ErrorKind::AddrInUse,
        ErrorCode::ConnectionRefused => io::ErrorKind::ConnectionRefused,
        ErrorCode::ConnectionReset => io::ErrorKind::ConnectionReset,
        ErrorCode::ConnectionAborted => io::ErrorKind::ConnectionAborted,
        _ => return io::Error::other(code.name()),
    };
    kind.into()
}
