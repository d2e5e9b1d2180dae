//! Where a node's credentials come from: a plugin, the pod it runs in, a certificate that has expired, a request that
//! somebody denied, a login that is throttled.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::volumes::{TOOLS, holder};
use crate::cluster::{Cluster, Node, NodeOptions, Space, block_on};
use crate::support::{eventually, eventually_within};

/// The token of a new service account with every right, as cloud plugins and pods have tokens of nobody the Node authorizer
/// knows.
fn powerful_token(space: &Space<'_>, name: &str) -> String {
    space.ok(&["create", "serviceaccount", name]);
    let binding = format!("{}-{name}", space.name());
    let account = format!("--serviceaccount={}:{name}", space.name());
    space.ok(&["create", "clusterrolebinding", &binding, "--clusterrole=cluster-admin", &account]);
    space.ok(&["create", "token", name]).trim().to_owned()
}

fn kubeconfig_of(node: &Node<'_>) -> PathBuf {
    node.root().with_file_name("kubeconfig")
}

fn run_a_pod(space: &Space<'_>, name: &str) {
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/sleeper:v1'}}]}}}}"
    ));
    space.wait_ready(name);
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

const SLEEPER: NodeOptions<'static> =
    NodeOptions { images: &["sleeper"], tools: &[], kubelet: "", node: "", labels: "", mounts: "" };

#[test]
fn a_plugin_of_the_kubeconfig_gives_the_credentials() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("the API server's address is needed");
        return;
    };
    let space = cluster.space("plugin");
    let node = Node::prepare(cluster, space.name(), SLEEPER);
    let plugin = kubeconfig_of(&node).with_file_name("plugin.sh");
    let token = powerful_token(&space, "plugin");
    write(
        &plugin,
        &format!(
            "#!/bin/sh\necho asked >>\"$0.asked\"\n[ \"$KUBERNETES_EXEC_INFO\" != '' ] && [ \"$AS\" = node ] && [ \"$1\" = get-token ] || exit 3\n\
             echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"{token}\"}}}}'\n"
        ),
        0o700,
    );
    let user = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {}, args: [get-token], env: [{{name: AS, value: node}}], interactiveMode: Never, provideClusterInfo: true}}",
        plugin.display()
    );
    let made = plane.pki().kubeconfig_of(&format!("{}-plugin", node.name()), &plane.server(), &user);
    fs::copy(made, kubeconfig_of(&node)).expect("a file");
    node.run();
    node.wait_ready();
    run_a_pod(&space, "one");
    let asked = fs::read_to_string(plugin.with_extension("sh.asked")).expect("it was asked");
    assert!(asked.lines().count() < 10, "its answer is kept: asked {} times", asked.lines().count());

    // One that fails is named, with what it said.
    node.stop();
    write(&plugin, "#!/bin/sh\necho 'no login here' >&2\nexit 7\n", 0o700);
    let mut command = cluster.sandbox().command(node.at(), env!("CARGO_BIN_EXE_wasilet"));
    command.arg("--root-dir").arg(node.root()).arg("run").arg("--kubeconfig").arg(kubeconfig_of(&node));
    let done = Cluster::run(command);
    assert!(done.code.is_some_and(|code| code != 0), "{done:?}");
    assert!(done.stderr.contains("plugin.sh"), "{}", done.stderr);
}

#[test]
fn a_pod_of_the_cluster_joins_by_its_service_account() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("the API server's address and authority are needed");
        return;
    };
    let space = cluster.space("incluster");
    let node = Node::prepare(cluster, space.name(), SLEEPER);
    let token = kubeconfig_of(&node).with_file_name("token");
    fs::write(&token, powerful_token(&space, "node")).expect("a file");
    let server = plane.server();
    let (host, port) = server.trim_start_matches("https://").rsplit_once(':').expect("HOST:PORT");
    let config = kubeconfig_of(&node).with_file_name("config.yaml");
    let text = fs::read_to_string(&config).expect("its configuration");
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("kubeconfig:")).collect();
    fs::write(&config, without.join("\n")).expect("a file");
    // What a kubelet gives a pod, where programs look for it: below a /run of this process's own.
    let script = r#"set -e; mount -t tmpfs none /run; d=/var/run/secrets/kubernetes.io/serviceaccount; mkdir -p $d
        cp "$1" $d/token; cp "$2" $d/ca.crt; printf %s "$3" >$d/namespace; shift 3; exec "$@""#;
    let args = [
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        &token.to_string_lossy(),
        &plane.pki().path("ca.crt"),
        space.name(),
        env!("CARGO_BIN_EXE_wasilet"),
        "--root-dir",
        &node.root().to_string_lossy(),
        "run",
        "--in-cluster",
        "--config",
        &config.to_string_lossy(),
        "--node-name",
        node.name(),
    ]
    .map(str::to_owned);
    let log = cluster.logs().join(format!("{}-in-cluster.log", node.name()));
    let env = [("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port)];
    let _process = cluster.sandbox().daemon(node.at(), &log, Path::new("unshare"), &args, &env);
    node.wait_ready();
    run_a_pod(&space, "one");
}

#[test]
fn an_expired_certificate_is_replaced_by_the_bootstrap_credentials() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("the API server's address is needed");
        return;
    };
    let space = cluster.space("expired");
    let node = Node::prepare(cluster, space.name(), SLEEPER);
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{}", node.name()));
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(2025, 1, 1));
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let dir = kubeconfig_of(&node).parent().expect("a directory").to_owned();
    write(&dir.join("old.pem"), &(certificate + &key.serialize_pem()), 0o600);
    let old = dir.join("old.pem").display().to_string();
    let user = format!("client-certificate: {old}\n    client-key: {old}");
    let made = plane.pki().kubeconfig_of(&format!("{}-expired", node.name()), &plane.server(), &user);
    fs::copy(made, kubeconfig_of(&node)).expect("a file");

    // Without other credentials it says so and does not run.
    node.run();
    eventually("the node says what has expired", || {
        let said = node.tail();
        let told = said.contains("expired") && said.contains("old.pem");
        if told { Ok(()) } else { Err(said) }
    });
    // With them it asks for a new one. Nobody's nodeclient right is asked of an administrator.
    let token = powerful_token(&space, "bootstrap");
    let bootstrap =
        plane.pki().kubeconfig_of(&format!("{}-bootstrap", node.name()), &plane.server(), &format!("token: {token}"));
    node.kill();
    node.run_with(&[
        "run",
        "--config",
        &dir.join("config.yaml").to_string_lossy(),
        "--bootstrap-kubeconfig",
        &bootstrap.to_string_lossy(),
        "--node-name",
        node.name(),
    ]);
    node.wait_ready();
    run_a_pod(&space, "one");
    let kubeconfig = fs::read_to_string(kubeconfig_of(&node)).expect("it was written");
    assert!(!kubeconfig.contains("old.pem") && !kubeconfig.contains(&token), "{kubeconfig}");
}

#[test]
fn a_denied_request_ends_the_start_with_a_word_and_the_next_one_joins() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("the API server's address is needed");
        return;
    };
    let space = cluster.space("denied");
    let node = Node::prepare(cluster, space.name(), SLEEPER);
    // May ask for a certificate, and nobody approves by itself: that takes the right for `nodeclient`.
    space.ok(&["create", "serviceaccount", "asker"]);
    let role = format!("{}-asker", space.name());
    space.ok(&[
        "create",
        "clusterrole",
        &role,
        "--verb=create,get,list,watch",
        "--resource=certificatesigningrequests.certificates.k8s.io",
    ]);
    let account = format!("--serviceaccount={}:asker", space.name());
    space.ok(&["create", "clusterrolebinding", &role, &format!("--clusterrole={role}"), &account]);
    let token = space.ok(&["create", "token", "asker"]).trim().to_owned();
    let bootstrap =
        plane.pki().kubeconfig_of(&format!("{}-asker", node.name()), &plane.server(), &format!("token: {token}"));
    fs::remove_file(kubeconfig_of(&node)).expect("it has a kubeconfig");
    let config = kubeconfig_of(&node).with_file_name("config.yaml");
    let run = || {
        node.run_with(&[
            "run",
            "--config",
            &config.to_string_lossy(),
            "--bootstrap-kubeconfig",
            &bootstrap.to_string_lossy(),
            "--node-name",
            node.name(),
        ]);
    };
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    let asker = format!("system:serviceaccount:{}:asker", space.name());
    let pending = || {
        eventually("the node asks for a client certificate", || {
            let all = block_on(requests.list(&ListParams::default())).map_err(|error| error.to_string())?;
            let ours = all.into_iter().find(|csr| csr.spec.username.as_deref() == Some(&asker));
            ours.map(|csr| csr.name_any()).ok_or_else(|| node.tail())
        })
    };
    run();
    let first = pending();
    cluster.kubectl_ok(&["certificate", "deny", &first]);
    eventually("the node says that it was denied, and what to do", || {
        let said = node.tail();
        let told = said.contains("was denied") && said.contains(&format!("kubectl delete csr {first}"));
        if told { Ok(()) } else { Err(said) }
    });
    assert!(!kubeconfig_of(&node).exists(), "nothing is written that says otherwise");
    node.kill();
    cluster.kubectl_ok(&["delete", "csr", &first]);
    run();
    let second = pending();
    cluster.kubectl_ok(&["certificate", "approve", &second]);
    node.wait_ready();
    run_a_pod(&space, "one");
}

#[test]
fn a_throttled_node_is_slower_and_as_ready() {
    let space = Cluster::shared().space("throttled");
    let options = NodeOptions { kubelet: "kubeAPIQPS: 3\nkubeAPIBurst: 3", ..SLEEPER };
    let node = space.node(options);
    for number in 0..6 {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, labels: {{app: many}}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/sleeper:v1'}}]}}}}"
        ));
    }
    space.wait_pods("app=many", "are all ready", |pods| pods.len() == 6 && pods.iter().all(crate::cluster::is_ready));
    // Its Lease is not behind the pods' statuses in the queue.
    space.cluster().wait_node(node.name(), "True");
}

/// When a token was issued and when it ends, in seconds; `None` for what is not a whole token.
fn life(token: &str) -> Option<(i64, i64)> {
    let [_, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { return None };
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    // Of ES256, or of RS256 with a key of 2048 bits.
    let is_whole = URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| matches!(signature.len(), 64 | 256));
    is_whole.then_some((claims["iat"].as_i64()?, claims["exp"].as_i64()?))
}

#[test]
#[ignore = "the shortest token that an API server gives is renewed after eight minutes: `make test-token` waits for it"]
fn a_token_is_renewed_at_four_fifths_of_its_life() {
    let space = Cluster::shared().space("token");
    let _node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    let source = "projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}]}";
    space.apply(&holder("one", "", source).replace("[/bin/sleeper, --file, /data/seen, one]", "[/bin/sleeper, x]"));
    space.wait_ready("one");
    let read = || space.ok(&["exec", "one", "--", "/bin/cat", "/data/token"]);
    let old = read();
    let (issued, ends) = life(&old).expect("a token");
    assert_eq!(ends - issued, 600);
    let now = || jiff::Timestamp::now().as_second();
    // At the earliest: the last ten seconds of these four fifths are shared out among nodes, as by the kubelet.
    let earliest = issued + 480 - 10;
    let mut reads = 0;
    let new = eventually_within(Duration::from_secs(600), "the token is renewed", || {
        let seen = read();
        reads += 1;
        assert!(life(&seen).is_some(), "it is read whole, whenever it is read: {seen:?}");
        if seen != old {
            return Ok(seen);
        }
        // Nothing happens for minutes; then it is read without a pause.
        if now() < earliest - 15 {
            std::thread::sleep(Duration::from_secs(5));
        }
        Err(format!("it is {} s old", now() - issued))
    });
    let (again, next_end) = life(&new).expect("a token");
    assert!(
        again >= earliest && now() < ends,
        "issued again after {} s, seen after {} s",
        again - issued,
        now() - issued
    );
    assert_eq!(next_end - again, 600);
    assert_eq!(space.ok(&["exec", "one", "--", "/bin/cat", "/data/..data/token"]), new);
    for token in [&old, &new] {
        let review = format!("{{apiVersion: authentication.k8s.io/v1, kind: TokenReview, spec: {{token: {token}}}}}");
        let create =
            ["create", "--filename", "-", "--output", "jsonpath={.status.authenticated} {.status.user.username}"];
        let told = space.kubectl_with(&create, review.as_bytes());
        let account = format!("true system:serviceaccount:{}:default", space.name());
        assert_eq!(told.stdout, account, "{}", told.stderr);
    }
    eprintln!("issued again after {} s, seen after {} s, read {reads} times", again - issued, now() - issued);
}

#[test]
fn the_token_that_every_pod_gets_comes_when_it_is_looked_for_and_a_refused_one_is_waited_for() {
    let space = Cluster::shared().space("automatic");
    let _node = space.node(NodeOptions { tools: TOOLS, ..NodeOptions::default() });
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    // At once, by the container's own program.
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: eager}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, restartPolicy: Never, \
         containers: [{{name: main, image: 'test/tools:v1', imagePullPolicy: IfNotPresent, command: [/bin/cat, {token}]}}]}}}}"
    ));
    space.wait_phase("eager", "Succeeded");
    assert!(life(space.ok(&["logs", "eager"]).trim()).is_some());

    // The account is gone when the node gets the pod.
    space.ok(&["create", "serviceaccount", "gone"]);
    space.apply(&holder("late", "serviceAccountName: gone\n  schedulingGates: [{name: test/wait}]", "emptyDir: {}"));
    space.ok(&["delete", "serviceaccount", "gone"]);
    space.ok(&["patch", "pod", "late", "--type=json", r#"-p=[{"op": "remove", "path": "/spec/schedulingGates"}]"#]);
    space.wait_ready("late");
    let missing = ["MountVolume.SetUp failed for volume \"kube-api-access-", "serviceaccounts \"gone\" not found"];
    space.wait_event("late", "FailedMount", &missing);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| space.ok(&["exec", "late", "--", "/bin/cat", token]));
        std::thread::sleep(Duration::from_secs(1));
        assert_ne!(space.ok(&["exec", "late", "--", "/bin/cat", "/etc/hostname"]), "", "what is there is read");
        assert!(!reads.is_finished(), "the token is waited for");
        space.ok(&["create", "serviceaccount", "gone"]);
        assert!(life(reads.join().expect("it is read").trim()).is_some());
    });
}
