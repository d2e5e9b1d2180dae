//! Asks for names and knocks on doors, one thing a run: what `kubectl exec` tests names and policies with.
//!
//! Usage:
//!   name-check lookup NAME            the addresses of a name, by the host's lookup, sorted
//!   name-check query TYPE NAME        the answers of the first server of /etc/resolv.conf to a DNS packet of its own
//!   name-check tcp HOST PORT          connects and says `connected`, or why not
//!   name-check udp HOST PORT          sends a datagram to an echo server and says `answered`, or why not
//! Exit code 0 when there was an answer, 1 otherwise.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_support::args::Args;

/// How long a datagram's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let mut args = Args::new("name-check lookup NAME | query TYPE NAME | tcp HOST PORT | udp HOST PORT");
    let mode = args.next::<String>("mode").unwrap_or_default();
    let first = args.next::<String>("argument").unwrap_or_default();
    let done = match mode.as_str() {
        "lookup" => lookup(&first),
        "query" => query(&first, &args.next::<String>("NAME").unwrap_or_default()),
        "tcp" => tcp(&first, args.next("PORT").unwrap_or(0)),
        "udp" => udp(&first, args.next("PORT").unwrap_or(0)),
        other => args.fail(format_args!("no mode is called {other:?}")),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn lookup(name: &str) -> Result<String, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| format!("lookup {name}: {error}"))?;
    let mut addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.join("\n"))
}

fn tcp(host: &str, port: u16) -> Result<String, String> {
    TcpStream::connect((host, port)).map(|_| "connected".to_owned()).map_err(|error| format!("{error}"))
}

fn udp(host: &str, port: u16) -> Result<String, String> {
    let to = (host, port).to_socket_addrs().map_err(|error| error.to_string())?.next().ok_or("no address")?;
    let answer = ask(to, b"ping")?;
    Ok(if answer == b"ping" { "answered".to_owned() } else { format!("answered something else: {answer:?}") })
}

/// Sends a datagram, again each second, until an answer is there.
fn ask(to: SocketAddr, data: &[u8]) -> Result<Vec<u8>, String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(|error| format!("bind: {error}"))?;
    socket.set_nonblocking(true).map_err(|error| format!("nonblocking: {error}"))?;
    let begin = Instant::now();
    let mut buffer = vec![0; 65_536];
    let mut sent = 0;
    while begin.elapsed() < PATIENCE {
        if begin.elapsed().as_secs() >= sent {
            socket.send_to(data, to).map_err(|error| format!("send: {error}"))?;
            sent += 1;
        }
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == to => return Ok(buffer[..length].to_vec()),
            Ok((_, from)) => return Err(format!("asked {to}, and {from} answered")),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(format!("receive: {error}")),
        }
    }
    Err("no answer".to_owned())
}

fn query(kind: &str, name: &str) -> Result<String, String> {
    let settings = std::fs::read_to_string("/etc/resolv.conf").map_err(|error| format!("resolv.conf: {error}"))?;
    let server = settings.lines().find_map(|line| line.strip_prefix("nameserver ")).ok_or("no name server")?;
    let server: IpAddr = server.trim().parse().map_err(|_| format!("server {server}"))?;
    let number: u16 = match kind {
        "A" => 1,
        "CNAME" => 5,
        "PTR" => 12,
        "AAAA" => 28,
        "SRV" => 33,
        other => return Err(format!("no type is called {other}")),
    };
    let name = if kind == "PTR" { reverse(name)? } else { name.to_owned() };
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(number.to_be_bytes());
    packet.extend([0, 1]);
    let answer = ask(SocketAddr::new(server, 53), &packet)?;
    let mut records = parse(&answer, number).ok_or("a malformed answer")?;
    records.sort();
    if records.is_empty() { Err(format!("no records, code {}", answer[3] & 15)) } else { Ok(records.join("\n")) }
}

fn reverse(ip: &str) -> Result<String, String> {
    match ip.parse().map_err(|_| format!("{ip} is no address"))? {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            Ok(format!("{d}.{c}.{b}.{a}.in-addr.arpa"))
        }
        IpAddr::V6(v6) => {
            let hex: String = v6.octets().iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4)).collect();
            Ok(format!("{hex}ip6.arpa"))
        }
    }
}

/// The records of the wanted type, as dig +short shows them.
fn parse(packet: &[u8], wanted: u16) -> Option<Vec<String>> {
    let short = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let mut at = 12;
    for _ in 0..short(4)? {
        at = name_at(packet, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..short(6)? {
        at = name_at(packet, at)?.1;
        let (kind, length) = (short(at)?, usize::from(short(at + 8)?));
        let data = at + 10;
        at = data + length;
        if kind != wanted {
            continue;
        }
        let bytes = packet.get(data..at)?;
        records.push(match kind {
            1 => bytes.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
            28 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
            33 => {
                format!("{} {} {} {}", short(data)?, short(data + 2)?, short(data + 4)?, name_at(packet, data + 6)?.0)
            }
            _ => name_at(packet, data)?.0,
        });
    }
    Some(records)
}

/// A name, and where what follows it begins.
fn name_at(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut end = None;
    for _ in 0..128 {
        let length = *packet.get(at)?;
        if length & 0xc0 == 0xc0 {
            end = end.or(Some(at + 2));
            at = usize::from(u16::from_be_bytes([length & 0x3f, *packet.get(at + 1)?]));
        } else if length == 0 {
            return Some((name, end.unwrap_or(at + 1)));
        } else {
            let label = packet.get(at + 1..at + 1 + usize::from(length))?;
            name.push_str(&String::from_utf8_lossy(label));
            name.push('.');
            at += 1 + usize::from(length);
        }
    }
    None
}
