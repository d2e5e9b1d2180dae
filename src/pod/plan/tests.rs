//! The kubelet's `TestComputePodActions` tables, and random histories of whole pods.

use super::*;
use crate::pod::back_off::later;
use crate::pod::restart::{ExitCodeRule, Rule, RuleAction};

const T0: Timestamp = Timestamp::UNIX_EPOCH;
const RUNNING: ContainerState = ContainerState::Running { startup: Startup::Started, health: Health::Healthy };
const UNSTARTED: ContainerState = ContainerState::Running { startup: Startup::Pending, health: Health::Healthy };

fn exited(exit_code: i32) -> ContainerState {
    ContainerState::Exited { exit_code, sandbox: RanIn::Current }
}

fn lost(exit_code: i32) -> ContainerState {
    ContainerState::Exited { exit_code, sandbox: RanIn::Earlier }
}

fn unhealthy(health: Health) -> ContainerState {
    ContainerState::Running { startup: Startup::Started, health }
}

fn container(name: &str, role: Role, policy: RestartPolicy, state: ContainerState) -> ContainerView {
    let policy = if role == Role::Sidecar { RestartPolicy::Always } else { policy };
    let restart = RestartRules { policy, rules: Vec::new() };
    ContainerView {
        name: name.to_owned(),
        role,
        restart,
        state,
        back_off: None,
        hold_until: None,
        post_start: PostStart::Done,
    }
}

/// A pod of main containers `m0`, `m1`... and init containers `i0`, `i1`... (sidecars `s0`...).
fn pod(policy: RestartPolicy, init: &[(Role, ContainerState)], main: &[ContainerState]) -> PodView {
    let init = init.iter().enumerate().map(|(index, (role, state))| {
        let letter = if *role == Role::Sidecar { 's' } else { 'i' };
        container(&format!("{letter}{index}"), *role, policy, *state)
    });
    let main = main.iter().enumerate();
    let main = main.map(|(index, state)| container(&format!("m{index}"), Role::Main, policy, *state));
    PodView {
        phase: Phase::Syncing,
        restart_policy: policy,
        sandbox: Sandbox::Ready,
        init: init.collect(),
        main: main.collect(),
        ephemeral: Vec::new(),
        restarting_all: false,
        deadline: None,
        now: T0,
    }
}

/// Actions in short: `+m0` start, `-m0` stop, `x` the end, `sandbox`.
fn summary(plan: &Plan) -> String {
    let words = plan.actions.iter().map(|action| match action {
        Action::BeginRestartAll => "restart all".to_owned(),
        Action::ResetContainers => "reset".to_owned(),
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::Start { container } => format!("+{container}"),
        Action::Stop { container, grace: Some(grace), .. } => format!("-{container}({})", grace.as_secs()),
        Action::Stop { container, grace: None, .. } => format!("-{container}"),
        Action::CancelStart { container } => format!("!{container}"),
        Action::KillOverdue { container } => format!("kill {container}"),
        Action::Terminate(cause) => format!("end {cause:?}"),
        Action::RemoveSandbox => "remove".to_owned(),
        Action::Finish => "finish".to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn main_containers_are_started_kept_restarted_and_ended() {
    use ContainerState::{Absent, Starting};
    use RestartPolicy::{Always, Never, OnFailure};
    for (case, policy, main, expected) in [
        ("everything is good, do nothing", Always, vec![RUNNING, RUNNING], ""),
        ("containers that never ran are started", Always, vec![Absent, Absent], "+m0 +m1"),
        ("a start under way is not begun again", Always, vec![Starting, RUNNING], ""),
        ("Always restarts what exited", Always, vec![exited(0), RUNNING, exited(1)], "+m0 +m2"),
        ("OnFailure restarts the failed only", OnFailure, vec![exited(0), exited(1), RUNNING], "+m1"),
        ("Never restarts nothing", Never, vec![exited(0), exited(1), RUNNING], ""),
        ("the pod ends when nothing is left to run", Never, vec![exited(0), exited(1)], "end Completed"),
        ("the pod ends when all succeeded", OnFailure, vec![exited(0), exited(0)], "end Completed"),
        ("a changed definition restarts whatever the policy", Never, vec![unhealthy(Health::DefinitionChanged)], "-m0"),
        (
            "a failed liveness probe stops the container",
            Always,
            vec![unhealthy(Health::FailedLiveness), RUNNING],
            "-m0",
        ),
        ("a failed startup probe stops the container", OnFailure, vec![unhealthy(Health::FailedStartup)], "-m0"),
    ] {
        assert_eq!(summary(&plan(&pod(policy, &[], &main))), expected, "{case}");
    }
}

#[test]
fn main_containers_wait_for_the_post_start_hook_of_one_before_them() {
    use ContainerState::{Absent, Starting};
    let stopping = ContainerState::Stopping { kill_at: later(T0, Duration::from_secs(9)) };
    for (case, first, second, expected) in [
        ("the first starts alone", Absent, Absent, "+m0"),
        ("the second waits for its start", Starting, Absent, ""),
        ("and for its hook", UNSTARTED, Absent, ""),
        ("a restart waits too", UNSTARTED, exited(1), ""),
        ("one that runs is left alone", Absent, RUNNING, "+m0"),
        ("a hook that failed holds nobody up", stopping, Absent, "+m1"),
    ] {
        let mut view = pod(RestartPolicy::Always, &[], &[first, second]);
        view.main[0].post_start = PostStart::Pending;
        assert_eq!(summary(&plan(&view)), expected, "{case}");
    }
    let mut view = pod(RestartPolicy::Always, &[], &[exited(1), Absent]);
    view.main[0].post_start = PostStart::Pending;
    view.main[0].back_off = Some(BackOff { delay: Duration::from_secs(10), until: later(T0, Duration::from_secs(10)) });
    assert_eq!(summary(&plan(&view)), "+m1", "nor does one that waits in a crash loop");
}

#[test]
fn a_lost_sandbox_is_made_again_unless_the_pod_may_not_run_twice() {
    use ContainerState::Absent;
    use RestartPolicy::{Always, Never, OnFailure};
    use Role::Init;
    for (case, policy, init, main, expected) in [
        ("a new pod gets a sandbox", Always, vec![], vec![Absent], "sandbox"),
        ("a new pod that never restarts gets one too", Never, vec![], vec![Absent], "sandbox"),
        ("Always starts over", Always, vec![], vec![lost(137)], "sandbox"),
        ("OnFailure starts over for what failed", OnFailure, vec![], vec![lost(0), lost(137)], "sandbox"),
        ("OnFailure leaves a finished pod alone", OnFailure, vec![], vec![lost(0), lost(0)], "end Completed"),
        ("Never does not run twice", Never, vec![], vec![lost(137)], "end Completed"),
        ("Never, half of it not even started", Never, vec![], vec![lost(137), Absent], "end Failed"),
        ("Never, lost while initializing", Never, vec![(Init, lost(137))], vec![Absent], "end Failed"),
        ("Never, lost between two init containers", Never, vec![(Init, lost(0))], vec![Absent], "end Failed"),
        ("init containers run again", Always, vec![(Init, lost(0))], vec![lost(137)], "sandbox"),
    ] {
        let mut view = pod(policy, &init, &main);
        view.sandbox = Sandbox::Absent;
        assert_eq!(summary(&plan(&view)), expected, "{case}");
    }
    let mut view = pod(Always, &[(Init, lost(0)), (Init, lost(0))], &[lost(137)]);
    assert_eq!(summary(&plan(&view)), "+i0", "in the new sandbox the first init container runs again first");
    view.init[0].state = exited(0);
    assert_eq!(summary(&plan(&view)), "+i1", "then the second");
    view.init[1].state = exited(0);
    assert_eq!(summary(&plan(&view)), "+m0", "then the main container");
    let finished = pod(OnFailure, &[(Init, exited(0))], &[lost(0), lost(1)]);
    assert_eq!(summary(&plan(&finished)), "+m1", "OnFailure leaves the finished one alone");
}

#[test]
fn init_containers_run_in_order_and_each_to_its_end() {
    use ContainerState::{Absent, Starting};
    use RestartPolicy::{Always, Never, OnFailure};
    for (case, policy, init, main, expected) in [
        ("nothing ran yet, start the first", Always, [Absent, Absent, Absent], Absent, "+i0"),
        ("the first is starting, wait", Always, [Starting, Absent, Absent], Absent, ""),
        ("the first runs, wait", Always, [RUNNING, Absent, Absent], Absent, ""),
        ("the first is done, start the second", Always, [exited(0), Absent, Absent], Absent, "+i1"),
        ("the second runs, wait", Never, [exited(0), RUNNING, Absent], Absent, ""),
        ("the last is done, start the main containers", Always, [exited(0), exited(0), exited(0)], Absent, "+m0"),
        ("the last is running", OnFailure, [exited(0), exited(0), RUNNING], Absent, ""),
        ("a failed one runs again", Always, [exited(0), exited(1), Absent], Absent, "+i1"),
        ("a failed one runs again under OnFailure", OnFailure, [exited(1), Absent, Absent], Absent, "+i0"),
        ("a failed one fails a pod that never restarts", Never, [exited(0), exited(1), Absent], Absent, "end Failed"),
        ("records of earlier ones may be gone", Always, [Absent, Absent, exited(0)], Absent, "+m0"),
        ("a running main container proves initialization", Always, [Absent, Absent, Absent], RUNNING, ""),
        (
            "an ended main container is restarted, not the init ones",
            Always,
            [exited(0), exited(0), exited(0)],
            exited(1),
            "+m0",
        ),
    ] {
        let init = init.map(|state| (Role::Init, state));
        assert_eq!(summary(&plan(&pod(policy, &init, &[main]))), expected, "{case}");
    }
}

#[test]
fn sidecars_gate_what_follows_and_keep_running() {
    use ContainerState::{Absent, Starting};
    use RestartPolicy::{Always, Never, OnFailure};
    use Role::{Init, Sidecar};
    let side = |state| (Sidecar, state);
    let init = |state| (Init, state);
    for (case, policy, inits, main, expected) in [
        ("the first sidecar is started alone", Always, vec![side(Absent), side(Absent)], Absent, "+s0"),
        ("a starting sidecar gates", Always, vec![side(Starting), side(Absent)], Absent, ""),
        ("a sidecar whose startup probe is pending gates", Always, vec![side(UNSTARTED), side(Absent)], Absent, ""),
        ("a started sidecar lets the next one start", Always, vec![side(RUNNING), side(Absent)], Absent, "+s1"),
        ("a started sidecar lets an init container start", Never, vec![side(RUNNING), init(Absent)], Absent, "+i1"),
        (
            "the last started sidecar lets main containers start",
            Always,
            vec![side(RUNNING), side(RUNNING)],
            Absent,
            "+m0",
        ),
        (
            "an ended sidecar is restarted while initializing",
            Never,
            vec![side(exited(1)), init(RUNNING)],
            Absent,
            "+s0",
        ),
        ("an ended sidecar is restarted beside main containers", Never, vec![side(exited(0))], RUNNING, "+s0"),
        (
            "an ended sidecar does not gate a second time",
            Always,
            vec![side(exited(0)), init(exited(0))],
            RUNNING,
            "+s0",
        ),
        ("sidecars do not keep a finished pod alive", Never, vec![side(RUNNING)], exited(0), "end Completed"),
        ("nor are they restarted for it", OnFailure, vec![side(exited(1)), side(RUNNING)], exited(0), "end Completed"),
        ("a sidecar without record is started again", Always, vec![side(Absent), init(exited(0))], RUNNING, "+s0"),
        ("an unhealthy sidecar is stopped", Always, vec![side(unhealthy(Health::FailedLiveness))], RUNNING, "-s0"),
        ("its liveness does not gate", Always, vec![side(unhealthy(Health::FailedLiveness))], Absent, "-s0 +m0"),
        (
            "its startup probe does",
            Always,
            vec![side(ContainerState::Running { startup: Startup::Pending, health: Health::FailedStartup })],
            Absent,
            "-s0",
        ),
    ] {
        assert_eq!(summary(&plan(&pod(policy, &inits, &[main]))), expected, "{case}");
    }
}

#[test]
fn crash_loops_and_failed_starts_wait() {
    let mut view = pod(RestartPolicy::Always, &[], &[exited(1), ContainerState::Absent]);
    let back_off = BackOff { delay: Duration::from_secs(20), until: later(T0, Duration::from_secs(20)) };
    view.main[0].back_off = Some(back_off);
    view.main[1].hold_until = Some(later(T0, Duration::from_secs(5)));
    let first = plan(&view);
    assert_eq!(summary(&first), "");
    assert_eq!(first.backing_off.get("m0"), Some(&back_off));
    assert_eq!(first.wake_at, Some(later(T0, Duration::from_secs(5))), "the earlier of the two");
    view.now = later(T0, Duration::from_secs(5));
    assert_eq!(summary(&plan(&view)), "+m1");
    view.now = back_off.until;
    assert_eq!(summary(&plan(&view)), "+m0 +m1");
}

#[test]
fn a_deadline_ends_the_pod() {
    let mut view = pod(RestartPolicy::Always, &[], &[RUNNING]);
    let deadline = later(T0, Duration::from_secs(60));
    view.deadline = Some(deadline);
    assert_eq!(plan(&view).wake_at, Some(deadline));
    view.now = deadline;
    assert_eq!(summary(&plan(&view)), "end DeadlineExceeded");
    view.sandbox = Sandbox::Failed { retry_at: later(deadline, Duration::from_secs(1)) };
    assert_eq!(summary(&plan(&view)), "end DeadlineExceeded", "also when nothing could be started");
}

#[test]
fn containers_end_before_their_sidecars_and_those_in_reverse() {
    use ContainerState::{Absent, Starting};
    use Role::{Init, Sidecar};
    let stopping = |seconds| ContainerState::Stopping { kill_at: later(T0, Duration::from_secs(seconds)) };
    for (case, after, inits, main, expected) in [
        ("main containers first", 0, vec![(Sidecar, RUNNING), (Sidecar, RUNNING)], RUNNING, "-m0(30)"),
        ("sidecars wait for them", 5, vec![(Sidecar, RUNNING), (Sidecar, RUNNING)], stopping(30), ""),
        ("then the last sidecar", 10, vec![(Sidecar, RUNNING), (Sidecar, RUNNING)], exited(143), "-s1(20)"),
        ("then the one before it", 20, vec![(Sidecar, RUNNING), (Sidecar, exited(0))], exited(143), "-s0(10)"),
        (
            "everything at once when the grace is over",
            30,
            vec![(Sidecar, RUNNING), (Sidecar, RUNNING)],
            stopping(30),
            "-s1(2) -s0(2)",
        ),
        ("an init container does not wait", 0, vec![(Init, RUNNING)], Absent, "-i0(30)"),
        ("a start is given up", 0, vec![], Starting, "!m0"),
        ("what is overdue is killed again", 36, vec![], stopping(30), "kill m0"),
        ("then the sandbox goes", 1, vec![(Sidecar, exited(0))], exited(143), "remove"),
    ] {
        let mut view = pod(RestartPolicy::Always, &inits, &[main]);
        view.phase = Phase::Terminating(Termination { since: T0, grace: Duration::from_secs(30) });
        view.now = later(T0, Duration::from_secs(after));
        assert_eq!(summary(&plan(&view)), expected, "{case}");
    }
    let mut view = pod(RestartPolicy::Always, &[], &[exited(0)]);
    view.phase = Phase::Terminating(Termination { since: T0, grace: Duration::ZERO });
    view.sandbox = Sandbox::Absent;
    assert_eq!(summary(&plan(&view)), "finish", "and the pod is over");
    view.main[0].state = RUNNING;
    assert_eq!(summary(&plan(&view)), "-m0(0)", "a forced end kills at once");
}

#[test]
fn a_shorter_grace_shortens_a_stop_under_way() {
    let mut view =
        pod(RestartPolicy::Always, &[], &[ContainerState::Stopping { kill_at: later(T0, Duration::from_secs(30)) }]);
    view.phase =
        Phase::Terminating(Termination { since: later(T0, Duration::from_secs(3)), grace: Duration::from_secs(5) });
    view.now = later(T0, Duration::from_secs(3));
    assert_eq!(summary(&plan(&view)), "-m0(5)");
    view.main[0].state = ContainerState::Stopping { kill_at: later(T0, Duration::from_secs(8)) };
    assert_eq!(summary(&plan(&view)), "");
}

#[test]
fn stop_causes_read_as_the_kubelets_killing_events() {
    for (cause, role, expected) in [
        (StopCause::PodEnds, Role::Main, "Stopping container web"),
        (
            StopCause::FailedLiveness(Then::Restart),
            Role::Main,
            "Container web failed liveness probe, will be restarted",
        ),
        (StopCause::FailedStartup(Then::Stay), Role::Main, "Container web failed startup probe"),
        (StopCause::DefinitionChanged, Role::Sidecar, "Init container web definition changed, will be restarted"),
    ] {
        assert_eq!(cause.message("web", role), expected);
    }
}

mod histories {
    //! A small world that carries out plans, with random ends, failures and deletions.

    use super::*;
    use proptest::prelude::*;

    /// What the world does to a running or starting container when it is its turn.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Exit(i32),
        StartFails,
        AgentRestarts,
        Delete(u64),
        Pass(u64),
    }

    fn fates() -> impl Strategy<Value = Vec<(usize, Fate)>> {
        let fate = prop_oneof![
            4 => (0i32..3).prop_map(Fate::Exit),
            1 => Just(Fate::StartFails),
            1 => Just(Fate::AgentRestarts),
            1 => (0u64..40).prop_map(Fate::Delete),
            4 => (0u64..400).prop_map(Fate::Pass),
        ];
        proptest::collection::vec((0usize..8, fate), 0..60)
    }

    struct World {
        view: PodView,
        started: Vec<(String, Timestamp)>,
        ended_for_good: bool,
        /// What a container was before the start that is under way; a start that fails leaves it so.
        before: std::collections::BTreeMap<String, ContainerState>,
        /// Exited 0 under a policy that never runs a success again, before the agent restarted or after.
        finished: std::collections::BTreeSet<String>,
    }

    impl World {
        fn containers(&mut self) -> impl Iterator<Item = &mut ContainerView> {
            self.view.init.iter_mut().chain(self.view.main.iter_mut())
        }

        fn find(&mut self, name: &str) -> &mut ContainerView {
            self.containers().find(|c| c.name == name).unwrap()
        }

        /// Carries out plans until one has nothing to do.
        fn settle(&mut self) {
            for round in 0.. {
                assert!(round < 100, "plans go on forever: {:?}", self.view);
                let plan = plan(&self.view);
                if plan.actions.is_empty() {
                    return;
                }
                for action in plan.actions {
                    self.apply(action);
                }
            }
        }

        fn apply(&mut self, action: Action) {
            let now = self.view.now;
            match action {
                Action::CreateSandbox => self.view.sandbox = Sandbox::Ready,
                Action::Start { container } => self.start(&container),
                Action::Stop { container, grace, .. } => {
                    let kill_at = later(now, grace.unwrap_or(Duration::from_secs(30)));
                    let found = self.find(&container);
                    // A kill is obeyed at once, a request when time passes.
                    found.state =
                        if grace == Some(Duration::ZERO) { exited(137) } else { ContainerState::Stopping { kill_at } };
                }
                Action::CancelStart { container } => self.find(&container).state = self.before[&container],
                Action::KillOverdue { container } => self.find(&container).state = exited(137),
                Action::Terminate(_) => {
                    assert_eq!(self.view.phase, Phase::Syncing);
                    self.view.phase = Phase::Terminating(Termination { since: now, grace: Duration::from_secs(30) });
                }
                Action::BeginRestartAll => {
                    assert!(!self.view.restarting_all);
                    self.view.restarting_all = true;
                }
                Action::ResetContainers => {
                    assert!(self.view.restarting_all);
                    self.view.restarting_all = false;
                    self.finished.clear();
                    for found in self.containers() {
                        assert!(matches!(found.state, ContainerState::Absent | ContainerState::Exited { .. }));
                        found.state = ContainerState::Absent;
                        found.back_off = None;
                        found.hold_until = None;
                    }
                }
                Action::RemoveSandbox => self.view.sandbox = Sandbox::Absent,
                Action::Finish => self.view.phase = Phase::Terminated,
            }
        }

        fn start(&mut self, name: &str) {
            assert_eq!(self.view.phase, Phase::Syncing, "{name} started in a pod that ends");
            assert_eq!(self.view.sandbox, Sandbox::Ready, "{name} started without a sandbox");
            assert!(!self.finished.contains(name), "{name} succeeded and ran again");
            let role = self.find(name).role;
            let before: Vec<_> = self.view.init.iter().take_while(|c| c.name != name).cloned().collect();
            let initialized = self.view.main.iter().any(|c| {
                matches!(
                    c.state,
                    ContainerState::Running { .. } | ContainerState::Starting | ContainerState::Stopping { .. }
                )
            });
            if role != Role::Sidecar {
                for earlier in before {
                    let done = match earlier.role {
                        Role::Init => initialized || earlier.state == exited(0),
                        _ => !matches!(earlier.state, ContainerState::Absent) || initialized,
                    };
                    assert!(done, "{name} started before {} was done: {:?}", earlier.name, earlier.state);
                }
            }
            let now = self.view.now;
            let found = self.find(name);
            assert!(
                matches!(found.state, ContainerState::Absent | ContainerState::Exited { .. }),
                "{name} started twice: {:?}",
                found.state
            );
            if let (ContainerState::Exited { .. }, Some(back_off)) = (found.state, found.back_off) {
                assert!(back_off.is_over(now), "{name} started before its back-off was over");
            }
            let before = std::mem::replace(&mut found.state, ContainerState::Starting);
            self.before.insert(name.to_owned(), before);
            self.started.push((name.to_owned(), now));
        }

        fn exit(&mut self, index: usize, code: i32) {
            let now = self.view.now;
            let phase = self.view.phase;
            let Some(found) = self.containers().nth(index) else { return };
            match found.state {
                ContainerState::Starting => found.state = RUNNING,
                ContainerState::Running { .. } | ContainerState::Stopping { .. } => {
                    found.state = exited(code);
                    found.back_off = Some(BackOff::after_exit(found.back_off, Duration::from_secs(1), now));
                    let once = found.role == Role::Main && !found.restart.restarts_after(code);
                    if once && phase == Phase::Syncing {
                        let name = found.name.clone();
                        self.finished.insert(name);
                    }
                }
                _ => {}
            }
        }

        fn happen(&mut self, index: usize, fate: Fate) {
            let now = self.view.now;
            match fate {
                Fate::Exit(code) => self.exit(index, code),
                Fate::StartFails => {
                    let before = self.before.clone();
                    let Some(found) = self.containers().nth(index) else { return };
                    if found.state == ContainerState::Starting {
                        found.state = before[&found.name];
                        found.hold_until = Some(later(now, Duration::from_secs(10)));
                    }
                }
                Fate::AgentRestarts => {
                    self.view.sandbox = Sandbox::Absent;
                    let before = self.before.clone();
                    if std::mem::take(&mut self.view.restarting_all) {
                        // The next agent takes them for reset.
                        self.finished.clear();
                        for found in self.containers() {
                            (found.state, found.back_off, found.hold_until) = (ContainerState::Absent, None, None);
                        }
                    }
                    for found in self.containers() {
                        let was = match found.state {
                            ContainerState::Starting => before[&found.name],
                            other => other,
                        };
                        found.state = match was {
                            ContainerState::Absent => ContainerState::Absent,
                            ContainerState::Exited { exit_code, .. } => lost(exit_code),
                            _ => lost(137),
                        };
                    }
                }
                Fate::Delete(grace) => {
                    if self.view.phase != Phase::Terminated {
                        self.view.phase =
                            Phase::Terminating(Termination { since: now, grace: Duration::from_secs(grace) });
                        self.ended_for_good = true;
                    }
                }
                Fate::Pass(seconds) => self.view.now = later(now, Duration::from_secs(seconds)),
            }
        }
    }

    proptest! {
        #[test]
        fn no_pod_is_stuck_and_nothing_starts_twice_or_out_of_order(
            policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
            roles in proptest::collection::vec(prop_oneof![Just(Role::Init), Just(Role::Sidecar)], 0..4),
            mains in 1usize..4,
            all_after in proptest::option::of(0i32..4),
            fates in fates(),
        ) {
            let inits: Vec<_> = roles.into_iter().map(|role| (role, ContainerState::Absent)).collect();
            let mut view = pod(policy, &inits, &vec![ContainerState::Absent; mains]);
            view.sandbox = Sandbox::Absent;
            if let Some(code) = all_after {
                let codes = ExitCodeRule::In(vec![code]);
                let rule = Rule { codes, action: RuleAction::RestartAllContainers };
                view.main[0].restart.rules.push(rule);
            }
            let mut world = World {
                view,
                started: vec![],
                ended_for_good: false,
                before: BTreeMap::default(),
                finished: std::collections::BTreeSet::default(),
            };
            world.settle();
            for (index, fate) in fates {
                world.happen(index, fate);
                world.settle();
                let starting = world.containers().any(|c| c.state == ContainerState::Starting);
                let alive = world.containers().any(|c| !matches!(c.state, ContainerState::Absent | ContainerState::Exited { .. }));
                let wakes = plan(&world.view).wake_at.is_some();
                prop_assert!(
                    starting || alive || wakes || world.view.phase == Phase::Terminated,
                    "stuck: {:?}", world.view
                );
            }
            // Whatever happened: once deleted, and with time passing, it is over.
            world.happen(0, Fate::Delete(30));
            for _ in 0..20 {
                world.settle();
                world.happen(0, Fate::Pass(40));
            }
            world.settle();
            prop_assert_eq!(world.view.phase, Phase::Terminated);
            let alive = world.containers().any(|c| !matches!(c.state, ContainerState::Absent | ContainerState::Exited { .. }));
            prop_assert!(!alive);
        }
    }
}

#[test]
fn a_rule_makes_all_containers_run_again_from_the_first_on() {
    let asks = |state| {
        let mut source = container("m0", Role::Main, RestartPolicy::Never, state);
        let codes = ExitCodeRule::In(vec![42]);
        source.restart.rules.push(Rule { codes, action: RuleAction::RestartAllContainers });
        source
    };
    let mut view = pod(RestartPolicy::Never, &[(Role::Init, exited(0)), (Role::Sidecar, RUNNING)], &[RUNNING, RUNNING]);
    view.main[0] = asks(exited(42));
    assert_eq!(plan(&view).actions, [Action::BeginRestartAll]);
    view.restarting_all = true;
    let kill = |name: &str| Action::Stop {
        container: name.to_owned(),
        grace: Some(Duration::ZERO),
        cause: StopCause::RestartAll,
    };
    assert_eq!(plan(&view).actions, [kill("m1"), kill("s1")], "the last ones first, without grace");
    view.main[1].state = exited(137);
    view.init[1].state = exited(137);
    assert_eq!(plan(&view).actions, [Action::ResetContainers]);
    view.restarting_all = false;
    for container in view.init.iter_mut().chain(&mut view.main) {
        container.state = ContainerState::Absent;
    }
    assert_eq!(plan(&view).actions, [Action::Start { container: "i0".to_owned() }]);
    view.init[0].state = exited(42);
    view.main[0] = asks(exited(1));
    assert!(!plan(&view).actions.contains(&Action::BeginRestartAll), "neither another code nor another container asks");
}
