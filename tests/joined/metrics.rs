//! `/metrics` says of a pod's life what a kubelet's does, under the same names.

use crate::cluster::{Cluster, NodeOptions};
use crate::support::eventually;

/// The value of a series, `name{labels}`.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[test]
fn the_life_of_a_pod_is_counted_as_a_kubelet_counts_it() {
    let cluster = Cluster::shared();
    let space = cluster.space("metrics");
    let node = space.node(NodeOptions { images: &["sleeper", "exit-code"], ..NodeOptions::default() });
    let pod = |name: &str, more: &str| {
        space.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{wasilet.dev/test: SPACE}}, \
             terminationGracePeriodSeconds: 1, {more}}}}}"
        ));
    };
    pod("runs", "containers: [{name: main, image: 'test/sleeper:v1'}]");
    pod("ends", "restartPolicy: Never, containers: [{name: main, image: 'test/exit-code:v1', args: ['3']}]");
    pod("lacks", "containers: [{name: main, image: 'test/sleeper:v2', imagePullPolicy: Never}]");
    pod("goes", "containers: [{name: main, image: 'test/sleeper:v1'}]");
    space.wait_ready("runs");
    space.wait_ready("goes");
    space.wait_phase("ends", "Failed");
    space.ok(&["delete", "pod", "goes"]);
    space.wait_gone("goes");

    let path = format!("/api/v1/nodes/{}/proxy/metrics", node.name());
    let name = format!("kubelet_node_name{{node=\"{}\"}}", node.name());
    // What the last of it, a start that failed, and the last status came to is counted a moment later.
    eventually("all of it is counted", || {
        let text = cluster.kubectl_ok(&["get", "--raw", &path]);
        for (series, least) in [
            (name.as_str(), 1.0),
            ("kubelet_running_pods", 1.0),
            ("kubelet_running_containers{container_state=\"running\"}", 1.0),
            ("kubelet_desired_pods{static=\"\"}", 3.0),
            ("kubelet_active_pods{static=\"\"}", 2.0),
            ("kubelet_started_pods_total", 3.0),
            ("kubelet_started_containers_total{container_type=\"container\"}", 3.0),
            ("kubelet_started_containers_errors_total{code=\"ErrImageNeverPull\",container_type=\"container\"}", 1.0),
            ("kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"3\",reason=\"Error\"}", 1.0),
            ("kubelet_pod_worker_duration_seconds_count{operation_type=\"create\"}", 4.0),
            ("kubelet_pod_worker_duration_seconds_count{operation_type=\"kill\"}", 2.0),
            ("kubelet_pod_worker_duration_seconds_count{operation_type=\"terminated\"}", 2.0),
            ("kubelet_pod_start_duration_seconds_count", 3.0),
            // Those that were seen to run, by the API server.
            ("kubelet_pod_start_total_duration_seconds_count", 2.0),
            ("kubelet_pod_start_sli_duration_seconds_count", 2.0),
            ("kubelet_pod_status_sync_duration_seconds_count", 4.0),
            ("kubelet_runtime_operations_total{operation_type=\"start_container\"}", 3.0),
            ("kubelet_certificate_manager_client_ttl_seconds", 60.0),
            ("kubelet_certificate_manager_server_ttl_seconds", 60.0),
        ] {
            if value(&text, series).is_none_or(|value| value < least) {
                return Err(format!("{series} is not at least {least} in\n{text}"));
            }
        }
        let asked = text.lines().filter(|line| line.starts_with("rest_client_requests_total{code=\"200\""));
        if asked.count() == 0 { Err(text) } else { Ok(()) }
    });
}
