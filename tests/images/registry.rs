//! The real registry, on a port of its own, with what no client of ours would push.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use wasilet::ids::Digest;
use wasilet::image::Credential;

/// `wasilet:secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "wasilet:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    None,
    Htpasswd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    None,
    SelfSigned,
}

/// A running registry; killed and its data removed when dropped.
pub struct Registry {
    child: Child,
    address: String,
    auth: Auth,
    tls: Tls,
    dir: tempfile::TempDir,
}

/// The registry's binary, built when it is not there.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("WASILET_TEST_REGISTRY") {
            return PathBuf::from(path);
        }
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let status = Command::new(repository.join("scripts/registry.sh")).stdout(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "scripts/registry.sh failed");
        repository.join("target/tools/registry/registry")
    })
}

impl Registry {
    pub fn start(auth: Auth, tls: Tls) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": "127.0.0.1:0" },
        });
        if auth == Auth::Htpasswd {
            let file = dir.path().join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": file } });
        }
        if tls == Tls::SelfSigned {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
            fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            config["http"]["tls"] =
                json!({ "certificate": dir.path().join("cert.pem"), "key": dir.path().join("key.pem") });
        }
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        fs::write(&file, config.to_string()).unwrap();
        let mut child = Command::new(binary())
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the registry starts");
        let address = listening_on(&mut child);
        Self { child, address, auth, tls, dir }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.address.clone()
    }

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    pub fn credentials(&self) -> Vec<Credential> {
        match self.auth {
            Auth::None => Vec::new(),
            Auth::Htpasswd => vec![Credential::basic(&self.address, "wasilet", "secret")],
        }
    }

    /// Where its content is, for another registry to serve.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A file with the credentials that [`Auth::Htpasswd`] asks for.
    pub fn htpasswd(&self) -> PathBuf {
        let file = self.dir.path().join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        file
    }

    /// The certificate to trust.
    pub fn authority(&self) -> Vec<u8> {
        assert!(self.tls == Tls::SelfSigned);
        fs::read(self.dir.path().join("cert.pem")).unwrap()
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Value {
        let client = client();
        let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
        let response = client.post(start).send().await.unwrap();
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let digest = Digest::of(bytes);
        let put = client.put(format!("{location}&digest={digest}")).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), 201);
        json!({ "digest": digest, "size": bytes.len() })
    }

    async fn push_manifest(&self, image: &str, media_type: &str, manifest: &Value) -> Value {
        let (repository, tag) = image.split_once(':').unwrap();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        let put = client().put(url).header("content-type", media_type).body(bytes).send().await.unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    /// An artifact with any layers.
    pub async fn push_layers(&self, image: &str, layers: &[(&str, &[u8])]) {
        let repository = image.split_once(':').unwrap().0;
        let mut config = self.push_blob(repository, b"{}").await;
        config["mediaType"] = json!("application/vnd.wasm.config.v0+json");
        let mut descriptors = Vec::new();
        for (media_type, bytes) in layers {
            let mut layer = self.push_blob(repository, bytes).await;
            layer["mediaType"] = json!(media_type);
            descriptors.push(layer);
        }
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors });
        self.push_manifest(image, OCI_MANIFEST, &manifest).await;
    }

    /// An ordinary image of one gzipped layer.
    pub async fn push_rootfs(&self, image: &str, entrypoint: &[&str], files: &[(&str, &[u8])]) {
        let repository = image.split_once(':').unwrap().0;
        let tar = tar_of(files);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&tar).unwrap();
        let mut layer = self.push_blob(repository, &gzip.finish().unwrap()).await;
        layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar)] },
        });
        let mut config = self.push_blob(repository, config.to_string().as_bytes()).await;
        config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer] });
        self.push_manifest(image, OCI_MANIFEST, &manifest).await;
    }

    /// An index of images that are there, by platform and tag.
    pub async fn push_index(&self, image: &str, entries: &[(&str, &str)]) {
        let repository = image.split_once(':').unwrap().0;
        let mut manifests = Vec::new();
        for (platform, tag) in entries {
            let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
            let bytes = client().get(url).header("accept", OCI_MANIFEST).send().await.unwrap().bytes().await.unwrap();
            let (os, architecture) = platform.split_once('/').unwrap();
            manifests.push(json!({
                "mediaType": OCI_MANIFEST,
                "digest": Digest::of(&bytes),
                "size": bytes.len(),
                "platform": { "os": os, "architecture": architecture },
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        self.push_manifest(image, OCI_INDEX, &index).await;
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Reads the log until it says where it listens; the rest is drained so that the registry never blocks on it.
fn listening_on(child: &mut Child) -> String {
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let read = log.read_line(&mut line).expect("the log is text");
        assert!(read > 0, "the registry ended before it listened:\n{seen}");
        if let Some(at) = line.find("listening on ") {
            let rest = &line[at + "listening on ".len()..];
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).unwrap_or(rest.len());
            let address = rest[..end].to_owned();
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return address;
        }
        seen.push_str(&line);
    }
}
