//! A runtime that plays: images that fail, containers that end when a script says so, in paused time.
//!
//! In: the worker's calls. Out: a journal of them, and exits by script. Runs nothing.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::runtime::{
    ContainerRuntime, ImageFailure, ImageProgress, ImageRequest, Permit, Progress, ReadyImage, SandboxFailure,
    StartFailure, StartStep,
};
use crate::clock::Clock;
use crate::ids::{ContainerId, Digest, PodUid};
use crate::pod::container::ImageDefaults;
use crate::pod::probe::{Handler, Outcome};
use crate::pod::run::{
    ArtifactSpec, ContainerExit, ContainerSpec, ContainerUsage, ExitCause, ImageSpec, Limits, PodLimits, Projection,
    SandboxSpec, StopRequest,
};
use crate::probe::Target;

/// What one attempt of a container does.
#[derive(Debug, Clone)]
pub(super) enum Play {
    /// Ends by itself.
    Exit { after: Duration, code: u8 },
    /// Runs until it is told to stop, and then takes this long.
    Serve { stops_in: Duration },
    /// Does not hear a stop.
    Deaf,
    /// Writes a termination message and fails.
    Message { text: &'static str, code: u8 },
    /// Does not start.
    Refuse { step: StartStep, message: &'static str },
    /// Ends before its start is known.
    EndAtOnce { code: u8 },
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, VecDeque<Play>>,
    image_failures: HashMap<String, VecDeque<ImageFailure>>,
    sandbox_failures: u32,
    pull_time: Duration,
    running: HashMap<ContainerId, Running>,
    sandboxes: HashMap<PodUid, Vec<IpAddr>>,
    next_ip: u8,
    writable_bytes: u64,
    memory_bytes: u64,
    answers: HashMap<String, VecDeque<(Duration, Outcome)>>,
    journal: Vec<String>,
}

struct Running {
    uid: PodUid,
    name: String,
    play: Play,
    started_at: SystemTime,
    kill: Option<oneshot::Sender<ExitCause>>,
}

/// The runtime.
pub(super) struct Simulator {
    state: Mutex<State>,
    exits: mpsc::Sender<ContainerExit>,
    clock: Clock,
    this: std::sync::Weak<Self>,
}

impl Simulator {
    pub fn new(clock: Clock) -> (std::sync::Arc<Self>, mpsc::Receiver<ContainerExit>) {
        let (exits, receiver) = mpsc::channel(64);
        let this =
            std::sync::Arc::new_cyclic(|this| Self { state: Mutex::default(), exits, clock, this: this.clone() });
        (this, receiver)
    }

    /// What the attempts of a container do, one after the other; the last one for all that follow.
    pub fn script(&self, container: &str, plays: impl IntoIterator<Item = Play>) {
        self.state.lock().scripts.insert(container.to_owned(), plays.into_iter().collect());
    }

    pub fn fail_image(&self, image: &str, failures: impl IntoIterator<Item = ImageFailure>) {
        self.state.lock().image_failures.insert(image.to_owned(), failures.into_iter().collect());
    }

    pub fn fail_sandboxes(&self, count: u32) {
        self.state.lock().sandbox_failures = count;
    }

    pub fn set_pull_time(&self, time: Duration) {
        self.state.lock().pull_time = time;
    }

    pub fn set_writable_bytes(&self, bytes: u64) {
        self.state.lock().writable_bytes = bytes;
    }

    pub fn set_memory_bytes(&self, bytes: u64) {
        self.state.lock().memory_bytes = bytes;
    }

    /// What a handler comes to and how long that takes, one after the other; the last one for all that follow. Handlers
    /// are named by their command, path or port; without answers they succeed at once.
    pub fn answer(&self, handler: &str, answers: impl IntoIterator<Item = (Duration, Outcome)>) {
        self.state.lock().answers.insert(handler.to_owned(), answers.into_iter().collect());
    }

    /// What was called, in order: `sandbox web`, `start a#0`, `stop a 30`, `kill a`, `end a 0`, `remove web`.
    pub fn journal(&self) -> Vec<String> {
        self.state.lock().journal.clone()
    }

    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.running.is_empty() && state.sandboxes.is_empty()
    }

    fn now(&self) -> SystemTime {
        self.clock.now().into()
    }

    fn end(&self, id: &ContainerId, code: u8, cause: ExitCause) {
        let exit = {
            let mut state = self.state.lock();
            let Some(running) = state.running.remove(id) else { return };
            state.journal.push(format!("end {} {code}", running.name));
            ContainerExit {
                uid: running.uid,
                id: id.clone(),
                exit_code: code,
                cause,
                started_at: running.started_at,
                finished_at: self.now(),
            }
        };
        let exits = self.exits.clone();
        tokio::spawn(async move { drop(exits.send(exit).await) });
    }

    fn end_in(&self, id: &ContainerId, after: Duration, code: u8, cause: ExitCause) {
        let (this, id) = (self.this.upgrade().unwrap(), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            this.end(&id, code, cause);
        });
    }
}

impl ContainerRuntime for Simulator {
    async fn ensure_image(&self, request: ImageRequest, progress: Progress) -> Result<ReadyImage, ImageFailure> {
        let (failure, pull_time) = {
            let mut state = self.state.lock();
            let pull_time = state.pull_time;
            (state.image_failures.get_mut(&request.image).and_then(VecDeque::pop_front), pull_time)
        };
        if let Some(failure) = failure {
            return Err(failure);
        }
        progress(ImageProgress::Pulling);
        tokio::time::sleep(pull_time).await;
        progress(ImageProgress::Pulled { took: pull_time, size: 42 });
        let digest = Digest::of(request.image.as_bytes());
        let artifact = Some(ArtifactSpec { digest: digest.clone(), path: "/store/app".into() });
        Ok(ReadyImage {
            status_id: format!("{}@{digest}", request.image),
            spec: ImageSpec { reference: request.image, manifest_digest: digest, layers: vec![], artifact },
            defaults: ImageDefaults::default(),
            passwd: String::new(),
            group: String::new(),
        })
    }

    async fn create_sandbox(&self, spec: SandboxSpec, ips: Vec<IpAddr>) -> Result<Vec<IpAddr>, SandboxFailure> {
        let mut state = self.state.lock();
        state.journal.push(format!("sandbox {}", spec.pod.name));
        if state.sandbox_failures > 0 {
            state.sandbox_failures -= 1;
            return Err(SandboxFailure { message: "no address is left".to_owned() });
        }
        let mut ips = ips;
        if ips.is_empty() {
            state.next_ip += 1;
            ips = vec![IpAddr::from([10, 0, 0, state.next_ip])];
        }
        assert!(state.sandboxes.insert(spec.uid, ips.clone()).is_none(), "two sandboxes of one pod");
        Ok(ips)
    }

    async fn update_volume(&self, _: &PodUid, volume: &str, projection: Projection) {
        let files: Vec<_> = projection
            .files
            .into_iter()
            .map(|(path, file)| format!("{path}={}", String::from_utf8_lossy(&file.data)))
            .collect();
        self.state.lock().journal.push(format!("volume {volume} {}", files.join(",")));
    }

    async fn volume_wanted(&self, _: &PodUid, _: &str) {
        // No guest of this runtime looks at files.
        std::future::pending::<()>().await;
    }

    fn is_volume_pending(&self, _: &PodUid, _: &str) -> bool {
        false
    }

    async fn remove_sandbox(&self, uid: &PodUid) {
        let mut state = self.state.lock();
        assert!(!state.running.values().any(|running| running.uid == *uid), "a sandbox is removed while it is used");
        if state.sandboxes.remove(uid).is_some() {
            state.journal.push("remove".to_owned());
        }
    }

    async fn start_container(
        &self,
        uid: &PodUid,
        spec: ContainerSpec,
        permit: impl Future<Output = Permit> + Send,
    ) -> Result<(), StartFailure> {
        std::fs::create_dir_all(&spec.writable_dir).unwrap();
        permit.await.map_err(|message| StartFailure { step: StartStep::Create, message })?;
        let play = {
            let mut state = self.state.lock();
            state.journal.push(format!("start {}#{}", spec.name, spec.attempt));
            assert!(state.sandboxes.contains_key(uid), "a container without sandbox");
            let twice = state.running.values().any(|r| r.uid == *uid && r.name == spec.name);
            assert!(!twice, "{} runs twice", spec.name);
            let script = state.scripts.entry(spec.name.clone()).or_default();
            let next = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
            let play = next.unwrap_or(Play::Serve { stops_in: Duration::from_secs(1) });
            if !matches!(play, Play::Refuse { .. }) {
                let running = Running {
                    uid: uid.clone(),
                    name: spec.name.clone(),
                    play: play.clone(),
                    started_at: self.now(),
                    kill: None,
                };
                state.running.insert(spec.id.clone(), running);
            }
            play
        };
        match play {
            Play::Exit { after, code } => self.end_in(&spec.id, after, code, ExitCause::Exited),
            Play::Serve { .. } | Play::Deaf => {}
            Play::Message { text, code } => {
                std::fs::write(&spec.termination_message_file, text).unwrap();
                self.end_in(&spec.id, Duration::from_secs(1), code, ExitCause::Exited);
            }
            Play::Refuse { step, message } => return Err(StartFailure { step, message: message.to_owned() }),
            Play::EndAtOnce { code } => {
                self.end(&spec.id, code, ExitCause::Exited);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    }

    fn stop_container(&self, id: &ContainerId, request: StopRequest) {
        let mut state = self.state.lock();
        let Some(running) = state.running.get_mut(id) else { return };
        let (name, play) = (running.name.clone(), running.play.clone());
        let (kill, killed) = oneshot::channel();
        let told = running.kill.replace(kill).is_some();
        state.journal.push(format!("stop {name} {}", request.grace.as_secs()));
        drop(state);
        let this = self.this.upgrade().unwrap();
        let id = id.clone();
        let own = match play {
            Play::Serve { stops_in } if !told => Some(stops_in),
            _ => None,
        };
        tokio::spawn(async move {
            let stops = async {
                match own {
                    Some(own) => tokio::time::sleep(own).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stops => this.end(&id, 143, ExitCause::Stopped),
                () = tokio::time::sleep(request.grace) => this.end(&id, 137, ExitCause::Killed),
                _ = killed => {}
            }
        });
    }

    fn kill_container(&self, id: &ContainerId) {
        let name = self.state.lock().running.get(id).map(|running| running.name.clone());
        if let Some(name) = name {
            self.state.lock().journal.push(format!("kill {name}"));
            self.end(id, 137, ExitCause::Killed);
        }
    }

    fn update_sandbox(&self, _: &PodUid, limits: &PodLimits) {
        let show = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let PodLimits { memory_bytes, cpu_milli, cpu_shares } = limits;
        let call = format!("limits {} {} {cpu_shares}", show(*memory_bytes), show(*cpu_milli));
        self.state.lock().journal.push(call);
    }

    fn update_container(&self, id: &ContainerId, limits: &Limits) {
        let mut state = self.state.lock();
        let Some(name) = state.running.get(id).map(|running| running.name.clone()) else { return };
        let show = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let Limits { memory_bytes, cpu_milli, cpu_shares, .. } = limits;
        state.journal.push(format!("limit {name} {} {} {cpu_shares}", show(*memory_bytes), show(*cpu_milli)));
    }

    async fn ask(&self, _: &Target, handler: &Handler, timeout: Option<Duration>) -> Outcome {
        let name = match handler {
            Handler::Exec(command) => command.join(" "),
            Handler::Http(request) => request.path.clone(),
            Handler::Tcp(address) | Handler::Grpc { address, .. } => address.port.to_string(),
            Handler::Sleep(time) => format!("sleep {}", time.as_secs()),
        };
        let (takes, outcome) = {
            let mut state = self.state.lock();
            state.journal.push(format!("ask {name}"));
            let script = state.answers.entry(name).or_default();
            let next = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
            let sleeps = if let Handler::Sleep(time) = handler { *time } else { Duration::ZERO };
            next.unwrap_or((sleeps, Outcome::Success))
        };
        match timeout {
            Some(timeout) if timeout < takes => {
                tokio::time::sleep(timeout).await;
                Outcome::Failure("too late".to_owned())
            }
            _ => {
                tokio::time::sleep(takes).await;
                outcome
            }
        }
    }

    fn usage(&self, _: &ContainerId) -> Option<ContainerUsage> {
        let state = self.state.lock();
        let (writable_bytes, memory_bytes) = (state.writable_bytes, state.memory_bytes);
        Some(ContainerUsage { memory_bytes, writable_bytes, ..ContainerUsage::default() })
    }
}
