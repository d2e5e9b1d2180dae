//! What fails on the way in and out, and the words for it: status codes for clients, codes for guests, lines for
//! the container's log.

use http::StatusCode;
use wasmtime::WasmBacktrace;
use wasmtime_wasi_http::Error as WasiError;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use crate::errno::Errno;
use crate::network::ResolveError;
use crate::runtime::wasi::p2::ComponentExit;

/// Why a request has no answer from the guest.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The guest trapped before it answered.
    #[error("the component trapped: {0}")]
    Trapped(String),
    /// It called `wasi:cli/exit`, which ends the instance and not the container: other requests have their own.
    #[error("the handler called exit with code {0}")]
    Exited(u8),
    /// No instance could be made.
    #[error("the component could not be instantiated: {0}")]
    NotInstantiated(String),
    /// The handler returned and never set its response.
    #[error("the handler returned without a response")]
    NoResponse,
    /// The guest itself answered with an error.
    #[error("the handler answered with an error: {0:?}")]
    Guest(ErrorCode),
    /// It took too long.
    #[error("the handler gave no response in time")]
    TimedOut,
    /// Every instance was busy for too long.
    #[error("too many requests at once")]
    Overloaded,
    /// The host's own task for it is gone.
    #[error("the request was dropped")]
    Dropped,
}

impl Failure {
    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Trapped(_) | Self::Exited(_) | Self::NoResponse | Self::Dropped => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotInstantiated(_) | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Guest(code) => guest_status(code),
        }
    }
}

fn guest_status(code: &ErrorCode) -> StatusCode {
    match code {
        ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => StatusCode::FORBIDDEN,
        ErrorCode::HttpRequestLengthRequired => StatusCode::LENGTH_REQUIRED,
        ErrorCode::HttpRequestBodySize(_) => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::HttpRequestMethodInvalid => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::HttpRequestUriInvalid => StatusCode::BAD_REQUEST,
        ErrorCode::HttpRequestUriTooLong => StatusCode::URI_TOO_LONG,
        ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpRequestTrailerSectionSize(_)
        | ErrorCode::HttpRequestTrailerSize(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ErrorCode::LoopDetected => StatusCode::LOOP_DETECTED,
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout
        | ErrorCode::DnsTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::DnsError(_)
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::ConnectionTerminated
        | ErrorCode::ConnectionLimitReached => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Why a connection to another server was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URI has no host, or its port is no number.
    #[error("the request has no host to connect to")]
    NoHost,
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No address answered; the last one's error.
    #[error("connect to {host}: {errno}")]
    Connect {
        /// Name or address, and port.
        host: String,
        /// What the last address said.
        #[source]
        errno: Errno,
    },
    /// It took longer than the guest allowed.
    #[error("connect to {host}: timed out")]
    TimedOut {
        /// Name or address, and port.
        host: String,
    },
    /// Not a name that a certificate can carry.
    #[error("{host:?} is not a name that TLS can verify")]
    ServerName {
        /// The name.
        host: String,
    },
    /// The handshake failed.
    #[error("TLS handshake with {host}")]
    Tls {
        /// Name or address, and port.
        host: String,
        /// rustls' reason.
        #[source]
        source: std::io::Error,
    },
    /// No certificate authorities are known, so no certificate can be trusted.
    #[error("no certificate authorities in {searched}")]
    NoRoots {
        /// Where they were looked for.
        searched: String,
    },
}

impl ConnectError {
    /// The guest's code for it.
    pub fn for_guest(&self) -> WasiError {
        match self {
            Self::NoHost => WasiError::HttpRequestUriInvalid,
            Self::Resolve(ResolveError::Temporary { reason, .. }) => {
                WasiError::DnsError { rcode: Some(reason.clone()), info_code: None }
            }
            Self::Resolve(ResolveError::NotFound { .. }) => {
                WasiError::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None }
            }
            Self::Resolve(error) => WasiError::DnsError { rcode: Some(error.to_string()), info_code: None },
            Self::Connect { errno, .. } => match errno {
                Errno::ConnRefused => WasiError::ConnectionRefused,
                Errno::ConnReset | Errno::ConnAborted => WasiError::ConnectionTerminated,
                Errno::TimedOut => WasiError::ConnectionTimeout,
                Errno::HostUnreach | Errno::NetUnreach | Errno::AfNoSupport => WasiError::DestinationIpUnroutable,
                Errno::Acces | Errno::Perm => WasiError::DestinationIpProhibited,
                Errno::MFile | Errno::NFile | Errno::NoBufs => WasiError::ConnectionLimitReached,
                _ => WasiError::DestinationUnavailable,
            },
            Self::TimedOut { .. } => WasiError::ConnectionTimeout,
            Self::ServerName { .. } | Self::NoRoots { .. } => WasiError::TlsCertificateError,
            Self::Tls { source, .. } => tls_error(source),
        }
    }
}

fn tls_error(error: &std::io::Error) -> WasiError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            WasiError::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            WasiError::TlsAlertReceived { alert_id: Some(u8::from(*alert)), alert_message: Some(format!("{alert:?}")) }
        }
        _ => WasiError::TlsProtocolError,
    }
}

/// The guest's code for a request that failed in hyper's client, connecting included.
pub fn request_error(error: &hyper_util::client::legacy::Error) -> WasiError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            return connect.for_guest();
        }
        if let Some(hyper) = cause.downcast_ref::<hyper::Error>() {
            return hyper_error(hyper);
        }
        source = cause.source();
    }
    WasiError::HttpProtocolError
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        match error.downcast_ref::<ComponentExit>() {
            Some(ComponentExit(code)) => Self::Exited(*code),
            None => Self::Trapped(trap_message(&error)),
        }
    }
}

/// The trap first, for it is what a reader of four lines sees, then the wasm frames.
pub fn trap_message(error: &wasmtime::Error) -> String {
    let cause = error.root_cause().to_string();
    match error.downcast_ref::<WasmBacktrace>() {
        Some(backtrace) => format!("{cause}\n{}", backtrace.to_string().trim_end()),
        None => cause,
    }
}

/// The guest's code for a body that ended early: the peer is gone, or broke the rules of HTTP.
pub fn body_error(error: &hyper::Error) -> ErrorCode {
    if error.is_timeout() {
        ErrorCode::ConnectionReadTimeout
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        ErrorCode::ConnectionTerminated
    } else {
        ErrorCode::HttpProtocolError
    }
}

fn hyper_error(error: &hyper::Error) -> WasiError {
    if error.is_timeout() {
        WasiError::HttpResponseTimeout
    } else if error.is_incomplete_message() {
        WasiError::HttpResponseIncomplete
    } else if error.is_canceled() || error.is_closed() {
        WasiError::ConnectionTerminated
    } else {
        // An I/O error of the connection has an errno; all else is the peer's HTTP.
        let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
        match io.map(Errno::from) {
            Some(Errno::ConnReset | Errno::Pipe | Errno::ConnAborted) => WasiError::ConnectionTerminated,
            Some(Errno::TimedOut) => WasiError::ConnectionReadTimeout,
            _ => WasiError::HttpProtocolError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_learn_whose_fault_it_was() {
        for (failure, status) in [
            (Failure::from(wasmtime::Error::msg("unreachable")), 500),
            (Failure::Exited(3), 500),
            (Failure::NoResponse, 500),
            (Failure::Overloaded, 503),
            (Failure::TimedOut, 504),
            (Failure::Guest(ErrorCode::HttpRequestDenied), 403),
            (Failure::Guest(ErrorCode::ConnectionRefused), 502),
            (Failure::Guest(ErrorCode::InternalError(None)), 500),
        ] {
            assert_eq!(failure.status().as_u16(), status, "{failure}");
        }
    }

    #[test]
    fn guests_learn_why_a_connection_was_not_made() {
        let connect = |errno| ConnectError::Connect { host: "db:5432".to_owned(), errno }.for_guest();
        assert!(matches!(connect(Errno::ConnRefused), WasiError::ConnectionRefused));
        assert!(matches!(connect(Errno::Acces), WasiError::DestinationIpProhibited));
        assert!(matches!(connect(Errno::NetUnreach), WasiError::DestinationIpUnroutable));
        assert!(matches!(connect(Errno::MFile), WasiError::ConnectionLimitReached));
        let unknown = ResolveError::NotFound { name: "nowhere".to_owned() };
        let code = ConnectError::from(unknown).for_guest();
        assert!(matches!(code, WasiError::DnsError { rcode: Some(rcode), .. } if rcode == "NXDOMAIN"));
    }

    #[test]
    fn an_exit_is_no_trap() {
        let error = wasmtime::Error::new(ComponentExit(7)).context("error while executing at wasm backtrace");
        assert!(matches!(Failure::from(error), Failure::Exited(7)));
    }
}
