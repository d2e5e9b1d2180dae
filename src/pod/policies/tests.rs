//! What a NetworkPolicy lets through, by tables.

use super::*;
use serde_json::json;

fn policy(spec: serde_json::Value) -> PolicySpec {
    let object = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
    PolicySpec::of(&serde_json::from_value::<NetworkPolicy>(object).unwrap())
}

#[test]
fn policy_types_default_as_the_api_says() {
    let rule = json!([{}]);
    for (case, spec, ingress, egress) in [
        ("nothing said", json!({"podSelector": {}}), true, false),
        ("rules for what goes out", json!({"podSelector": {}, "egress": rule}), true, true),
        ("an empty list of them", json!({"podSelector": {}, "egress": []}), true, false),
        ("egress alone", json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": rule}), false, true),
        ("both", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}), true, true),
    ] {
        let read = policy(spec);
        assert_eq!((read.ingress.is_some(), read.egress.is_some()), (ingress, egress), "{case}");
    }
}

#[test]
fn what_is_not_understood_matches_nothing_and_is_named() {
    let peers = |peers: serde_json::Value| policy(json!({"podSelector": {}, "ingress": [{"from": peers}]}));
    for (case, read) in [
        ("a kind of peer of tomorrow", peers(json!([{}]))),
        ("no range", peers(json!([{"ipBlock": {"cidr": "10.0.0.0"}}]))),
        ("a prefix too long", peers(json!([{"ipBlock": {"cidr": "10.0.0.0/33"}}]))),
        ("an exception that is no range", peers(json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]))),
    ] {
        assert_eq!(read.ingress, Some(vec![Rule { peers: Some(vec![]), ports: None }]), "{case}");
        assert_eq!(read.problems.len(), 1, "{case}: {:?}", read.problems);
    }
    let ports = |port: serde_json::Value| policy(json!({"podSelector": {}, "ingress": [{"ports": [port]}]}));
    for (case, port, problems) in [
        ("SCTP, which nobody has here", json!({"protocol": "SCTP", "port": 1}), 0),
        ("a protocol of tomorrow", json!({"protocol": "QUIC"}), 1),
        ("a range of a name", json!({"port": "web", "endPort": 80}), 1),
        ("an end without a begin", json!({"endPort": 80}), 1),
        ("no port number", json!({"port": 70_000}), 1),
    ] {
        let read = ports(port);
        assert_eq!(read.ingress, Some(vec![Rule { peers: None, ports: Some(vec![]) }]), "{case}");
        assert_eq!(read.problems.len(), problems, "{case}: {:?}", read.problems);
    }
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
    let read = policy(json!({"podSelector": selector}));
    assert_eq!((read.subject.matches(&Labels::new()), read.problems.len()), (None, 1));
}

#[test]
fn selectors_select_as_the_api_says() {
    let selector = |json: serde_json::Value| Selector::of(&serde_json::from_value(json).unwrap());
    let one = |key: &str, operator: &str, values: &[&str]| {
        selector(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
    };
    let labels: Labels = [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    for (case, selector, expected) in [
        ("an empty one selects all", selector(json!({})), true),
        ("a label", selector(json!({"matchLabels": {"app": "web"}})), true),
        ("all labels have to match", selector(json!({"matchLabels": {"app": "web", "tier": "back"}})), false),
        ("In", one("app", "In", &["db", "web"]), true),
        ("In without it", one("zone", "In", &["a"]), false),
        ("NotIn", one("app", "NotIn", &["web"]), false),
        ("NotIn without it", one("zone", "NotIn", &["a"]), true),
        ("Exists", one("tier", "Exists", &[]), true),
        ("DoesNotExist", one("tier", "DoesNotExist", &[]), false),
    ] {
        assert_eq!(selector.matches(&labels), Some(expected), "{case}");
    }
}

#[test]
fn blocks_contain_their_addresses() {
    for (block, ip, expected) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("10.1.2.3/16", "10.1.9.9", true),
        ("0.0.0.0/0", "203.0.113.9", true),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("2001:db8::/32", "2001:db8:1::1", true),
        ("2001:db8::/32", "2001:db9::1", false),
        ("10.0.0.1/32", "10.0.0.1", true),
    ] {
        assert_eq!(Block::parse(block).unwrap().contains(ip.parse().unwrap()), expected, "{block} {ip}");
    }
}

#[test]
fn a_pod_is_its_addresses_labels_and_named_ports() {
    let pod = |phase: &str, host: bool| {
        let object = json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"hostNetwork": host, "containers": [{"name": "c", "ports": [
                {"containerPort": 80, "name": "http"}, {"containerPort": 53, "name": "dns", "protocol": "UDP"},
                {"containerPort": 81}, {"containerPort": 9, "name": "s", "protocol": "SCTP"}]}]},
            "status": {"phase": phase, "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}]},
        });
        PolicyPod::of(&serde_json::from_value(object).unwrap())
    };
    let running = pod("Running", false).unwrap();
    assert_eq!(running.ips.len(), 2);
    let ports = [("http".to_owned(), PortProtocol::Tcp, 80), ("dns".to_owned(), PortProtocol::Udp, 53)];
    assert_eq!(running.ports, ports);
    assert_eq!(pod("Running", true).unwrap().ips, Vec::<IpAddr>::new());
    assert_eq!(pod("Succeeded", false), None);
}
