//! Connections to other servers, made through the pod's network.
//!
//! In: a URI. Out: a connected stream, encrypted for `https`. Name lookup, loopback, policy and addresses are
//! those of the pod; nothing here can reach what a socket of the guest could not.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::errors::ConnectError;
use super::tls;
use crate::errno::Errno;
use crate::network::{Family, TcpStream};
use crate::runtime::process::Process;

/// How long a connection may take when the guest did not say.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_mins(1);
/// Time that an address gets even when many are left to try.
const MIN_ATTEMPT: Duration = Duration::from_millis(500);

tokio::task_local! {
    /// The guest's `connect-timeout` of the request that is being sent: hyper's connectors see only the URI.
    pub(super) static CONNECT_TIMEOUT: Option<Duration>;
}

/// Makes connections for one process.
#[derive(Clone)]
pub struct PodConnector {
    process: Arc<Process>,
    tls: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl PodConnector {
    /// A connector in the network of `process`.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process, tls: Arc::new(OnceCell::new()) }
    }

    async fn connect(self, uri: Uri, timeout: Duration) -> Result<TokioIo<Transport>, ConnectError> {
        let encrypted = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let target = format!("{host}:{port}");
        let connecting = async {
            let stream = self.dial(&host, port, Instant::now() + timeout).await?;
            if !encrypted {
                return Ok(Transport::Plain(stream));
            }
            let config = self.tls.get_or_try_init(|| tls::client_config(&self.process)).await?.clone();
            let name =
                ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName { host: host.clone() })?;
            let stream = TlsConnector::from(config).connect(name, stream).await;
            let stream = stream.map_err(|source| ConnectError::Tls { host: target.clone(), source })?;
            Ok(Transport::Tls(Box::new(stream)))
        };
        match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => connected.map(TokioIo::new),
            Err(_) => Err(ConnectError::TimedOut { host: target }),
        }
    }

    /// Tries the addresses of `host` in the resolver's order, each with its share of the time that is left.
    async fn dial(&self, host: &str, port: u16, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.process.container().network().resolve(host).await?,
        };
        let mut errno = Errno::HostUnreach;
        let mut left = addresses.len() as u32;
        for address in addresses {
            let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            let attempt = self.dial_one(SocketAddr::new(address, port));
            match tokio::time::timeout(share.max(MIN_ATTEMPT), attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => errno = error,
                Err(_) => errno = Errno::TimedOut,
            }
        }
        Err(ConnectError::Connect { host: format!("{host}:{port}"), errno })
    }

    async fn dial_one(&self, to: SocketAddr) -> Result<TcpStream, Errno> {
        let container = self.process.container();
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = container.network().tcp_socket(container.owner(), family)?;
        socket.connect(to).await?;
        Ok(socket.into_stream())
    }
}

impl tower_service::Service<Uri> for PodConnector {
    type Response = TokioIo<Transport>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Transport>, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let timeout = CONNECT_TIMEOUT.try_with(|timeout| *timeout).ok().flatten().unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        Box::pin(self.clone().connect(uri, timeout))
    }
}

/// A connection to another server.
pub enum Transport {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Transport {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            Self::Plain(_) | Self::Tls(_) => Connected::new(),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
