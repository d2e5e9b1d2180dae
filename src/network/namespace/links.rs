//! Links, addresses and routes of the namespace, over rtnetlink.
//!
//! In: the name of the host's end, ranges. Out: this, for a podCIDR of 10.244.1.0/24 and one of IPv6:
//!
//! ```text
//! node's namespace                                       pods' namespace
//! wasiletXXXXXXXX --------------- veth ----------------- eth0
//!   10.244.1.1/32, fd00:1::1/128, fe80::1                  fe80::2
//!   10.244.1.0/24 via 10.244.1.0 src 10.244.1.1            local 10.244.1.0/24 dev lo     (AnyIP)
//!   fd00:1::/64 via fe80::2 src fd00:1::1                  10.244.1.1 dev eth0, default via 10.244.1.1
//! ```
//!
//! One gateway a range, so that the node has one neighbour however many pods there are. AnyIP makes the namespace answer
//! ARP for the whole range; there is no such thing for neighbour discovery, hence the link-local addresses. The routes
//! of the namespace are in its `local` table, where an address of the range is looked up first.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use futures::TryStreamExt as _;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::thread::UnshareFlags;

use super::super::config::{IpRange, NetworkError};

/// The namespace's end of the pair.
const INNER: &str = "eth0";
/// Link-local addresses of the two ends.
const HOST_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const INNER_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// `RT_TABLE_LOCAL`: looked at before any other.
const LOCAL_TABLE: u32 = 255;
/// The only index `lo` ever has.
const LOOPBACK_INDEX: u32 = 1;

/// The veth pair of one namespace.
pub(super) struct Links {
    host: Handle,
    inner: Handle,
    host_index: u32,
    inner_index: u32,
    /// Whether the pair has its link-local addresses.
    v6: bool,
    _namespace: OwnedFd,
}

fn failed(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        NetworkError::Namespace { step, source }
    }
}

/// A netlink connection in the namespace that the thread is in now, driven by the thread's runtime.
fn connect(step: &'static str) -> Result<Handle, NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|source| NetworkError::Namespace { step, source })?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Moves the calling thread, and nothing else, to a new network namespace.
#[allow(unsafe_code, reason = "unshare(2) is unsafe for its flag CLONE_FILES, which is not among these")]
pub(in crate::network) fn leave() -> io::Result<()> {
    // SAFETY: only the network namespace is unshared; the table of descriptors stays the process's.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

impl Links {
    /// Moves the calling thread to a new namespace and joins it to the one it was in.
    pub(super) async fn make(name: &str) -> Result<Self, NetworkError> {
        let at = |step| move |source: io::Error| NetworkError::Namespace { step, source };
        let host = connect("opening netlink")?;
        leave().map_err(at("unshare"))?;
        let inner = connect("opening netlink in it")?;
        let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let namespace = rustix::fs::open("/proc/thread-self/ns/net", open, rustix::fs::Mode::empty())
            .map_err(|error| at("opening it")(error.into()))?;
        remove_leftover(&host, name).await?;
        let pair = veth(name, &namespace);
        host.link().add(pair).execute().await.map_err(failed("making the veth pair"))?;
        let host_index = index_of(&host, name).await?;
        let inner_index = index_of(&inner, INNER).await?;
        // Best effort: where /proc/sys is read-only, listening below 1024 takes CAP_NET_BIND_SERVICE, and the rest only
        // guards against a machine with unusual defaults.
        for (setting, value) in [
            ("ipv4/ip_unprivileged_port_start", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/eth0/rp_filter", "0"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/eth0/disable_ipv6", "0"),
            ("ipv6/conf/eth0/accept_ra", "0"),
        ] {
            drop(std::fs::write(format!("/proc/sys/net/{setting}"), value));
        }
        for (handle, index, step) in [
            (&inner, LOOPBACK_INDEX, "setting its lo up"),
            (&inner, inner_index, "setting its link up"),
            (&host, host_index, "setting the node's link up"),
        ] {
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.map_err(failed(step))?;
        }
        Ok(Self { host, inner, host_index, inner_index, v6: false, _namespace: namespace })
    }

    /// Makes a range local to the namespace and routes it there.
    pub(super) async fn add(&mut self, range: IpRange) -> Result<(), NetworkError> {
        match range.base() {
            IpAddr::V4(base) => self.add_v4(range, base).await,
            IpAddr::V6(base) => self.add_v6(range, base).await,
        }
    }

    async fn add_v4(&mut self, range: IpRange, base: Ipv4Addr) -> Result<(), NetworkError> {
        let node = Ipv4Addr::from_bits(base.to_bits() + 1);
        self.add_address(&self.host, self.host_index, node.into(), 32).await?;
        let any_ip = local(RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, range.prefix()));
        self.add_route(&self.inner, any_ip, "making the range local (AnyIP)").await?;
        let to_node = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(node, 32)
            .table_id(LOCAL_TABLE)
            .scope(RouteScope::Link)
            .output_interface(self.inner_index);
        self.add_route(&self.inner, to_node.build(), "routing to the node").await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .gateway(node)
            .output_interface(self.inner_index)
            .onlink();
        self.replace_route(&self.inner, default.build(), "making the default route").await?;
        let to_pods = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(base, range.prefix())
            .gateway(base)
            .pref_source(node)
            .output_interface(self.host_index)
            .onlink();
        self.add_route(&self.host, to_pods.build(), "routing the range to it").await
    }

    async fn add_v6(&mut self, range: IpRange, base: Ipv6Addr) -> Result<(), NetworkError> {
        if !self.v6 {
            self.add_address(&self.host, self.host_index, HOST_LOCAL.into(), 64).await?;
            self.add_address(&self.inner, self.inner_index, INNER_LOCAL.into(), 64).await?;
            self.v6 = true;
        }
        let node = Ipv6Addr::from_bits(base.to_bits() + 1);
        self.add_address(&self.host, self.host_index, node.into(), 128).await?;
        let any_ip = local(RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(base, range.prefix()));
        self.add_route(&self.inner, any_ip, "making the range local (AnyIP)").await?;
        let to_node = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(node, 128)
            .table_id(LOCAL_TABLE)
            .gateway(HOST_LOCAL)
            .output_interface(self.inner_index);
        self.add_route(&self.inner, to_node.build(), "routing to the node").await?;
        let default = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .gateway(HOST_LOCAL)
            .output_interface(self.inner_index);
        self.replace_route(&self.inner, default.build(), "making the default route").await?;
        let to_pods = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(base, range.prefix())
            .gateway(INNER_LOCAL)
            .pref_source(node)
            .output_interface(self.host_index);
        self.add_route(&self.host, to_pods.build(), "routing the range to it").await
    }

    async fn add_address(&self, handle: &Handle, index: u32, address: IpAddr, prefix: u8) -> Result<(), NetworkError> {
        let mut request = handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            // Nobody else is on the link: no need to wait for an answer before it is used.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(failed("giving an end of the pair its address"))
    }

    async fn add_route(&self, handle: &Handle, route: RouteMessage, step: &'static str) -> Result<(), NetworkError> {
        handle.route().add(route).execute().await.map_err(failed(step))
    }

    async fn replace_route(&self, on: &Handle, route: RouteMessage, step: &'static str) -> Result<(), NetworkError> {
        on.route().add(route).replace().execute().await.map_err(failed(step))
    }

    /// Takes a range away; what cannot be removed is said.
    pub(super) async fn remove(&mut self, range: IpRange) {
        let (any_ip, to_pods) = match range.base() {
            IpAddr::V4(base) => (
                local(RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, range.prefix())),
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(base, range.prefix())
                    .output_interface(self.host_index)
                    .build(),
            ),
            IpAddr::V6(base) => (
                local(RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(base, range.prefix())),
                RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(base, range.prefix())
                    .output_interface(self.host_index)
                    .build(),
            ),
        };
        for (handle, route) in [(&self.host, to_pods), (&self.inner, any_ip)] {
            if let Err(error) = handle.route().del(route).execute().await {
                tracing::warn!(%range, err = %error, "Could not remove a route of an earlier podCIDR");
            }
        }
        let address = match range.base() {
            IpAddr::V4(base) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(self.host_index)
                .address(Ipv4Addr::from_bits(base.to_bits() + 1), 32)
                .build(),
            IpAddr::V6(base) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(self.host_index)
                .address(Ipv6Addr::from_bits(base.to_bits() + 1), 128)
                .build(),
        };
        if let Err(error) = self.host.address().del(address).execute().await {
            tracing::warn!(%range, err = %error, "Could not remove the node's address of an earlier podCIDR");
        }
    }

    /// Removes the pair, which would only go with the last socket.
    pub(super) async fn end(self) {
        if let Err(error) = self.host.link().del(self.host_index).execute().await {
            tracing::warn!(err = %error, "Could not remove the link to the network namespace of pods");
        }
    }
}

/// One request makes both ends, the second where it belongs, so that no name is taken twice on the way.
fn veth(name: &str, namespace: &OwnedFd) -> LinkMessage {
    let mut message = LinkVeth::new(name, INNER).build();
    for attribute in &mut message.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else { continue };
        for info in infos {
            if let LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))) = info {
                peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
            }
        }
    }
    message
}

/// An AnyIP route.
fn local<T>(route: RouteMessageBuilder<T>) -> RouteMessage {
    let route = route.kind(RouteType::Local).table_id(LOCAL_TABLE);
    route.scope(RouteScope::Host).output_interface(LOOPBACK_INDEX).build()
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let step = "finding an end of the pair";
    let found = find(handle, name).await.map_err(failed(step))?;
    let missing = || NetworkError::Namespace { step, source: io::Error::from(io::ErrorKind::NotFound) };
    found.map(|link| link.header.index).ok_or_else(missing)
}

/// A killed agent's namespace goes with its process, but not at that very moment.
async fn remove_leftover(host: &Handle, name: &str) -> Result<(), NetworkError> {
    let step = "removing the link of an earlier run";
    let Some(link) = find(host, name).await.map_err(failed(step))? else { return Ok(()) };
    let is_pair = link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
    });
    if !is_pair {
        let source = io::Error::other(format!("{name} is a link of another kind"));
        return Err(NetworkError::Namespace { step, source });
    }
    match host.link().del(link.header.index).execute().await {
        // It went by itself meanwhile.
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map_err(failed(step)),
    }
}
