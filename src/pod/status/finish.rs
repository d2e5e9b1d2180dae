//! The last status of a pod of which nothing runs any more: the kubelet's `TerminatePod`.
//!
//! In: its status so far. Out: the same without a container that seems to be alive, and with a final phase. What never
//! started stays waiting while the pod was not initialized: its init containers tell enough.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodSpec, PodStatus};

use super::containers::{LOST_MESSAGE, LOST_REASON};
use super::phase::PodPhase;
use crate::pod::restart::is_sidecar;
use crate::pod::static_pod;

/// Makes a status final.
pub fn finish(pod: &Pod, status: &mut PodStatus) {
    let Some(spec) = &pod.spec else { return };
    if was_initialized(spec, status) {
        status.container_statuses.iter_mut().flatten().for_each(lose);
    }
    let init = status.init_container_statuses.as_deref_mut().unwrap_or_default();
    let begun = |status: &ContainerStatus| !is_waiting(status) || last_end(status).is_some();
    // Those after the last one that was ever begun never ran; the first one counts as begun.
    let begun = init.iter().rposition(begun).map_or(init.len().min(1), |last| last + 1);
    init[..begun].iter_mut().for_each(lose);
    let is_final = PodPhase::is_over(status);
    // The kubelet gives a static pod no final phase for being removed.
    if !is_final && !static_pod::is_static(pod) {
        status.phase = Some(PodPhase::Failed.as_str().to_owned());
    }
}

/// Its main containers could have started.
fn was_initialized(spec: &PodSpec, status: &PodStatus) -> bool {
    let Some(last) = spec.init_containers.as_ref().and_then(|init| init.last()) else { return true };
    let seen = |status: &ContainerStatus| last_end(status).is_some() || !is_waiting(status);
    if status.container_statuses.iter().flatten().any(seen) {
        return true;
    }
    let Some(status) = status.init_container_statuses.as_ref().and_then(|init| init.last()) else { return false };
    if is_sidecar(last) {
        let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
        return runs && status.started == Some(true);
    }
    [end(status), last_end(status)].into_iter().flatten().any(|end| end.exit_code == 0)
}

fn lose(status: &mut ContainerStatus) {
    if end(status).is_some() {
        return;
    }
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some(LOST_REASON.to_owned()),
        message: Some(LOST_MESSAGE.to_owned()),
        ..ContainerStateTerminated::default()
    };
    status.state = Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() });
    status.ready = false;
}

fn end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn last_end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nothing_seems_to_be_alive_in_a_finished_pod() {
        let waiting = || json!({"waiting": {"reason": "ContainerCreating"}});
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        for (case, init, main, before, expected) in [
            ("a pod that never started failed", vec![], waiting(), "Pending", ("Failed", vec![], Some(137))),
            ("a success stays one", vec![], ended(0), "Succeeded", ("Succeeded", vec![], Some(0))),
            (
                "a pod that was not initialized",
                vec![waiting()],
                waiting(),
                "Pending",
                ("Failed", vec![Some(137)], None),
            ),
            ("after its init", vec![ended(0)], waiting(), "Pending", ("Failed", vec![Some(0)], Some(137))),
            (
                "init containers that were never reached wait on",
                vec![ended(1), waiting()],
                waiting(),
                "Pending",
                ("Failed", vec![Some(1), None], None),
            ),
        ] {
            let status = |name: String, state: &Value| json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
            let names: Vec<_> = (0..init.len()).map(|index| json!({"name": format!("i{index}")})).collect();
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"name": "web"}, "spec": {"initContainers": names, "containers": [{"name": "a"}]}}),
            )
            .unwrap();
            let init: Vec<_> =
                init.iter().enumerate().map(|(index, state)| status(format!("i{index}"), state)).collect();
            let mut after: PodStatus = serde_json::from_value(json!({"phase": before, "initContainerStatuses": init,
                "containerStatuses": [status("a".to_owned(), &main)]}))
            .unwrap();
            finish(&pod, &mut after);
            let code = |status: &ContainerStatus| end(status).map(|end| end.exit_code);
            let init: Vec<_> = after.init_container_statuses.iter().flatten().map(code).collect();
            let main = after.container_statuses.iter().flatten().find_map(code);
            assert_eq!((after.phase.as_deref().unwrap(), init, main), expected, "{case}");
        }
    }
}
