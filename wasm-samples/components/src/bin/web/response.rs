//! Builds responses. In: what was found or why nothing was. Out: a head as bytes and a body to read from.

use std::fmt::Write;
use std::io::{self, Cursor, Read};

use guest_support::utc::Utc;

use crate::files::Served;

/// Whether the connection stays open behind this response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// It does.
    KeepAlive,
    /// It does not.
    Close,
}

/// A response, its body not yet read.
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Length of the body in bytes.
    pub length: u64,
    /// Where the body comes from.
    pub body: Body,
    headers: String,
}

/// A body's source.
pub enum Body {
    /// An open file.
    File(std::fs::File),
    /// A page of ours.
    Page(Cursor<String>),
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Page(page) => page.read(buffer),
        }
    }
}

impl Response {
    /// 200 with a file.
    #[must_use]
    pub fn file(served: Served, persistence: Persistence) -> Self {
        let length = served.metadata.len();
        let mut headers = common(served.content_type, length, persistence);
        if let Ok(modified) = served.metadata.modified() {
            let _ = write!(headers, "Last-Modified: {}\r\n", Utc::of(modified).http());
        }
        Self { status: 200, length, body: Body::File(served.file), headers }
    }

    /// 301 to `location`.
    #[must_use]
    pub fn redirect(location: &str, persistence: Persistence) -> Self {
        let mut response = Self::error(301, persistence);
        let _ = write!(response.headers, "Location: {location}\r\n");
        response
    }

    /// A page that says no more than its status.
    #[must_use]
    pub fn error(status: u16, persistence: Persistence) -> Self {
        let title = format!("{status} {}", reason(status));
        let page = format!("<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>\n");
        let length = page.len() as u64;
        let mut headers = common("text/html; charset=utf-8", length, persistence);
        if status == 405 {
            headers.push_str("Allow: GET, HEAD\r\n");
        }
        Self { status, length, body: Body::Page(Cursor::new(page)), headers }
    }

    /// Status line and headers, with the empty line behind them.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        format!("HTTP/1.1 {} {}\r\n{}\r\n", self.status, reason(self.status), self.headers).into_bytes()
    }
}

fn common(content_type: &str, length: u64, persistence: Persistence) -> String {
    let connection = match persistence {
        Persistence::KeepAlive => "keep-alive",
        Persistence::Close => "close",
    };
    let date = Utc::now().http();
    format!(
        "Server: wasilet-web\r\nDate: {date}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n"
    )
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}
