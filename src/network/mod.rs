//! Pod addresses, sockets, loopback and name lookup.
//!
//! In: one [`PodNetworkSpec`] per pod, and what guests ask through the WASI front-ends. Out: sockets whose
//! calls never block and whose readiness can be awaited, name lookup, and the text of `/etc/hosts` and
//! `/etc/resolv.conf`.
//!
//! One socket factory (`kernel`) makes every real socket; nothing else in the agent makes one for a guest.
//! Traffic inside a pod and between two pods of this node never touches the kernel: it is a map of ports
//! (`ports`) to in-process pipes (`connection`, `pipe`) and inboxes (`udp`). What a destination is, and what a
//! guest never reaches, is one pure table (`route`). No task runs for an idle pod, socket or connection.
//!
//! Where pod addresses are is decided once (`mode`): in 127.0.0.0/8, in a network namespace of the node (`namespace`), or
//! nowhere, when pods share the node's address. `hostPort`s are `host_ports`'s.
//!
//! What a Service's address leads to is `services`'; who may talk to whom is `policy`'s.
//!
//! Knows nothing of WASI.

mod account;
mod address;
mod backlog;
mod config;
mod connection;
mod drain;
mod forwarding;
mod host_ports;
mod kernel;
mod mode;
mod names;
mod namespace;
mod node;
mod options;
mod pipe;
mod pod;
mod policy;
mod ports;
mod recent;
mod refusals;
mod resolver;
mod route;
mod services;
mod tcp;
mod traffic;
mod udp;
mod wait;

#[cfg(test)]
mod tests;

pub use account::{OwnerId, SocketCharge};
pub use config::{
    AddressMode, HostNetwork, InvalidRange, IpRange, LOOPBACK_RANGE, LowPorts, NetworkError, NodeNetworkConfig,
    PodLimits, PodNetworkSpec,
};
pub use kernel::primary_address;
pub use mode::{ModeFacts, decide_mode, may_make_namespaces};
pub use names::{default_resolv_conf, host_dns_config};
pub use node::{NodeNetwork, PortInUse};
pub use options::{Shutdown, TcpOption, TcpOptions, UdpOption, UdpOptions};
pub use pod::{ListenerInfo, PodNetwork, Protocol};
pub use policy::{PolicyTable, Standing};
pub use refusals::{LimitHit, LimitSink, Refusal};
pub use resolver::ResolveError;
pub use route::Family;
pub use services::{NodePortReport, ServiceTable, Source, kube_proxy_is_here};
pub use tcp::{Readiness, TcpSocket, TcpState, TcpStream};
pub use traffic::Traffic;
pub use udp::{Received, UdpSocket};
