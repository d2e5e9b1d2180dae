//! A machine joins by the line that kubeadm prints, gets its certificates by CSR, and becomes a node.

use std::fs;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::cluster::{Cluster, HOST, KEEP, LONG, Node, NodeOptions, binaries, block_on};
use crate::support::eventually;

#[test]
fn the_line_that_kubeadm_prints_joins_a_node() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("kubeadm needs the control plane's own files");
        return;
    };
    let space = cluster.space("join");
    let config = cluster.dir().join("kubeadm.yaml");
    fs::write(
        &config,
        format!(
            "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {HOST}, bindPort: 6443}}
nodeRegistration: {{criSocket: unix:///run/none.sock, name: control-plane}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {}
controlPlaneEndpoint: {HOST}:6443
certificatesDir: {}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
serverTLSBootstrap: true
{KEEP}
",
            version(),
            cluster.dir().join("pki").display(),
        ),
    )
    .expect("a file");
    let kubeadm = |args: &[&str]| {
        let mut command = cluster.command(&binaries().join("kubeadm").to_string_lossy());
        command.args(args).arg("--kubeconfig").arg(cluster.kubeconfig());
        let done = Cluster::run(command);
        assert_eq!(done.code, Some(0), "kubeadm {args:?}: {}{}\n{}", done.stdout, done.stderr, plane.tails());
        done.stdout
    };
    let config = config.to_string_lossy().into_owned();
    kubeadm(&["init", "phase", "upload-config", "kubelet", "--config", &config]);
    kubeadm(&["init", "phase", "bootstrap-token", "--config", &config]);
    let line = kubeadm(&["token", "create", "--print-join-command", "--config", &config]);
    let mut words = line.split_whitespace();
    assert_eq!((words.next(), words.next()), (Some("kubeadm"), Some("join")), "{line}");

    let node = Node::prepare(cluster, space.name(), NodeOptions { images: &["sleeper"], ..NodeOptions::default() });
    let join = |line: &[&str]| {
        let mut command = cluster.sandbox().command(node.at(), env!("CARGO_BIN_EXE_wasilet"));
        command.arg("--root-dir").arg(node.root()).arg("join").args(line).args(["--node-name", node.name()]);
        Cluster::run(command)
    };
    let words: Vec<&str> = words.collect();
    // A wrong hash is somebody else's cluster: nothing is sent there.
    let wrong: Vec<String> = words
        .iter()
        .map(|word| if word.starts_with("sha256:") { format!("sha256:{}", "0".repeat(64)) } else { (*word).to_owned() })
        .collect();
    let refused = join(&wrong.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(refused.code != Some(0) && !node.root().join("kubeconfig").exists(), "{refused:?}");
    let joined = join(&words);
    assert_eq!(joined.code, Some(0), "{}{}", joined.stdout, joined.stderr);
    assert!(joined.stdout.contains("This node has joined the cluster"), "{}", joined.stdout);
    // The same line with --run is the whole of it.
    let at_once = Node::prepare(cluster, space.name(), NodeOptions::default());
    fs::remove_file(at_once.root().with_file_name("kubeconfig")).expect("it has a kubeconfig");
    let mut line = vec!["join"];
    line.extend(&words);
    line.extend(["--node-name", at_once.name(), "--run"]);
    at_once.run_with(&line);
    let object = at_once.wait_ready();
    assert!(object.spec.and_then(|spec| spec.taints).is_some_and(|taints| !taints.is_empty()), "it has its taint");
    at_once.stop();
    let again = join(&words);
    assert!(again.code != Some(0), "a node that has joined is not joined over: {again:?}");

    let root = node.root();
    node.run_with(&[
        "run",
        "--config",
        &root.join("config.yaml").to_string_lossy(),
        "--node-name",
        node.name(),
        "--node-ip",
        node.address(),
        "--node-labels",
        &format!("wasilet.dev/test={}", space.name()),
    ]);
    node.wait_ready();

    // The serving certificate waits for an administrator, as a kubelet's does.
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let user = format!("system:node:{}", node.name());
    let request = eventually("the node asks for a serving certificate", || {
        let all = block_on(requests.list(&ListParams::default())).map_err(|error| error.to_string())?;
        let ours = all.into_iter().find(|csr| {
            csr.spec.username.as_deref() == Some(&user) && csr.spec.signer_name == "kubernetes.io/kubelet-serving"
        });
        ours.ok_or_else(|| node.tail())
    });
    cluster.kubectl_ok(&["certificate", "approve", &request.name_any()]);
    cluster.wait_for(&requests, &request.name_any(), LONG, "is signed", |csr| {
        csr.and_then(|csr| csr.status.as_ref()).is_some_and(|status| status.certificate.is_some())
    });
    // The node has its taint: kubeadm leaves an empty list of taints out of what it hands to machines that join.
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {nodeSelector: {wasilet.dev/test: SPACE}, tolerations: [{key: wasilet.dev/wasm, operator: Exists}], terminationGracePeriodSeconds: 1, containers: [{name: main, image: 'test/sleeper:v1', args: [joined]}]}}",
    );
    space.wait_ready("one");
    // The API server checks that certificate: logs come only when it is the signed one.
    eventually("logs come over the signed certificate", || {
        let done = space.kubectl(&["logs", "one"]);
        if done.stdout.trim() == "joined" { Ok(()) } else { Err(done.stderr + &node.tail()) }
    });
    // A second start finds its certificates and asks for none.
    node.stop();
    let before = block_on(requests.list(&ListParams::default())).expect("CSRs").items.len();
    node.run_with(&[
        "run",
        "--config",
        &root.join("config.yaml").to_string_lossy(),
        "--node-name",
        node.name(),
        "--node-ip",
        node.address(),
    ]);
    space.wait_pod("one", "was restarted", |pod| {
        crate::cluster::is_ready(pod) && crate::support::container(pod, "main").restart_count == 1
    });
    assert_eq!(block_on(requests.list(&ListParams::default())).expect("CSRs").items.len(), before);
}

/// The version of the control plane, as its go.mod pins it.
fn version() -> String {
    let go_mod = fs::read_to_string(crate::support::repository().join("tests/cluster/go.mod")).expect("go.mod");
    let line = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    line.expect("it requires k8s.io/kubernetes").trim().to_owned()
}
