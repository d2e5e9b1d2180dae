//! Probes and lifecycle hooks as decisions: what is to be asked, and what a row of answers means.
//!
//! In: probes and handlers of a container, outcomes one by one. Out: a [`Handler`] with everything resolved, and the
//! moments at which a probe's result changes. Asks nobody and reads no clock: that is `crate::probe`'s and the worker's.
//! The rules are those of the kubelet's `prober` and `lifecycle`.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::expansion::expand;

/// The three probes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Until it succeeds the others are not asked; its failure ends the container.
    Startup,
    /// Its failure ends the container.
    Liveness,
    /// Says whether the container is ready.
    Readiness,
}

impl ProbeKind {
    /// As Events name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The probe of this kind that a container has.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// When a probe runs and how often it must agree with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// `initialDelaySeconds`, from the container's start.
    pub initial_delay: Duration,
    /// `periodSeconds`.
    pub period: Duration,
    /// `timeoutSeconds`.
    pub timeout: Duration,
    /// `successThreshold`.
    pub success_threshold: u32,
    /// `failureThreshold`.
    pub failure_threshold: u32,
}

impl Schedule {
    /// Of a probe; what is missing or zero is the API's default.
    #[must_use]
    pub fn of(probe: &Probe) -> Self {
        let or = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(or(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: or(probe.success_threshold, 1),
            failure_threshold: or(probe.failure_threshold, 3),
        }
    }
}

/// What one question came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Success,
    /// All is well, with a remark.
    Warning(String),
    /// It is not, and why.
    Failure(String),
    /// The question could not be asked; says nothing about the container.
    Errored(String),
}

/// A result after thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Often enough in a row.
    Success,
    /// Often enough in a row.
    Failure,
}

/// Whether a probe goes on after a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// It is asked again after its period.
    Probe,
    /// It rests until the container's next attempt.
    Rest,
}

/// Counts answers in a row: the kubelet's `worker.doProbe`.
///
/// ```text
///   answer differs from the last ─▶ run = 1     the same ─▶ run + 1
///   run >= threshold ─▶ verdict, told when it differs from the one before
/// ```
#[derive(Debug)]
pub struct Counter {
    kind: ProbeKind,
    schedule: Schedule,
    last: Option<Verdict>,
    run: u32,
    told: Option<Verdict>,
}

impl Counter {
    /// For one attempt of a container. A liveness probe begins with success, a readiness probe with failure, a startup
    /// probe with neither.
    #[must_use]
    pub const fn new(kind: ProbeKind, schedule: Schedule) -> Self {
        let told = match kind {
            ProbeKind::Startup => None,
            ProbeKind::Liveness => Some(Verdict::Success),
            ProbeKind::Readiness => Some(Verdict::Failure),
        };
        Self { kind, schedule, last: None, run: 0, told }
    }

    /// Takes one answer in: the verdict if it is news, and whether to go on asking.
    pub fn observe(&mut self, outcome: &Outcome) -> (Option<Verdict>, Onward) {
        let answer = match outcome {
            Outcome::Success | Outcome::Warning(_) => Verdict::Success,
            Outcome::Failure(_) => Verdict::Failure,
            // The kubelet throws it away.
            Outcome::Errored(_) => return (None, Onward::Probe),
        };
        self.run = if self.last == Some(answer) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(answer);
        let threshold = match answer {
            Verdict::Success => self.schedule.success_threshold,
            Verdict::Failure => self.schedule.failure_threshold,
        };
        if self.run < threshold {
            return (None, Onward::Probe);
        }
        let news = (self.told != Some(answer)).then_some(answer);
        self.told = Some(answer);
        let rests = self.kind == ProbeKind::Startup || (self.kind == ProbeKind::Liveness && answer == Verdict::Failure);
        (news, if rests { Onward::Rest } else { Onward::Probe })
    }
}

/// Something to ask of, or to do with, a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// Run a program in it.
    Exec(Vec<String>),
    /// Ask it by HTTP.
    Http(HttpTarget),
    /// Connect to it.
    Tcp(Address),
    /// Ask its gRPC health service.
    Grpc {
        /// Where.
        address: Address,
        /// `service`; empty is the whole server.
        service: String,
    },
    /// Wait.
    Sleep(Duration),
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The pod itself, or somebody else.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The pod, at its first address.
    Pod(IpAddr),
    /// What the handler's `host` says, as the node sees it: an address or a name.
    Named(String),
}

impl Host {
    /// As messages and the `Host` header have it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Pod(ip) => ip.to_string(),
            Self::Named(name) => name.clone(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host.text();
        if host.contains(':') { write!(f, "[{host}]:{}", self.port) } else { write!(f, "{host}:{}", self.port) }
    }
}

/// A request to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// Whether it is encrypted.
    pub scheme: Scheme,
    /// Where it goes.
    pub address: Address,
    /// Path and query, `/` first.
    pub path: String,
    /// `httpHeaders`, in order.
    pub headers: Vec<(String, String)>,
}

/// `httpGet.scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS, whose certificate nobody verifies.
    Https,
}

impl Scheme {
    /// As a URL begins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Handler {
    /// What a probe asks.
    ///
    /// # Errors
    /// The kubelet's words when a port has no number, or nothing is asked at all.
    pub fn of_probe(probe: &Probe, container: &Container, ip: Option<IpAddr>) -> Result<Self, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Self::Exec(static_command(exec, container)));
        }
        if let Some(get) = &probe.http_get {
            return http(get, container, ip);
        }
        if let Some(socket) = &probe.tcp_socket {
            return tcp(socket, container, ip);
        }
        if let Some(GRPCAction { port, service }) = &probe.grpc {
            let port = checked(i64::from(*port))?;
            let address = Address { host: host(None, ip)?, port };
            return Ok(Self::Grpc { address, service: service.clone().unwrap_or_default() });
        }
        Err(format!("missing probe handler for {}", container.name))
    }

    /// What a hook does.
    ///
    /// # Errors
    /// As for probes.
    pub fn of_hook(hook: &LifecycleHandler, container: &Container, ip: Option<IpAddr>) -> Result<Self, String> {
        if let Some(exec) = &hook.exec {
            // Unlike a probe's, a hook's command is taken as it is written.
            return Ok(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &hook.http_get {
            return http(get, container, ip);
        }
        if let Some(sleep) = &hook.sleep {
            return Ok(Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
        }
        // The API keeps it for old objects; the kubelet runs none.
        Err("invalid handler".to_owned())
    }
}

/// How a hook that failed is described in the container's status: the kubelet's words.
#[must_use]
pub fn hook_failure(hook: &LifecycleHandler, container: &str, pod: &str, error: &str) -> String {
    let of = format!("for Container {container:?} in Pod {pod:?} failed - error: {error}");
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default().join(" ");
        return format!("Exec lifecycle hook ([{command}]) {of}, message: \"\"");
    }
    if let Some(get) = &hook.http_get {
        return format!("HTTP lifecycle hook ({}) {of}", get.path.as_deref().unwrap_or("/"));
    }
    match &hook.sleep {
        Some(sleep) => format!("Sleep lifecycle hook ({}) {of}", sleep.seconds),
        None => format!("Cannot run handler: {error}"),
    }
}

/// The kubelet's `ExpandContainerCommandOnlyStatic`: only plain values of the container's own `env` are known.
fn static_command(exec: &ExecAction, container: &Container) -> Vec<String> {
    let lookup = |name: &str| {
        let mut env = container.env.iter().flatten();
        env.rfind(|variable| variable.name == name).map(|variable| variable.value.clone().unwrap_or_default())
    };
    exec.command.iter().flatten().map(|argument| expand(argument, lookup)).collect()
}

fn http(get: &HTTPGetAction, container: &Container, ip: Option<IpAddr>) -> Result<Handler, String> {
    let path = get.path.as_deref().unwrap_or_default();
    let headers = get.http_headers.iter().flatten();
    let scheme = get.scheme.as_deref().unwrap_or_default();
    Ok(Handler::Http(HttpTarget {
        scheme: if scheme.eq_ignore_ascii_case("https") { Scheme::Https } else { Scheme::Http },
        address: Address { host: host(get.host.as_deref(), ip)?, port: port(&get.port, container)? },
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
    }))
}

fn tcp(socket: &TCPSocketAction, container: &Container, ip: Option<IpAddr>) -> Result<Handler, String> {
    let host = host(socket.host.as_deref(), ip)?;
    Ok(Handler::Tcp(Address { host, port: port(&socket.port, container)? }))
}

fn host(given: Option<&str>, ip: Option<IpAddr>) -> Result<Host, String> {
    match given.filter(|host| !host.is_empty()) {
        // The pod's own address leads to the pod, however it was written.
        Some(host) => match (host.parse::<IpAddr>(), ip) {
            (Ok(asked), Some(own)) if asked == own => Ok(Host::Pod(own)),
            _ => Ok(Host::Named(host.to_owned())),
        },
        None => ip.map(Host::Pod).ok_or_else(|| "the pod has no address".to_owned()),
    }
}

/// The kubelet's `ResolveContainerPort`.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => checked(i64::from(*number)),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named =
                ports.find(|port| port.name.as_deref() == Some(name)).map(|port| i64::from(port.container_port));
            // A number may have been written as a string.
            match named.or_else(|| name.parse().ok()) {
                Some(number) => checked(number),
                None => Err(format!("strconv.Atoi: parsing {name:?}: invalid syntax")),
            }
        }
    }
}

fn checked(number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// `s`, `f`, `w`, `e` are answers; the result has a letter for each: `S` and `F` verdicts, `.` none, and `!` where
    /// the probe rests.
    fn play(kind: ProbeKind, success: u32, failure: u32, answers: &str) -> String {
        let probe = json!({"successThreshold": success, "failureThreshold": failure});
        let mut counter = Counter::new(kind, Schedule::of(&serde_json::from_value(probe).unwrap()));
        let mut told = String::new();
        for answer in answers.chars() {
            let (verdict, onward) = counter.observe(&match answer {
                's' => Outcome::Success,
                'w' => Outcome::Warning("moved".into()),
                'f' => Outcome::Failure("no".into()),
                _ => Outcome::Errored("lost".into()),
            });
            told.push(match verdict {
                Some(Verdict::Success) => 'S',
                Some(Verdict::Failure) => 'F',
                None => '.',
            });
            if onward == Onward::Rest {
                told.push('!');
                break;
            }
        }
        told
    }

    #[test]
    fn answers_in_a_row_make_a_verdict() {
        use ProbeKind::{Liveness, Readiness, Startup};
        for (case, kind, success, failure, answers, expected) in [
            ("liveness begins with success", Liveness, 1, 3, "ss", ".."),
            ("three failures in a row end it", Liveness, 1, 3, "sfff", "...F!"),
            ("a success between begins anew", Liveness, 1, 3, "ffsffsff", "........"),
            ("errors neither count nor interrupt", Liveness, 1, 2, "fef", "..F!"),
            ("readiness begins with failure", Readiness, 1, 1, "ff", ".."),
            ("readiness comes and goes", Readiness, 1, 2, "sffs", "S.FS"),
            ("readiness is told once", Readiness, 1, 1, "sss", "S.."),
            ("a redirect elsewhere is a success", Readiness, 1, 1, "w", "S"),
            ("success may take several", Readiness, 3, 1, "ssfsss", ".....S"),
            ("startup rests after success", Startup, 1, 3, "ffs", "..S!"),
            ("startup rests after failure", Startup, 1, 2, "ff", ".F!"),
        ] {
            assert_eq!(play(kind, success, failure, answers), expected, "{case}");
        }
    }

    #[test]
    fn a_schedule_has_the_defaults_of_the_api() {
        let defaults = Schedule::of(&Probe::default());
        let seconds = Duration::from_secs;
        assert_eq!((defaults.initial_delay, defaults.period, defaults.timeout), (seconds(0), seconds(10), seconds(1)));
        assert_eq!((defaults.success_threshold, defaults.failure_threshold), (1, 3));
        let zero = Schedule::of(&Probe { period_seconds: Some(0), timeout_seconds: Some(-1), ..Probe::default() });
        assert_eq!((zero.period, zero.timeout), (seconds(10), seconds(1)), "nothing spins");
    }

    fn container() -> Container {
        serde_json::from_value(json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "env": [{"name": "A", "value": "1"}],
        }))
        .unwrap()
    }

    fn handler(probe: Value) -> Result<Handler, String> {
        Handler::of_probe(&serde_json::from_value(probe).unwrap(), &container(), Some([10, 0, 0, 5].into()))
    }

    #[test]
    fn handlers_are_resolved_against_their_container() {
        let pod = |port| Address { host: Host::Pod([10, 0, 0, 5].into()), port };
        let get =
            |address, path: &str| HttpTarget { scheme: Scheme::Http, address, path: path.into(), headers: vec![] };
        let https = HttpTarget {
            scheme: Scheme::Https,
            headers: vec![("Host".into(), "a.example".into())],
            ..get(pod(8080), "/x?y=1")
        };
        let named = Address { host: Host::Named("127.0.0.1".into()), port: 80 };
        for (case, probe, expected) in [
            ("a port by name", json!({"httpGet": {"port": "web"}}), Ok(Handler::Http(get(pod(8080), "/")))),
            ("a number as text", json!({"tcpSocket": {"port": "81"}}), Ok(Handler::Tcp(pod(81)))),
            ("another host", json!({"tcpSocket": {"host": "127.0.0.1", "port": 80}}), Ok(Handler::Tcp(named))),
            (
                "the pod's own address",
                json!({"tcpSocket": {"host": "10.0.0.5", "port": 80}}),
                Ok(Handler::Tcp(pod(80))),
            ),
            (
                "everything of a request",
                json!({"httpGet": {"scheme": "HTTPS", "path": "x?y=1", "port": 8080,
                    "httpHeaders": [{"name": "Host", "value": "a.example"}]}}),
                Ok(Handler::Http(https)),
            ),
            (
                "variables with plain values",
                json!({"exec": {"command": ["x", "$(A) $(B)"]}}),
                Ok(Handler::Exec(vec!["x".into(), "1 $(B)".into()])),
            ),
            (
                "the health of one service",
                json!({"grpc": {"port": 9, "service": "s"}}),
                Ok(Handler::Grpc { address: pod(9), service: "s".into() }),
            ),
            ("a port nobody has", json!({"tcpSocket": {"port": 0}}), Err("invalid port number: 0".to_owned())),
            (
                "a name nobody has",
                json!({"tcpSocket": {"port": "x"}}),
                Err("strconv.Atoi: parsing \"x\": invalid syntax".to_owned()),
            ),
            ("nothing", json!({}), Err("missing probe handler for c".to_owned())),
        ] {
            assert_eq!(handler(probe), expected, "{case}");
        }
    }

    #[test]
    fn addresses_are_written_as_in_urls() {
        let address = |host: &str| Address { host: Host::Pod(host.parse().unwrap()), port: 80 }.to_string();
        assert_eq!((address("10.0.0.1"), address("fd00::1")), ("10.0.0.1:80".into(), "[fd00::1]:80".into()));
    }
}
