//! Policies as sockets meet them.

use serde_json::json;

use super::*;
use crate::pod::policies::{Labels, PolicyNews, PolicyPod, PolicySpec};
use k8s_openapi::api::networking::v1::NetworkPolicy;

fn policy(name: &str, spec: serde_json::Value) -> PolicyNews {
    let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    let policy: NetworkPolicy = serde_json::from_value(object).expect("a policy");
    PolicyNews::Policy(PolicySpec::of(&policy))
}

/// Tells a node of its pods, labelled `app: NAME`, and of no policy.
fn begin(node: &NodeNetwork, pods: &[&Arc<PodNetwork>]) {
    let known = pods.iter().map(|pod| PolicyPod {
        pod: pod.name().clone(),
        ips: pod.ips(),
        labels: Labels::from([("app".to_owned(), pod.name().name.clone())]),
        ports: Vec::new(),
    });
    node.policies().expect();
    node.policies().take(PolicyNews::Pods(known.collect()));
    node.policies().take(PolicyNews::Namespaces(vec![("default".to_owned(), Labels::new())]));
    node.policies().take(PolicyNews::Policies(Vec::new()));
}

#[tokio::test]
async fn a_connection_is_refused_by_whose_policy_forbids_it_and_lives_on_once_made() {
    let node = node(|_| {});
    let (server, friend, stranger) = (pod(&node, "server"), pod(&node, "friend"), pod(&node, "stranger"));
    begin(&node, &[&server, &friend, &stranger]);
    let (listening, _) = listener(&server, "0.0.0.0:7000");
    let to = SocketAddr::new(server.ips()[0], 7000);
    let before = tcp(&stranger);
    before.connect(to).await.expect("no policy");
    let accepted = listening.accept().await.expect("it arrived");

    let friends = json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 7000}]}]});
    node.policies().take(policy("friends", friends));
    assert_eq!(tcp(&stranger).connect(to).await, Err(Errno::ConnRefused));
    assert_eq!(tcp(&friend).connect(to).await, Ok(()));
    listening.accept().await.expect("the friend's");
    before.try_write(b"x").expect("it was made before");
    accepted.readable().await;
    assert_eq!(accepted.try_read(&mut [0; 4]), Ok(1));
    // The node itself, and what stays inside the pod.
    node.dial(to).await.expect("a probe");
    listening.accept().await.expect("the node's");
    let own = tcp(&server);
    own.connect(to).await.expect("its own");
    listening.accept().await.expect("its own");

    let stay = json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]});
    node.policies().take(policy("stay", stay));
    assert_eq!(tcp(&friend).connect(to).await, Err(Errno::Acces));
    assert_eq!(tcp(&friend).connect(addr("192.0.2.1:80")).await, Err(Errno::Acces));
    node.policies().take(PolicyNews::PolicyGone("default".to_owned(), "stay".to_owned()));
    assert_eq!(tcp(&friend).connect(to).await, Ok(()));
}

#[tokio::test]
async fn a_kernels_connection_is_judged_before_it_is_accepted() {
    let node = node(|_| {});
    let server = pod(&node, "server");
    begin(&node, &[&server]);
    let (listening, _) = listener(&server, "0.0.0.0:7001");
    let at = server.listeners()[0].node.expect("it is reachable");
    node.policies().take(policy("deny", json!({"podSelector": {}})));
    // With addresses of 127.0.0.0/8 whoever comes through the kernel is the node.
    let _from_node = tokio::net::TcpStream::connect(at).await.expect("connected");
    listening.accept().await.expect("the node is let in");
    assert!(!server.lets_in("203.0.113.7".parse().expect("address"), crate::pod::run::PortProtocol::Tcp, 7001));
}

#[tokio::test]
async fn datagrams_need_leave_to_begin_and_none_to_be_answered() {
    let node = node(|_| {});
    let (server, client) = (pod(&node, "server"), pod(&node, "client"));
    begin(&node, &[&server, &client]);
    // The server may send nothing of its own, the client is sent nothing that it did not ask for.
    node.policies()
        .take(policy("quiet", json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Egress"]})));
    node.policies().take(policy("closed", json!({"podSelector": {"matchLabels": {"app": "client"}}})));
    let (one, two) = (udp(&server), udp(&client));
    one.bind(addr("0.0.0.0:7002")).expect("bound");
    two.bind(addr("0.0.0.0:7003")).expect("bound");
    let (to_server, to_client) = (SocketAddr::new(server.ips()[0], 7002), SocketAddr::new(client.ips()[0], 7003));
    assert_eq!(one.try_send_to(b"x", Some(to_client)), Err(Errno::Acces));
    assert_eq!(two.try_send_to(b"ping", Some(to_server)), Ok(4));
    let (data, from) = one.try_recv().expect("it came");
    assert_eq!((&data[..], from), (&b"ping"[..], to_client));
    assert_eq!(one.try_send_to(b"pong", Some(from)), Ok(4), "an answer");
    assert_eq!(two.try_recv().map(|(data, _)| data.to_vec()), Ok(b"pong".to_vec()));
    node.policies().take(PolicyNews::PolicyGone("default".to_owned(), "quiet".to_owned()));
    let other = udp(&server);
    assert_eq!(other.try_send_to(b"x", Some(to_client)), Err(Errno::Perm), "the client's policy");
}

#[tokio::test]
async fn nobody_talks_before_policies_were_read_but_the_node() {
    let node = node(|_| {});
    let (server, client) = (pod(&node, "server"), pod(&node, "client"));
    node.policies().expect();
    let (listening, _) = listener(&server, "0.0.0.0:7004");
    let to = SocketAddr::new(server.ips()[0], 7004);
    assert_eq!(tcp(&client).connect(to).await, Err(Errno::Acces));
    node.dial(to).await.expect("a probe");
    listening.accept().await.expect("the node's");
    begin(&node, &[&server, &client]);
    node.policies_decided().await;
    assert_eq!(tcp(&client).connect(to).await, Ok(()));
}
