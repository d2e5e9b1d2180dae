//! `wasilet ps`: the pods of the node, in the columns of `kubectl get pods -o wide`.
//!
//! In: the node's PodList. Out: a table or that list as JSON. The STATUS column follows kubectl's printer
//! (`k8s.io/kubernetes/pkg/printers/internalversion`, `printPod`).

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::List;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::client::Client;
use super::output::{OutputFormat, human_duration, print_table};

/// Arguments of `wasilet ps`.
#[derive(Debug, clap::Args)]
pub struct PsArguments {
    /// Only this namespace
    #[arg(long, short)]
    namespace: Option<String>,
    /// Show a line for each container
    #[arg(long)]
    containers: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Prints the pods.
///
/// # Errors
/// When no node answers.
pub async fn ps(client: &Client, args: &PsArguments) -> anyhow::Result<ExitCode> {
    let mut list: List<Pod> = client.get_json("/pods").await?;
    if let Some(namespace) = &args.namespace {
        list.items.retain(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
    }
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&list)?),
        OutputFormat::Table if args.containers => print_containers(&list.items)?,
        OutputFormat::Table => print_pods(&list.items)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_pods(pods: &[Pod]) -> std::io::Result<()> {
    let now = jiff::Timestamp::now();
    let rows: Vec<_> = pods.iter().map(|pod| pod_row(pod, now)).collect();
    print_table(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "PORTS"], &rows)
}

fn pod_row(pod: &Pod, now: jiff::Timestamp) -> Vec<String> {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let sidecars: Vec<_> = sidecar_statuses(pod, status).collect();
    let all = || containers.iter().chain(sidecars.iter().copied());
    let total = pod.spec.as_ref().map_or(0, |spec| spec.containers.len()) + sidecars.len();
    let restarts: i32 = all().map(|container| container.restart_count).sum();
    let age = status.start_time.as_ref().map(|start| age(start.0, now));
    vec![
        pod.metadata.namespace.clone().unwrap_or_default(),
        pod.metadata.name.clone().unwrap_or_default(),
        format!("{}/{total}", all().filter(|container| container.ready).count()),
        display_status(pod, status),
        restarts.to_string(),
        age.unwrap_or_else(|| "<unknown>".to_owned()),
        status.pod_ip.clone().unwrap_or_else(|| "<none>".to_owned()),
        ports(pod),
    ]
}

/// Remapped ports are in an annotation the node keeps on its own copy of the pod: `80->8080`.
fn ports(pod: &Pod) -> String {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|map| map.get(crate::server::PORTS_ANNOTATION)).cloned().unwrap_or_default()
}

fn age(start: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(start.as_second());
    human_duration(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

fn sidecar_statuses<'a>(pod: &'a Pod, status: &'a PodStatus) -> impl Iterator<Item = &'a ContainerStatus> {
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: Vec<&str> =
        inits.filter(|init| init.restart_policy.as_deref() == Some("Always")).map(|init| init.name.as_str()).collect();
    let statuses = status.init_container_statuses.iter().flatten();
    statuses.filter(move |status| sidecars.contains(&status.name.as_str()))
}

/// What kubectl prints below STATUS: the phase unless something more telling is known.
fn display_status(pod: &Pod, status: &PodStatus) -> String {
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".to_owned());
    let mut reason = status.reason.clone().unwrap_or(phase);
    if let Some(init) = init_reason(pod, status) {
        reason = init;
    } else {
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let running = containers.iter().any(|container| container.ready);
        for container in containers.iter().rev() {
            if let Some(word) = container_reason(container) {
                reason = word;
            }
        }
        if reason == "Completed" && running {
            "Running".clone_into(&mut reason);
        }
    }
    if pod.metadata.deletion_timestamp.is_some() { "Terminating".to_owned() } else { reason }
}

fn init_reason(pod: &Pod, status: &PodStatus) -> Option<String> {
    let inits: BTreeMap<&str, bool> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .map(|init| (init.name.as_str(), init.restart_policy.as_deref() == Some("Always")))
        .collect();
    for (done, init) in status.init_container_statuses.iter().flatten().enumerate() {
        let state = init.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let sidecar = inits.get(init.name.as_str()).copied().unwrap_or_default();
        if terminated.is_some_and(|end| end.exit_code == 0) || (sidecar && init.started == Some(true)) {
            continue;
        }
        if let Some(end) = terminated {
            return Some(match end.reason.as_deref() {
                Some(reason) if !reason.is_empty() => format!("Init:{reason}"),
                _ => format!("Init:ExitCode:{}", end.exit_code),
            });
        }
        let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
        return Some(match waiting {
            Some(reason) if reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{done}/{}", inits.len()),
        });
    }
    None
}

fn container_reason(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone()) {
        return Some(waiting);
    }
    let end = state.terminated.as_ref()?;
    Some(end.reason.clone().unwrap_or_else(|| format!("ExitCode:{}", end.exit_code)))
}

fn print_containers(pods: &[Pod]) -> std::io::Result<()> {
    let mut rows = Vec::new();
    for pod in pods {
        let Some(status) = &pod.status else { continue };
        let inits = status.init_container_statuses.iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.iter().flatten();
        for container in inits.chain(status.container_statuses.iter().flatten()).chain(ephemeral) {
            rows.push(vec![
                pod.metadata.namespace.clone().unwrap_or_default(),
                pod.metadata.name.clone().unwrap_or_default(),
                container.name.clone(),
                container_reason(container).unwrap_or_else(|| "Running".to_owned()),
                container.restart_count.to_string(),
                container.image.clone(),
                short_id(container),
            ]);
        }
    }
    print_table(&["NAMESPACE", "POD", "CONTAINER", "STATUS", "RESTARTS", "IMAGE", "CONTAINER ID"], &rows)
}

fn short_id(container: &ContainerStatus) -> String {
    let id = container.container_id.as_deref().unwrap_or_default();
    id.trim_start_matches("wasilet://").chars().take(13).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("a pod")
    }

    #[test]
    fn the_status_column_reads_as_kubectls() {
        for (case, value, expected) in [
            ("a pod nobody reported on", serde_json::json!({}), "Pending"),
            (
                "an init container that runs",
                serde_json::json!({"spec": {"containers": [], "initContainers": [{"name": "a"}, {"name": "b"}]},
                    "status": {"phase": "Pending", "initContainerStatuses": [
                        {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                         "state": {"terminated": {"exitCode": 0}}},
                        {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                         "state": {"running": {}}}]}}),
                "Init:1/2",
            ),
            (
                "a container that waits for its restart",
                serde_json::json!({"spec": {"containers": []}, "status": {"phase": "Running", "containerStatuses": [
                    {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                     "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
                "CrashLoopBackOff",
            ),
            (
                "one that ended while another runs",
                serde_json::json!({"spec": {"containers": []}, "status": {"phase": "Running", "containerStatuses": [
                    {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                    {"name": "b", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                     "state": {"running": {}}}]}}),
                "Running",
            ),
            ("an evicted pod", serde_json::json!({"status": {"phase": "Failed", "reason": "Evicted"}}), "Evicted"),
        ] {
            let pod = pod(value);
            let status = pod.status.clone().unwrap_or_default();
            assert_eq!(display_status(&pod, &status), expected, "{case}");
        }
    }
}
