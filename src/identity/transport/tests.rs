//! The transport against a TLS server in this process, which notes whose certificate each connection showed.

use std::convert::Infallible;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::server::conn::auto;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;

use super::*;
use crate::identity::pair;

#[test]
fn watches_are_told_from_other_requests() {
    for (uri, expected) in [
        ("/api/v1/pods?watch=true&resourceVersion=1", true),
        ("/api/v1/pods?fieldSelector=a&watch=true", true),
        ("/api/v1/pods?unwatch=true", false),
        ("/api/v1/pods", false),
    ] {
        assert_eq!(is_watch(&uri.parse().unwrap()), expected, "{uri}");
    }
}
#[test]
fn only_a_server_that_says_when_is_asked_again() {
    let with = |text: &str| HeaderMap::from_iter([(http::header::RETRY_AFTER, text.parse().unwrap())]);
    for (case, status, headers, expected) in [
        ("throttled", 429, with("1"), Some(1)),
        ("starting up", 503, with("5"), Some(5)),
        ("very long", 429, with("3600"), Some(30)),
        ("no word of when", 429, HeaderMap::new(), None),
        ("a date is not what API servers send", 503, with("Fri, 02 Jan 2026 03:04:05 GMT"), None),
        ("not the server's fault", 409, with("1"), None),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(retry_after(status, &headers), expected.map(Duration::from_secs), "{case}");
    }
}

/// An authority, and what it signs.
struct Authority(rcgen::Issuer<'static, rcgen::KeyPair>, CertificateDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self(rcgen::Issuer::new(params, key), certificate)
    }

    fn sign(&self, name: &str) -> Arc<CertifiedKey> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let chain = vec![params.signed_by(&key, &self.0).unwrap().der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = rustls::crypto::ring::default_provider();
        Arc::new(CertifiedKey::from_der(chain, key, &provider).unwrap())
    }

    fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.1.clone()).unwrap();
        roots
    }
}

/// Common names of the clients, one a connection, in order.
type Seen = Arc<Mutex<Vec<String>>>;

type Answered = Response<BoxBody<Bytes, Infallible>>;

/// Answers `watch=true` with one line and silence, `/busy` with 429 the first time, anything else with `ok`.
fn answer(uri: &Uri, busy: &AtomicUsize) -> Answered {
    if is_watch(uri) {
        let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"first\n")))]);
        let body = StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending()));
        return Response::new(BodyExt::boxed(body));
    }
    let mut response = Response::new(Full::new(Bytes::from_static(b"ok")).boxed());
    if uri.path() == "/busy" && busy.fetch_add(1, Ordering::SeqCst) == 0 {
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("0"));
    }
    response
}

async fn serve(authority: &Authority) -> (String, Seen, Arc<AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(authority.roots().into(), provider.clone());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(authority.sign("server"))));
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, busy) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let (names, turned_away) = (seen.clone(), busy.clone());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = acceptor.accept(tcp).await.unwrap();
            let leaf = &tls.get_ref().1.peer_certificates().unwrap()[0];
            names.lock().push(pair::facts(leaf).unwrap().common_name);
            let busy = turned_away.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let response = answer(request.uri(), &busy);
                    async move { Ok::<_, Infallible>(response) }
                });
                // The client may leave at any moment.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    (format!("https://{address}"), seen, busy)
}

fn transport(authority: &Authority, name: &str) -> Transport {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    Transport::new(TransportOptions { tls, server_name: None, proxy: None }, Some(authority.sign(name)))
}

async fn get(transport: &Transport, url: &str) -> Response<Answer> {
    let request = Request::get(url).body(Body::empty()).unwrap();
    transport.clone().call(request).await.unwrap()
}

#[tokio::test]
async fn after_a_replacement_the_new_certificate_is_shown_and_watches_end() {
    let authority = Authority::new();
    let (url, seen, _) = serve(&authority).await;
    let transport = transport(&authority, "old");
    assert_eq!(get(&transport, &url).await.into_body().collect().await.unwrap().to_bytes(), "ok");
    let mut watch = Box::pin(get(&transport, &format!("{url}/pods?watch=true")).await.into_body());
    assert_eq!(watch.frame().await.unwrap().unwrap().into_data().unwrap(), "first\n");
    assert_eq!(get(&transport, &url).await.status(), 200);
    assert_eq!(*seen.lock(), ["old", "old"], "one connection for requests, one for watches");

    transport.replace(authority.sign("new"));
    assert!(watch.frame().await.is_none(), "as if the server had ended it: its watcher goes on where it was");
    assert_eq!(get(&transport, &url).await.status(), 200);
    assert_eq!(*seen.lock(), ["old", "old", "new"]);
}

#[tokio::test]
async fn watches_are_spread_over_connections_and_their_places_are_given_back() {
    let authority = Authority::new();
    let (url, seen, _) = serve(&authority).await;
    let transport = transport(&authority, "node");
    let url = format!("{url}/pods?watch=true");
    let mut watches = Vec::new();
    for _ in 0..=WATCHES_PER_CONNECTION {
        watches.push(get(&transport, &url).await);
    }
    assert_eq!(seen.lock().len(), 2);
    watches.truncate(1);
    for _ in 0..WATCHES_PER_CONNECTION {
        watches.push(get(&transport, &url).await);
    }
    assert_eq!(seen.lock().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() {
    let authority = Authority::new();
    let (url, _, busy) = serve(&authority).await;
    let transport = transport(&authority, "node");
    assert_eq!(get(&transport, &format!("{url}/busy")).await.status(), 200);
    assert_eq!(busy.load(Ordering::SeqCst), 2);
}
