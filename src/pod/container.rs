//! One attempt of one container as data for the runtime.
//!
//! In: the container's spec, its image's config, resolved env, node paths. Out: [`ContainerSpec`].
//! Reads nothing, makes no directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeMount};

use super::command;
use super::env::{self, EnvError, EnvSources};
use super::ephemeral;
use super::expansion::expand;
use super::qos;
use super::resources::{self, NodeLimits};
use super::run::{
    Access, ContainerSpec, ImageSpec, LogRotation, MountSpec, Stdin, StdioSpec, TerminationStyle, Tty, User, VolumeSpec,
};
use super::sysctl;
use super::toolbox::ToolboxUse;
use crate::ids::ContainerId;

/// Says what SIGTERM means to the pod's containers: `wait` gives the whole grace.
pub const TERMINATION_ANNOTATION: &str = "wasilet.dev/termination";
/// Which containers find their TCP `containerPort`s open when they start: `true`, or names. For preview 1 modules, which
/// can accept but not listen.
pub const PREOPEN_ANNOTATION: &str = "wasilet.dev/preopen-ports";

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, in order.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`, empty for `/`.
    pub working_dir: String,
    /// `User`.
    pub user: String,
    /// `StopSignal`, such as `SIGINT` or `2`.
    pub stop_signal: String,
}

/// Where an attempt keeps its things on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptPaths {
    /// Its own writes.
    pub writable_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its termination message.
    pub termination_message: PathBuf,
}

/// Everything an attempt is made of.
#[derive(Debug)]
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// The pod's host name.
    pub hostname: &'a str,
    /// Id of the attempt.
    pub id: ContainerId,
    /// Number of the attempt.
    pub attempt: u32,
    /// The pulled image.
    pub image: ImageSpec,
    /// What the image says.
    pub defaults: &'a ImageDefaults,
    /// Who it is.
    pub user: User,
    /// Where env values come from.
    pub env: EnvSources<'a>,
    /// Its places.
    pub paths: AttemptPaths,
    /// Rotation of its log.
    pub log_rotation: LogRotation,
    /// Limits a pod cannot set.
    pub node_limits: NodeLimits,
    /// The pod's volumes.
    pub volumes: &'a [VolumeSpec],
    /// Pulled images that are volumes, by volume.
    pub image_volumes: &'a BTreeMap<String, ImageSpec>,
    /// Bytes of memory the machine has.
    pub memory_capacity: i64,
}

/// Why a container cannot be described; the message of `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Its environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// A `subPathExpr` that names variables which are not there or empty.
    #[error("missing value for {names}")]
    SubPathVariable {
        /// Their names.
        names: String,
    },
    /// A `subPathExpr` that leaves its volume.
    #[error("unable to provision SubPath `{path}`: must not contain '..'")]
    SubPathEscapes {
        /// What it expanded to.
        path: String,
    },
    /// A `subPathExpr` that is no place in a volume.
    #[error("error SubPath `{path}` must not be an absolute path")]
    SubPathAbsolute {
        /// What it expanded to.
        path: String,
    },
    /// Neither the pod nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
}

/// Describes an attempt.
///
/// # Errors
/// [`ConfigError`], whose text is the message of the container's waiting state.
pub fn describe(input: ContainerInput<'_>) -> Result<ContainerSpec, ConfigError> {
    let container = input.container;
    let no_spec = PodSpec::default();
    let spec = input.pod.spec.as_ref().unwrap_or(&no_spec);
    let tty = if container.tty == Some(true) { Tty::Terminal } else { Tty::None };
    let own_env = env::container_env(input.env)?;
    let env = env::with_image_env(&input.defaults.env, own_env.clone(), input.hostname, tty);
    let mut argv = command::argv(container, &input.defaults.entrypoint, &input.defaults.cmd, &own_env);
    let says_nothing = container.command.as_ref().is_none_or(Vec::is_empty) && input.defaults.entrypoint.is_empty();
    if says_nothing && input.image.artifact.is_some() {
        // A bare wasm artifact is its own entrypoint; what args there are follow it.
        argv.insert(0, ImageSpec::ARTIFACT_PATH.to_owned());
    }
    if argv.first().is_none_or(String::is_empty) {
        return Err(ConfigError::NoCommand);
    }
    let mounts = container.volume_mounts.iter().flatten().map(|mount| self::mount(mount, &input, &own_env));
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    let read_only = container.security_context.as_ref().and_then(|context| context.read_only_root_filesystem);
    Ok(ContainerSpec {
        id: input.id,
        name: container.name.clone(),
        attempt: input.attempt,
        image: input.image,
        argv,
        env,
        working_dir: working_dir(container, input.defaults),
        mounts,
        user: input.user,
        root: if read_only == Some(true) { Access::ReadOnly } else { Access::ReadWrite },
        writable_dir: input.paths.writable_dir,
        limits: resources::limits(container, spec, input.node_limits),
        stdio: StdioSpec { stdin: stdin(container), tty },
        log_path: input.paths.log,
        log_rotation: input.log_rotation,
        termination_message_path: container
            .termination_message_path
            .clone()
            .unwrap_or_else(|| super::defaults::TERMINATION_MESSAGE_PATH.to_owned()),
        termination_message_file: input.paths.termination_message,
        sysctls: sysctl::values(spec),
        oom_score_adj: qos::oom_score_adj(input.pod, container, input.memory_capacity),
        termination: termination_style(input.pod),
        container_ports: tcp_ports(container),
        toolbox: ToolboxUse::of(input.pod),
        preopened_ports: preopened_ports(input.pod, container),
        processes: ephemeral::processes(spec, &container.name),
    })
}

fn working_dir(container: &Container, image: &ImageDefaults) -> String {
    let given = container.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or(&image.working_dir);
    if given.starts_with('/') { given.to_owned() } else { format!("/{given}") }
}

fn stdin(container: &Container) -> Stdin {
    match (container.stdin == Some(true), container.stdin_once == Some(true)) {
        (false, _) => Stdin::Closed,
        (true, false) => Stdin::Open,
        (true, true) => Stdin::Once,
    }
}

fn termination_style(pod: &Pod) -> TerminationStyle {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(TERMINATION_ANNOTATION));
    if annotation.is_some_and(|style| style == "wait") { TerminationStyle::Wait } else { TerminationStyle::Auto }
}

/// The container's ports, when the annotation is `true` or names the container among others.
fn preopened_ports(pod: &Pod, container: &Container) -> Vec<u16> {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(PREOPEN_ANNOTATION));
    let wanted = annotation
        .is_some_and(|value| value.split(',').map(str::trim).any(|name| name == "true" || name == container.name));
    if wanted { tcp_ports(container) } else { Vec::new() }
}

fn tcp_ports(container: &Container) -> Vec<u16> {
    let tcp = container.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| u16::try_from(port.container_port).ok()).collect()
}

fn mount(mount: &VolumeMount, input: &ContainerInput<'_>, env: &[(String, String)]) -> Result<MountSpec, ConfigError> {
    let sub_path = match mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) {
        None => mount.sub_path.clone().unwrap_or_default(),
        Some(expression) => expanded(expression, env)?,
    };
    check_sub_path(&sub_path)?;
    let mount_path = &mount.mount_path;
    Ok(MountSpec {
        volume: mount.name.clone(),
        mount_path: if mount_path.starts_with('/') { mount_path.clone() } else { format!("/{mount_path}") },
        sub_path,
        access: if mount.read_only == Some(true) || is_read_only(input.volumes, &mount.name) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        image: input.image_volumes.get(&mount.name).cloned(),
    })
}

/// A volume that is read-only itself is so at every place.
fn is_read_only(volumes: &[VolumeSpec], name: &str) -> bool {
    volumes.iter().any(|volume| volume.name == name && volume.access == Access::ReadOnly)
}

/// What `makeMounts` says of a `subPath`, whichever field it came from.
fn check_sub_path(path: &str) -> Result<(), ConfigError> {
    if path.starts_with('/') {
        return Err(ConfigError::SubPathAbsolute { path: path.to_owned() });
    }
    if path.split('/').any(|part| part == "..") {
        return Err(ConfigError::SubPathEscapes { path: path.to_owned() });
    }
    Ok(())
}

/// The kubelet's `ExpandContainerVolumeMounts`: unlike elsewhere, a variable must be there and not empty.
fn expanded(expression: &str, env: &[(String, String)]) -> Result<String, ConfigError> {
    let missing = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let expanded = expand(expression, |name| {
        let value = env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()).unwrap_or_default();
        if value.is_empty() {
            missing.borrow_mut().insert(name.to_owned());
        }
        Some(value)
    });
    let missing = missing.into_inner();
    if !missing.is_empty() {
        return Err(ConfigError::SubPathVariable { names: missing.into_iter().collect::<Vec<_>>().join(", ") });
    }
    Ok(expanded)
}

/// The signal a container is stopped with: its own, else the image's, else SIGTERM.
#[must_use]
pub fn stop_signal(container: &Container, image: &ImageDefaults) -> u8 {
    const SIGTERM: u8 = 15;
    let own = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    own.and_then(signal_number).or_else(|| signal_number(&image.stop_signal)).unwrap_or(SIGTERM)
}

/// Names of the first signals of Linux, from 1 on.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal given by number or name, with or without `SIG`; `None` for what is no signal of Linux.
#[must_use]
pub fn signal_number(signal: &str) -> Option<u8> {
    const RTMIN: u8 = 34;
    const RTMAX: u8 = 64;
    let name = signal.trim().to_ascii_uppercase();
    let number = match name.strip_prefix("SIG").unwrap_or(&name) {
        "IOT" => 6,
        "CLD" => 17,
        "POLL" => 29,
        "RTMIN" => RTMIN,
        "RTMAX" => RTMAX,
        name => {
            if let Some(above) = name.strip_prefix("RTMIN+") {
                RTMIN.checked_add(above.parse().ok()?)?
            } else if let Some(below) = name.strip_prefix("RTMAX-") {
                RTMAX.checked_sub(below.parse().ok()?).filter(|number| *number >= RTMIN)?
            } else if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
                u8::try_from(index).ok()? + 1
            } else {
                name.parse().ok()?
            }
        }
    };
    (1..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::super::downward::{Downward, NodeFacts};
    use super::*;
    use crate::ids::Digest;
    use crate::pod::run::{ArtifactSpec, Projection, VolumeSource};
    use serde_json::{Value, json};

    #[test]
    fn ports_are_opened_for_those_who_ask() {
        let ports = json!([{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 81}]);
        let container: Container = serde_json::from_value(json!({"name": "c", "ports": ports})).unwrap();
        for (value, expected) in [("true", &[80, 81][..]), ("a, c", &[80, 81]), ("a,b", &[]), ("", &[])] {
            let pod = json!({"metadata": {"name": "web", "annotations": {PREOPEN_ANNOTATION: value}}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(preopened_ports(&pod, &container), expected, "{value:?}");
        }
    }

    fn described(container: Value, artifact: bool) -> Result<ContainerSpec, String> {
        let mut container = container;
        container["name"] = json!("c");
        let container: Container = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "web", "annotations": {TERMINATION_ANNOTATION: "wait"}}}),
        )
        .unwrap();
        let digest = Digest::of(b"");
        let artifact = artifact.then(|| ArtifactSpec { digest: digest.clone(), path: "/store/x".into() });
        let image = ImageSpec { reference: "x".into(), manifest_digest: digest, layers: vec![], artifact };
        let defaults = ImageDefaults { working_dir: "srv".into(), ..ImageDefaults::default() };
        let node = NodeFacts {
            name: "n".into(),
            host_ips: vec![],
            allocatable_cpu_milli: 1,
            allocatable_memory_bytes: 1,
            allocatable_ephemeral_storage_bytes: 1,
        };
        let downward = Downward { pod: &pod, pod_ips: &[], node: &node };
        let (objects, services) = Default::default();
        let projection = VolumeSource::Projection(Projection::default());
        let frozen = VolumeSpec { name: "frozen".into(), source: projection, access: Access::ReadOnly, group: None };
        let volumes = [frozen];
        describe(ContainerInput {
            pod: &pod,
            container: &container,
            hostname: "web",
            id: ContainerId::random(),
            attempt: 0,
            image,
            defaults: &defaults,
            user: User::default(),
            env: EnvSources { container: &container, objects: &objects, downward, services: &services },
            paths: AttemptPaths { writable_dir: "/w".into(), log: "/l".into(), termination_message: "/t".into() },
            log_rotation: LogRotation { max_size_bytes: 1, max_files: 2 },
            node_limits: NodeLimits::default(),
            volumes: &volumes,
            image_volumes: &BTreeMap::new(),
            memory_capacity: 1 << 30,
        })
        .map_err(|e| e.to_string())
    }

    #[test]
    fn a_bare_artifact_is_its_own_command() {
        let argv = |container, artifact| described(container, artifact).map(|spec| spec.argv.join(" "));
        assert_eq!(argv(json!({}), true).as_deref(), Ok("/app.wasm"));
        assert_eq!(argv(json!({"args": ["-v"]}), true).as_deref(), Ok("/app.wasm -v"));
        assert_eq!(argv(json!({"command": ["/bin/x"]}), true).as_deref(), Ok("/bin/x"));
        assert_eq!(argv(json!({}), false), Err("no command specified".to_owned()));
    }

    #[test]
    fn fields_of_a_container_become_data() {
        let spec = described(
            json!({"stdin": true, "stdinOnce": true, "tty": true, "workingDir": "/data",
            "securityContext": {"readOnlyRootFilesystem": true},
            "env": [{"name": "POD", "value": "web"}],
            "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "subPathExpr": "logs/$(POD)"},
                {"name": "w", "mountPath": "/w"}, {"name": "frozen", "mountPath": "/f"}]}),
            true,
        )
        .unwrap();
        assert_eq!(spec.stdio, StdioSpec { stdin: Stdin::Once, tty: Tty::Terminal });
        assert_eq!((spec.working_dir.as_str(), spec.root), ("/data", Access::ReadOnly));
        assert_eq!(spec.mounts[0].sub_path, "logs/web");
        let access: Vec<Access> = spec.mounts.iter().map(|mount| mount.access).collect();
        assert_eq!(access, [Access::ReadOnly, Access::ReadWrite, Access::ReadOnly]);
        assert_eq!(spec.container_ports, [8080]);
        assert_eq!(spec.preopened_ports, [] as [u16; 0], "nobody asked for it");
        assert_eq!(spec.termination, TerminationStyle::Wait);
        assert_eq!(spec.termination_message_path, "/dev/termination-log");
        assert_eq!(described(json!({}), true).unwrap().working_dir, "/srv", "a relative one is below the root");
    }

    #[test]
    fn a_sub_path_needs_its_variables_and_stays_in_its_volume() {
        let with = |expression: &str| {
            let container = json!({"env": [{"name": "UP", "value": ".."}],
                "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": expression}]});
            described(container, true).map(|_| ())
        };
        assert_eq!(with("a/$(B)/$(A)"), Err("missing value for A, B".to_owned()));
        assert_eq!(with("$(UP)/x"), Err("unable to provision SubPath `../x`: must not contain '..'".to_owned()));
    }

    #[test]
    fn stop_signals_are_read_by_name_and_number() {
        for (own, image, expected) in [
            (None, "", 15),
            (None, "SIGINT", 2),
            (None, "int", 2),
            (None, "9", 9),
            (None, "SIGRTMIN+3", 37),
            (None, "0", 15),
            (None, "65", 15),
            (Some("SIGUSR1"), "SIGINT", 10),
            (Some("SIGRTMAX-14"), "", 50),
            (Some("SIGRTMIN"), "", 34),
            (Some("SIGSYS"), "", 31),
            (Some("SIGCLD"), "", 17),
            (Some("SIGHELLO"), "SIGQUIT", 3),
        ] {
            let container: Container =
                serde_json::from_value(json!({"name": "c", "lifecycle": {"stopSignal": own}})).unwrap();
            let image = ImageDefaults { stop_signal: image.into(), ..ImageDefaults::default() };
            assert_eq!(stop_signal(&container, &image), expected, "{own:?} {image:?}");
        }
        for none in ["RTMAX-31", "RTMIN+31", "RTMIN+256", "RTMIN+-1", "-1", "SIG"] {
            assert_eq!(signal_number(none), None, "{none}");
        }
    }
}
