//! The manager against pods of a test.

use super::*;
use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::ids::PodUid;
use crate::node::pods::ContainerUse;
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
struct TestPods {
    active: Mutex<Vec<ActivePod>>,
    ended: Mutex<Vec<(String, PodEnd)>>,
    volumes: Mutex<HashMap<String, u64>>,
    removals: AtomicUsize,
}

#[async_trait]
impl NodePods for TestPods {
    fn active(&self) -> Vec<ActivePod> {
        self.active.lock().clone()
    }
    async fn measure_disks(&self, pods: &mut [ActivePod]) {
        for pod in pods {
            pod.volume_bytes = self.volumes.lock().get(pod.uid.as_str()).copied().unwrap_or(0);
        }
    }
    async fn end(&self, uid: &PodUid, end: PodEnd) {
        self.active.lock().retain(|pod| pod.uid != *uid);
        self.ended.lock().push((uid.to_string(), end));
    }
    fn has_ended(&self, uid: &PodUid) -> bool {
        !self.active.lock().iter().any(|pod| pod.uid == *uid)
    }
    async fn remove_dead(&self) {
        self.removals.fetch_add(1, Ordering::Relaxed);
    }
    fn images(&self) -> HashSet<String> {
        HashSet::new()
    }
}

fn pod(name: &str, memory_bytes: u64) -> ActivePod {
    let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": [{"name": "c"}]}});
    let name_of_container = "c".to_owned();
    ActivePod {
        uid: PodUid::new(name).unwrap(),
        pod: Arc::new(serde_json::from_value(pod).unwrap()),
        containers: vec![ContainerUse { name: name_of_container, memory_bytes, disk_bytes: 0, processes: 1 }],
        volume_bytes: 0,
        inodes: 0,
    }
}

fn manager(threshold: &str, pods: &Arc<TestPods>) -> (PressureManager, Recorder) {
    manager_of("memory.available", threshold, pods)
}

fn manager_of(signal: &str, threshold: &str, pods: &Arc<TestPods>) -> (PressureManager, Recorder) {
    let mut config = NodeConfig::default();
    config.registration.eviction_hard = [(signal.to_owned(), threshold.to_owned())].into();
    let settings = NodeSettings::new(&config, "n1", "/").unwrap();
    let events = Recorder::new("n1", Clock::System);
    let parts =
        PressureParts { pods: pods.clone(), images: None, events: events.clone(), metrics: WorkerMetrics::default() };
    (PressureManager::new(&settings, parts), events)
}

#[tokio::test]
async fn one_look_evicts_the_worst_pod_and_says_so() {
    let pods = Arc::new(TestPods::default());
    pods.active.lock().extend([pod("small", 1), pod("big", 4096)]);
    // More than any machine has.
    let (mut manager, events) = manager("1Ei", &pods);
    let pressure = manager.pressure();
    manager.look().await;
    assert!(pressure.borrow().memory);
    let ended = pods.ended.lock().clone();
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].0.as_str(), ended[0].1.reason), ("big", "Evicted"));
    assert!(
        ended[0].1.message.starts_with("The node was low on resource: memory. Threshold quantity: 1Ei, available: ")
    );
    assert!(
        ended[0].1.message.ends_with("Container c was using 4Ki, request is 0, has larger consumption of memory. ")
    );
    assert!(events.recent().iter().any(|event| event.message.as_deref() == Some("Attempting to reclaim memory")));
    assert_eq!(pods.removals.load(Ordering::Relaxed), 0, "files are not memory");
}

#[tokio::test]
async fn a_full_disk_evicts_the_pod_with_the_fullest_volumes() {
    let pods = Arc::new(TestPods::default());
    pods.active.lock().extend([pod("memory", 1 << 40), pod("volumes", 1)]);
    pods.volumes.lock().insert("volumes".to_owned(), 1 << 20);
    let (mut manager, _) = manager_of("nodefs.available", "1Ei", &pods);
    manager.look().await;
    let ended = pods.ended.lock().clone();
    assert_eq!(ended.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["volumes"]);
    assert!(ended[0].1.message.starts_with("The node was low on resource: ephemeral-storage. "));
    assert_eq!(pods.removals.load(Ordering::Relaxed), 1, "what is dead went first");
}

#[tokio::test]
async fn enough_of_everything_changes_nothing() {
    let pods = Arc::new(TestPods::default());
    pods.active.lock().push(pod("small", 1));
    let (mut manager, events) = manager("1", &pods);
    manager.look().await;
    assert_eq!(*manager.pressure().borrow(), Pressure::default());
    assert!(pods.ended.lock().is_empty() && events.recent().is_empty());
}
