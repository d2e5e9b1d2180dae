//! Kubeconfigs good and bad, written and read back.

use super::*;

fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:edge-1");
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn ca() -> String {
    pair().0
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let authority = ca();
    let cluster = cluster("https://192.0.2.1:6443", authority.as_bytes());
    fs::write(&path, render(&cluster, User::Token("abcdef.0123456789abcdef"))).unwrap();
    let login = load(&path).unwrap();
    assert_eq!(login.config.cluster_url.to_string(), "https://192.0.2.1:6443/");
    assert_eq!(login.authorities().len(), 1);
    assert!(login.certificate.is_none());
    assert!(login.config.auth_info.token.is_some());

    let (chain, key) = pair();
    let files = dir.path().join("pair.pem");
    fs::write(&files, chain + &key).unwrap();
    fs::write(&path, render(&cluster, User::CertificateFile(&files))).unwrap();
    let login = load(&path).unwrap();
    let certificate = login.certificate.unwrap();
    assert_eq!(certificate.pair.node_name(), Some("edge-1"));
    assert_eq!(certificate.files.unwrap().key, files);
    assert!(login.config.auth_info.client_certificate.is_none(), "kube must not load it once more");
}

#[test]
fn inline_data_is_read_and_relative_paths_are_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let (chain, key) = pair();
    fs::write(dir.path().join("n.crt"), &chain).unwrap();
    fs::write(dir.path().join("n.key"), &key).unwrap();
    let users = [
        json!({ "client-certificate-data": STANDARD.encode(&chain), "client-key-data": STANDARD.encode(&key) }),
        json!({ "client-certificate": "n.crt", "client-key": "n.key" }),
    ];
    for user in users {
        let text = to_yaml(&json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "c", "cluster": { "server": "https://h:6443" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": user }],
        }));
        fs::write(&path, text).unwrap();
        assert_eq!(load(&path).unwrap().certificate.unwrap().pair.node_name(), Some("edge-1"));
    }
}

#[test]
fn every_mistake_names_the_file_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    assert!(matches!(load(&path), Err(IdentityError::NoKubeconfig { .. })));
    let base = |context: &str, cluster: &str, user: Value| {
        to_yaml(&json!({
            "apiVersion": "v1", "kind": "Config", "current-context": context,
            "clusters": [{ "name": "c", "cluster": { "server": "https://h:6443", "proxy-url": "" } }],
            "contexts": [{ "name": "x", "context": { "cluster": cluster, "user": "u" } }],
            "users": [{ "name": "u", "user": user }],
        }))
    };
    for (case, text, expected) in [
        ("no YAML", "{".to_owned(), "parse"),
        ("empty", String::new(), "no current-context"),
        ("a context that is not there", base("y", "c", json!({})), "\"y\" is not among its contexts"),
        ("a cluster that is not there", base("x", "d", json!({})), "the cluster \"d\""),
        (
            "a certificate without a key",
            base("x", "c", json!({ "client-certificate-data": "" , "client-key-data": "AAAA" })),
            "no client-certificate",
        ),
        (
            "not base64",
            base("x", "c", json!({ "client-certificate-data": "?" , "client-key-data": "AAAA" })),
            "not base64",
        ),
        (
            "a file that is not there",
            base("x", "c", json!({ "client-certificate": "gone", "client-key": "gone" })),
            "gone",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains(&*dir.path().to_string_lossy()), "{case}: {message}");
    }
}

#[test]
fn yaml_is_read_back_as_it_was() {
    let value = json!({
        "a": [{ "b": 1, "c": { "d": "yes", "e": "10.96.0.10" } }, "x", [], {}],
        "f": { "g": [1, 2], "h": "", "i": null, "j": "x: y # z", "k": "https://[::1]:6443" },
    });
    let text = to_yaml(&value);
    let read = crate::yaml::decode::<Value>(&crate::yaml::parse(&text).unwrap()[0]).unwrap().value;
    assert_eq!(read, value, "{text}");
}
