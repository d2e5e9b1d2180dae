//! A disk that refuses: at every step of a pod's life, once or for a while.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::state::IoStep;

/// Refuses steps of writing and removing.
#[derive(Debug, Default)]
pub(super) struct BadDisk {
    /// Steps that are done before any is refused.
    good: AtomicU32,
    /// Steps that are refused then.
    bad: AtomicU32,
    /// Steps that were refused.
    refused: AtomicU32,
}

impl BadDisk {
    /// Refuses so many steps from now on.
    pub(super) fn refuse(&self, steps: u32) {
        self.bad.store(steps, Ordering::SeqCst);
    }

    /// Refuses none any more; how many it would have.
    pub(super) fn mend(&self) -> u32 {
        self.bad.swap(0, Ordering::SeqCst)
    }

    fn one_less(count: &AtomicU32) -> bool {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

impl Faults for BadDisk {
    fn before(&self, step: IoStep, _: &Path) -> io::Result<()> {
        if step == IoStep::Read || Self::one_less(&self.good) || !Self::one_less(&self.bad) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::from_raw_os_error(if step == IoStep::Remove { libc::EIO } else { libc::ENOSPC }))
    }
}

/// One life: it starts, fails once and runs again, and is deleted, while the disk refuses `bad` steps after `good` ones.
/// Returns how many it refused.
async fn live(good: u32, bad: u32) -> u32 {
    let case = format!("{bad} steps after {good}");
    let world = World::new();
    let disk = Arc::new(BadDisk::default());
    let agent = Agent::start_on(world.directory.path(), &world.hand, disk.clone());
    disk.good.store(good, Ordering::SeqCst);
    disk.refuse(bad);
    agent
        .sim
        .script("a", [Play::Exit { after: Duration::from_secs(3), code: 1 }, Play::Serve { stops_in: Duration::ZERO }]);
    agent.sim.script("i", [Play::Exit { after: Duration::from_secs(1), code: 0 }]);
    let mount = json!([{"name": "data", "mountPath": "/data"}, {"name": "about", "mountPath": "/about"}]);
    let about = json!({"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]});
    let uid = agent
        .apply(web(json!({"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 2,
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "about", "downwardAPI": about}],
            "initContainers": [{"name": "i", "image": "x:1", "volumeMounts": mount}],
            "containers": [{"name": "a", "image": "x:1", "volumeMounts": mount}]})))
        .await;
    seconds(20).await;
    let refused_in_life = disk.refused.load(Ordering::SeqCst);
    if refused_in_life > 0 {
        disk.mend();
    }
    // Longer than the longest back-off.
    for _ in 0..8 {
        if container(&agent.status(&uid), "a").ready {
            break;
        }
        seconds(60).await;
    }
    assert_eq!(agent.phase(&uid), "Running", "{case}: {} {:?}", agent.calls(), agent.events());
    assert!(container(&agent.status(&uid), "a").ready, "{case}: {}", agent.calls());
    let root = agent.state.paths(&uid).root().to_owned();
    agent.pool.terminate(&uid, Termination::Graceful).await;
    seconds(20).await;
    disk.mend();
    let emptied = tokio::time::timeout(Duration::from_secs(600), agent.pool.emptied()).await;
    assert!(emptied.is_ok(), "{case}: the pod goes: {}", agent.calls());
    assert!(agent.sim.is_empty() && agent.status.get(&uid).is_none(), "{case}: {}", agent.calls());
    assert!(!root.exists(), "{case}: its directory goes");
    assert!(agent.state.load().unwrap().pods.is_empty(), "{case}: its record goes");
    disk.refused.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_refuses_any_step_of_a_pods_life_stops_none_and_nothing_is_left() {
    for bad in [1, u32::MAX] {
        let mut good = 0;
        while live(good, bad).await > 0 {
            good += 1;
            assert!(good < 500, "a life has an end");
        }
        assert!(good > 20, "a life has more steps than {good}: the disk is asked");
    }
}
