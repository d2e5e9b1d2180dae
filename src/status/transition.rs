//! What no status may say: a container that may not restart runs again (`checkContainerStateTransition`).

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec, PodStatus};

use crate::pod::restart::{RestartPolicy, RestartRules, is_sidecar};
use crate::pod::status::ALL_CONTAINERS_RESTARTING;

/// A container left an end that was final.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("terminated container {container} attempted illegal transition to non-terminated state")]
pub struct IllegalTransition {
    /// Its name.
    pub container: String,
}

pub(super) fn check(spec: Option<&PodSpec>, old: &PodStatus, new: &PodStatus) -> Result<(), IllegalTransition> {
    let Some(spec) = spec else { return Ok(()) };
    if RestartPolicy::parse(spec.restart_policy.as_deref()) == RestartPolicy::Always {
        return Ok(());
    }
    // All its containers run again, whatever they ended with.
    let restarting = |status: &PodStatus| {
        let all = status.conditions.iter().flatten();
        all.into_iter().any(|condition| condition.type_ == ALL_CONTAINERS_RESTARTING && condition.status == "True")
    };
    if restarting(old) || restarting(new) {
        return Ok(());
    }
    let init = spec.init_containers.as_deref().unwrap_or(&[]);
    check_list(spec, init, &old.init_container_statuses, &new.init_container_statuses)?;
    check_list(spec, &spec.containers, &old.container_statuses, &new.container_statuses)
}

fn check_list(
    spec: &PodSpec,
    containers: &[Container],
    old: &Option<Vec<ContainerStatus>>,
    new: &Option<Vec<ContainerStatus>>,
) -> Result<(), IllegalTransition> {
    let policy = RestartPolicy::parse(spec.restart_policy.as_deref());
    for before in old.iter().flatten() {
        let Some(end) = before.state.as_ref().and_then(|state| state.terminated.as_ref()) else { continue };
        let Some(container) = containers.iter().find(|container| container.name == before.name) else { continue };
        // Init containers run again with the others after a lost sandbox, unless the pod never restarts.
        let init_again = !std::ptr::eq(containers, spec.containers.as_slice()) && policy != RestartPolicy::Never;
        if is_sidecar(container) || init_again || RestartRules::of(container, spec).restarts_after(end.exit_code) {
            continue;
        }
        let after = new.iter().flatten().find(|status| status.name == before.name);
        if after.is_some_and(|after| after.state.as_ref().is_none_or(|state| state.terminated.is_none())) {
            return Err(IllegalTransition { container: before.name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_final_end_is_final() {
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        let running = || json!({"running": {}});
        for (case, policy, before, after, legal) in [
            ("Always may restart", "Always", ended(0), running(), true),
            ("OnFailure may restart a failure", "OnFailure", ended(1), running(), true),
            ("OnFailure may not restart a success", "OnFailure", ended(0), running(), false),
            ("Never may not restart", "Never", ended(1), running(), false),
            ("a running container may end", "Never", running(), ended(1), true),
            ("an end stays", "Never", ended(1), ended(1), true),
        ] {
            let spec: PodSpec =
                serde_json::from_value(json!({"restartPolicy": policy, "containers": [{"name": "a"}]})).unwrap();
            let status = |state: Value| -> PodStatus {
                let container =
                    json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
                serde_json::from_value(json!({"containerStatuses": [container]})).unwrap()
            };
            assert_eq!(check(Some(&spec), &status(before), &status(after)).is_ok(), legal, "{case}");
        }
    }
}
