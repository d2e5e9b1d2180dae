//! The node's own address.
//!
//! In: the wish of the config, the kernel's routes and addresses. Out: the `InternalIP`. Asks no name server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use futures::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// An address that cannot be a node's.
    #[error("nodeIP can't be {what} address: {ip}")]
    NotUsable {
        /// The address.
        ip: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// Given, but not this machine's.
    #[error("node IP: {ip} not found in the host's network interfaces")]
    NotHere {
        /// The address.
        ip: IpAddr,
    },
    /// None was given, and none was found.
    #[error("can't get ip address of node: no default route and no global address")]
    None,
}

/// The node's addresses: those that were wished for, else the one the default route leaves from, else the first global one
/// of an interface (a machine, or a namespace, without a default route). As with a kubelet nobody gets two who did not wish
/// for them.
///
/// # Errors
/// [`AddressError`], in the kubelet's words.
pub async fn node_ips(wished: &[IpAddr]) -> Result<Vec<IpAddr>, AddressError> {
    let here = interface_addresses().await;
    let routed = [source_of(Ipv4Addr::UNSPECIFIED.into()), source_of(Ipv6Addr::UNSPECIFIED.into())];
    if wished.is_empty() {
        return choose(None, routed, &here).map(|ip| vec![ip]);
    }
    wished.iter().map(|ip| choose(Some(*ip), routed, &here)).collect()
}

fn choose(wished: Option<IpAddr>, routed: [Option<IpAddr>; 2], here: &[IpAddr]) -> Result<IpAddr, AddressError> {
    let wanted = wished.filter(|ip| !ip.is_unspecified());
    if let Some(ip) = wanted {
        if let Some(what) = not_usable(ip) {
            return Err(AddressError::NotUsable { ip, what });
        }
        return if here.contains(&ip) { Ok(ip) } else { Err(AddressError::NotHere { ip }) };
    }
    // `0.0.0.0` and `::` are a wish too: for a family.
    let family = |ip: &IpAddr| wished.is_none_or(|wished| wished.is_ipv4() == ip.is_ipv4());
    let usable = |ip: &IpAddr| not_usable(*ip).is_none() && family(ip);
    let mut global: Vec<IpAddr> = here.iter().copied().filter(usable).collect();
    global.sort_by_key(IpAddr::is_ipv6);
    let mut routed = routed.into_iter().flatten().filter(usable);
    routed.next().or_else(|| global.first().copied()).ok_or(AddressError::None)
}

/// What an address is that no other machine could reach.
fn not_usable(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match ip {
        ip if ip.is_loopback() => Some("loopback"),
        ip if ip.is_multicast() => Some("a multicast"),
        ip if ip.is_unspecified() => Some("an all zeros"),
        _ if link_local => Some("a link-local unicast"),
        _ => None,
    }
}

/// The source address of a packet that leaves by the default route. Nothing is sent: connecting a datagram socket only
/// chooses a route.
fn source_of(unspecified: IpAddr) -> Option<IpAddr> {
    // Addresses for documentation: nobody has a route of its own to them.
    let far: IpAddr = match unspecified {
        IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0)).ok()?;
    socket.connect(SocketAddr::new(far, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Every address of every interface; none when the kernel does not tell.
async fn interface_addresses() -> Vec<IpAddr> {
    let dump = async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
        // Ends with the handle.
        let driver = tokio::spawn(connection);
        let messages = handle.address().get().execute().try_collect::<Vec<_>>().await;
        driver.abort();
        messages.map_err(|error| error.to_string())
    };
    match dump.await {
        Ok(messages) => messages.iter().filter_map(address_of).collect(),
        Err(error) => {
            tracing::warn!(err = error, "Could not list the addresses of this machine");
            Vec::new()
        }
    }
}

/// `IFA_LOCAL` is the machine's end of a point-to-point link, `IFA_ADDRESS` the other one.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_then_the_default_route_then_any_global_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let here = ["127.0.0.1", "::1", "fe80::1", "2001:db8::1", "198.51.100.1"].map(ip);
        for (case, wished, routed, expected) in [
            ("wished", Some("198.51.100.1"), None, Ok("198.51.100.1")),
            (
                "wished, not here",
                Some("10.0.0.1"),
                None,
                Err("node IP: 10.0.0.1 not found in the host's network interfaces"),
            ),
            ("wished, loopback", Some("127.0.0.1"), None, Err("nodeIP can't be loopback address: 127.0.0.1")),
            ("the default route", None, Some("10.1.1.1"), Ok("10.1.1.1")),
            ("no route: a global address, IPv4 first", None, None, Ok("198.51.100.1")),
            ("a wish for a family", Some("::"), Some("10.1.1.1"), Ok("2001:db8::1")),
        ] {
            let got = choose(wished.map(ip), [routed.map(ip), None], &here);
            let got = got.map(|ip| ip.to_string()).map_err(|error| error.to_string());
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{case}");
        }
        assert_eq!(choose(None, [None, None], &here[..3]), Err(AddressError::None));
    }

    #[tokio::test]
    async fn the_kernel_tells_its_addresses() {
        assert!(interface_addresses().await.iter().any(IpAddr::is_loopback) || node_ips(&[]).await.is_ok());
    }
}
