//! The cases of the kubelet's `dns_test.go` and `kubelet_pods_test.go`.

use super::*;
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    let mut spec = spec;
    spec["containers"] = json!([]);
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).unwrap()
}

fn node() -> NodeDns {
    let host = DnsConfig {
        nameservers: vec!["9.9.9.9".parse().unwrap()],
        searches: vec!["lan".into()],
        options: vec!["edns0".into()],
    };
    NodeDns {
        cluster_servers: vec!["10.96.0.10".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
        host,
        membership: Membership::Joined,
    }
}

fn line(dns: &DnsConfig) -> String {
    let servers: Vec<_> = dns.nameservers.iter().map(ToString::to_string).collect();
    format!("{} {} {}", servers.join(","), dns.searches.join(","), dns.options.join(","))
}

#[test]
fn dns_follows_the_policy() {
    let cluster = "10.96.0.10 ns.svc.cluster.local,svc.cluster.local,cluster.local,lan ndots:5";
    let custom = json!({"nameservers": ["10.0.0.11"], "searches": ["my.domain"], "options": [{"name": "ndots", "value": "3"}, {"name": "debug"}]});
    let merged =
        "10.96.0.10,10.0.0.11 ns.svc.cluster.local,svc.cluster.local,cluster.local,lan,my.domain ndots:3,debug";
    for (case, spec, expected) in [
        ("a pod of a cluster", json!({}), cluster),
        ("the node's own", json!({"dnsPolicy": "Default"}), "9.9.9.9 lan edns0"),
        ("a host-network pod", json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), "9.9.9.9 lan edns0"),
        ("a host-network pod by Default", json!({"dnsPolicy": "Default", "hostNetwork": true}), "9.9.9.9 lan edns0"),
        (
            "a host-network pod that wants the cluster",
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            cluster,
        ),
        ("the same without the host's network", json!({"dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
        ("a policy of tomorrow", json!({"dnsPolicy": "invalidPolicy"}), cluster),
        ("None without settings", json!({"dnsPolicy": "None"}), "  "),
        (
            "its own",
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["203.0.113.1"], "searches": ["my.domain", "second.domain"], "options": [{"name": "ndots", "value": "3"}, {"name": "debug"}]}}),
            "203.0.113.1 my.domain,second.domain ndots:3,debug",
        ),
        ("merged with the cluster's", json!({"dnsConfig": custom}), merged),
        (
            "merged with the cluster's, on the host's network",
            json!({"dnsConfig": custom, "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            merged,
        ),
        (
            "merged with the node's",
            json!({"dnsConfig": custom, "dnsPolicy": "Default"}),
            "9.9.9.9,10.0.0.11 lan,my.domain edns0,ndots:3,debug",
        ),
        (
            "what is there twice is there once",
            json!({"dnsConfig": {"nameservers": ["10.96.0.10"], "searches": ["lan", "x"], "options": [{"name": "ndots", "value": ""}]}}),
            "10.96.0.10 ns.svc.cluster.local,svc.cluster.local,cluster.local,lan,x ndots",
        ),
    ] {
        let dns = of_pod(&pod(spec), &node());
        assert_eq!(line(&dns.config), expected, "{case}");
        assert_eq!(dns.notices, [], "{case}");
    }
    let nameless = NodeDns { cluster_domain: String::new(), ..node() };
    assert_eq!(line(&of_pod(&pod(json!({})), &nameless).config), "10.96.0.10 lan ndots:5");
}

#[test]
fn a_cluster_without_dns_is_told_and_a_node_alone_is_not() {
    let alone = NodeDns { cluster_servers: vec![], membership: Membership::Standalone, ..node() };
    assert_eq!(of_pod(&pod(json!({})), &alone), PodDns { config: alone.host.clone(), notices: vec![] });
    let joined = NodeDns { membership: Membership::Joined, ..alone };
    let dns = of_pod(&pod(json!({})), &joined);
    assert_eq!(dns.config, joined.host);
    let [Notice::MissingClusterDns(message)] = &dns.notices[..] else { panic!("{:?}", dns.notices) };
    assert_eq!(
        message,
        "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy."
    );
    assert_eq!(of_pod(&pod(json!({"dnsPolicy": "Default"})), &joined).notices, []);
}

#[test]
fn limits_are_the_kubelets_and_are_told() {
    let many = |count: usize| (4..=count).map(|n| n.to_string()).collect::<Vec<String>>();
    let wide: Vec<String> =
        std::iter::once(128).chain([127; 15]).enumerate().map(|(n, len)| format!("{n:a>len$}")).collect();
    let three = ["testNS.svc.TEST", "svc.TEST", "TEST"];
    let with = |more: Vec<String>| three.iter().map(|&s| s.to_owned()).chain(more).collect::<Vec<_>>();
    let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
    for (case, searches, kept) in [
        ("3 search paths", with(vec![]), None),
        ("32 search paths", with(many(32)), None),
        ("33 search paths", with(many(33)), Some(with(many(32)))),
        ("2048 characters", wide.clone(), None),
        ("2050 characters", wide.iter().cloned().chain(["B".to_owned()]).collect(), Some(wide.clone())),
        (
            "a path of 256 characters",
            with(vec!["AAA".into(), "B".repeat(256), "BBB".into()]),
            Some(with(owned(&["AAA", "BBB"]))),
        ),
    ] {
        let dns = of_pod(&pod(json!({"dnsPolicy": "None", "dnsConfig": {"searches": searches}})), &node());
        let expected: Vec<Notice> = kept
            .iter()
            .map(|kept| {
                Notice::Forming(format!(
                    "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                    kept.join(" ")
                ))
            })
            .collect();
        assert_eq!(dns.config.searches, kept.unwrap_or(searches), "{case}");
        assert_eq!(dns.notices, expected, "{case}");
    }
    let servers = ["127.0.0.1", "10.0.0.10", "8.8.8.8", "1.2.3.4"];
    let dns = |count: usize| {
        of_pod(&pod(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": servers[..count]}})), &node())
    };
    assert_eq!((dns(3).config.nameservers.len(), dns(3).notices), (3, vec![]));
    assert_eq!(dns(4).config, dns(3).config);
    assert_eq!(
        dns(4).notices,
        [Notice::Forming(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 127.0.0.1 10.0.0.10 8.8.8.8"
                .to_owned()
        )]
    );
}

#[test]
fn host_names_are_the_kubelets() {
    let long = "a".repeat(70);
    for (case, spec, hostname, in_hosts) in [
        ("the pod's name", json!({}), "web", "web"),
        ("a given one", json!({"hostname": "given"}), "given", "given"),
        (
            "a subdomain is in the hosts file",
            json!({"hostname": "given", "subdomain": "sub"}),
            "given",
            "given.sub.ns.svc.cluster.local given",
        ),
        ("a subdomain with the pod's name", json!({"subdomain": "sub"}), "web", "web.sub.ns.svc.cluster.local web"),
        (
            "the full name as the host name",
            json!({"subdomain": "sub", "setHostnameAsFQDN": true}),
            "web.sub.ns.svc.cluster.local",
            "web.sub.ns.svc.cluster.local web",
        ),
        ("no full name, nothing to set", json!({"setHostnameAsFQDN": true}), "web", "web"),
        ("an override", json!({"hostnameOverride": "a.b", "subdomain": "sub"}), "a.b", "a.b"),
        ("the node's", json!({"hostNetwork": true, "hostname": "given"}), "node-1", "node-1"),
        ("a long one is cut", json!({"hostname": long}), &long[..63], &long[..63]),
    ] {
        let names = names(&pod(spec), "node-1", "cluster.local").expect(case);
        assert_eq!((names.hostname.as_str(), names.in_hosts.join(" ").as_str()), (hostname, in_hosts), "{case}");
    }
    let mut tail = pod(json!({}));
    tail.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
    assert_eq!(names(&tail, "", "").unwrap().hostname, "a".repeat(62));
    let error = names(
        &pod(json!({"hostname": "a".repeat(50), "subdomain": "sub", "setHostnameAsFQDN": true})),
        "",
        "cluster.local",
    );
    let fqdn = format!("{}.sub.ns.svc.cluster.local", "a".repeat(50));
    assert_eq!(
        error.unwrap_err().to_string(),
        format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {} characters requested)",
            fqdn.len()
        )
    );
}
