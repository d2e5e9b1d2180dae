//! Whether a kube-proxy serves this machine.
//!
//! In: nothing. Out: yes when one answers where every kube-proxy does by default: its metrics port on loopback says
//! `/proxyMode`, its health port `/healthz` (also k3s's, which is built in). Rules of iptables and nftables are not looked at:
//! reading them takes privileges, and those of a kube-proxy that is gone stay. Where one listens elsewhere, or where another
//! program does its work, the settings say `serviceProxy: never`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// kube-proxy's `--metrics-bind-address`.
const METRICS: u16 = 10_249;
/// kube-proxy's `--healthz-bind-address`.
const HEALTH: u16 = 10_256;
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks.
pub async fn kube_proxy_is_here(node_ip: IpAddr) -> bool {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    for (at, path) in [
        (SocketAddr::new(loopback, METRICS), "/proxyMode"),
        (SocketAddr::new(loopback, HEALTH), "/healthz"),
        (SocketAddr::new(node_ip, HEALTH), "/healthz"),
    ] {
        if let Ok(Ok(said)) = tokio::time::timeout(PATIENCE, ask(at, path)).await
            && is_kube_proxy(path, &said)
        {
            return true;
        }
    }
    false
}

async fn ask(at: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n").as_bytes()).await?;
    let mut said = Vec::new();
    // More than any of these answers is long.
    stream.take(4096).read_to_end(&mut said).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Whether an answer is a kube-proxy's: another program on the port is none.
fn is_kube_proxy(path: &str, said: &str) -> bool {
    let Some((head, body)) = said.split_once("\r\n\r\n") else { return false };
    if !head.starts_with("HTTP/1.") {
        return false;
    }
    match path {
        "/proxyMode" => matches!(body.trim(), "iptables" | "ipvs" | "nftables"),
        _ => body.contains("\"lastUpdated\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kube_proxys_answer_is_one() {
        for (path, said, expected) in [
            ("/proxyMode", "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nnftables", true),
            ("/proxyMode", "HTTP/1.0 200 OK\r\n\r\niptables\n", true),
            ("/proxyMode", "HTTP/1.0 404 Not Found\r\n\r\n404 page not found", false),
            ("/proxyMode", "nonsense", false),
            ("/healthz", "HTTP/1.0 200 OK\r\n\r\n{\"lastUpdated\": \"x\",\"currentTime\": \"x\"}", true),
            ("/healthz", "HTTP/1.0 503 Service Unavailable\r\n\r\n{\"lastUpdated\": \"x\"}", true),
            ("/healthz", "HTTP/1.0 200 OK\r\n\r\nok", false),
        ] {
            assert_eq!(is_kube_proxy(path, said), expected, "{path} {said:?}");
        }
    }
}
