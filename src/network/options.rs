//! Socket options as data: what a guest may set, and what it reads back.
//!
//! In: one option of a front-end's `setsockopt`. Out: the whole set, to read or to apply to a kernel socket.
//! Options that have no meaning in process (keep-alive, no-delay) are remembered, so a guest reads what it wrote.

use std::time::Duration;

use crate::errno::Errno;

/// Which direction of a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Reads return what is buffered, then end of file.
    Read,
    /// The peer reads end of file after what was written; writes fail with EPIPE.
    Write,
    /// Both.
    Both,
}

/// One option of a TCP socket, to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpOption {
    /// `SO_REUSEADDR`; on unless switched off, as WASI asks.
    ReuseAddress(bool),
    /// `IPV6_V6ONLY`; on unless switched off, as WASI asks. Only before bind or connect, on an IPv6 socket.
    V6Only(bool),
    /// `TCP_NODELAY`.
    NoDelay(bool),
    /// `SO_KEEPALIVE`.
    KeepAlive(bool),
    /// `TCP_KEEPIDLE`; at least a second.
    KeepAliveIdle(Duration),
    /// `TCP_KEEPINTVL`; at least a second.
    KeepAliveInterval(Duration),
    /// `TCP_KEEPCNT`; 1 to 127.
    KeepAliveCount(u32),
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`; at least 1.
    HopLimit(u8),
    /// `SO_RCVBUF` in bytes, clamped to the node's range.
    ReceiveBuffer(u64),
    /// `SO_SNDBUF` in bytes, clamped to the node's range.
    SendBuffer(u64),
    /// `SO_LINGER`; a zero duration makes close a reset, other durations are remembered only.
    Linger(Option<Duration>),
}

/// All options of a TCP socket, to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// `SO_KEEPALIVE`.
    pub keep_alive: bool,
    /// `TCP_KEEPIDLE`.
    pub keep_alive_idle: Duration,
    /// `TCP_KEEPINTVL`.
    pub keep_alive_interval: Duration,
    /// `TCP_KEEPCNT`.
    pub keep_alive_count: u32,
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`.
    pub hop_limit: u8,
    /// `SO_RCVBUF`.
    pub receive_buffer: u64,
    /// `SO_SNDBUF`.
    pub send_buffer: u64,
    /// `SO_LINGER`.
    pub linger: Option<Duration>,
}

/// One option of a UDP socket, to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpOption {
    /// `SO_REUSEADDR`; off unless switched on.
    ReuseAddress(bool),
    /// `IPV6_V6ONLY`; on unless switched off. Only before bind, on an IPv6 socket.
    V6Only(bool),
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`; at least 1.
    HopLimit(u8),
    /// `SO_RCVBUF` in bytes, clamped to the node's range.
    ReceiveBuffer(u64),
    /// `SO_SNDBUF` in bytes, clamped to the node's range.
    SendBuffer(u64),
}

/// All options of a UDP socket, to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOptions {
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`.
    pub hop_limit: u8,
    /// `SO_RCVBUF`.
    pub receive_buffer: u64,
    /// `SO_SNDBUF`.
    pub send_buffer: u64,
}

/// Both directions' default buffers: four chunks of a front-end's largest call.
const DEFAULT_BUFFER: u64 = 256 * 1024;
/// What buffer sizes are clamped to, as the kernel clamps to its own limits.
const BUFFER_RANGE: std::ops::RangeInclusive<u64> = 4096..=1 << 20;

impl Default for TcpOptions {
    /// Linux's defaults, but for `SO_REUSEADDR` and `IPV6_V6ONLY`, which are WASI's.
    fn default() -> Self {
        Self {
            reuse_address: true,
            v6_only: true,
            no_delay: false,
            keep_alive: false,
            keep_alive_idle: Duration::from_secs(7200),
            keep_alive_interval: Duration::from_secs(75),
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer: DEFAULT_BUFFER,
            send_buffer: DEFAULT_BUFFER,
            linger: None,
        }
    }
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            reuse_address: false,
            v6_only: true,
            hop_limit: 64,
            receive_buffer: DEFAULT_BUFFER,
            send_buffer: DEFAULT_BUFFER,
        }
    }
}

impl TcpOptions {
    /// Sets one option. When a socket may still change `IPV6_V6ONLY` is the socket's business.
    pub(super) fn set(&mut self, option: TcpOption) -> Result<(), Errno> {
        // Linux's MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL are 32767 s; shorter than a second is EINVAL.
        let seconds = |value: Duration| match value.as_secs() {
            0 => Err(Errno::Inval),
            n => Ok(Duration::from_secs(n.min(32767))),
        };
        match option {
            TcpOption::ReuseAddress(on) => self.reuse_address = on,
            TcpOption::V6Only(on) => self.v6_only = on,
            TcpOption::NoDelay(on) => self.no_delay = on,
            TcpOption::KeepAlive(on) => self.keep_alive = on,
            TcpOption::KeepAliveIdle(value) => self.keep_alive_idle = seconds(value)?,
            TcpOption::KeepAliveInterval(value) => self.keep_alive_interval = seconds(value)?,
            TcpOption::KeepAliveCount(0) | TcpOption::HopLimit(0) => return Err(Errno::Inval),
            TcpOption::KeepAliveCount(count) => self.keep_alive_count = count.min(127),
            TcpOption::HopLimit(hops) => self.hop_limit = hops,
            TcpOption::ReceiveBuffer(bytes) => self.receive_buffer = clamp_buffer(bytes),
            TcpOption::SendBuffer(bytes) => self.send_buffer = clamp_buffer(bytes),
            TcpOption::Linger(linger) => self.linger = linger,
        }
        Ok(())
    }
}

impl UdpOptions {
    pub(super) fn set(&mut self, option: UdpOption) -> Result<(), Errno> {
        match option {
            UdpOption::ReuseAddress(on) => self.reuse_address = on,
            UdpOption::V6Only(on) => self.v6_only = on,
            UdpOption::HopLimit(0) => return Err(Errno::Inval),
            UdpOption::HopLimit(hops) => self.hop_limit = hops,
            UdpOption::ReceiveBuffer(bytes) => self.receive_buffer = clamp_buffer(bytes),
            UdpOption::SendBuffer(bytes) => self.send_buffer = clamp_buffer(bytes),
        }
        Ok(())
    }
}

fn clamp_buffer(bytes: u64) -> u64 {
    bytes.clamp(*BUFFER_RANGE.start(), *BUFFER_RANGE.end())
}
