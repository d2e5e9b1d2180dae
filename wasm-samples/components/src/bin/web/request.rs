//! Reads request heads. In: bytes as they came. Out: a [`Head`], or the status that refuses it. Bodies are not read:
//! nothing here takes one, so a request that announces one ends its connection.

use std::net::IpAddr;

use guest_support::utc::Utc;

/// Longest head we take: two of nginx's `large_client_header_buffers`.
pub const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;

/// What a connection brought.
pub enum Parsed {
    /// A whole head.
    Complete(Head),
    /// A head that cannot be answered as asked.
    Refused(Refusal),
    /// The peer has finished.
    Closed,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy)]
pub enum Refusal {
    /// It is not HTTP.
    Malformed,
    /// It does not end.
    TooLarge,
    /// It did not end in time.
    Timeout,
    /// Not HTTP/1.
    Version,
}

impl Refusal {
    /// The status code that says so.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::TooLarge => 431,
            Self::Timeout => 408,
            Self::Version => 505,
        }
    }
}

/// A request's head, as far as it matters here.
pub struct Head {
    /// GET, HEAD, ...
    pub method: String,
    /// As sent: a path with its query, still percent-encoded.
    pub target: String,
    /// Whether another request may follow.
    pub keep_alive: bool,
    version: u8,
    referer: String,
    user_agent: String,
}

impl Head {
    /// Stands in the log for a head that could not be read.
    #[must_use]
    pub fn unreadable() -> Self {
        let empty = String::new;
        Self { method: empty(), target: empty(), keep_alive: false, version: 1, referer: empty(), user_agent: empty() }
    }

    /// The access log's line for this request, in the combined format.
    #[must_use]
    pub fn log_line(&self, peer: IpAddr, status: u16, bytes: u64) -> String {
        let date = Utc::now().access_log();
        let request = match self.method.as_str() {
            "" => String::new(),
            method => format!("{method} {} HTTP/1.{}", quotable(&self.target), self.version),
        };
        let (referer, agent) = (quotable(dash(&self.referer)), quotable(dash(&self.user_agent)));
        format!("{peer} - - [{date}] \"{request}\" {status} {bytes} \"{referer}\" \"{agent}\"")
    }
}

/// Reads the head at the start of `bytes`: what it is and how long it was, or `None` when more must come.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<(Parsed, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let refused = |refusal| Some((Parsed::Refused(refusal), bytes.len()));
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return None,
        Err(httparse::Error::Version) => return refused(Refusal::Version),
        Err(httparse::Error::TooManyHeaders) => return refused(Refusal::TooLarge),
        Err(_) => return refused(Refusal::Malformed),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return refused(Refusal::Malformed);
    };
    let header = |name: &str| {
        let mut values = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        values.next().map(|header| String::from_utf8_lossy(header.value).into_owned())
    };
    // HTTP/1.1 without a Host is an error that must be answered (RFC 9112, 3.2).
    if version == 1 && header("host").is_none() {
        return refused(Refusal::Malformed);
    }
    let connection = header("connection").unwrap_or_default().to_ascii_lowercase();
    let asks = |token: &str| connection.split(',').any(|option| option.trim() == token);
    let has_body =
        header("transfer-encoding").is_some() || header("content-length").is_some_and(|length| length != "0");
    let persistent = if version == 1 { !asks("close") } else { asks("keep-alive") };
    let head = Head {
        method: method.to_owned(),
        target: target.to_owned(),
        keep_alive: persistent && !has_body,
        version,
        referer: header("referer").unwrap_or_default(),
        user_agent: header("user-agent").unwrap_or_default(),
    };
    Some((Parsed::Complete(head), used))
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// What a peer sent must not forge a line of the log.
fn quotable(text: &str) -> String {
    text.chars().flat_map(|c| if c == '"' || c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
