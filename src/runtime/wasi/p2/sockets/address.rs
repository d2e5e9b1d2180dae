//! Addresses of `wasi:sockets` to those of the standard library and back, and the checks the interface asks for.
//!
//! Pure functions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::super::bindings::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use crate::network::Family;

/// An address family for `network`.
pub fn family(family: IpAddressFamily) -> Family {
    match family {
        IpAddressFamily::Ipv4 => Family::V4,
        IpAddressFamily::Ipv6 => Family::V6,
    }
}

/// An address family for the guest.
pub fn guest_family(family: Family) -> IpAddressFamily {
    match family {
        Family::V4 => IpAddressFamily::Ipv4,
        Family::V6 => IpAddressFamily::Ipv6,
    }
}

/// A guest's address with its port.
pub fn host(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address }) => {
            SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(<[u8; 4]>::from(address)), port))
        }
        IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info, address, scope_id }) => {
            let ip = Ipv6Addr::from(<[u16; 8]>::from(address));
            SocketAddr::V6(SocketAddrV6::new(ip, port, flow_info, scope_id))
        }
    }
}

/// An address with its port for the guest.
pub fn guest(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: octets(*v4.ip()) }),
        SocketAddr::V6(v6) => IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port: v6.port(),
            flow_info: v6.flowinfo(),
            address: segments(*v6.ip()),
            scope_id: v6.scope_id(),
        }),
    }
}

/// An address without a port for the guest. Mapped ones are shown as what they are.
pub fn guest_ip(address: IpAddr) -> IpAddress {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddress::Ipv4(octets(v4)),
        IpAddr::V6(v6) => IpAddress::Ipv6(segments(v6)),
    }
}

fn octets(address: Ipv4Addr) -> (u8, u8, u8, u8) {
    address.octets().into()
}

fn segments(address: Ipv6Addr) -> (u16, u16, u16, u16, u16, u16, u16, u16) {
    address.segments().into()
}

/// Refuses an address of another family than the socket's; a mapped IPv4 address is of none, as sockets are
/// `IPV6_V6ONLY`.
///
/// # Errors
/// `invalid-argument`.
pub fn check_family(address: SocketAddr, family: Family) -> Result<(), ErrorCode> {
    let fits = match (address.ip(), family) {
        (IpAddr::V4(_), Family::V4) => true,
        (IpAddr::V6(v6), Family::V6) => v6.to_ipv4_mapped().is_none(),
        (IpAddr::V4(_), Family::V6) | (IpAddr::V6(_), Family::V4) => false,
    };
    if fits { Ok(()) } else { Err(ErrorCode::InvalidArgument) }
}

/// Refuses what is no single host: multicast and broadcast, as a stream has one peer.
///
/// # Errors
/// `invalid-argument`.
pub fn check_unicast(address: SocketAddr) -> Result<(), ErrorCode> {
    let unicast = match address.ip().to_canonical() {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    };
    if unicast { Ok(()) } else { Err(ErrorCode::InvalidArgument) }
}

/// Refuses what cannot be a peer: the unspecified address and port 0.
///
/// # Errors
/// `invalid-argument`.
pub fn check_remote(address: SocketAddr) -> Result<(), ErrorCode> {
    if address.ip().to_canonical().is_unspecified() || address.port() == 0 {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn addresses_survive_the_way_to_the_guest_and_back() {
        for address in ["10.1.2.3:80", "0.0.0.0:0", "[::1]:8080", "[fe80::1%3]:9", "[2001:db8::5]:65535"] {
            assert_eq!(host(guest(socket(address))), socket(address), "{address}");
        }
    }

    #[test]
    fn a_mapped_address_is_of_no_family_but_shown_as_ipv4() {
        let mapped = socket("[::ffff:10.0.0.1]:80");
        assert!(check_family(mapped, Family::V6).is_err());
        assert!(check_family(mapped, Family::V4).is_err());
        assert!(matches!(guest_ip(mapped.ip()), IpAddress::Ipv4((10, 0, 0, 1))));
    }

    #[test]
    fn peers_are_single_hosts_with_a_port() {
        for (address, unicast, remote) in [
            ("10.0.0.1:80", true, true),
            ("10.0.0.1:0", true, false),
            ("0.0.0.0:80", true, false),
            ("[::]:80", true, false),
            ("[::ffff:0.0.0.0]:80", true, false),
            ("224.0.0.1:80", false, true),
            ("255.255.255.255:80", false, true),
            ("[ff02::1]:80", false, true),
        ] {
            assert_eq!(check_unicast(socket(address)).is_ok(), unicast, "{address}");
            assert_eq!(check_remote(socket(address)).is_ok(), remote, "{address}");
        }
    }
}
