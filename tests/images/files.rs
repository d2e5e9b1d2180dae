//! Images from files: OCI layouts, archives, directories; and those that are damaged.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wasilet::ids::Digest;
use wasilet::image::{BuildOptions, chain};

use super::registry::tar_of;
use super::{COMPONENT, MODULE, name, service};

/// An OCI layout as its files.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        let layout = json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes();
        Self { files: vec![("oci-layout".to_owned(), layout)], manifests: Vec::new() }
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.files.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn artifact(&mut self, name: Option<&str>, wasm: &[u8]) {
        let config = self.blob("application/vnd.wasm.config.v0+json", b"{}");
        let layer = self.blob("application/wasm", wasm);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
        let mut entry = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        if let Some(name) = name {
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.manifests.push(entry);
    }

    fn finish(mut self) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests }).to_string().into_bytes();
        self.files.push(("index.json".to_owned(), index));
        self.files
    }
}

fn write_directory(files: &[(String, Vec<u8>)], dir: &Path) {
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    tar_of(&files)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_layout_loads_from_a_directory_a_tar_and_compressed_tars() {
    let wasm = [MODULE, b"layout"].concat();
    let mut layout = Layout::new();
    layout.artifact(Some("example.com/app:1"), &wasm);
    let files = layout.finish();
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(&files);
    write_directory(&files, &dir.path().join("layout"));
    fs::write(dir.path().join("plain.tar"), &tar).unwrap();
    fs::write(dir.path().join("gzip.tar.gz"), gzip(&tar)).unwrap();
    fs::write(dir.path().join("zstd.tar"), zstd::encode_all(&*tar, 1).unwrap()).unwrap();
    for source in ["layout", "plain.tar", "gzip.tar.gz", "zstd.tar"] {
        let root = tempfile::tempdir().unwrap();
        let images = service(root.path()).load(&dir.path().join(source), None, None).await.expect(source);
        assert_eq!(images[0].reference.to_string(), "example.com/app:1", "{source}");
        assert_eq!(fs::read(&images[0].spec.artifact.as_ref().unwrap().path).unwrap(), wasm, "{source}");
        assert_eq!(fs::read_dir(root.path().join("images/tmp")).unwrap().count(), 0, "{source}");
    }
}

#[tokio::test]
async fn an_archive_without_names_needs_one_and_several_images_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir.path().join("root"));
    let mut nameless = Layout::new();
    nameless.artifact(None, MODULE);
    fs::write(dir.path().join("nameless.tar"), archive(&nameless.finish())).unwrap();
    let path = dir.path().join("nameless.tar");
    let error = service.load(&path, None, None).await.unwrap_err().to_string();
    assert!(error.contains("no name of its own"), "{error}");
    service.load(&path, Some(&name("app")), None).await.expect("now it has one");
    let mut two = Layout::new();
    two.artifact(Some("a.example/one:1"), &[MODULE, b"1"].concat());
    two.artifact(Some("a.example/two:1"), &[MODULE, b"2"].concat());
    let path = dir.path().join("two.tar");
    fs::write(&path, archive(&two.finish())).unwrap();
    assert_eq!(service.load(&path, None, None).await.unwrap().len(), 2);
    assert!(service.load(&path, Some(&name("app")), None).await.is_err(), "one name for two images");
}

#[tokio::test]
async fn a_docker_save_archive_loads_with_its_tags() {
    let layer = tar_of(&[("web.wasm", COMPONENT)]);
    let config = json!({
        "os": "wasi", "architecture": "wasm",
        "config": { "Entrypoint": ["/web.wasm"], "Env": null },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    })
    .to_string()
    .into_bytes();
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["web:2", "me/web:3"], "Layers": ["l/layer.tar"] }]);
    let files = vec![
        ("c.json".to_owned(), config),
        ("l/layer.tar".to_owned(), layer),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("save.tar");
    fs::write(&path, archive(&files)).unwrap();
    let images = service(dir.path()).load(&path, None, None).await.expect("it loads");
    let names: Vec<String> = images.iter().map(|image| image.reference.familiar()).collect();
    assert_eq!(names, ["web:2", "me/web:3"]);
    assert_eq!(images[0].default_argv(), ["/web.wasm"]);
}

#[tokio::test]
async fn what_is_damaged_or_hostile_is_named_and_leaves_nothing() {
    let wasm = [MODULE, b"content"].concat();
    let digest = Digest::of(&wasm);
    let good = || {
        let mut layout = Layout::new();
        layout.artifact(Some("example.com/app:1"), &wasm);
        layout.finish()
    };
    let blob = format!("blobs/sha256/{}", digest.hex());
    let with = |change: &dyn Fn(&mut Vec<(String, Vec<u8>)>)| {
        let mut files = good();
        change(&mut files);
        archive(&files)
    };
    let find = |files: &mut Vec<(String, Vec<u8>)>| files.iter().position(|(path, _)| *path == blob).unwrap();
    let tampered = with(&|files| {
        let at = find(files);
        files[at].1[9] ^= 1;
    });
    let truncated = with(&|files| {
        let at = find(files);
        files[at].1.pop();
    });
    let missing = with(&|files| {
        let at = find(files);
        files.remove(at);
    });
    let whole = archive(&good());
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir.path().join("root"));
    let path = dir.path().join("archive");
    for (case, bytes, expected) in [
        ("tampered", tampered, format!("blob {digest} is corrupt")),
        ("truncated", truncated, format!("blob {digest} is truncated: 14 of 15 bytes")),
        ("missing", missing, format!("{blob} is missing")),
        ("cut off", whole[..1500].to_vec(), "reading".to_owned()),
        ("text", b"hello".to_vec(), "neither a .wasm file, an OCI layout".to_owned()),
        ("broken gzip", gzip(&whole)[..200].to_vec(), "reading".to_owned()),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = chain(&service.load(&path, None, None).await.expect_err(case));
        assert!(error.contains(&expected), "{case}: {error}");
    }
    assert!(service.list().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("root/images/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_says_what_to_run_or_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir.path().join("root"));
    let files: PathBuf = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("one.wasm"), MODULE).unwrap();
    let one = service.load(&files, Some(&name("one")), None).await.expect("there is one program");
    assert_eq!(one[0].default_argv(), ["/one.wasm"]);
    fs::write(files.join("two.wasm"), MODULE).unwrap();
    let error = chain(&service.load(&files, Some(&name("two")), None).await.unwrap_err());
    assert!(error.contains("2 .wasm files") && error.contains("--entrypoint"), "{error}");
    let missing = BuildOptions { entrypoint: vec!["/none.wasm".to_owned()], ..BuildOptions::default() };
    let error = chain(&service.load(&files, Some(&name("two")), Some(&missing)).await.unwrap_err());
    assert!(error.contains("its entrypoint /none.wasm is not in the image"), "{error}");
    // One file with defaults is an image too: an artifact could not carry them.
    let options = BuildOptions { env: vec!["A=b".to_owned()], ..BuildOptions::default() };
    let image = service.load(&files.join("one.wasm"), Some(&name("env")), Some(&options)).await.expect("it is built");
    assert_eq!(image[0].default_argv(), ["/one.wasm"]);
    assert_eq!(image[0].config.env, [("A".to_owned(), "b".to_owned())]);
    fs::write(files.join("bad.wasm"), b"\x7fELF").unwrap();
    let error = chain(&service.load(&files.join("bad.wasm"), Some(&name("bad")), None).await.unwrap_err());
    assert!(error.contains("this node runs WASI modules"), "{error}");
}
