//! Tests of the whole network: scenarios against the kernel, pods, limits, drain, lookup.

mod cluster;
mod limits;
mod lookup;
mod node_ports;
mod pods;
mod policy;
mod posix;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::errno::Errno;
use crate::ids::{PodRef, PodUid};
use crate::pod::run::{DnsConfig, NetworkMode};

const OWNER: OwnerId = OwnerId(1);

pub(super) fn node(change: impl FnOnce(&mut NodeNetworkConfig)) -> Arc<NodeNetwork> {
    let mut config = NodeNetworkConfig::default();
    change(&mut config);
    NodeNetwork::new(config).expect("a node network")
}

fn spec(name: &str, mode: NetworkMode) -> PodNetworkSpec {
    PodNetworkSpec {
        uid: PodUid::new(name).expect("a name that is a UID"),
        pod: PodRef { namespace: "default".to_owned(), name: name.to_owned() },
        names: vec![name.to_owned()],
        mode,
        ips: Vec::new(),
        dns: DnsConfig::default(),
        host_aliases: Vec::new(),
        host_ports: Vec::new(),
    }
}

pub(super) fn pod(node: &NodeNetwork, name: &str) -> Arc<PodNetwork> {
    node.add_pod(spec(name, NetworkMode::Pod)).expect("a pod network")
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

pub(super) fn tcp(pod: &Arc<PodNetwork>) -> Arc<TcpSocket> {
    pod.tcp_socket(OWNER, Family::V4).expect("a socket")
}

pub(super) fn udp(pod: &Arc<PodNetwork>) -> Arc<UdpSocket> {
    pod.udp_socket(OWNER, Family::V4).expect("a socket")
}

/// A listener, and the address to connect to.
pub(super) fn listener(pod: &Arc<PodNetwork>, at: &str) -> (Arc<TcpSocket>, SocketAddr) {
    let at = addr(at);
    let socket = pod.tcp_socket(OWNER, Family::of(at.ip())).expect("a socket");
    socket.bind(at).expect("bound");
    socket.listen(16).expect("listening");
    let local = socket.local_addr().expect("an address");
    (socket, local)
}

/// A connected pair on the pod's loopback: client, server.
async fn pair(pod: &Arc<PodNetwork>) -> (Arc<TcpSocket>, Arc<TcpSocket>) {
    let (listener, at) = listener(pod, "127.0.0.1:0");
    let client = tcp(pod);
    let (connected, server) = tokio::join!(client.connect(at), listener.accept());
    connected.expect("connected");
    (client, server.expect("accepted"))
}

pub(super) async fn read(socket: &TcpSocket, max: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; max];
    loop {
        match socket.try_read(&mut buffer) {
            Ok(n) => return Ok(buffer[..n].to_vec()),
            Err(Errno::Again) => socket.readable().await,
            Err(errno) => return Err(errno),
        }
    }
}

pub(super) async fn receive(socket: &UdpSocket, max: usize) -> Result<(Vec<u8>, Received), Errno> {
    let mut buffer = vec![0; max];
    loop {
        match socket.try_recv_from(&mut buffer) {
            Ok(received) => return Ok((buffer[..received.len].to_vec(), received)),
            Err(Errno::Again) => socket.readable().await,
            Err(errno) => return Err(errno),
        }
    }
}
