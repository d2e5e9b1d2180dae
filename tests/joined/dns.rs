//! Names: what pods find by CoreDNS, what their files say, and what is told about settings that exceed limits.

use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, NodeOptions, Space};
use crate::support::pod_ip;

/// A pod that waits to be asked, with more lines of its spec.
fn pod(name: &str, more: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{wasilet.dev/test: SPACE}}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: test/tools:v1}}]
{more}
"
    )
}

/// A pod that echoes on a port by TCP and UDP.
fn server(name: &str, more: &str) -> String {
    pod(name, more).replace(
        "image: test/tools:v1",
        "image: test/net-check:v1, args: [serve, \"7000\"], ports: [{containerPort: 7000, name: echo}]",
    )
}

const NODE: NodeOptions<'static> = NodeOptions {
    images: &["net-check"],
    tools: &["sleeper", "name-check", "cat"],
    kubelet: "",
    node: "",
    labels: "",
    mounts: "",
};

/// The cluster with CoreDNS; `None`, and a word about it, in a cluster that is not ours.
fn cluster_with_dns() -> Option<&'static Cluster> {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("a DNS server of our own is needed");
        return None;
    };
    plane.dns(|manifest| drop(cluster.kubectl_with(&["apply", "--filename", "-"], manifest)));
    Some(cluster)
}

/// What `name-check` says in a pod; asked again until it is as `wanted` says: what the API server knows a moment ago,
/// CoreDNS knows a moment later.
fn eventually(space: &Space<'_>, pod: &str, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
    crate::support::eventually(&format!("{pod}: name-check {args:?}"), || {
        let mut all = vec!["exec", pod, "--", "name-check"];
        all.extend(args);
        let said = space.kubectl(&all);
        let text = said.stdout.trim().to_owned();
        if wanted(&text) { Ok(text) } else { Err(format!("{text}{}", said.stderr)) }
    })
}

fn file(space: &Space<'_>, pod: &str, path: &str) -> String {
    space.ok(&["exec", pod, "--", "cat", path])
}

#[test]
fn pods_find_services_pods_and_the_world_by_name() {
    let Some(cluster) = cluster_with_dns() else { return };
    let space = cluster.space("names");
    // The server itself: whether or not Services are routed, a reachable server is asked.
    let kubelet = format!("clusterDNS: [{}]", crate::cluster::HOST);
    let _node = space.node(NodeOptions { kubelet: &kubelet, ..NODE });
    let name = space.name().to_owned();
    space.apply(&format!(
        "{}{}{}
---
apiVersion: v1
kind: Service
metadata: {{name: plain}}
spec: {{selector: {{app: web-0}}, ports: [{{name: echo, port: 80, targetPort: 7000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: outside}}
spec: {{type: ExternalName, externalName: outside.example}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: None, selector: {{app: web-0}}, ports: [{{name: echo, port: 7000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: many}}
spec: {{clusterIP: None, ports: [{{name: echo, port: 7000}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: many-1, labels: {{kubernetes.io/service-name: many}}}}
addressType: IPv4
endpoints: [{}]
ports: [{{name: echo, port: 7000}}]
",
        pod("asker", ""),
        server("web-0", "  hostname: web-0\n  subdomain: web"),
        pod("full", "  subdomain: web\n  setHostnameAsFQDN: true"),
        (1..=100).map(|n| format!("{{addresses: [203.0.113.{n}]}}")).collect::<Vec<_>>().join(", "),
    ));
    let web = pod_ip(&space.wait_ready("web-0")).clone();
    space.wait_ready("asker");
    let cluster_ip = space.ok(&["get", "service", "plain", "--output", "jsonpath={.spec.clusterIP}"]);
    let ask = |args: &[&str], expected: &str| eventually(&space, "asker", args, |text| text == expected);

    ask(&["lookup", "plain"], &cluster_ip);
    ask(&["lookup", &format!("plain.{name}")], &cluster_ip);
    ask(&["lookup", &format!("plain.{name}.svc.cluster.local.")], &cluster_ip);
    ask(&["lookup", "kubernetes.default"], "10.96.0.1");
    ask(&["lookup", "outside"], "192.0.2.55");
    ask(&["lookup", "outside.example"], "192.0.2.55");
    // A StatefulSet's pods are found so.
    ask(&["lookup", "web-0.web"], &web);
    ask(&["lookup", "web"], &web);
    let many = eventually(&space, "asker", &["lookup", "many"], |text| text.lines().count() == 100);
    assert!(many.contains("203.0.113.100"), "an answer that does not fit a datagram comes by TCP: {many}");
    let none = space.kubectl(&["exec", "asker", "--", "name-check", "lookup", "nowhere"]);
    assert_eq!(none.code, Some(1), "{none:?}");
    ask(&["tcp", "web-0.web", "7000"], "connected");

    // A guest's own packets.
    let srv = format!("0 100 7000 web-0.web.{name}.svc.cluster.local.");
    ask(&["query", "SRV", &format!("_echo._tcp.web.{name}.svc.cluster.local")], &srv);
    ask(&["query", "A", &format!("plain.{name}.svc.cluster.local")], &cluster_ip);
    ask(&["query", "PTR", &cluster_ip], &format!("plain.{name}.svc.cluster.local."));
    // It is an endpoint of two Services, and has a name in each.
    let web_0 = format!("web-0.web.{name}.svc.cluster.local.");
    eventually(&space, "asker", &["query", "PTR", &web], |text| text.lines().any(|line| line == web_0));
    ask(&["query", "CNAME", &format!("outside.{name}.svc.cluster.local")], "outside.example.");

    let hosts = file(&space, "full", "/etc/hosts");
    let full = pod_ip(&space.wait_ready("full"));
    let fqdn = format!("full.web.{name}.svc.cluster.local");
    assert!(hosts.contains(&format!("\n{full}\t{fqdn}\tfull\n")), "{hosts}");
    assert_eq!(file(&space, "full", "/etc/hostname"), format!("{fqdn}\n"));
    assert_eq!(
        file(&space, "asker", "/etc/resolv.conf").lines().last(),
        Some("options ndots:5"),
        "as the kubelet and containerd write it"
    );
}

#[test]
fn a_service_of_the_cluster_is_the_name_server() {
    let Some(cluster) = cluster_with_dns() else { return };
    let space = cluster.space("kubedns");
    let _node = space.node(NODE);
    space.apply(&pod("asker", ""));
    space.wait_ready("asker");
    let resolv = file(&space, "asker", "/etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.96.0.10\n"), "{resolv}");
    assert!(resolv.starts_with(&format!("search {}.svc.cluster.local svc.cluster.local cluster.local", space.name())));
    eventually(&space, "asker", &["lookup", "kubernetes.default"], |text| text == "10.96.0.1");
    eventually(&space, "asker", &["query", "A", "kubernetes.default.svc.cluster.local"], |text| text == "10.96.0.1");
}

#[test]
fn settings_of_a_pod_are_shown_and_their_limits_are_told() {
    let space = Cluster::shared().space("resolv");
    // Whatever the machine's own settings are.
    let _node = space.node(NodeOptions { kubelet: "resolvConf: \"\"", ..NODE });
    let searches: Vec<String> = (1..=32).map(|n| format!("d{n}.example")).collect();
    space.apply(&format!(
        "{}{}{}{}",
        pod("whole", "  hostname: one\n  subdomain: web\n  setHostnameAsFQDN: true"),
        pod(
            "own",
            "  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.9, 192.0.2.10], searches: [a.example, b.example], options: [{name: ndots, value: \"2\"}, {name: edns0}]}\n  hostAliases: [{ip: 192.0.2.7, hostnames: [foo, bar]}]"
        ),
        pod("wide", &format!("  dnsConfig: {{searches: [{}]}}", searches.join(", "))),
        pod("long", &format!("  hostname: {}\n  subdomain: web\n  setHostnameAsFQDN: true", "h".repeat(50))),
    ));
    space.wait_ready("whole");
    let fqdn = format!("one.web.{}.svc.cluster.local", space.name());
    assert_eq!(file(&space, "whole", "/etc/hostname").trim_end(), fqdn);
    assert!(file(&space, "whole", "/etc/hosts").contains(&format!("\t{fqdn}\tone\n")));
    space.wait_ready("own");
    assert_eq!(
        file(&space, "own", "/etc/resolv.conf"),
        "search a.example b.example\nnameserver 192.0.2.9\nnameserver 192.0.2.10\noptions ndots:2 edns0\n"
    );
    let hosts = file(&space, "own", "/etc/hosts");
    assert!(hosts.ends_with("\n# Entries added by HostAliases.\n192.0.2.7\tfoo\tbar\n"), "{hosts}");
    let wide: Pod = space.wait_ready("wide");
    assert!(wide.spec.is_some());
    let told = space.wait_event("wide", "DNSConfigForming", &["Search Line limits were exceeded"]);
    assert!(told.ends_with("d29.example"), "{told}");
    let shown = file(&space, "wide", "/etc/resolv.conf");
    assert!(shown.lines().any(|line| line.ends_with(" d29.example")), "{shown}");
    space.wait_event(
        "long",
        "FailedCreatePodSandBox",
        &["failed to construct FQDN", "is too long (64 characters is the max"],
    );
}
