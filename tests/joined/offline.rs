//! The API server goes away and comes back, and the agent is killed at any moment: pods run on, nothing is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::{Cluster, Extra, Node, NodeOptions};
use crate::support::{container, eventually, text};

/// The pods as the node itself tells them, without the API server; waits until it answers.
fn told_by_itself(node: &Node<'_>) -> Vec<Pod> {
    eventually("the node answers", || {
        let mut command = node.cluster().sandbox().command(node.at(), env!("CARGO_BIN_EXE_wasilet"));
        command.arg("--root-dir").arg(node.root()).args(["ps", "--output", "json"]);
        let output = command.output().expect("nsenter starts");
        if !output.status.success() {
            return Err(format!("{}\n{}", text(&output.stderr), node.tail()));
        }
        Ok(serde_json::from_slice::<List<Pod>>(&output.stdout).expect("a PodList").items)
    })
}

#[test]
fn pods_run_on_while_the_api_server_is_away() {
    let Some(cluster) = Cluster::own(Extra::default()) else { return };
    let space = cluster.space("offline");
    let node = space.node(NodeOptions { images: &["sleeper", "exit-code"], ..NodeOptions::default() });
    space.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/sleeper:v1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: restless}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "test/exit-code:v1", args: ["1", "2"]}]
"#,
    );
    let before = space.wait_ready("steady");
    space
        .wait_pod("restless", "runs", |pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")));

    cluster.plane().kill_process("kube-apiserver");
    let restarts = |pods: &[Pod]| {
        let pod = pods.iter().find(|pod| pod.name_any() == "restless")?;
        Some(container(pod, "main").restart_count)
    };
    let seen = restarts(&told_by_itself(&node)).unwrap_or_default();
    let during = eventually("a container is restarted meanwhile", || {
        let now = restarts(&told_by_itself(&node)).unwrap_or_default();
        if now > seen { Ok(now) } else { Err(format!("{now} restarts\n{}", node.tail())) }
    });
    cluster.plane().start_process("kube-apiserver");
    cluster.wait_api();

    space.wait_pod("restless", "tells its restarts", |pod| container(pod, "main").restart_count >= during);
    let after = space.wait_ready("steady");
    let id = |pod: &Pod| container(pod, "main").container_id.clone();
    assert_eq!(id(&after), id(&before), "it ran on");
    node.wait_ready();
    space.ok(&["delete", "pod", "steady", "restless", "--timeout=120s"]);
    space.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: new}, spec: {nodeSelector: {wasilet.dev/test: SPACE}, terminationGracePeriodSeconds: 1, containers: [{name: main, image: 'test/sleeper:v1'}]}}",
    );
    space.wait_ready("new");

    // Started while nobody answers, it waits, as a kubelet does: what it should run is for the API server to say.
    node.stop();
    cluster.plane().kill_process("kube-apiserver");
    node.run();
    told_by_itself(&node);
    cluster.plane().start_process("kube-apiserver");
    cluster.wait_api();
    space.wait_pod("new", "was restarted once", |pod| {
        crate::cluster::is_ready(pod) && container(pod, "main").restart_count == 1
    });
}

#[test]
fn an_agent_killed_at_any_moment_of_a_burst_ends_up_with_the_pods_that_are_wanted() {
    const ROUNDS: usize = 4;
    const PODS_A_ROUND: usize = 6;
    let space = Cluster::shared().space("killed");
    let node = space.node(NodeOptions { images: &["sleeper", "init"], ..NodeOptions::default() });
    // The moments are another each run; which they were is told when it fails.
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let pod = |name: &str, image: &str, args: &str, policy: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{burst: {image}}}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, restartPolicy: {policy}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: 'test/{image}:v1', args: {args}}}]}}}}\n"
        )
    };
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut manifest = String::new();
        for number in 0..PODS_A_ROUND {
            let name = format!("p{round}-{number}");
            manifest.push_str(&pod(&name, "sleeper", "[]", "Always"));
            wanted.insert(name);
        }
        manifest.push_str(&pod(&format!("once-{round}"), "init", r#"["/tmp/x", "y"]"#, "Never"));
        space.apply(&manifest);
        let leaving: Vec<String> = wanted.iter().filter(|_| random.random_bool(0.3)).cloned().collect();
        if !leaving.is_empty() {
            let mut args = vec!["delete", "pod", "--wait=false"];
            args.extend(leaving.iter().map(String::as_str));
            space.ok(&args);
            wanted.retain(|name| !leaving.contains(name));
        }
        // Not a wait for something: any moment will do.
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        node.kill();
        node.run();
    }
    let names = |pods: &[Pod]| pods.iter().map(ResourceExt::name_any).collect::<BTreeSet<_>>();
    let pods = space.wait_pods("burst=sleeper", &format!("are those wanted, and ready (seed {seed})"), |pods| {
        names(pods) == wanted && pods.iter().all(crate::cluster::is_ready)
    });
    let once = space.wait_pods("burst=init", "have ended", |pods| {
        pods.len() == ROUNDS && pods.iter().all(|pod| matches!(crate::cluster::phase_of(pod), "Succeeded" | "Failed"))
    });
    for pod in &once {
        assert_eq!(container(pod, "main").restart_count, 0, "{} ran once (seed {seed})", pod.name_any());
    }
    let uids: BTreeSet<String> = pods.iter().chain(&once).filter_map(|pod| pod.metadata.uid.clone()).collect();
    eventually("nothing is left of the others", || {
        let entries = std::fs::read_dir(node.root().join("pods")).expect("it has pods");
        let left: BTreeSet<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let strangers: Vec<_> = left.difference(&uids).collect();
        if strangers.is_empty() { Ok(()) } else { Err(format!("{strangers:?} (seed {seed})\n{}", node.tail())) }
    });
}
