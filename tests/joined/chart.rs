//! A node with what the Helm chart renders for it, and with no right but the chart's, joins and runs a pod.

use std::fs;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, ResourceExt};

use crate::charts::render_release;
use crate::cluster::{Cluster, Node, NodeOptions, block_on};
use crate::support::eventually;

#[test]
fn the_configuration_and_the_rights_of_the_chart_make_a_node() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("the API server's address and authority are needed");
        return;
    };
    let space = cluster.space("chart");
    let node = Node::prepare_without_rights(
        cluster,
        space.name(),
        NodeOptions { images: &["sleeper"], ..NodeOptions::default() },
    );
    let (prefix, host) = node.name().split_once('-').expect("a name of two parts");
    let args = [
        "--namespace",
        space.name(),
        "--set",
        &format!("node.namePrefix={prefix}-,node.rootDir={}", node.root().display()),
        "--set",
        &format!("node.labels.wasilet\\.dev/test={},apiServer={}", space.name(), plane.server()),
        "--set",
        &format!("rbac.nodeProxier.users={{system:node:{}}}", node.name()),
        // However full the machine's disk is, as in other tests' nodes.
        "--set",
        "kubeletConfiguration.evictionHard.memory\\.available=50Mi,kubeletConfiguration.imageGCHighThresholdPercent=100",
        "--set-file",
        &format!("kubelet.clientCA={}", plane.pki().path("ca.crt")),
    ];
    let release = render_release(space.name(), &args.map(str::to_owned));

    // Everything but the pod itself, whose part this machine plays: no kubelet is here to start it.
    for object in release.0.iter().filter(|object| object["apiVersion"] != "apps/v1") {
        space.apply(&object.to_string());
    }
    let mounted = cluster.dir().join(format!("{}-mounted", node.name()));
    let place = |text: &str| text.replace("/etc/wasilet", &mounted.to_string_lossy());
    let (pod, container) = release.pod();
    let data = &release.one("ConfigMap")["data"];
    let account = pod["serviceAccountName"].as_str().expect("an account");
    let authority = fs::read_to_string(plane.pki().path("ca.crt")).expect("a file");
    for (file, text) in [
        ("config/config.yaml", data["config.yaml"].as_str().expect("a file").to_owned()),
        ("config/client-ca.crt", data["client-ca.crt"].as_str().expect("a file").to_owned()),
        ("bootstrap/kubeconfig", data["kubeconfig"].as_str().expect("a file").to_owned()),
        ("bootstrap/ca.crt", authority),
        ("bootstrap/token", space.ok(&["create", "token", account])),
    ] {
        let path = mounted.join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, place(&text)).expect("a file");
    }
    let args = container["args"].as_array().expect("arguments").iter().filter_map(|arg| arg.as_str());
    let args: Vec<String> =
        args.map(|arg| place(arg).replace("$(HOST_NAME)", host).replace("$(HOST_IP)", node.address())).collect();
    node.run_with(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let object = node.wait_ready();
    let port = object.status.and_then(|status| status.daemon_endpoints?.kubelet_endpoint).map(|endpoint| endpoint.port);
    assert_eq!(port.map(i64::from), container["ports"][0]["hostPort"].as_i64());

    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let user = format!("system:node:{}", node.name());
    let request = eventually("the node asks for a serving certificate", || {
        let all = block_on(requests.list(&kube::api::ListParams::default())).map_err(|error| error.to_string())?;
        let ours = all.into_iter().find(|request| {
            let spec = &request.spec;
            spec.username.as_deref() == Some(&user) && spec.signer_name == "kubernetes.io/kubelet-serving"
        });
        ours.ok_or_else(|| node.tail())
    });
    cluster.kubectl_ok(&["certificate", "approve", &request.name_any()]);
    space.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  runtimeClassName: wasi
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/sleeper:v1", args: [by the chart]}]
"#,
    );
    space.wait_ready("one");
    eventually("its logs come", || {
        let done = space.kubectl(&["logs", "one"]);
        if done.stdout.trim() == "by the chart" { Ok(()) } else { Err(done.stderr + &node.tail()) }
    });
}
