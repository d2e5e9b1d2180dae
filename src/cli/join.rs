//! `wasilet join`: makes this machine a node of a cluster, with the flags of `kubeadm join`.
//!
//! In: the line that `kubeadm token create --print-join-command` prints, with `wasilet` for `kubeadm`. Out: files below the
//! root directory, and what to do next; with `--run` the node itself. Flags that mean nothing here are accepted with a
//! warning, those that ask for something else are refused.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::{Global, signals};
use crate::config;
use crate::identity::join::config::Paths;
use crate::identity::join::discovery::TokenDiscovery;
use crate::identity::join::token::{BootstrapToken, Pins};
use crate::identity::join::{self, Discovery, Existing, JoinError, JoinOptions, Step};
use crate::identity::{IdentityError, join::Joined};
use crate::telemetry::Level;

/// Where distributions keep units.
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const UNIT: &str = "wasilet.service";

/// Arguments of `wasilet join`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The line to run is printed by 'kubeadm token create --print-join-command' on the control plane; \
                  write 'wasilet' for 'kubeadm' in it."
)]
pub struct JoinArguments {
    /// The API server
    #[arg(value_name = "HOST:PORT")]
    endpoint: Vec<String>,
    /// Bootstrap token, for --discovery-token and --tls-bootstrap-token where these are not given
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Token that verifies what the API server says of itself
    #[arg(long, value_name = "TOKEN")]
    discovery_token: Option<String>,
    /// Token that this node asks for its certificate with
    #[arg(long, value_name = "TOKEN")]
    tls_bootstrap_token: Option<String>,
    /// The public key of the cluster's authority must match this hash (may be given several times)
    #[arg(long, value_name = "sha256:HEX")]
    discovery_token_ca_cert_hash: Vec<String>,
    /// Join without such a hash: whoever knows the token can pose as the cluster
    #[arg(long)]
    discovery_token_unsafe_skip_ca_verification: bool,
    /// A file or https URL to load the cluster's address and authority from, a kubeconfig with or without credentials
    #[arg(long, value_name = "FILE")]
    discovery_file: Option<String>,
    /// Name of the node [default: the host name in lower case]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// How long an API server that does not answer is waited for
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    discovery_timeout: String,
    /// Checks whose failures are warnings; with 'all' a node that has joined already joins anew
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    ignore_preflight_errors: Vec<String>,
    /// Go on as the node when it has joined
    #[arg(long)]
    run: bool,
    /// Only for kubeadm: refused
    #[arg(long, hide = true)]
    control_plane: bool,
    /// Only for kubeadm: refused
    #[arg(long, hide = true, value_name = "KEY")]
    certificate_key: Option<String>,
    /// Only for kubeadm: refused
    #[arg(long, hide = true)]
    apiserver_advertise_address: Option<String>,
    /// Only for kubeadm: refused
    #[arg(long, hide = true)]
    apiserver_bind_port: Option<String>,
    /// Only for kubeadm: refused
    #[arg(long, hide = true)]
    config: Option<String>,
    /// Only for kubeadm: refused
    #[arg(long, hide = true)]
    dry_run: bool,
    /// Only for kubeadm: ignored
    #[arg(long, hide = true)]
    cri_socket: Option<String>,
    /// Only for kubeadm: ignored
    #[arg(long, hide = true)]
    patches: Option<String>,
    /// Only for kubeadm: ignored
    #[arg(long, hide = true)]
    skip_phases: Vec<String>,
    /// kubeadm's verbosity
    #[arg(long = "v", hide = true, value_name = "LEVEL")]
    kubeadm_verbosity: Option<u8>,
}

/// Joins a cluster.
///
/// # Errors
/// What went wrong and what to do about it.
pub async fn join(global: &Global, args: JoinArguments) -> anyhow::Result<ExitCode> {
    let level = if args.kubeadm_verbosity.is_some_and(|level| level > 0) { Level::Info } else { Level::Warn };
    global.init_logging(level)?;
    for warning in args.warnings() {
        eprintln!("W: {warning}");
    }
    let go_on = args.run;
    let options = args.options(Paths { root_dir: std::path::absolute(global.root_dir())? })?;
    let node_name = options.node_name.clone();
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone())?;
    let joined = join::join(options, &stop, say).await.map_err(with_hint)?;
    println!(
        "\nThis node has joined the cluster:\n\
         * Certificate signing request was sent to apiserver and a response was received.\n\
         * {} was written, with the kubeconfig {} beside it.\n\n\
         Run 'kubectl get nodes' on the control-plane to see this node ({node_name}) join the cluster once it runs.\n",
        joined.config.display(),
        joined.kubeconfig.display()
    );
    start(&joined, go_on)
}

fn say(step: Step) {
    let Step { phase, text, warning } = step;
    if warning {
        eprintln!("[{phase}] WARNING: {text}");
    } else {
        println!("[{phase}] {text}");
    }
}

fn with_hint(error: JoinError) -> anyhow::Error {
    let denied = matches!(
        &error,
        JoinError::Identity(IdentityError::File { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied
    );
    let error = anyhow::Error::from(error);
    if denied { error.context("run this as root, or give a directory of your own with --root-dir") } else { error }
}

/// Starts the node: here, by systemd when its unit is installed, else by the admin.
fn start(joined: &Joined, go_on: bool) -> anyhow::Result<ExitCode> {
    if go_on {
        let program = std::env::current_exe().context("finding this program")?;
        // The same process goes on, so that whoever started it sees the node.
        let error = Command::new(program).arg("run").arg("--config").arg(&joined.config).exec();
        return Err(error).context("starting the node");
    }
    let by_hand = format!("wasilet run --config {}", joined.config.display());
    if !UNIT_DIRS.iter().any(|dir| Path::new(dir).join(UNIT).exists()) {
        println!("Start the node with:\n\n  {by_hand}\n");
        return Ok(ExitCode::SUCCESS);
    }
    println!("[kubelet-start] Starting the node ('systemctl restart {UNIT}')");
    match Command::new("systemctl").args(["restart", UNIT]).status() {
        Ok(status) if status.success() => {
            println!("To start it at every boot: 'systemctl enable {UNIT}'");
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) => {
            bail!("'systemctl restart {UNIT}' failed ({status}): 'journalctl -xeu {UNIT}' says why; by hand: {by_hand}")
        }
        Err(error) => bail!("running systemctl: {error}; start the node by hand: {by_hand}"),
    }
}

impl JoinArguments {
    /// What is ignored.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut ignored = |flag: &str, given: bool, why: &str| {
            if given {
                warnings.push(format!("--{flag} is ignored: {why}"));
            }
        };
        ignored("cri-socket", self.cri_socket.is_some(), "this node runs containers itself, without a CRI runtime");
        ignored("patches", self.patches.is_some(), "edit config.yaml in the root directory after the join");
        ignored("skip-phases", !self.skip_phases.is_empty(), "there are no phases to skip");
        if self.endpoint.len() > 1 {
            warnings.push(format!("more than one API server was given: {} is used", self.endpoint[0]));
        }
        warnings
    }

    /// What is asked for, checked before anything is done.
    fn options(self, paths: Paths) -> anyhow::Result<JoinOptions> {
        let refused = [
            ("control-plane", self.control_plane),
            ("certificate-key", self.certificate_key.is_some()),
            ("apiserver-advertise-address", self.apiserver_advertise_address.is_some()),
            ("apiserver-bind-port", self.apiserver_bind_port.is_some()),
        ];
        if let Some((flag, _)) = refused.iter().find(|(_, given)| *given) {
            bail!(
                "--{flag} is not supported: a wasilet node runs WebAssembly and cannot host a control plane; leave it out \
                 to join as a worker"
            );
        }
        if self.config.is_some() {
            bail!("--config with a kubeadm JoinConfiguration is not supported: give its values as flags");
        }
        if self.dry_run {
            bail!("--dry-run is not supported");
        }
        let parse = |flag: &str, token: Option<String>| {
            token.map(|token| token.parse::<BootstrapToken>()).transpose().with_context(|| format!("--{flag}"))
        };
        let token = parse("token", self.token)?;
        let discovery_token = parse("discovery-token", self.discovery_token)?.or_else(|| token.clone());
        let bootstrap_token = parse("tls-bootstrap-token", self.tls_bootstrap_token)?.or(token);
        let pins = Pins::parse(&self.discovery_token_ca_cert_hash).context("--discovery-token-ca-cert-hash")?;
        let timeout = duration(&self.discovery_timeout)?;
        let discovery = match (self.discovery_file, self.endpoint.into_iter().next()) {
            (Some(_), Some(endpoint)) => bail!("give either {endpoint} or --discovery-file, not both"),
            (Some(place), None) => Discovery::File(place),
            (None, None) => bail!("give the API server as HOST:PORT, or --discovery-file"),
            (None, Some(endpoint)) => {
                let endpoint = check_endpoint(&endpoint)?;
                let Some(token) = discovery_token else { bail!("give the bootstrap token with --token") };
                let skip = self.discovery_token_unsafe_skip_ca_verification;
                if pins.is_empty() && !skip {
                    bail!(
                        "give --discovery-token-ca-cert-hash, or --discovery-token-unsafe-skip-ca-verification to trust \
                         whoever knows the token"
                    );
                }
                Discovery::Token(TokenDiscovery { endpoint, token, pins, timeout })
            }
        };
        let existing = if self.ignore_preflight_errors.iter().any(|check| check.eq_ignore_ascii_case("all")) {
            Existing::Replace
        } else {
            Existing::Refuse
        };
        let node_name = self.node_name.map_or_else(config::host_name, |name| name.trim().to_lowercase());
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !node_name.chars().all(legal) || node_name.starts_with(['-', '.']) || node_name.len() > 253 {
            bail!(
                "{node_name:?} is no name for a node (lower case letters, digits, '-' and '.'): give one with --node-name"
            );
        }
        Ok(JoinOptions { discovery, bootstrap_token, paths, node_name, timeout, existing })
    }
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    config::parse_duration(text).map_err(|problem| anyhow::anyhow!("--discovery-timeout: {problem}"))
}

/// `HOST:PORT`, without the scheme that some like to write.
fn check_endpoint(text: &str) -> anyhow::Result<String> {
    let endpoint = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    match endpoint.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(endpoint.to_owned())
        }
        _ => bail!("{text:?} is no HOST:PORT, such as 192.0.2.1:6443"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: JoinArguments,
    }

    fn options(line: &str) -> anyhow::Result<JoinOptions> {
        let line = Line::try_parse_from(std::iter::once("join").chain(line.split_whitespace()))?;
        line.join.options(Paths { root_dir: "/r".into() })
    }

    const PIN: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

    #[test]
    fn the_line_that_kubeadm_prints_is_understood() {
        let line = format!(
            "192.0.2.1:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash {PIN} --cri-socket unix:///x --v=5"
        );
        let options = options(&line).unwrap();
        let Discovery::Token(discovery) = options.discovery else { panic!("by token") };
        assert_eq!(discovery.endpoint, "192.0.2.1:6443");
        assert_eq!(discovery.token.id(), "abcdef");
        assert_eq!(options.bootstrap_token, Some(discovery.token));
        assert_eq!(discovery.timeout, Duration::from_secs(300));
    }

    #[test]
    fn mistakes_are_named_before_anything_is_done() {
        for (line, expected) in [
            ("", "HOST:PORT"),
            ("h:6443", "--token"),
            ("h:6443 --token abcdef.0123456789abcdef", "--discovery-token-ca-cert-hash"),
            ("h --token abcdef.0123456789abcdef --discovery-token-unsafe-skip-ca-verification", "no HOST:PORT"),
            ("h:6443 --token abcdef", "[a-z0-9]{6}"),
            ("h:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:00", "invalid hash"),
            ("h:6443 --control-plane --certificate-key 00", "cannot host a control plane"),
            ("h:6443 --discovery-file f", "not both"),
            ("--config c.yaml", "JoinConfiguration"),
            ("--discovery-file f --node-name a_b", "--node-name"),
        ] {
            let error = format!("{:#}", options(line).unwrap_err());
            assert!(error.contains(expected), "{line}: {error}");
        }
        assert!(
            options("https://h:6443/ --token abcdef.0123456789abcdef --discovery-token-unsafe-skip-ca-verification")
                .is_ok()
        );
        assert!(options("--discovery-file f --tls-bootstrap-token abcdef.0123456789abcdef").is_ok());
    }
}
