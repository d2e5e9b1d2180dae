//! The scheduler's arithmetic and order, without an engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::account::{CpuAccount, CpuLimits, PodCpu, cpu_weight};
use super::gate::Gate;
use super::quota::{PERIOD, Quota};

fn waker() -> Waker {
    Waker::noop().clone()
}

#[test]
fn weights_are_those_of_cgroup_v2() {
    for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(cpu_weight(shares), weight, "{shares}");
    }
}

#[test]
fn a_light_guest_runs_before_a_thousand_spinning_ones() {
    let mut gate = Gate::new(2);
    for id in 0..1000 {
        assert!(gate.enter(id, &mut 1_000_000, 0, &waker()));
    }
    for id in 0..1000 {
        gate.yielded(id, 1_000_000 + id, &waker());
    }
    assert!(gate.is_contended());
    let mut light = 0;
    assert!(gate.enter(5000, &mut light, 1000, &waker()), "less virtual time than everybody in the queue");
    assert!(gate.now() - light <= 1000, "but its sleep saved up no more than the credit");
}

#[test]
fn a_spinning_guest_queues_behind_those_that_have_less() {
    let mut gate = Gate::new(1);
    assert!(gate.enter(1, &mut 0, 0, &waker()));
    gate.yielded(1, 50, &waker());
    assert!(gate.enter(2, &mut 10, 100, &waker()), "before the queue");
    gate.yielded(2, 60, &waker());
    assert!(gate.enter(1, &mut 50, 100, &waker()), "granted when it queued");
    gate.leave();
    assert!(gate.enter(2, &mut 60, 100, &waker()), "granted when the first left");
}

#[test]
fn a_forgotten_grant_goes_to_the_next() {
    let mut gate = Gate::new(1);
    for id in 1..4 {
        assert!(gate.enter(id, &mut 0, 100, &waker()));
    }
    for id in 1..4 {
        gate.yielded(id, 10 * id, &waker());
    }
    assert!(!gate.enter(3, &mut 30, 100, &waker()));
    gate.forget(1);
    gate.forget(2);
    assert!(gate.enter(3, &mut 30, 100, &waker()), "the only one left");
}

/// Notes who may go on.
struct Turn {
    id: usize,
    ready: Arc<Mutex<VecDeque<usize>>>,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.ready.lock().push_back(self.id);
    }
}

/// How often each of guests that never stop gets a slice of one thread.
fn slices<const N: usize>(accounts: [&CpuAccount; N]) -> [f64; N] {
    let mut gate = Gate::new(1);
    let (mut virtual_times, mut slices) = ([0u64; N], [0f64; N]);
    for account in accounts {
        account.became_runnable();
    }
    let ready = Arc::new(Mutex::new((0..N).collect::<VecDeque<_>>()));
    for _ in 0..20_000 {
        let id = ready.lock().pop_front().expect("somebody may run");
        let waker = Waker::from(Arc::new(Turn { id, ready: ready.clone() }));
        if gate.enter(id as u64, &mut virtual_times[id], 0, &waker) {
            virtual_times[id] += accounts[id].scaled(Duration::from_millis(10));
            slices[id] += 1.0;
            gate.yielded(id as u64, virtual_times[id], &waker);
        }
        gate.take_granted_wakers().into_iter().for_each(Waker::wake);
    }
    for account in accounts {
        account.no_longer_runnable();
    }
    slices
}

fn shares(milli: u64) -> CpuLimits {
    CpuLimits { milli: None, shares: milli * 1024 / 1000 }
}

/// A container that is all of its pod.
fn alone(limits: CpuLimits) -> Arc<CpuAccount> {
    CpuAccount::new(&PodCpu::new(CpuLimits { milli: None, ..limits }), limits)
}

#[test]
fn guests_that_never_stop_share_the_cpu_as_they_asked_for_it() {
    for (a, b) in [(100, 300), (200, 600), (500, 1500), (1000, 1000), (250, 1000)] {
        let pod = PodCpu::new(shares(a));
        let (first, second) = (CpuAccount::new(&pod, shares(a)), alone(shares(b)));
        let [of_first, of_second] = slices([&first, &second]);
        let (got, wanted) = (of_second / of_first, b as f64 / a as f64);
        assert!((got / wanted - 1.0).abs() < 0.1, "{a}m beside {b}m: 1:{got:.2} instead of 1:{wanted}");
        // A resize counts from the next slice on.
        pod.set_limits(shares(b));
        first.set_limits(shares(b));
        let [of_first, of_second] = slices([&first, &second]);
        assert!((of_second / of_first - 1.0).abs() < 0.1, "{b}m beside {b}m");
    }
}

#[test]
fn containers_divide_what_their_pod_gets_and_no_more() {
    let pod = PodCpu::new(shares(400));
    let containers = [0, 100, 300].map(|milli| CpuAccount::new(&pod, shares(milli)));
    let other = alone(shares(400));
    for (case, [a, b], of_other) in [
        ("two divide the pod's half by their weights", [1, 2], 2.0),
        ("one has it alone, whatever its weight", [0, 0], 1.0),
    ] {
        let (a, b) = (&containers[a], &containers[b]);
        let got = if std::ptr::eq(a.as_ref(), b.as_ref()) {
            let [of_a, of_other] = slices([a, &other]);
            of_other / of_a
        } else {
            let [of_a, of_b, of_other] = slices([a, b, &other]);
            assert!((of_b / of_a / 3.0 - 1.0).abs() < 0.1, "{case}: 1:{}", of_b / of_a);
            of_other * 2.0 / (of_a + of_b)
        };
        assert!((got / of_other - 1.0).abs() < 0.1, "{case}: {got}");
    }
    // A resize while it wants to run counts in the pod from then on, and nothing of it stays when it is over.
    containers[1].became_runnable();
    containers[2].became_runnable();
    let before = containers[2].scaled(PERIOD);
    containers[1].set_limits(shares(900));
    assert!(containers[2].scaled(PERIOD) > 2 * before);
    containers[1].no_longer_runnable();
    containers[2].no_longer_runnable();
    assert_eq!(containers[2].scaled(PERIOD), other.scaled(PERIOD));
}

#[test]
fn a_quota_of_the_pod_holds_all_its_containers_back() {
    let pod = PodCpu::new(CpuLimits { milli: Some(100), shares: 2 });
    let first = CpuAccount::new(&pod, CpuLimits { milli: None, shares: 2 });
    let second = CpuAccount::new(&pod, CpuLimits { milli: Some(1000), shares: 2 });
    assert!(first.has_quota() && first.throttled_until().is_none());
    first.consume(PERIOD);
    assert!(first.throttled_until().is_some() && second.throttled_until().is_some());
    pod.set_limits(CpuLimits { milli: None, shares: 2 });
    assert!(!first.has_quota() && first.throttled_until().is_none() && second.throttled_until().is_none());
    second.consume(PERIOD * 2);
    assert!(second.throttled_until().is_some() && first.throttled_until().is_none(), "one's own is one's own");
}

#[test]
fn a_quota_can_be_changed_lifted_and_set() {
    let account = alone(CpuLimits { milli: None, shares: 2 });
    assert!(!account.has_quota() && account.throttled_until().is_none());
    account.set_limits(CpuLimits { milli: Some(100), shares: 1024 });
    assert_eq!((account.limits().milli, account.weight()), (Some(100), cpu_weight(1024)));
    account.consume(PERIOD);
    assert!(account.has_quota() && account.throttled_until().is_some(), "ten times its quota");
    account.set_limits(CpuLimits { milli: Some(100), shares: 2048 });
    assert!(account.throttled_until().is_some(), "the same quota goes on");
    account.set_limits(CpuLimits { milli: Some(2000), shares: 2048 });
    assert!(account.throttled_until().is_none(), "another one begins anew");
    account.set_limits(CpuLimits { milli: None, shares: 2 });
    account.consume(PERIOD * 100);
    assert!(!account.has_quota() && account.throttled_until().is_none());
}

#[test]
fn a_quota_is_exact_on_average_though_slices_are_coarse() {
    for milli in [50, 100, 200, 500, 1500] {
        let start = Instant::now();
        let mut quota = Quota::new(milli, start);
        let (mut now, mut used) = (start, Duration::ZERO);
        let slice = Duration::from_millis(10);
        while now < start + Duration::from_secs(20) {
            if let Some(until) = quota.throttled_until(now) {
                assert!(until > now, "never waits for the past");
                now = until;
            } else {
                // Two threads at once for quotas above a core.
                let threads = if milli > 1000 { 2 } else { 1 };
                quota.consume(slice * threads);
                used += slice * threads;
                now += slice;
            }
        }
        let share = used.as_secs_f64() / (now - start).as_secs_f64() * 1000.0;
        assert!((share - milli as f64).abs() < milli as f64 * 0.1, "{milli} asked, {share} got");
    }
}

#[test]
fn unused_time_of_a_period_is_not_saved() {
    let start = Instant::now();
    let mut quota = Quota::new(100, start);
    assert_eq!(quota.throttled_until(start + PERIOD * 50), None);
    quota.consume(Duration::from_millis(10));
    assert_eq!(quota.throttled_until(start + PERIOD * 50), Some(start + PERIOD * 51));
}

#[derive(Debug, Clone)]
enum Step {
    Enter { id: u64, time: u64 },
    Leave,
    Yield { time: u64 },
    Forget { id: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..8u64, 0..100u64).prop_map(|(id, time)| Step::Enter { id, time }),
        2 => Just(Step::Leave),
        2 => (0..100u64).prop_map(|time| Step::Yield { time }),
        1 => (0..8u64).prop_map(|id| Step::Forget { id }),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever happens, nobody who waits is forgotten: when all leave and come when woken, the queue empties.
    #[test]
    fn everybody_who_waits_gets_a_turn(steps in steps(), slots in 1usize..4) {
        let mut gate = Gate::new(slots);
        let mut running: Vec<u64> = Vec::new();
        let mut waiting: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Enter { id, mut time } if !running.contains(&id) => {
                    if gate.enter(id, &mut time, 10, &waker()) {
                        running.push(id);
                        waiting.retain(|&other| other != id);
                    } else if !waiting.contains(&id) {
                        waiting.push(id);
                    }
                }
                Step::Leave if !running.is_empty() => {
                    running.remove(0);
                    gate.leave();
                }
                Step::Yield { time } if !running.is_empty() => {
                    let id = running.remove(0);
                    gate.yielded(id, time, &waker());
                    waiting.push(id);
                }
                Step::Forget { id } if !running.contains(&id) => {
                    gate.forget(id);
                    waiting.retain(|&other| other != id);
                }
                _ => {}
            }
        }
        for _ in running.drain(..) {
            gate.leave();
        }
        let mut rounds = 0;
        while let Some(id) = waiting.pop() {
            if gate.enter(id, &mut 0, 10, &waker()) {
                gate.leave();
            } else {
                waiting.insert(0, id);
            }
            rounds += 1;
            prop_assert!(rounds < 1000, "somebody waits for ever");
        }
        prop_assert!(!gate.is_contended());
    }
}
