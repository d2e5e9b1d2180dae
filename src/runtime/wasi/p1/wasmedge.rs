//! The WasmEdge socket extension of preview 1: sockets for modules that cannot wait for components.
//!
//! ```text
//! sock_open(family, type, fd_out)                      family 1 IPv4, 2 IPv6; type 1 datagram, 2 stream
//! sock_bind(fd, address, port)      sock_connect(fd, address, port)      sock_listen(fd, backlog)
//! sock_recv_from(fd, iovs, iovs_len, address, flags, port_out, len_out, flags_out)
//! sock_send_to(fd, iovs, iovs_len, address, port, flags, len_out)
//! sock_getlocaladdr(fd, address, port_out)             sock_getpeeraddr(fd, address, port_out)
//! sock_getsockopt(fd, level, name, value, value_len)   sock_setsockopt(fd, level, name, value, value_len)
//! sock_getaddrinfo(node, node_len, service, service_len, hints, results, max, count_out)
//! ```
//!
//! `address` points to a buffer's place and length: 4 or 16 bytes of address, or 128 bytes that begin with the family as
//! u16. Programs are about in the ABI's first version, in its second, and in mixtures of both, under the same names; they
//! are told apart by the number of parameters ([`adapt`]). Descriptors are preview 1's: `fd_read`, `fd_write`, `fd_close`,
//! `poll_oneoff` and `sock_shutdown` work on them. Errors are preview 1's numbers.
//!
//! Only translates; what sockets do is in `network`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use wasmtime::{Caller, ExternType, Linker, Module};

use super::process::{bytes, code, memory, put, text};
use super::{Result, description_of, types};
use crate::errno::Errno;
use crate::network::{Family, TcpOption, TcpState, UdpOption};
use crate::runtime::process::{Access, DescriptionKind, FileDescription, StatusFlags};
use crate::runtime::store::Guest;

const MODULE: &str = "wasi_snapshot_preview1";
/// The extension's address buffer with a family in front.
const TAGGED_ADDRESS: u32 = 128;
const INET4: u32 = 1;
const INET6: u32 = 2;
const DATAGRAM: u32 = 1;
const STREAM: u32 = 2;
/// Bytes of one call, as everywhere in preview 1.
const MAX_TRANSFER: usize = 64 * 1024;
/// Buffers of one call.
const MAX_IOVS: u32 = 1024;
/// Addresses of one lookup.
const MAX_RESULTS: u32 = 64;
/// Size of the extension's `addrinfo`.
const ADDRINFO_SIZE: u32 = 28;

/// Defines the extension, in its second version.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "sock_open", |mut caller: Caller<'_, Guest>, family: u32, kind: u32, out: u32| {
        code(open(&mut caller, family, kind, out))
    })?;
    linker.func_wrap(MODULE, "sock_bind", |mut caller: Caller<'_, Guest>, fd: u32, address: u32, port: u32| {
        code(bind(&mut caller, fd, address, port))
    })?;
    linker.func_wrap(MODULE, "sock_listen", |mut caller: Caller<'_, Guest>, fd: u32, backlog: u32| {
        code(listen(&mut caller, fd, backlog))
    })?;
    linker.func_wrap_async(MODULE, "sock_connect", |mut caller: Caller<'_, Guest>, args: (u32, u32, u32)| {
        Box::new(async move { code(connect(&mut caller, args).await) })
    })?;
    linker.func_wrap_async(
        MODULE,
        "sock_send_to",
        |mut caller: Caller<'_, Guest>, args: (u32, u32, u32, u32, u32, u32, u32)| {
            Box::new(async move { code(send_to(&mut caller, args).await) })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "sock_recv_from",
        |mut caller: Caller<'_, Guest>, args: (u32, u32, u32, u32, u32, u32, u32, u32)| {
            let (fd, iovs, count, address, flags, port, length, out_flags) = args;
            let from = From { address, port: Some(port) };
            Box::new(
                async move { code(receive(&mut caller, fd, (iovs, count), from, flags, (length, out_flags)).await) },
            )
        },
    )?;
    linker.func_wrap(
        MODULE,
        "sock_getlocaladdr",
        |mut caller: Caller<'_, Guest>, fd: u32, address: u32, port: u32| {
            code(name(&mut caller, fd, Side::Local, From { address, port: Some(port) }).map(drop))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "sock_getpeeraddr",
        |mut caller: Caller<'_, Guest>, fd: u32, address: u32, port: u32| {
            code(name(&mut caller, fd, Side::Peer, From { address, port: Some(port) }).map(drop))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "sock_getsockopt",
        |mut caller: Caller<'_, Guest>, fd: u32, level: u32, option: u32, value: u32, length: u32| {
            code(get_option(&mut caller, fd, (level, option), value, length))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "sock_setsockopt",
        |mut caller: Caller<'_, Guest>, fd: u32, level: u32, option: u32, value: u32, length: u32| {
            code(set_option(&mut caller, fd, (level, option), value, length))
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "sock_getaddrinfo",
        |mut caller: Caller<'_, Guest>, args: (u32, u32, u32, u32, u32, u32, u32, u32)| {
            Box::new(async move { code(lookup(&mut caller, args).await) })
        },
    )?;
    Ok(())
}

/// A linker with the variants a module imports, when it imports any that differ from the second version's.
///
/// # Errors
/// None in practice: shadowing is allowed.
pub fn adapt(linker: &Linker<Guest>, module: &Module) -> wasmtime::Result<Option<Linker<Guest>>> {
    let mut adapted: Option<Linker<Guest>> = None;
    for import in module.imports().filter(|import| import.module() == MODULE) {
        let ExternType::Func(function) = import.ty() else { continue };
        let parameters = function.params().len();
        if !matches!(
            (import.name(), parameters),
            ("sock_accept", 2) | ("sock_recv_from", 7) | ("sock_getlocaladdr" | "sock_getpeeraddr", 4)
        ) {
            continue;
        }
        let linker = adapted.get_or_insert_with(|| linker.clone());
        linker.allow_shadowing(true);
        match import.name() {
            "sock_accept" => {
                linker.func_wrap_async(MODULE, "sock_accept", |mut caller: Caller<'_, Guest>, args: (u32, u32)| {
                    Box::new(async move { code(accept(&mut caller, args).await) })
                })?;
            }
            "sock_recv_from" => {
                linker.func_wrap_async(
                    MODULE,
                    "sock_recv_from",
                    |mut caller: Caller<'_, Guest>, args: (u32, u32, u32, u32, u32, u32, u32)| {
                        let (fd, iovs, count, address, flags, length, out_flags) = args;
                        let (from, out) = (From { address, port: None }, (length, out_flags));
                        Box::new(async move { code(receive(&mut caller, fd, (iovs, count), from, flags, out).await) })
                    },
                )?;
            }
            other => {
                let side = if other == "sock_getlocaladdr" { Side::Local } else { Side::Peer };
                linker.func_wrap(
                    MODULE,
                    other,
                    move |mut caller: Caller<'_, Guest>, fd: u32, address: u32, kind: u32, port: u32| {
                        code(name_and_kind(&mut caller, fd, side, From { address, port: Some(port) }, kind))
                    },
                )?;
            }
        }
    }
    Ok(adapted)
}

/// Where an address is to be written.
#[derive(Clone, Copy)]
struct From {
    address: u32,
    port: Option<u32>,
}

#[derive(Clone, Copy)]
enum Side {
    Local,
    Peer,
}

fn word(memory: &[u8], at: u32) -> Result<u32> {
    let four = bytes(memory, at, 4)?;
    Ok(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// The place and length of an address buffer.
fn buffer(memory: &[u8], address: u32) -> Result<(u32, u32)> {
    Ok((word(memory, address)?, word(memory, address.checked_add(4).ok_or(Errno::Fault)?)?))
}

fn read_address(memory: &[u8], address: u32, port: u32) -> Result<SocketAddr> {
    let (start, length) = buffer(memory, address)?;
    let port = u16::try_from(port).map_err(|_| Errno::Inval)?;
    let (family, body) = match length {
        4 => (INET4, bytes(memory, start, 4)?),
        16 => (INET6, bytes(memory, start, 16)?),
        TAGGED_ADDRESS => {
            let all = bytes(memory, start, TAGGED_ADDRESS)?;
            (u32::from(u16::from_le_bytes([all[0], all[1]])), &all[2..18])
        }
        _ => return Err(Errno::Inval),
    };
    match family {
        INET4 => {
            let four: [u8; 4] = body[..4].try_into().map_err(|_| Errno::Inval)?;
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(four)), port))
        }
        INET6 => {
            let sixteen: [u8; 16] = body.try_into().map_err(|_| Errno::Inval)?;
            Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(sixteen)), port))
        }
        _ => Err(Errno::AfNoSupport),
    }
}

fn write_address(memory: &mut [u8], into: From, peer: SocketAddr) -> Result<()> {
    let (start, length) = buffer(memory, into.address)?;
    let mut octets = [0; 16];
    let (family, used) = match peer.ip() {
        IpAddr::V4(ip) => {
            octets[..4].copy_from_slice(&ip.octets());
            (INET4, 4)
        }
        IpAddr::V6(ip) => {
            octets = ip.octets();
            (INET6, 16)
        }
    };
    let mut all = Vec::with_capacity(18);
    if length == TAGGED_ADDRESS {
        all.extend((family as u16).to_le_bytes());
    }
    all.extend(&octets[..used]);
    if (length as usize) < all.len() {
        return Err(Errno::Inval);
    }
    let place = memory.get_mut(start as usize..).and_then(|rest| rest.get_mut(..all.len())).ok_or(Errno::Fault)?;
    place.copy_from_slice(&all);
    into.port.map_or(Ok(()), |at| put(memory, at, u32::from(peer.port())))
}

fn open(caller: &mut Caller<'_, Guest>, family: u32, kind: u32, out: u32) -> Result<()> {
    bytes(memory(caller)?, out, 4)?;
    let process = caller.data().process.clone();
    let container = process.container();
    let family = match family {
        INET4 => Family::V4,
        INET6 => Family::V6,
        _ => return Err(Errno::AfNoSupport),
    };
    let (network, owner) = (container.network(), container.owner());
    let kind = match kind {
        STREAM => DescriptionKind::Tcp(network.tcp_socket(owner, family)?),
        DATAGRAM => DescriptionKind::Udp(network.udp_socket(owner, family)?),
        _ => return Err(Errno::ProtoType),
    };
    let fd = process.fds().insert(FileDescription::new(kind, Access::READ | Access::WRITE, StatusFlags::empty()))?;
    put(memory(caller)?, out, fd)
}

fn bind(caller: &mut Caller<'_, Guest>, fd: u32, address: u32, port: u32) -> Result<()> {
    let local = read_address(memory(caller)?, address, port)?;
    match description_of(caller, fd)?.kind() {
        DescriptionKind::Tcp(socket) => socket.bind(local),
        DescriptionKind::Udp(socket) => socket.bind(local),
        _ => Err(Errno::NotSock),
    }
}

fn listen(caller: &mut Caller<'_, Guest>, fd: u32, backlog: u32) -> Result<()> {
    // A negative backlog is the largest, as on Linux.
    description_of(caller, fd)?.as_tcp()?.listen(backlog.min(i32::MAX as u32))
}

async fn connect(caller: &mut Caller<'_, Guest>, (fd, address, port): (u32, u32, u32)) -> Result<()> {
    let remote = read_address(memory(caller)?, address, port)?;
    let description = description_of(caller, fd)?;
    match description.kind() {
        DescriptionKind::Tcp(socket) if description.status().contains(StatusFlags::NONBLOCK) => {
            socket.start_connect(remote)
        }
        DescriptionKind::Tcp(socket) => socket.connect(remote).await,
        DescriptionKind::Udp(socket) => socket.connect(remote),
        _ => Err(Errno::NotSock),
    }
}

async fn accept(caller: &mut Caller<'_, Guest>, (fd, out): (u32, u32)) -> Result<()> {
    bytes(memory(caller)?, out, 4)?;
    let process = caller.data().process.clone();
    let accepted = super::sock::accept(&process, types::Fd::from(fd), types::Fdflags::empty()).await?;
    put(memory(caller)?, out, accepted.into())
}

/// The buffers of a call as places and lengths.
fn buffers(memory: &[u8], start: u32, count: u32) -> Result<Vec<(u32, u32)>> {
    if count > MAX_IOVS {
        return Err(Errno::Inval);
    }
    let all = bytes(memory, start, count * 8)?;
    let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(all.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect())
}

type SendArgs = (u32, u32, u32, u32, u32, u32, u32);

async fn send_to(caller: &mut Caller<'_, Guest>, args: SendArgs) -> Result<()> {
    let (fd, iovs, count, address, port, _flags, out) = args;
    let description = description_of(caller, fd)?;
    let (data, to) = {
        let memory = memory(caller)?;
        bytes(memory, out, 4)?;
        let to = if address == 0 { None } else { Some(read_address(memory, address, port)?) };
        let mut data = Vec::new();
        for (start, length) in buffers(memory, iovs, count)? {
            // Looked at before it is cut, so that a bad pointer is an error and not a short write.
            let piece = bytes(memory, start, length)?;
            data.extend_from_slice(&piece[..piece.len().min(MAX_TRANSFER - data.len())]);
        }
        (data, to)
    };
    let sent = match description.kind() {
        DescriptionKind::Udp(socket) => loop {
            match socket.try_send_to(&data, to) {
                Err(Errno::Again) if !description.status().contains(StatusFlags::NONBLOCK) => socket.writable().await,
                done => break done?,
            }
        },
        DescriptionKind::Tcp(_) => description.write(&data).await?,
        _ => return Err(Errno::NotSock),
    };
    put(memory(caller)?, out, sent as u32)
}

/// The bit of `riflags` for a look without taking.
const PEEK: u32 = 1;
/// The bit of `roflags` for a datagram that was cut.
const TRUNCATED: u32 = 1;

async fn receive(
    caller: &mut Caller<'_, Guest>,
    fd: u32,
    (iovs, count): (u32, u32),
    from: From,
    flags: u32,
    (length_out, flags_out): (u32, u32),
) -> Result<()> {
    let description = description_of(caller, fd)?;
    let places = {
        let memory = memory(caller)?;
        bytes(memory, length_out, 4)?;
        bytes(memory, flags_out, 2)?;
        buffer(memory, from.address)?;
        let places = buffers(memory, iovs, count)?;
        for (start, length) in &places {
            bytes(memory, *start, *length)?;
        }
        places
    };
    let wanted = places.iter().fold(0_usize, |all, (_, length)| all.saturating_add(*length as usize));
    let mut data = vec![0; wanted.min(MAX_TRANSFER)];
    let waits = !description.status().contains(StatusFlags::NONBLOCK);
    let (length, full_length, peer) = loop {
        let received = match description.kind() {
            DescriptionKind::Udp(socket) if flags & PEEK != 0 => {
                socket.try_peek_from(&mut data).map(|r| (r.len, r.datagram_len, r.from))
            }
            DescriptionKind::Udp(socket) => socket.try_recv_from(&mut data).map(|r| (r.len, r.datagram_len, r.from)),
            DescriptionKind::Tcp(socket) => {
                let read = if flags & PEEK != 0 { socket.try_peek(&mut data) } else { socket.try_read(&mut data) };
                read.and_then(|length| Ok((length, length, socket.peer_addr()?)))
            }
            _ => return Err(Errno::NotSock),
        };
        match received {
            Err(Errno::Again) if waits => description.readable().await,
            done => break done?,
        }
    };
    let memory = memory(caller)?;
    let mut rest = &data[..length];
    for (start, room) in places {
        let (piece, more) = rest.split_at(rest.len().min(room as usize));
        let place = memory.get_mut(start as usize..).and_then(|rest| rest.get_mut(..piece.len()));
        place.ok_or(Errno::Fault)?.copy_from_slice(piece);
        rest = more;
    }
    write_address(memory, from, peer)?;
    let truncated = if full_length > length { TRUNCATED } else { 0 };
    let place = memory.get_mut(flags_out as usize..).and_then(|rest| rest.get_mut(..2)).ok_or(Errno::Fault)?;
    place.copy_from_slice(&(truncated as u16).to_le_bytes());
    put(memory, length_out, length as u32)
}

fn name(caller: &mut Caller<'_, Guest>, fd: u32, side: Side, into: From) -> Result<SocketAddr> {
    let description = description_of(caller, fd)?;
    let named = match (description.kind(), side) {
        (DescriptionKind::Tcp(socket), Side::Local) => local_or_unspecified(socket.local_addr(), socket.family()),
        (DescriptionKind::Tcp(socket), Side::Peer) => socket.peer_addr(),
        (DescriptionKind::Udp(socket), Side::Local) => local_or_unspecified(socket.local_addr(), socket.family()),
        (DescriptionKind::Udp(socket), Side::Peer) => socket.peer_addr(),
        _ => Err(Errno::NotSock),
    }?;
    write_address(memory(caller)?, into, named)?;
    Ok(named)
}

/// getsockname(2) of a socket that was not bound is the unspecified address, not an error.
fn local_or_unspecified(local: Result<SocketAddr>, family: Family) -> Result<SocketAddr> {
    let unspecified: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    match local {
        Err(Errno::Inval) => Ok(SocketAddr::new(unspecified, 0)),
        local => local,
    }
}

fn name_and_kind(caller: &mut Caller<'_, Guest>, fd: u32, side: Side, into: From, kind: u32) -> Result<()> {
    bytes(memory(caller)?, kind, 4)?;
    let named = name(caller, fd, side, into)?;
    // The first version says the family as 4 or 6.
    put(memory(caller)?, kind, if named.is_ipv4() { 4 } else { 6 })
}

/// Levels and names: WasmEdge's for level 0 (its SOL_SOCKET); TCP's and IPv6's numbers are Linux's.
const SOCKET: u32 = 0;
const TCP: u32 = 6;
const IPV6: u32 = 41;

fn get_option(caller: &mut Caller<'_, Guest>, fd: u32, option: (u32, u32), value: u32, length: u32) -> Result<()> {
    let description = description_of(caller, fd)?;
    let number = match description.kind() {
        DescriptionKind::Tcp(socket) => {
            let options = socket.options();
            match option {
                (SOCKET, 0) => u32::from(options.reuse_address),
                (SOCKET, 1) => STREAM,
                (SOCKET, 2) => error_number(socket.take_error()),
                (SOCKET, 5) => u32::try_from(options.send_buffer).unwrap_or(u32::MAX),
                (SOCKET, 6) => u32::try_from(options.receive_buffer).unwrap_or(u32::MAX),
                (SOCKET, 7) => u32::from(options.keep_alive),
                (SOCKET, 13) => u32::from(socket.state() == TcpState::Listening),
                (TCP, 1) => u32::from(options.no_delay),
                (TCP, 4) => options.keep_alive_idle.as_secs() as u32,
                (TCP, 5) => options.keep_alive_interval.as_secs() as u32,
                (TCP, 6) => options.keep_alive_count,
                (IPV6, 26) => u32::from(options.v6_only),
                _ => return Err(Errno::NoProtoOpt),
            }
        }
        DescriptionKind::Udp(socket) => {
            let options = socket.options();
            match option {
                (SOCKET, 0) => u32::from(options.reuse_address),
                (SOCKET, 1) => DATAGRAM,
                (SOCKET, 2) => error_number(socket.take_error()),
                (SOCKET, 4 | 13) => 0,
                (SOCKET, 5) => u32::try_from(options.send_buffer).unwrap_or(u32::MAX),
                (SOCKET, 6) => u32::try_from(options.receive_buffer).unwrap_or(u32::MAX),
                (IPV6, 26) => u32::from(options.v6_only),
                _ => return Err(Errno::NoProtoOpt),
            }
        }
        _ => return Err(Errno::NotSock),
    };
    let memory = memory(caller)?;
    // Some callers give the length, others a place that holds it; no program has its length at address 4.
    if length != 4 {
        if word(memory, length)? < 4 {
            return Err(Errno::Inval);
        }
        put(memory, length, 4)?;
    }
    put(memory, value, number)
}

fn error_number(error: Option<Errno>) -> u32 {
    error.map_or(0, |errno| u32::from(u16::from(super::convert::errno(errno))))
}

fn set_option(caller: &mut Caller<'_, Guest>, fd: u32, option: (u32, u32), value: u32, length: u32) -> Result<()> {
    let number = {
        let memory = memory(caller)?;
        if length != 4 {
            // Time limits and linger are structures; nothing here acts on them.
            bytes(memory, value, length)?;
            return Err(Errno::NoProtoOpt);
        }
        word(memory, value)?
    };
    let is_on = number != 0;
    let description = description_of(caller, fd)?;
    match description.kind() {
        DescriptionKind::Tcp(socket) => socket.set_option(match option {
            (SOCKET, 0) => TcpOption::ReuseAddress(is_on),
            (SOCKET, 5) => TcpOption::SendBuffer(number.into()),
            (SOCKET, 6) => TcpOption::ReceiveBuffer(number.into()),
            (SOCKET, 7) => TcpOption::KeepAlive(is_on),
            // Asked for by habit on every socket.
            (SOCKET, 4) => return Ok(()),
            (TCP, 1) => TcpOption::NoDelay(is_on),
            (TCP, 4) => TcpOption::KeepAliveIdle(Duration::from_secs(number.into())),
            (TCP, 5) => TcpOption::KeepAliveInterval(Duration::from_secs(number.into())),
            (TCP, 6) => TcpOption::KeepAliveCount(number),
            (IPV6, 26) => TcpOption::V6Only(is_on),
            _ => return Err(Errno::NoProtoOpt),
        }),
        DescriptionKind::Udp(socket) => socket.set_option(match option {
            (SOCKET, 0) => UdpOption::ReuseAddress(is_on),
            (SOCKET, 4) => return Ok(()),
            (SOCKET, 5) => UdpOption::SendBuffer(number.into()),
            (SOCKET, 6) => UdpOption::ReceiveBuffer(number.into()),
            (IPV6, 26) => UdpOption::V6Only(is_on),
            _ => return Err(Errno::NoProtoOpt),
        }),
        _ => Err(Errno::NotSock),
    }
}

type LookupArgs = (u32, u32, u32, u32, u32, u32, u32, u32);

/// `sock_getaddrinfo`. The guest has made a list of `max` entries, each with room for an address; they are filled.
async fn lookup(caller: &mut Caller<'_, Guest>, args: LookupArgs) -> Result<()> {
    let (node, node_len, service, service_len, hints, results, max, count_out) = args;
    let process = caller.data().process.clone();
    let (node, port, hints) = {
        let memory = memory(caller)?;
        bytes(memory, count_out, 4)?;
        let node = trimmed(memory, node, node_len)?;
        let service = trimmed(memory, service, service_len)?;
        let hints = if hints == 0 { [0; 5] } else { bytes(memory, hints, 5)?.try_into().map_err(|_| Errno::Fault)? };
        (node, service_port(&service)?, hints)
    };
    let [_, _, family, kind, _] = hints;
    let name = if node.is_empty() { "0.0.0.0" } else { node.as_str() };
    let addresses = process.container().network().resolve(name).await.map_err(|_| Errno::NoEnt)?;
    let wanted = addresses.into_iter().filter(|ip| match u32::from(family) {
        INET4 => ip.is_ipv4(),
        INET6 => ip.is_ipv6(),
        _ => true,
    });
    let memory = memory(caller)?;
    let mut entry = word(memory, results)?;
    let mut count = 0;
    for ip in wanted.take(max.min(MAX_RESULTS) as usize) {
        if entry == 0 {
            break;
        }
        write_result(memory, entry, ip, port, if kind == 0 { STREAM as u8 } else { kind })?;
        count += 1;
        entry = word(memory, entry.checked_add(ADDRINFO_SIZE - 4).ok_or(Errno::Fault)?)?;
    }
    put(memory, count_out, count)
}

/// Text that may end with NUL.
fn trimmed(memory: &[u8], start: u32, length: u32) -> Result<String> {
    let ends = length > 0 && bytes(memory, start, length)?.ends_with(b"\0");
    text(memory, start, length - u32::from(ends))
}

fn service_port(service: &str) -> Result<u16> {
    match service {
        "" => Ok(0),
        "http" => Ok(80),
        "https" => Ok(443),
        "domain" => Ok(53),
        number => number.parse().map_err(|_| Errno::NoEnt),
    }
}

/// One `addrinfo`: flags u16, family u8, type u8, protocol u8, address length u32 at 8, address at 12, name at 16 and its
/// length at 20, next at 24. The address is family u8, length u32 at 4, data at 8: port and address as in `sockaddr`.
fn write_result(memory: &mut [u8], entry: u32, ip: IpAddr, port: u16, kind: u8) -> Result<()> {
    let family = if ip.is_ipv4() { INET4 } else { INET6 } as u8;
    let protocol = if u32::from(kind) == DATAGRAM { 2 } else { 1 };
    let mut data = port.to_be_bytes().to_vec();
    match ip {
        IpAddr::V4(ip) => data.extend(ip.octets()),
        IpAddr::V6(ip) => {
            data.extend([0; 4]);
            data.extend(ip.octets());
            data.extend([0; 4]);
        }
    }
    let address = word(memory, entry.checked_add(12).ok_or(Errno::Fault)?)?;
    let place = word(memory, address.checked_add(8).ok_or(Errno::Fault)?)?;
    let head = memory.get_mut(entry as usize + 2..).and_then(|rest| rest.get_mut(..3)).ok_or(Errno::Fault)?;
    head.copy_from_slice(&[family, kind, protocol]);
    put(memory, entry + 8, data.len() as u32)?;
    *memory.get_mut(address as usize).ok_or(Errno::Fault)? = family;
    put(memory, address + 4, data.len() as u32)?;
    let bytes = memory.get_mut(place as usize..).and_then(|rest| rest.get_mut(..data.len())).ok_or(Errno::Fault)?;
    bytes.copy_from_slice(&data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory with an address buffer of `length` bytes at 64, described at 16.
    fn guest(length: u32) -> Vec<u8> {
        let mut memory = vec![0; 512];
        put(&mut memory, 16, 64).unwrap();
        put(&mut memory, 20, length).unwrap();
        memory
    }

    #[test]
    fn an_address_is_read_back_in_every_form_that_holds_it() {
        let v4: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        for (length, address, fits) in
            [(4, v4, true), (16, v6, true), (TAGGED_ADDRESS, v4, true), (TAGGED_ADDRESS, v6, true), (4, v6, false)]
        {
            let mut memory = guest(length);
            let written = write_address(&mut memory, From { address: 16, port: Some(32) }, address);
            assert_eq!(written.is_ok(), fits, "{length} {address}");
            if fits {
                let port = word(&memory, 32).unwrap();
                assert_eq!(read_address(&memory, 16, port), Ok(address), "{length} {address}");
            }
        }
    }

    #[test]
    fn a_hostile_address_is_an_error() {
        for (case, place, length, port, errno) in [
            ("an odd length", 64, 7, 80, Errno::Inval),
            ("outside of memory", 511, 4, 80, Errno::Fault),
            ("at the end of the address space", u32::MAX, 16, 80, Errno::Fault),
            ("a port too large", 64, 4, 65536, Errno::Inval),
            ("no family", 64, TAGGED_ADDRESS, 80, Errno::AfNoSupport),
        ] {
            let mut memory = guest(length);
            put(&mut memory, 16, place).unwrap();
            assert_eq!(read_address(&memory, 16, port), Err(errno), "{case}");
        }
        assert_eq!(read_address(&guest(4), u32::MAX - 2, 1), Err(Errno::Fault));
    }

    #[test]
    fn a_result_is_written_where_the_guest_made_room() {
        let mut memory = vec![0; 256];
        // The entry at 32 has its address at 96, whose data is at 128.
        put(&mut memory, 32 + 12, 96).unwrap();
        put(&mut memory, 96 + 8, 128).unwrap();
        write_result(&mut memory, 32, "192.0.2.7".parse().unwrap(), 8080, STREAM as u8).unwrap();
        assert_eq!((memory[34], memory[35], memory[36], memory[96]), (1, 2, 1, 1));
        assert_eq!(memory[128..134], [0x1f, 0x90, 192, 0, 2, 7]);
        assert_eq!(write_result(&mut memory, u32::MAX - 20, "::1".parse().unwrap(), 1, 2), Err(Errno::Fault));
    }
}
