//! What is decided about answers, without a server.

use super::super::probe::skew;
use super::*;

fn token() -> BootstrapToken {
    "abcdef.0123456789abcdef".parse().unwrap()
}

fn authority_pem() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
}

#[test]
fn the_kubeconfig_is_taken_only_with_its_signature() {
    let text = "clusters: []\n";
    let map = |pairs: &[(&str, String)]| ConfigMap {
        data: Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()),
        ..ConfigMap::default()
    };
    let good = jws::sign(text, &token());
    let verdict = |map: &ConfigMap| signed_kubeconfig(map, &token(), "h:6443");
    let signed = map(&[("kubeconfig", text.to_owned()), ("jws-kubeconfig-abcdef", good.clone())]);
    assert_eq!(verdict(&signed).unwrap(), text);
    assert!(matches!(verdict(&ConfigMap::default()), Err(DiscoveryError::NoClusterInfo { .. })));
    let unsigned = map(&[("kubeconfig", text.to_owned()), ("jws-kubeconfig-fedcba", good.clone())]);
    assert!(matches!(verdict(&unsigned), Err(DiscoveryError::NoSignature { .. })));
    let forged = map(&[("kubeconfig", "clusters: [x]".to_owned()), ("jws-kubeconfig-abcdef", good)]);
    assert!(matches!(verdict(&forged), Err(DiscoveryError::Signature { .. })));
}

#[test]
fn the_cluster_of_cluster_info_needs_no_context() {
    let pem = authority_pem();
    let text = kubeconfig::to_yaml(&serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "", "contexts": [], "users": [], "preferences": {},
        "clusters": [{ "name": "", "cluster": kubeconfig::cluster("https://h:6443", pem.as_bytes()) }],
    }));
    let cluster = sole_cluster(&text, "x").unwrap();
    assert_eq!(authority(&cluster, "x").unwrap(), pem.as_bytes());
    for (case, text) in [
        ("no cluster", "clusters: []"),
        ("plain HTTP", "clusters: [{name: '', cluster: {server: 'http://h:6443'}}]"),
        ("no YAML", "{"),
    ] {
        assert!(matches!(sole_cluster(text, "x"), Err(DiscoveryError::Kubeconfig { .. })), "{case}");
    }
}

#[test]
fn a_failure_of_tls_is_explained_by_what_the_server_showed() {
    let leaf = Facts {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        issuer: String::new(),
        not_before: Timestamp::from_second(1_000).unwrap(),
        not_after: Timestamp::from_second(2_000).unwrap(),
        dns_names: vec!["kubernetes".to_owned()],
        ips: vec!["192.0.2.1".parse().unwrap()],
    };
    for (case, endpoint, now, expected) in [
        ("a clock that is behind", "192.0.2.1:6443", 10, "set the clock"),
        ("a clock that is ahead, or an old cluster", "192.0.2.1:6443", 5_000, "certs renew"),
        ("another address", "192.0.2.2:6443", 1_500, "use one of these addresses"),
        ("nothing to be seen", "192.0.2.1:6443", 1_500, "proxy"),
    ] {
        let advice = tls_advice(Some(&leaf), endpoint, Timestamp::from_second(now).unwrap());
        assert!(advice.contains(expected), "{case}: {advice}");
    }
}

#[test]
fn clocks_are_compared_by_the_date_header() {
    let now: Timestamp = "2026-01-02T03:14:05Z".parse().unwrap();
    let date = "Fri, 02 Jan 2026 03:04:05 GMT";
    let found = skew(date, now).unwrap();
    assert_eq!(found.as_secs(), 600);
    assert!(skew_warning(found).unwrap().contains("600 s ahead of"));
    assert!(skew_warning(-found).unwrap().contains("600 s behind"));
    assert_eq!(skew_warning(jiff::SignedDuration::from_secs(3)), None);
    assert_eq!(skew("yesterday", now), None);
}
