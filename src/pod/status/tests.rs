//! Phases, conditions and container statuses, row by row.

use super::*;
use crate::ids::ContainerId;
use serde_json::json;

const AT: Timestamp = Timestamp::UNIX_EPOCH;

fn id() -> ContainerId {
    "a".repeat(64).parse().unwrap()
}

fn running() -> ContainerFacts {
    let (image_id, user) = ("sha256:1".into(), None);
    let run = Run { id: id(), image_id, user, started_at: AT, readiness: Readiness::Ready };
    ContainerFacts { now: Now::Running(run), last_end: None, restart_count: 0, in_force: None, revived: false }
}

fn end(exit_code: i32) -> Ended {
    Ended {
        id: id(),
        image_id: "sha256:1".into(),
        user: None,
        exit_code,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_at: AT,
        finished_at: AT,
    }
}

fn ended(exit_code: i32) -> ContainerFacts {
    ContainerFacts { now: Now::Ended(end(exit_code)), last_end: None, restart_count: 0, in_force: None, revived: false }
}

fn waiting(reason: &str, last: Option<i32>) -> ContainerFacts {
    let now = Now::Waiting(Waiting { reason: reason.into(), message: None });
    ContainerFacts {
        now,
        last_end: last.map(end),
        restart_count: u32::from(last.is_some()),
        in_force: None,
        revived: false,
    }
}

fn pod(policy: &str, init: serde_json::Value, main: &[&str]) -> Pod {
    let main: Vec<_> = main.iter().map(|name| json!({"name": name, "image": "x"})).collect();
    serde_json::from_value(json!({"metadata": {"name": "web", "generation": 3},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": main}}))
    .unwrap()
}

fn status(pod: &Pod, facts: &[(&str, ContainerFacts)], end: Option<&PodEnd>, old: &PodStatus) -> PodStatus {
    let containers = facts.iter().map(|(name, facts)| ((*name).to_owned(), facts.clone())).collect();
    generate(&StatusInput {
        pod,
        containers: &containers,
        sandbox: SandboxReadiness::Ready,
        pod_ips: &["10.1.0.5".parse().unwrap()],
        host_ips: &["10.0.0.1".parse().unwrap()],
        end,
        accepted_at: AT,
        old,
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
        restarting_all: false,
        resize_pending: None,
        resize_in_progress: None,
    })
}

#[test]
fn phases_are_those_of_the_kubelet() {
    let none = json!([]);
    let init = json!([{"name": "i", "image": "x"}]);
    let sidecar = json!([{"name": "s", "image": "x", "restartPolicy": "Always"}]);
    for (case, policy, inits, facts, expected) in [
        ("nothing known", "Always", &none, vec![], "Pending"),
        ("all running", "Always", &none, vec![("a", running()), ("b", running())], "Running"),
        (
            "one waits for the first time",
            "Always",
            &none,
            vec![("a", running()), ("b", waiting("ContainerCreating", None))],
            "Pending",
        ),
        (
            "one in a crash loop",
            "Always",
            &none,
            vec![("a", running()), ("b", waiting("CrashLoopBackOff", Some(1)))],
            "Running",
        ),
        (
            "all in a crash loop",
            "Always",
            &none,
            vec![("a", waiting("CrashLoopBackOff", Some(1))), ("b", ended(0))],
            "Running",
        ),
        ("all ended well under Always", "Always", &none, vec![("a", ended(0)), ("b", ended(0))], "Running"),
        ("all ended well", "Never", &none, vec![("a", ended(0)), ("b", ended(0))], "Succeeded"),
        ("one ended badly", "Never", &none, vec![("a", ended(0)), ("b", ended(1))], "Failed"),
        ("one ended, one runs", "Never", &none, vec![("a", ended(1)), ("b", running())], "Running"),
        ("one will run again", "OnFailure", &none, vec![("a", ended(0)), ("b", ended(1))], "Running"),
        ("all succeeded under OnFailure", "OnFailure", &none, vec![("a", ended(0)), ("b", ended(0))], "Succeeded"),
        ("initializing", "Always", &init, vec![("i", running())], "Pending"),
        ("initialized", "Always", &init, vec![("i", ended(0)), ("a", running()), ("b", running())], "Running"),
        (
            "an init container that runs again",
            "Always",
            &init,
            vec![
                ("i", waiting("CrashLoopBackOff", Some(1))),
                ("a", waiting("PodInitializing", None)),
                ("b", waiting("PodInitializing", None)),
            ],
            "Pending",
        ),
        (
            "an init container that failed for good",
            "Never",
            &init,
            vec![("i", ended(1)), ("a", waiting("PodInitializing", None))],
            "Failed",
        ),
        (
            "a sidecar that has not started",
            "Always",
            &sidecar,
            vec![
                ("s", waiting("PodInitializing", None)),
                ("a", waiting("PodInitializing", None)),
                ("b", waiting("PodInitializing", None)),
            ],
            "Pending",
        ),
        (
            "a sidecar that restarts beside main containers",
            "Always",
            &sidecar,
            vec![("s", waiting("CrashLoopBackOff", Some(1))), ("a", running()), ("b", running())],
            "Running",
        ),
        (
            "a sidecar that outlives main containers",
            "Never",
            &sidecar,
            vec![("s", running()), ("a", ended(0)), ("b", ended(0))],
            "Running",
        ),
        (
            "and ends with them",
            "Never",
            &sidecar,
            vec![("s", ended(143)), ("a", ended(0)), ("b", ended(0))],
            "Succeeded",
        ),
    ] {
        let pod = pod(policy, inits.clone(), &["a", "b"]);
        let status = status(&pod, &facts, None, &PodStatus::default());
        assert_eq!(status.phase.as_deref(), Some(expected), "{case}");
    }
}

#[test]
fn an_end_that_was_decided_wins_and_stays() {
    let pod = pod("Always", json!([]), &["a"]);
    let evicted = PodEnd::Failed { reason: Some("Evicted".into()), message: Some("Usage of ...".into()) };
    let first = status(&pod, &[("a", running())], Some(&evicted), &PodStatus::default());
    assert_eq!((first.phase.as_deref(), first.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    let later = status(&pod, &[("a", ended(137))], Some(&PodEnd::Deleted), &first);
    assert_eq!(
        (later.phase.as_deref(), later.reason.as_deref()),
        (Some("Failed"), Some("Evicted")),
        "deleted afterwards"
    );
    let over = status(&pod, &[("a", ended(0))], Some(&PodEnd::Completed), &PodStatus::default());
    assert_eq!(over.phase.as_deref(), Some("Succeeded"), "nothing restarts in a pod that is over");
    let refused = rejected(&pod, "PodOSNotSupported", "no", AT);
    assert_eq!(refused.message.as_deref(), Some("Pod was rejected: no"));
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a k8s_openapi::api::core::v1::PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
}

#[test]
fn conditions_say_what_is_missing() {
    let pod_with_init = pod("Always", json!([{"name": "i", "image": "x"}]), &["b", "a"]);
    let pending = status(&pod_with_init, &[("i", running())], None, &PodStatus::default());
    let initialized = condition(&pending, "Initialized");
    assert_eq!(
        (initialized.status.as_str(), initialized.reason.as_deref()),
        ("False", Some("ContainersNotInitialized"))
    );
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
    assert_eq!(initialized.observed_generation, Some(3));
    let ready = condition(&pending, "Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ContainersNotReady")));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b a]"));
    assert_eq!(condition(&pending, "PodReadyToStartContainers").status, "True");
    let facts = [("i", ended(0)), ("a", running()), ("b", running())];
    let up = status(&pod_with_init, &facts, None, &pending);
    for kind in ["Initialized", "Ready", "ContainersReady", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(condition(&up, kind).status, "True", "{kind}");
    }
    let never = pod("Never", json!([]), &["a"]);
    let done = status(&never, &[("a", ended(0))], None, &PodStatus::default());
    assert_eq!(condition(&done, "Ready").reason.as_deref(), Some("PodCompleted"));
    assert_eq!(condition(&done, "Initialized").reason.as_deref(), Some("PodCompleted"));
    let failed = status(&never, &[("a", ended(1))], None, &PodStatus::default());
    assert_eq!(condition(&failed, "ContainersReady").reason.as_deref(), Some("PodFailed"));
}

#[test]
fn a_condition_keeps_its_time_while_it_does_not_change() {
    let pod = pod("Always", json!([]), &["a"]);
    let mut old = status(&pod, &[("a", running())], None, &PodStatus::default());
    for condition in old.conditions.as_mut().unwrap() {
        condition.last_transition_time = Some(time(AT));
    }
    let same = status(&pod, &[("a", running())], None, &old);
    assert_eq!(condition(&same, "Ready").last_transition_time, Some(time(AT)));
    let changed = status(&pod, &[("a", waiting("CrashLoopBackOff", Some(1)))], None, &same);
    assert_ne!(condition(&changed, "Ready").last_transition_time, Some(time(AT)));
    assert_eq!(condition(&changed, "PodScheduled").last_transition_time, Some(time(AT)));
}

#[test]
fn container_statuses_show_states_ids_and_restarts() {
    let pod = pod("Always", json!([{"name": "z", "image": "x"}, {"name": "y", "image": "x"}]), &["b", "a"]);
    let mut crashed = waiting("CrashLoopBackOff", Some(2));
    crashed.restart_count = 4;
    let status = status(&pod, &[("z", ended(0)), ("a", running()), ("b", crashed)], None, &PodStatus::default());
    let init = status.init_container_statuses.unwrap();
    assert_eq!(init.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["z", "y"], "as in the spec");
    assert!(init[0].ready, "an init container is ready when it is done");
    assert_eq!(init[1].state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("PodInitializing"));
    let main = status.container_statuses.unwrap();
    assert_eq!(main.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "b"], "by name");
    assert_eq!(main[0].container_id.as_deref(), Some(format!("wasilet://{}", "a".repeat(64)).as_str()));
    assert_eq!((main[0].ready, main[0].started), (true, Some(true)));
    assert_eq!((main[1].restart_count, main[1].ready), (4, false));
    let last = main[1].last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (2, Some("Error")));
    assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.start_time, Some(time(AT)));
}

#[test]
fn messages_share_what_a_status_may_hold() {
    let pod = pod("Never", json!([]), &["a", "b"]);
    let mut long = end(1);
    long.message = Some("é".repeat(4000));
    let facts =
        ContainerFacts { now: Now::Ended(long), last_end: None, restart_count: 0, in_force: None, revived: false };
    let status = status(&pod, &[("a", facts)], None, &PodStatus::default());
    let message = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap().message.unwrap();
    assert_eq!(message.len(), 6144);
}
