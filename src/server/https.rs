//! The kubelet API over HTTPS: the listener, its TLS, and how much one client may hold.
//!
//! In: connections. Out: requests for the router, each with the certificates of its connection. HTTP/1.1 and HTTP/2 by
//! ALPN; upgrades (exec, attach, port-forward) are HTTP/1.1's. Knows no endpoint and no user (`auth` is a layer of the
//! router). Invariant: a client that is slow, silent or stuck holds its own connection and nobody else's.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::ServerError;
use super::activity::{Activity, Busy};
use super::auth::{Auth, PeerCertificates, RequestAnyCertificate};
use super::{NodeApi, https_router};
use crate::config::{ServerConfig, TlsVersion};

/// Connections at once, streams that were upgraded not counted: they are the pods' and end with them. Each costs some
/// 50 KiB and a file; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2048;
/// Connections in the kernel's queue (tokio's own number).
const QUEUE: u32 = 1024;
/// How long a handshake, and then the first request, may take.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may be idle (the kubelet's `IdleTimeout`, that of Go's clients).
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long requests under way may take once the node stops; less than what the agent waits for this server.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
/// Requests at once on an HTTP/2 connection (Go's default).
const MAX_STREAMS: u32 = 250;
/// Headers of one HTTP/2 request; HTTP/1.1 has hyper's bound of 400 KiB for a request's head.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Wait after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener that is bound and not yet served.
pub struct HttpsServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl HttpsServer {
    /// Binds `address:port` and prepares TLS. `certificate` is asked on every handshake, so it may be renewed.
    ///
    /// # Errors
    /// [`ServerError::Listen`] naming the port and what to do, [`ServerError::Tls`].
    pub async fn bind(config: &ServerConfig, certificate: Arc<dyn ResolvesServerCert>) -> Result<Self, ServerError> {
        let tls = tls_config(config.tls_min_version, certificate)?;
        let listener = listen(SocketAddr::new(config.address, config.port), PortSetting::Kubelet).await?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; then no new connection is taken, and requests under way have a few seconds.
    pub async fn serve(self, api: NodeApi, auth: Arc<Auth>, stop: CancellationToken) {
        self.serve_router(https_router(api, auth), stop).await;
    }

    pub(super) async fn serve_router(self, router: Router, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        // Cancelled when the patience with what is under way ends.
        let cut = CancellationToken::new();
        loop {
            let next = async {
                // Acquired first: beyond the bound nothing is accepted.
                let slot = slots.clone().acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                // Cancel-safe: a connection is accepted or stays in the kernel's queue.
                next = next => next,
                () = stop.cancelled() => break,
            };
            match (slot, accepted) {
                (Ok(slot), Ok((stream, peer))) => {
                    let connection = Connection { peer, router: router.clone(), stop: stop.clone(), _slot: slot };
                    let (acceptor, cut) = (self.acceptor.clone(), cut.clone());
                    connections.spawn(cut.run_until_cancelled_owned(connection.serve(acceptor, stream)));
                }
                (_, Err(error)) => {
                    tracing::warn!(err = %error, "Failed to accept a connection to the kubelet API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // The semaphore is ours and never closed.
                (Err(_), _) => break,
            }
        }
        drop(self.listener);
        connections.close();
        if tokio::time::timeout(DRAIN_PATIENCE, connections.wait()).await.is_err() {
            cut.cancel();
            connections.wait().await;
        }
    }
}

struct Connection {
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, acceptor: TlsAcceptor, stream: TcpStream) {
        // Logs and terminals are small writes that somebody waits for.
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(OPENING_PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            // A port scanner or a client that distrusts us; either is its own matter.
            Ok(Err(error)) => return tracing::debug!(peer = %self.peer, err = %error, "TLS handshake error"),
            Err(_) => return tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        };
        let (_, session) = stream.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = PeerCertificates(certificates.iter().map(|c| c.clone().into_owned()).collect());
        let builder = builder(session.alpn_protocol() == Some(b"h2"));
        let activity = Activity::new(OPENING_PATIENCE, IDLE_TIMEOUT);
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(certificates.clone());
            answer(self.router.clone(), activity.begin(), request.map(Body::new))
        });
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut stopping = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %self.peer, err = error, "A connection to the kubelet API broke");
                    }
                    return;
                }
                // Nothing is under way: dropping it loses nobody's answer.
                () = activity.idle() => return,
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn builder(http2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADER_BYTES);
    if http2 { builder.http2_only() } else { builder.http1_only() }
}

/// One request; the connection is busy until the last byte of its answer is taken or given up.
async fn answer(mut router: Router, busy: Busy, request: Request) -> Result<Response, std::convert::Infallible> {
    let response = router.call(request).await?;
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &busy;
            frame
        }))
    }))
}

fn tls_config(
    min_version: TlsVersion,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<rustls::ServerConfig, ServerError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match min_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(ServerError::Tls)?
        .with_client_cert_verifier(RequestAnyCertificate::new())
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Which setting of the configuration a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSetting {
    /// `address` and `port`.
    Kubelet,
    /// `healthzBindAddress` and `healthzPort`.
    Healthz,
}

/// Binds; the unspecified address of either family is every address of both, as to the kubelet's `net.Listen`: a node whose
/// first address is of IPv6 is asked there, with `address: 0.0.0.0` too.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return TcpListener::bind(address).await;
    }
    let both = || {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()))?;
        socket.listen(QUEUE)
    };
    let without_ipv6 = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    match both() {
        Err(error) if without_ipv6.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => {
            TcpListener::bind(address).await
        }
        other => other,
    }
}

/// Binds, with an error that says what to do.
pub(super) async fn listen(address: SocketAddr, setting: PortSetting) -> Result<TcpListener, ServerError> {
    bind(address).await.map_err(|source| {
        let fix = match (source.kind(), setting) {
            (io::ErrorKind::AddrInUse, PortSetting::Kubelet) => {
                "another process listens there, such as a kubelet: stop it, or set `port` to a free one"
            }
            (io::ErrorKind::AddrInUse, PortSetting::Healthz) => {
                "another process listens there, such as a kubelet: stop it, or set `healthzPort` to a free one or to 0"
            }
            (io::ErrorKind::AddrNotAvailable, PortSetting::Kubelet) => "set `address` to an address of this machine",
            (io::ErrorKind::AddrNotAvailable, PortSetting::Healthz) => {
                "set `healthzBindAddress` to an address of this machine"
            }
            (io::ErrorKind::PermissionDenied, _) => "set a port above 1023, or give the node CAP_NET_BIND_SERVICE",
            _ => "see `address`, `port`, `healthzBindAddress` and `healthzPort` in the configuration",
        };
        ServerError::Listen { address, fix, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address, PortSetting::Kubelet).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains("set `port` to a free one"), "{text}");
        let elsewhere = listen("192.0.2.1:0".parse().unwrap(), PortSetting::Healthz).await.unwrap_err().to_string();
        assert!(elsewhere.contains("healthzBindAddress"), "{elsewhere}");
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        for (unspecified, families) in [("0.0.0.0:0", ["127.0.0.1", "::1"]), ("[::]:0", ["127.0.0.1", "::1"])] {
            let all = listen(unspecified.parse().unwrap(), PortSetting::Kubelet).await.unwrap();
            let port = all.local_addr().unwrap().port();
            for ip in families {
                if std::net::UdpSocket::bind((ip, 0)).is_err() {
                    eprintln!("SKIPPED: {ip} is no address of this machine");
                    continue;
                }
                assert!(TcpStream::connect((ip, port)).await.is_ok(), "{unspecified} by {ip}");
            }
            let second = listen(SocketAddr::new("127.0.0.1".parse().unwrap(), port), PortSetting::Kubelet).await;
            assert!(second.is_err(), "the port is taken in both");
        }
    }
}
