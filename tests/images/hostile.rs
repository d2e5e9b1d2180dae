//! Registries that break off, lie and redirect.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::json;
use wasilet::ids::Digest;
use wasilet::image::{Credential, PullProgress, no_progress};

use super::{MODULE, name, refusal, service, service_with};

/// A request as far as these tests look at it.
#[derive(Debug, Clone)]
struct Request {
    path: String,
    head: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Answers each request with raw bytes and closes the connection; ends with the test's process.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
                let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { continue };
                let request = Request { path, head };
                seen.lock().unwrap().push(request.clone());
                let mut stream = reader.into_inner();
                let _ = stream.write_all(&answer(&request));
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0; 1024]);
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn not_found() -> Vec<u8> {
    answer("404 Not Found", "", b"")
}

/// The documents of an artifact with this layer.
struct Artifact {
    manifest: Vec<u8>,
    layer: Vec<u8>,
}

impl Artifact {
    fn new(layer: Vec<u8>) -> Self {
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.wasm.config.v0+json", "digest": Digest::of(b"{}"), "size": 2 },
            "layers": [{ "mediaType": "application/wasm", "digest": Digest::of(&layer), "size": layer.len() }],
        });
        Self { manifest: manifest.to_string().into_bytes(), layer }
    }

    /// What an honest registry answers, except for the layer.
    fn answer(&self, request: &Request) -> Option<Vec<u8>> {
        if request.path.contains("/manifests/") {
            return Some(answer(
                "200 OK",
                "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n",
                &self.manifest,
            ));
        }
        request.path.ends_with(Digest::of(b"{}").as_str()).then(|| answer("200 OK", "", b"{}"))
    }
}

fn body(size: usize) -> Vec<u8> {
    [MODULE, &(0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>()].concat()
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_was() {
    let artifact = Artifact::new(body(3_000_000));
    let layer = artifact.layer.clone();
    let server = Server::start(move |request| {
        artifact.answer(request).unwrap_or_else(|| {
            let from: usize = request
                .header("range")
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0);
            let total = artifact.layer.len();
            let headers = format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
            let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
            let whole = answer(status, &headers, &artifact.layer[from..]);
            // Each connection gives a megabyte and breaks.
            let cut = whole.len().min(1_000_000);
            whole[..cut].to_vec()
        })
    });
    let root = tempfile::tempdir().unwrap();
    let retries = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&retries);
    let listener = Arc::new(move |step| {
        if matches!(step, PullProgress::Retrying { .. }) {
            *counted.lock().unwrap() += 1;
        }
    });
    let image = format!("{}/app:1", server.address);
    let pulled = service(root.path()).pull(&name(&image), &[], listener).await.expect("it comes in pieces");
    assert_eq!(fs::read(pulled.spec.artifact.unwrap().path).unwrap(), layer);
    assert!(*retries.lock().unwrap() >= 3);
    let resumed = server.requests().iter().filter(|request| request.header("range").is_some()).count();
    assert!(resumed >= 3, "it went on instead of starting over");
}

#[tokio::test]
async fn a_blob_that_never_comes_whole_is_named() {
    let artifact = Artifact::new(body(1000));
    let digest = Digest::of(&artifact.layer);
    let server = Server::start(move |request| {
        artifact.answer(request).unwrap_or_else(|| answer("200 OK", "", &artifact.layer)[..200].to_vec())
    });
    let root = tempfile::tempdir().unwrap();
    let message = refusal(&service(root.path()), &format!("{}/app:1", server.address)).await;
    assert!(message.contains(&format!("downloading blob {digest} stopped at")), "{message}");
    assert_eq!(fs::read_dir(root.path().join("images/tmp")).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_tampered_blob_and_a_tampered_manifest_are_named() {
    let artifact = Artifact::new(body(1000));
    let digest = Digest::of(&artifact.layer);
    let server = Server::start(move |request| {
        artifact.answer(request).unwrap_or_else(|| {
            let mut layer = artifact.layer.clone();
            layer[500] ^= 1;
            answer("200 OK", "", &layer)
        })
    });
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let message = refusal(&service, &format!("{}/app:1", server.address)).await;
    assert!(message.contains(&format!("blob {digest} is corrupt")), "{message}");
    let other = Digest::of(b"another manifest");
    let message = refusal(&service, &format!("{}/app@{other}", server.address)).await;
    assert!(message.contains(&format!("instead of {other}")), "{message}");
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    let endless = Server::start(|request| {
        if request.path.contains("/manifests/") {
            let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
            return [head, vec![b' '; 6 << 20]].concat();
        }
        not_found()
    });
    let root = tempfile::tempdir().unwrap();
    let message = refusal(&service(root.path()), &format!("{}/app:1", endless.address)).await;
    assert!(message.contains("more than 4194304 bytes"), "{message}");
    let artifact = Artifact::new(body(1000));
    let too_long = Server::start(move |request| {
        artifact.answer(request).unwrap_or_else(|| answer("200 OK", "", &[artifact.layer.clone(), vec![0; 9]].concat()))
    });
    let message = refusal(&service(root.path()), &format!("{}/app:1", too_long.address)).await;
    assert!(message.contains("is larger than 1008 bytes"), "{message}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let artifact = Arc::new(Artifact::new(body(1000)));
    let (layer, serving) = (artifact.layer.clone(), Arc::clone(&artifact));
    let elsewhere = Server::start(move |_| answer("200 OK", "", &serving.layer));
    let target = format!("http://{}/signed?sig=1", elsewhere.address);
    let server = Server::start(move |request| {
        if request.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            return answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", b"");
        }
        artifact
            .answer(request)
            .unwrap_or_else(|| answer("307 Temporary Redirect", &format!("Location: {target}\r\n"), b""))
    });
    let root = tempfile::tempdir().unwrap();
    let hosts = root.path().join("certs.d/_default");
    fs::create_dir_all(&hosts).unwrap();
    let text = format!("server = \"http://{}\"\n[header]\nx-api-key = \"k\"\n", server.address);
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    let credentials = [Credential::basic(&server.address, "me", "secret")];
    let image = format!("{}/app:1", server.address);
    let pulled = service(root.path()).pull(&name(&image), &credentials, no_progress()).await.expect("it is redirected");
    assert_eq!(fs::read(pulled.spec.artifact.unwrap().path).unwrap(), layer);
    assert!(server.requests().iter().all(|request| request.header("x-api-key") == Some("k")));
    let outside = elsewhere.requests();
    assert!(!outside.is_empty());
    for request in outside {
        assert_eq!((request.header("authorization"), request.header("x-api-key")), (None, None));
    }
}

#[tokio::test]
async fn a_token_is_fetched_for_the_repository_and_used() {
    let tokens = Server::start(|request| {
        let wanted = "/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull";
        if request.path == wanted && request.header("authorization") == Some("Basic bWU6c2VjcmV0") {
            return answer("200 OK", "", br#"{"token":"t0ken"}"#);
        }
        answer("401 Unauthorized", "", br#"{"errors":[{"code":"DENIED","message":"who are you"}]}"#)
    });
    let artifact = Artifact::new(body(100));
    let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"reg\"\r\n", tokens.address);
    let server = Server::start(move |request| {
        if request.header("authorization") != Some("Bearer t0ken") {
            return answer("401 Unauthorized", &challenge, b"");
        }
        artifact.answer(request).unwrap_or_else(|| answer("200 OK", "", &artifact.layer))
    });
    let root = tempfile::tempdir().unwrap();
    let service = service_with(root.path(), |_| {});
    let image = format!("{}/team/app:1", server.address);
    let credentials = [Credential::basic(&server.address, "me", "secret")];
    service.pull(&name(&image), &credentials, no_progress()).await.expect("the token opens it");
    assert_eq!(tokens.requests().len(), 1, "one token serves the whole pull");
    let message = refusal(&service, &image).await;
    assert!(message.contains("who are you"), "the token service's own words: {message}");
}
