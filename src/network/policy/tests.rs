//! The rules of the API's documentation (`NetworkPolicySpec`), one row each.

use serde_json::{Value, json};

use super::*;

/// A pod `namespace/name` with an address, labels `app: name`, and the ports `http` and `dns`.
fn pod(namespace: &str, name: &str, ip: &str) -> PolicyPod {
    let object = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "name": "http"}, {"containerPort": 53, "name": "dns", "protocol": "UDP"}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    });
    PolicyPod::of(&serde_json::from_value(object).expect("a pod")).expect("it runs")
}

fn policy(name: &str, spec: Value) -> PolicySpec {
    let object = json!({"metadata": {"name": name, "namespace": "x"}, "spec": spec});
    PolicySpec::of(&serde_json::from_value(object).expect("a policy"))
}

fn table(policies: Vec<PolicySpec>) -> PolicyTable {
    let table = PolicyTable::default();
    table.expect();
    let namespace = |name: &str| (name.to_owned(), Labels::from([("ns".to_owned(), name.to_owned())]));
    table.take(PolicyNews::Namespaces(["x", "y"].map(namespace).into()));
    table.take(PolicyNews::Pods(vec![
        pod("x", "a", "10.1.0.1"),
        pod("x", "b", "10.1.0.2"),
        pod("y", "a", "10.2.0.1"),
        pod("y", "b", "10.2.0.2"),
    ]));
    assert_eq!(table.take(PolicyNews::Policies(policies)), Some(Standing::InForce));
    table
}

/// Whether `x/a` talks with a peer, written `<10.1.0.2 TCP 80` for what comes in and `>` for what goes out.
fn allowed(table: &PolicyTable, flow: &str) -> bool {
    let (way, rest) = flow.split_at(1);
    let words: Vec<&str> = rest.split(' ').collect();
    let subject = PodRef { namespace: "x".to_owned(), name: "a".to_owned() };
    table.allows(&Flow {
        direction: if way == "<" { Direction::Ingress } else { Direction::Egress },
        subject: &subject,
        peer: words[0].parse().expect("an address"),
        protocol: if words[1] == "TCP" { PortProtocol::Tcp } else { PortProtocol::Udp },
        port: words[2].parse().expect("a port"),
    })
}

const IN_XB: &str = "<10.1.0.2 TCP 80";
const IN_YA: &str = "<10.2.0.1 TCP 80";
const IN_YB: &str = "<10.2.0.2 TCP 80";
const IN_WORLD: &str = "<203.0.113.5 TCP 80";
const OUT_XB: &str = ">10.1.0.2 TCP 80";
const OUT_WORLD: &str = ">203.0.113.5 TCP 443";
const OUT_DNS: &str = ">10.2.0.1 UDP 53";

#[test]
fn connections_are_judged_as_the_api_says() {
    let all = [IN_XB, IN_YA, IN_YB, IN_WORLD, OUT_XB, OUT_WORLD, OUT_DNS];
    let ingress = |rules: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules});
    let egress = |rules: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules});
    let from = |peer: Value| ingress(json!([{"from": [peer]}]));
    let to_port = |port: Value| ingress(json!([{"ports": [port]}]));
    let out = [OUT_XB, OUT_WORLD, OUT_DNS];
    let with = |mine: &[&'static str]| mine.iter().copied().chain(out).collect::<Vec<_>>();
    for (case, specs, expected) in [
        ("no policy", vec![], all.to_vec()),
        ("a policy of other pods", vec![json!({"podSelector": {"matchLabels": {"app": "b"}}})], all.to_vec()),
        ("deny all that comes in", vec![json!({"podSelector": {}})], out.to_vec()),
        ("the same by an empty list", vec![ingress(json!([]))], out.to_vec()),
        ("allow all that comes in", vec![ingress(json!([{}]))], all.to_vec()),
        ("an empty list of peers is everybody", vec![ingress(json!([{"from": [], "ports": []}]))], all.to_vec()),
        ("deny all that goes out", vec![egress(json!([]))], vec![IN_XB, IN_YA, IN_YB, IN_WORLD]),
        ("deny both", vec![json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})], vec![]),
        ("pods of the policy's namespace", vec![from(json!({"podSelector": {}}))], with(&[IN_XB])),
        ("some of them", vec![from(json!({"podSelector": {"matchLabels": {"app": "a"}}}))], with(&[])),
        ("all pods of all namespaces", vec![from(json!({"namespaceSelector": {}}))], with(&[IN_XB, IN_YA, IN_YB])),
        ("a namespace", vec![from(json!({"namespaceSelector": {"matchLabels": {"ns": "y"}}}))], with(&[IN_YA, IN_YB])),
        (
            "pods of a namespace: both selectors of one peer",
            vec![from(
                json!({"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"app": "a"}}}),
            )],
            with(&[IN_YA]),
        ),
        (
            "two peers: either",
            vec![ingress(
                json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}, {"podSelector": {"matchLabels": {"app": "b"}}}]}]),
            )],
            with(&[IN_XB, IN_YA, IN_YB]),
        ),
        (
            "not in",
            vec![from(
                json!({"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["y"]}]}}),
            )],
            with(&[IN_XB]),
        ),
        (
            "an operator of tomorrow allows nobody",
            vec![from(json!({"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "Like"}]}}))],
            with(&[]),
        ),
        ("a block", vec![from(json!({"ipBlock": {"cidr": "203.0.113.0/24"}}))], with(&[IN_WORLD])),
        (
            "a block without some",
            vec![from(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.2.0.0/30", "203.0.113.5/32"]}}))],
            with(&[IN_XB]),
        ),
        ("a block of the other family", vec![from(json!({"ipBlock": {"cidr": "::/0"}}))], with(&[])),
        ("a port", vec![to_port(json!({"port": 80}))], with(&[IN_XB, IN_YA, IN_YB, IN_WORLD])),
        ("another port", vec![to_port(json!({"port": 81}))], with(&[])),
        ("the same port of another transport", vec![to_port(json!({"port": 80, "protocol": "UDP"}))], with(&[])),
        (
            "every port of a transport",
            vec![to_port(json!({"protocol": "TCP"}))],
            with(&[IN_XB, IN_YA, IN_YB, IN_WORLD]),
        ),
        ("a port of the pod by name", vec![to_port(json!({"port": "http"}))], with(&[IN_XB, IN_YA, IN_YB, IN_WORLD])),
        ("a name it does not have", vec![to_port(json!({"port": "https"}))], with(&[])),
        ("a name of another transport", vec![to_port(json!({"port": "http", "protocol": "UDP"}))], with(&[])),
        ("a range of ports", vec![to_port(json!({"port": 79, "endPort": 90}))], with(&[IN_XB, IN_YA, IN_YB, IN_WORLD])),
        ("a range beside it", vec![to_port(json!({"port": 81, "endPort": 90}))], with(&[])),
        (
            "peer and port both have to match",
            vec![ingress(json!([{"from": [{"podSelector": {}}], "ports": [{"port": 81}]}]))],
            with(&[]),
        ),
        (
            "rules add up",
            vec![ingress(
                json!([{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}, {"from": [{"ipBlock": {"cidr": "203.0.113.5/32"}}]}]),
            )],
            with(&[IN_XB, IN_WORLD]),
        ),
        ("policies add up", vec![json!({"podSelector": {}}), from(json!({"podSelector": {}}))], with(&[IN_XB])),
        (
            "what goes out, to a pod's port by name",
            vec![egress(json!([{"to": [{"namespaceSelector": {}}], "ports": [{"port": "dns", "protocol": "UDP"}]}]))],
            vec![IN_XB, IN_YA, IN_YB, IN_WORLD, OUT_DNS],
        ),
        (
            "what goes out, to a block",
            vec![egress(json!([{"to": [{"ipBlock": {"cidr": "203.0.0.0/8"}}]}]))],
            vec![IN_XB, IN_YA, IN_YB, IN_WORLD, OUT_WORLD],
        ),
        (
            "a port by name out of the cluster is no pod's",
            vec![egress(json!([{"ports": [{"port": "http"}]}]))],
            vec![IN_XB, IN_YA, IN_YB, IN_WORLD, OUT_XB],
        ),
    ] {
        let policies = specs.into_iter().enumerate().map(|(n, spec)| policy(&n.to_string(), spec));
        let table = table(policies.collect());
        let got: Vec<&str> = all.into_iter().filter(|flow| allowed(&table, flow)).collect();
        let expected: Vec<&str> = all.into_iter().filter(|flow| expected.contains(flow)).collect();
        assert_eq!(got, expected, "{case}");
    }
}

#[test]
fn every_change_holds_at_once() {
    let deny = || policy("deny", json!({"podSelector": {}}));
    let table = table(vec![]);
    assert!(allowed(&table, IN_XB));
    table.take(PolicyNews::Policy(deny()));
    assert!(!allowed(&table, IN_XB));
    let own =
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "one"}}}]}]});
    table.take(PolicyNews::Policy(policy("team", own)));
    assert!(!allowed(&table, IN_YA));
    table.take(PolicyNews::Namespace("y".to_owned(), Labels::from([("team".to_owned(), "one".to_owned())])));
    assert!(allowed(&table, IN_YA));
    let gone = PodRef { namespace: "y".to_owned(), name: "a".to_owned() };
    table.take(PolicyNews::PodGone(gone));
    assert!(!allowed(&table, IN_YA), "its address is nobody's");
    table.take(PolicyNews::Pod(pod("y", "c", "10.2.0.1")));
    assert!(allowed(&table, IN_YA), "and another's later");
    table.take(PolicyNews::NamespaceGone("y".to_owned()));
    assert!(!allowed(&table, IN_YA));
    table.take(PolicyNews::PolicyGone("x".to_owned(), "deny".to_owned()));
    table.take(PolicyNews::PolicyGone("x".to_owned(), "team".to_owned()));
    assert!(allowed(&table, IN_YA));
    table.take(PolicyNews::Policies(vec![deny()]));
    assert!(!allowed(&table, IN_XB));
    // The pods were listed again without the one in question: it is taken as selected, and no rule is for it.
    table.take(PolicyNews::Policies(vec![policy("all", json!({"podSelector": {}, "ingress": [{}]}))]));
    assert!(allowed(&table, IN_XB));
    table.take(PolicyNews::Pods(vec![]));
    assert!(!allowed(&table, IN_XB));
}

#[test]
fn what_was_not_read_is_never_taken_as_allow() {
    let table = PolicyTable::default();
    assert!(allowed(&table, IN_XB), "no cluster, no policies");
    table.expect();
    assert!(!allowed(&table, IN_XB) && !allowed(&table, OUT_WORLD));
    assert_eq!(table.take(PolicyNews::Policies(vec![])), None);
    assert_eq!(table.take(PolicyNews::Namespaces(vec![])), None);
    assert!(!allowed(&table, IN_XB), "pods were not read yet");
    assert_eq!(table.take(PolicyNews::Pods(vec![])), Some(Standing::InForce));
    assert!(allowed(&table, IN_XB));
    table.take(PolicyNews::Policy(policy("deny", json!({"podSelector": {}}))));
    assert_eq!(table.take(PolicyNews::Forbidden("no".to_owned())), None);
    assert!(!allowed(&table, IN_XB), "what was read once stays");

    let without_rights = PolicyTable::default();
    without_rights.expect();
    assert_eq!(without_rights.take(PolicyNews::Forbidden("no".to_owned())), Some(Standing::Off));
    assert!(allowed(&without_rights, IN_XB), "a node that may not know of policies is one without them, and says so");
    for news in [PolicyNews::Policies(vec![]), PolicyNews::Namespaces(vec![]), PolicyNews::Pods(vec![])] {
        without_rights.take(news);
    }
    assert_eq!(without_rights.standing(), Standing::InForce, "rights that come later are used");
}

#[test]
fn what_an_earlier_run_knew_holds_until_more_is_known() {
    let before = table(vec![policy("deny", json!({"podSelector": {}}))]);
    let stored = serde_json::to_string(&before.snapshot().expect("it is in force")).expect("plain data");
    let table = PolicyTable::default();
    table.expect();
    assert_eq!(table.snapshot(), None);
    table.restore(serde_json::from_str(&stored).expect("it was stored"));
    assert_eq!(table.standing(), Standing::InForce);
    assert!(!allowed(&table, IN_XB) && allowed(&table, OUT_XB));
    assert_eq!(table.snapshot().map(|known| known.pods.len()), Some(4));
}

#[test]
fn the_other_sides_policy_is_asked_where_the_other_side_is_known() {
    let table = table(vec![policy("own", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}))]);
    let ip = |text: &str| text.parse::<IpAddr>().expect(text);
    let tcp = PortProtocol::Tcp;
    assert!(table.lets_in(ip("10.1.0.1"), ip("10.1.0.2"), tcp, 80));
    assert!(!table.lets_in(ip("10.2.0.1"), ip("10.1.0.2"), tcp, 80));
    assert!(table.lets_in(ip("10.2.0.1"), ip("10.2.0.2"), tcp, 80), "its namespace has no policy");
    assert!(table.lets_in(ip("10.2.0.1"), ip("203.0.113.5"), tcp, 80), "the world has none");
}
