//! The controllers of a cluster reach their goals on our nodes, and lose nothing when a node goes.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::{Cluster, NodeOptions, Space, is_ready};

/// A pod template of one idle container that prints `nonce`.
fn template(app: &str, nonce: &str) -> String {
    format!(
        r#"
  selector: {{matchLabels: {{app: {app}}}}}
  template:
    metadata: {{labels: {{app: {app}}}}}
    spec:
      nodeSelector: {{wasilet.dev/test: SPACE}}
      terminationGracePeriodSeconds: 1
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      containers:
      - name: main
        image: test/sleeper:v1
        args: ["{nonce}"]
        resources: {{requests: {{cpu: 10m, memory: 16Mi}}}}
"#
    )
}

fn workload(kind: &str, name: &str, spec: &str, nonce: &str) -> String {
    format!("apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}{}", template(name, nonce))
}

fn nodes_of(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect()
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

const SLEEPER: NodeOptions<'_> =
    NodeOptions { images: &["sleeper"], tools: &[], kubelet: "", node: "", labels: "", mounts: "" };

#[test]
fn a_deployment_rolls_forward_and_back_and_a_replicaset_replaces_what_is_deleted() {
    let space = Cluster::shared().space("rollout");
    let _node = space.node(SLEEPER);
    space.apply(&workload("Deployment", "web", "  replicas: 3\n", "first"));
    space.ok(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    let log = |pod: &Pod| space.ok(&["logs", &pod.name_any()]).trim().to_owned();
    let running = |what: &str| space.wait_pods("app=web", what, |pods| pods.len() == 3 && pods.iter().all(is_ready));
    assert!(running("are three").iter().all(|pod| log(pod) == "first"));

    space.apply(&workload("Deployment", "web", "  replicas: 3\n", "second"));
    space.ok(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    assert!(running("are three new ones").iter().all(|pod| log(pod) == "second"));
    space.ok(&["rollout", "undo", "deployment/web"]);
    space.ok(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    let back = running("are three old ones");
    assert!(back.iter().all(|pod| log(pod) == "first"));

    let gone = back[0].name_any();
    space.ok(&["delete", "pod", &gone, "--wait=false"]);
    let replaced = space.wait_pods("app=web", "are three again", |pods| {
        pods.len() == 3 && pods.iter().all(is_ready) && !names(pods).contains(&gone)
    });
    let owner = replaced[0].owner_references().first().expect("its ReplicaSet").name.clone();
    space.wait::<ReplicaSet>(&owner, "has three ready", |set| {
        set.and_then(|set| set.status.as_ref()).is_some_and(|status| status.ready_replicas == Some(3))
    });
    space.ok(&["scale", "deployment/web", "--replicas=1"]);
    space.wait_pods("app=web", "is one", |pods| pods.len() == 1);
    space.wait::<Deployment>("web", "has one", |deployment| {
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| status.replicas == Some(1))
    });
}

#[test]
fn statefulset_daemonset_job_and_cronjob_reach_their_goals() {
    let space = Cluster::shared().space("workloads");
    let images = &["sleeper", "exit-code"];
    let nodes = [
        space.node(NodeOptions { images, ..NodeOptions::default() }),
        space.node(NodeOptions { images, ..NodeOptions::default() }),
    ];
    let job = |kind: &str, name: &str, head: &str, indent: &str, code: u8| {
        let spec = format!(
            "template:
  spec:
    nodeSelector: {{wasilet.dev/test: SPACE}}
    restartPolicy: Never
    containers: [{{name: main, image: 'test/exit-code:v1', args: ['{code}']}}]
"
        );
        let spec: String = spec.lines().map(|line| format!("{indent}{line}\n")).collect();
        format!("---\napiVersion: batch/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{head}{spec}")
    };
    // First, for it waits for the next full minute.
    space.apply(&job(
        "CronJob",
        "minutely",
        "  schedule: '* * * * *'\n  concurrencyPolicy: Forbid\n  jobTemplate:\n    spec:\n      backoffLimit: 0\n",
        "      ",
        0,
    ));
    space.apply(&workload("StatefulSet", "db", "  replicas: 2\n  serviceName: db\n", "x"));
    space.apply(&workload("DaemonSet", "agent", "", "x"));
    space.apply(&job("Job", "good", "  completions: 4\n  parallelism: 2\n", "  ", 0));
    space.apply(&job("Job", "bad", "  backoffLimit: 1\n", "  ", 3));

    space.ok(&["rollout", "status", "daemonset/agent", "--timeout=150s"]);
    let pods = space.wait_pods("app=agent", "are one a node", |pods| pods.len() == 2 && pods.iter().all(is_ready));
    assert_eq!(nodes_of(&pods), nodes.iter().map(|node| node.name().to_owned()).collect());
    space.wait::<DaemonSet>("agent", "has two ready", |set| {
        set.and_then(|set| set.status.as_ref()).is_some_and(|status| status.number_ready == 2)
    });

    space.ok(&["rollout", "status", "statefulset/db", "--timeout=150s"]);
    let pods = space.wait_pods("app=db", "are two", |pods| pods.len() == 2 && pods.iter().all(is_ready));
    assert_eq!(names(&pods), ["db-0", "db-1"].map(str::to_owned).into());
    space.ok(&["delete", "pod", "db-1", "--wait=false"]);
    let before = pods.iter().find(|pod| pod.name_any() == "db-1").and_then(ResourceExt::uid);
    space.wait_pod("db-1", "is another pod of the same name", |pod| pod.uid() != before && is_ready(pod));
    space.wait::<StatefulSet>("db", "has two ready", |set| {
        set.and_then(|set| set.status.as_ref()).is_some_and(|status| status.ready_replicas == Some(2))
    });

    let ended = |job: Option<&Job>, how: &str| {
        let conditions = job.and_then(|job| job.status.as_ref()).and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == how && one.status == "True"))
    };
    let good = space.wait::<Job>("good", "completes", |job| ended(job, "Complete")).expect("it was seen");
    assert_eq!(good.status.and_then(|status| status.succeeded), Some(4));
    let bad = space.wait::<Job>("bad", "fails", |job| ended(job, "Failed")).expect("it was seen");
    assert_eq!(bad.status.and_then(|status| status.failed), Some(2));
    for pod in space.pods("job-name=bad") {
        let status = crate::support::container(&pod, "main").state.clone().and_then(|state| state.terminated);
        assert_eq!(status.map(|end| (end.exit_code, end.reason)), Some((3, Some("Error".to_owned()))));
    }
    space.wait::<CronJob>("minutely", "has succeeded once", |cron| {
        cron.and_then(|cron| cron.status.as_ref()).is_some_and(|status| status.last_successful_time.is_some())
    });
}

#[test]
fn an_autoscaler_adds_pods_when_they_are_busy() {
    let cluster = Cluster::shared();
    let Some(plane) = cluster.try_plane() else {
        crate::support::skipped("a metrics-server of our own is needed");
        return;
    };
    plane.metrics_server(|manifest| drop(cluster.kubectl_with(&["apply", "--filename", "-"], manifest)));
    let space = cluster.space("autoscale");
    let _node = space.node(NodeOptions { images: &["spin"], ..NodeOptions::default() });
    space.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  replicas: 1
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      nodeSelector: {wasilet.dev/test: SPACE}
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: test/spin:v1
        resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {cpu: 100m}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
"#,
    );
    space.wait::<HorizontalPodAutoscaler>("busy", "wants two", |scaler| {
        scaler.and_then(|scaler| scaler.status.as_ref()).is_some_and(|status| status.desired_replicas == 2)
    });
    space.wait_pods("app=busy", "are two", |pods| pods.len() == 2 && pods.iter().all(is_ready));
    space.ok(&["delete", "deployment,hpa", "busy", "--wait=false"]);
}

fn spread(space: &Space<'_>, replicas: usize) -> Vec<Pod> {
    space.apply(&workload("Deployment", "web", &format!("  replicas: {replicas}\n"), "x"));
    space.ok(&["rollout", "status", "deployment/web", "--timeout=150s"]);
    space.wait_pods("app=web", "are ready on both nodes", |pods| {
        pods.len() == replicas && pods.iter().all(is_ready) && nodes_of(pods).len() == 2
    })
}

#[test]
fn the_pods_of_a_dead_node_are_made_again_on_another() {
    let space = Cluster::shared().space("death");
    let (dying, staying) = (space.node(SLEEPER), space.node(SLEEPER));
    spread(&space, 4);
    dying.kill();
    // The default: forty seconds without a word, and then it is told by nobody but the cluster.
    space.cluster().wait_node(dying.name(), "Unknown");
    space.wait_pods("app=web", "are all on the other node", |pods| {
        let here: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        here.len() == 4
            && here.iter().all(|pod| is_ready(pod))
            && here
                .iter()
                .all(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(staying.name()))
    });
    // When it comes back it ends what was taken from it.
    dying.run();
    dying.wait_ready();
    space.wait_pods("app=web", "are four, and none is on its way out", |pods| {
        pods.len() == 4 && pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none())
    });
}

#[test]
fn a_drain_respects_a_disruption_budget() {
    let space = Cluster::shared().space("drain");
    let (leaving, staying) = (space.node(SLEEPER), space.node(SLEEPER));
    space.apply(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}}",
    );
    spread(&space, 4);
    space.ok(&["drain", leaving.name(), "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s"]);
    let pods = space.wait_pods("app=web", "are all on the other node", |pods| {
        pods.len() == 4 && pods.iter().all(is_ready) && nodes_of(pods) == [staying.name().to_owned()].into()
    });
    assert_eq!(pods.len(), 4);
    space.ok(&["uncordon", leaving.name()]);
}
