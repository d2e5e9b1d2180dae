//! One GET: 200 to 399 is well.
//!
//! In: a request. Out: an outcome in the words of Go's client, which users know from the kubelet. Redirects are followed
//! on the same host. No certificate is verified: a container's seldom names its address.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::Url;

use super::{DialError, MAX_OUTPUT_BYTES, Purpose, Target, dial};
use crate::image::chain;
use crate::pod::probe::{HttpTarget, Outcome, Scheme};
use crate::runtime::Runtime;

/// Redirects that are followed, as Go's client does.
const MAX_REDIRECTS: usize = 10;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("http: server gave HTTP response to HTTPS client")]
    NotTls,
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error("EOF")]
    Closed,
    #[error("{}", chain(.0))]
    Http(hyper::Error),
    #[error("stopped after 10 redirects")]
    Redirects,
}

impl From<hyper::Error> for HttpError {
    fn from(error: hyper::Error) -> Self {
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return Self::Closed;
        }
        Self::Http(error)
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

pub(super) async fn ask(runtime: &Runtime, target: &Target, request: &HttpTarget) -> Outcome {
    let mut answer = follow(runtime, target, request).await;
    if target.purpose == Purpose::Hook && matches!(answer, Err(HttpError::NotTls)) {
        // The kubelet once sent all hooks in the clear: those who rely on it go on working. Nobody else gets the secret.
        let mut plain = HttpTarget { scheme: Scheme::Http, ..request.clone() };
        plain.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        answer = follow(runtime, target, &plain).await;
    }
    match answer {
        Err(error) => Outcome::Failure(format!("Get \"{}\": {error}", url(request))),
        Ok(_) if target.purpose == Purpose::Hook => Outcome::Success,
        Ok(answer) if answer.status.is_success() => Outcome::Success,
        Ok(answer) if answer.status.is_redirection() => {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        // Not the body: whoever reads Events may not be meant to read it.
        Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status.as_u16())),
    }
}

/// What is said of a server that took too long.
pub(super) fn timed_out(request: &HttpTarget) -> String {
    let url = url(request);
    format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
}

fn url(request: &HttpTarget) -> String {
    format!("{}://{}{}", request.scheme.name(), request.address, request.path)
}

async fn follow(runtime: &Runtime, target: &Target, request: &HttpTarget) -> Result<Answer, HttpError> {
    let mut request = request.clone();
    for _ in 0..MAX_REDIRECTS {
        let answer = get(runtime, target, &request).await?;
        match redirected(&request, &answer) {
            Some(next) => request = next,
            None => return Ok(answer),
        }
    }
    Err(HttpError::Redirects)
}

/// Where an answer sends us, if we go there: to the same host.
fn redirected(request: &HttpTarget, answer: &Answer) -> Option<HttpTarget> {
    if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = answer.headers.get(LOCATION)?.to_str().ok()?;
    let current = Url::parse(&url(request)).ok()?;
    let next = current.join(location).ok()?;
    if next.host_str() != current.host_str() {
        return None;
    }
    let scheme = match next.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let mut request = request.clone();
    if Url::parse(location).is_ok() {
        // An absolute address names its host itself.
        request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    }
    request.scheme = scheme;
    request.address.port = next.port_or_known_default()?;
    next[url::Position::BeforePath..url::Position::AfterQuery].clone_into(&mut request.path);
    Some(request)
}

async fn get(runtime: &Runtime, target: &Target, request: &HttpTarget) -> Result<Answer, HttpError> {
    let message = message(request, target.purpose)?;
    let stream = dial(runtime, target, &request.address).await?;
    match request.scheme {
        Scheme::Http => exchange(stream, message).await,
        Scheme::Https => {
            let host = request.address.host.text();
            let name = ServerName::try_from(host).unwrap_or_else(|_| {
                // What is no name is not sent; it is not verified either.
                ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
            });
            let stream = TlsConnector::from(any_certificate()).connect(name, stream).await.map_err(tls_error)?;
            exchange(stream, message).await
        }
    }
}

fn message(request: &HttpTarget, purpose: Purpose) -> Result<Request<Empty<Bytes>>, HttpError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(http::Error::from)?;
        headers.append(name, HeaderValue::try_from(value.as_str()).map_err(http::Error::from)?);
    }
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(purpose.user_agent()));
    // One that is given and empty means none.
    if headers.get(ACCEPT).is_some_and(HeaderValue::is_empty) {
        headers.remove(ACCEPT);
    } else {
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    }
    if headers.get(HOST).is_none_or(HeaderValue::is_empty) {
        let host = HeaderValue::try_from(request.address.to_string()).map_err(http::Error::from)?;
        headers.insert(HOST, host);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut message = Request::get(request.path.as_str()).body(Empty::new())?;
    *message.headers_mut() = headers;
    Ok(message)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    message: Request<Empty<Bytes>>,
) -> Result<Answer, HttpError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this function, whichever way.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(message).await?;
    let (parts, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while body.len() < MAX_OUTPUT_BYTES
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            let wanted = data.len().min(MAX_OUTPUT_BYTES - body.len());
            body.extend_from_slice(&data[..wanted]);
        }
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

fn tls_error(error: std::io::Error) -> HttpError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if matches!(inner, Some(rustls::Error::InvalidMessage(_))) {
        return HttpError::NotTls;
    }
    HttpError::Tls(error)
}

fn any_certificate() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms.supported_schemes()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Arc::new(config)
}

/// Go's `InsecureSkipVerify`: what is asked is whether the container answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
