//! In which order pods end when the machine goes down, and with how much time.
//!
//! In: active pods, the two grace periods. Out: groups, one after the other. Pure; by `groupByPriority` of
//! `pkg/kubelet/nodeshutdown`: pods of system-critical priority are the last.

use std::time::Duration;

use crate::config::RegistrationConfig;
use crate::ids::PodUid;
use crate::node::pods::ActivePod;
use crate::pod::admission::preemption::{SYSTEM_CRITICAL_PRIORITY, priority};

/// The time there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShutdownGrace {
    /// `shutdownGracePeriod`: for all pods. Zero is no graceful shutdown.
    pub total: Duration,
    /// `shutdownGracePeriodCriticalPods`: the last part of it.
    pub critical: Duration,
}

impl From<&RegistrationConfig> for ShutdownGrace {
    fn from(config: &RegistrationConfig) -> Self {
        Self { total: config.shutdown_grace_period, critical: config.shutdown_grace_period_critical_pods }
    }
}

/// Pods that end together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Each with what it gets: its own grace, but no more than the group's time.
    pub pods: Vec<(PodUid, Duration)>,
    /// When the next group's turn is, whoever is left.
    pub time: Duration,
}

/// The groups in the order in which they end; none is empty.
#[must_use]
pub fn plan(pods: &[ActivePod], grace: ShutdownGrace) -> Vec<Group> {
    let (critical, normal): (Vec<&ActivePod>, Vec<&ActivePod>) =
        pods.iter().partition(|pod| priority(&pod.pod) >= SYSTEM_CRITICAL_PRIORITY);
    [(normal, grace.total.saturating_sub(grace.critical)), (critical, grace.critical)]
        .into_iter()
        .filter(|(pods, _)| !pods.is_empty())
        .map(|(pods, time)| Group {
            pods: pods
                .into_iter()
                .map(|pod| (pod.uid.clone(), own_grace(pod).map_or(time, |own| own.min(time))))
                .collect(),
            time,
        })
        .collect()
}

fn own_grace(pod: &ActivePod) -> Option<Duration> {
    let seconds = pod.pod.spec.as_ref()?.termination_grace_period_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(name: &str, priority: i32, grace: Option<i64>) -> ActivePod {
        let spec = json!({"priority": priority, "terminationGracePeriodSeconds": grace, "containers": []});
        ActivePod {
            uid: PodUid::new(name).unwrap(),
            pod: Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap()),
            containers: Vec::new(),
            volume_bytes: 0,
            inodes: 0,
        }
    }

    #[test]
    fn critical_pods_end_last_and_nobody_gets_more_than_there_is() {
        let grace = ShutdownGrace { total: Duration::from_secs(30), critical: Duration::from_secs(10) };
        let shown = |pods: &[ActivePod]| -> Vec<(Vec<(String, u64)>, u64)> {
            let groups = plan(pods, grace);
            let of = |group: &Group| group.pods.iter().map(|(uid, d)| (uid.to_string(), d.as_secs())).collect();
            groups.iter().map(|group| (of(group), group.time.as_secs())).collect()
        };
        let pods = [
            pod("dns", SYSTEM_CRITICAL_PRIORITY + 1000, Some(60)),
            pod("web", 0, Some(60)),
            pod("quick", -5, Some(2)),
            pod("unsaid", SYSTEM_CRITICAL_PRIORITY - 1, None),
        ];
        let name = |name: &str, seconds| (name.to_owned(), seconds);
        assert_eq!(
            shown(&pods),
            [(vec![name("web", 20), name("quick", 2), name("unsaid", 20)], 20), (vec![name("dns", 10)], 10)]
        );
        assert_eq!(shown(&pods[..1]), [(vec![name("dns", 10)], 10)], "an empty group takes no time");
        assert!(shown(&[]).is_empty());
    }
}
