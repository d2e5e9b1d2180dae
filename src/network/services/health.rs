//! `healthCheckNodePort`: a load balancer asks which nodes have a ready endpoint of a Service with
//! `externalTrafficPolicy: Local`.
//!
//! In: a port. Out: HTTP answers as kube-proxy's (`pkg/proxy/healthcheck`): 200 with a ready endpoint here, else 503. Whatever
//! is asked for, the answer is the same; each connection has one.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::network::node::Shared;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request that is read; an answer needs no more of it.
const REQUEST: usize = 8 << 10;

/// Serves one port until dropped.
pub(super) async fn serve(listener: TcpListener, port: u16, shared: Weak<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(answer) = shared.upgrade().and_then(|shared| answer(&shared, port)) else { return };
        // One at a time: a load balancer asks every few seconds, and a slow client has its limit.
        drop(tokio::time::timeout(PATIENCE, reply(stream, &answer)).await);
    }
}

/// Opens a port on all addresses of the node's family.
pub(super) async fn open(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(at).await
}

fn answer(shared: &Shared, port: u16) -> Option<String> {
    let (service, ready) = shared.services.health_at(port)?;
    let (namespace, name) = service.split_once('/')?;
    let body = serde_json::json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": ready,
        "serviceProxyHealthy": true,
    });
    Some(response(ready, &body.to_string()))
}

fn response(ready: usize, body: &str) -> String {
    let status = if ready > 0 { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {ready}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn reply(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_ready_endpoint_is_unavailable() {
        assert!(response(0, "{}").starts_with("HTTP/1.1 503 "));
        let two = response(2, "{}");
        assert!(
            two.starts_with("HTTP/1.1 200 ") && two.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n"),
            "{two}"
        );
    }
}
