//! Joins a cluster as `kubeadm join` does: discovery, the cluster's configuration, TLS bootstrap.
//!
//! In: what the command line says. Out: `config.yaml`, `kubeconfig` and certificates below the root directory, all that
//! `wasilet run --config` needs. Starts no node and prints nothing: what happens is told to a callback.

pub mod config;
pub mod discovery;
pub mod jws;
mod probe;
pub mod token;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use tokio_util::sync::CancellationToken;

use self::config::{AdaptError, Paths};
use self::discovery::{ClusterInfo, DiscoveryError, TokenDiscovery};
use self::token::BootstrapToken;
use super::access::{self, AccessOptions, connect};
use super::csr::reason;
use super::error::IdentityError;
use super::kubeconfig::{self, User};
use super::pair;
use super::store::{make_private_dir, write_private, write_public};

/// How the cluster is found.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// By its address and a token.
    Token(TokenDiscovery),
    /// By a file or an `https` URL of one.
    File(String),
}

/// What `wasilet join` does.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// How the cluster is found.
    pub discovery: Discovery,
    /// The credentials of the bootstrap; without them those of the discovery file.
    pub bootstrap_token: Option<BootstrapToken>,
    /// Where everything goes.
    pub paths: Paths,
    /// The node's name.
    pub node_name: String,
    /// How long an API server that does not answer is waited for.
    pub timeout: Duration,
    /// What becomes of a membership that is there already.
    pub existing: Existing,
}

/// What becomes of a membership that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is kept, and joining fails.
    Refuse,
    /// It is replaced.
    Replace,
}

/// A step, for people who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// kubeadm's name of the phase: `preflight`, `discovery`, `kubelet-start`.
    pub phase: &'static str,
    /// What is done.
    pub text: String,
    /// Whether it is a warning.
    pub warning: bool,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is a member already.
    #[error(
        "{} exists: this node has joined already. Start it with 'wasilet run --config {}', or remove the file, or give \
         --ignore-preflight-errors=all to join anew", kubeconfig.display(), config.display()
    )]
    Joined {
        /// The kubeconfig.
        kubeconfig: PathBuf,
        /// The configuration.
        config: PathBuf,
    },
    /// The cluster could not be found or trusted.
    #[error("couldn't validate the identity of the API server")]
    Discovery(#[from] DiscoveryError),
    /// Nothing to bootstrap with.
    #[error(
        "could not find credentials for the TLS bootstrap: give --token (or --tls-bootstrap-token), or a discovery file \
         with credentials in it"
    )]
    NoCredentials,
    /// The cluster's configuration could not be read.
    #[error("reading the ConfigMap kubelet-config of kube-system: {problem}")]
    KubeletConfig {
        /// What the API server said.
        problem: String,
    },
    /// It could be read and not used.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// A node of that name is at work.
    #[error(
        "a Node with name {name:?} and status \"Ready\" already exists in the cluster. Delete it ('kubectl delete node \
         {name}'), or give this one another name with --node-name"
    )]
    NodeExists {
        /// The name.
        name: String,
    },
    /// Certificates or files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A node that has joined.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Its configuration.
    pub config: PathBuf,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
}

/// Joins. `say` hears each step.
///
/// # Errors
/// [`JoinError`]; the node can be joined again, and goes on where it was.
pub async fn join(
    options: JoinOptions,
    stop: &CancellationToken,
    mut say: impl FnMut(Step) + Send,
) -> Result<Joined, JoinError> {
    let paths = options.paths.clone();
    say(Step { phase: "preflight", text: "Running pre-flight checks".to_owned(), warning: false });
    preflight(&options)?;

    say(Step { phase: "discovery", text: format!("Looking for {}", options.discovery), warning: false });
    let discovered = tokio::select! {
        // Cancel-safe: discovery changes nothing.
        found = discover(&options, &mut say) => found,
        () = stop.cancelled() => return Err(IdentityError::Stopped.into()),
    };
    let (info, bootstrap_kubeconfig) = discovered?;
    for warning in &info.warnings {
        say(Step { phase: "discovery", text: warning.clone(), warning: true });
    }
    let server = info.cluster.server.clone().unwrap_or_default();
    let pins = pair::certificates(&info.authority_pem).unwrap_or_default();
    let pins = pins.iter().filter_map(|der| pair::public_key_hash(der).ok()).map(hex::encode).collect::<Vec<_>>();
    let text = format!("Using API server {server}, authority sha256:{}", pins.join(", sha256:"));
    say(Step { phase: "discovery", text, warning: false });

    make_private_dir(&paths.pki())?;
    write_private(&paths.bootstrap_kubeconfig(), &bootstrap_kubeconfig)?;
    let result = bootstrap(&options, &info, stop, &mut say).await;
    // kubeadm does so too: the token shall not stay on the node's disk.
    if let Err(error) = fs::remove_file(paths.bootstrap_kubeconfig())
        && error.kind() != io::ErrorKind::NotFound
    {
        let text = format!("could not remove {}: {error}", paths.bootstrap_kubeconfig().display());
        say(Step { phase: "kubelet-start", text, warning: true });
    }
    result?;
    Ok(Joined { config: paths.config(), kubeconfig: paths.kubeconfig() })
}

impl std::fmt::Display for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(discovery) => write!(f, "the cluster at {}", discovery.endpoint),
            Self::File(place) => write!(f, "the cluster of {place}"),
        }
    }
}

fn preflight(options: &JoinOptions) -> Result<(), JoinError> {
    let paths = &options.paths;
    make_private_dir(&paths.root_dir)?;
    let kubeconfig = paths.kubeconfig();
    if kubeconfig.exists() && options.existing == Existing::Refuse {
        return Err(JoinError::Joined { kubeconfig, config: paths.config() });
    }
    Ok(())
}

/// The cluster, and the text of a kubeconfig to bootstrap with.
async fn discover(
    options: &JoinOptions,
    say: &mut (impl FnMut(Step) + Send),
) -> Result<(ClusterInfo, String), JoinError> {
    let progress = |text: &str| say(Step { phase: "discovery", text: text.to_owned(), warning: false });
    let (info, file) = match &options.discovery {
        Discovery::Token(discovery) => (discovery::by_token(discovery, progress).await?, None),
        Discovery::File(place) => {
            let (info, file) = discovery::by_file(place, options.timeout, progress).await?;
            (info, Some(file))
        }
    };
    let text = match (&options.bootstrap_token, &file) {
        (Some(token), _) => kubeconfig::render(&info.cluster, User::Token(&token.bearer())),
        (None, Some(file)) => match kubeconfig::embedded_user(file)? {
            Some(user) => kubeconfig::render(&info.cluster, User::Raw(&user)),
            None => return Err(JoinError::NoCredentials),
        },
        (None, None) => return Err(JoinError::NoCredentials),
    };
    Ok((info, text))
}

async fn bootstrap(
    options: &JoinOptions,
    info: &ClusterInfo,
    stop: &CancellationToken,
    say: &mut (impl FnMut(Step) + Send),
) -> Result<(), JoinError> {
    let paths = &options.paths;
    let client = access::plain_client(&paths.bootstrap_kubeconfig()).await?;
    let text = "Reading configuration from the kubelet-config ConfigMap in namespace kube-system...".to_owned();
    say(Step { phase: "preflight", text, warning: false });
    let cluster_config = tokio::select! {
        // Cancel-safe: these only read.
        found = async {
            let config = kubelet_config(&client).await?;
            check_name(&client, &options.node_name).await?;
            Ok::<_, JoinError>(config)
        } => found?,
        () = stop.cancelled() => return Err(IdentityError::Stopped.into()),
    };
    let adapted = config::adapt(cluster_config.as_deref(), paths, &options.node_name, Path::exists)?;

    write_public(&paths.authority(), &String::from_utf8_lossy(&info.authority_pem))?;
    fs::create_dir_all(paths.manifests()).map_err(IdentityError::file("making the directory", paths.manifests()))?;
    write_public(&paths.config(), &adapted.text)?;
    let text = format!("Writing the configuration of the node to file {}", paths.config().display());
    say(Step { phase: "kubelet-start", text, warning: false });
    for note in adapted.notes {
        say(Step { phase: "kubelet-start", text: note, warning: true });
    }

    // Only now that the cluster has answered and accepted the token: a failure before leaves the old membership.
    match fs::remove_file(paths.kubeconfig()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(IdentityError::file("removing", paths.kubeconfig())(error).into());
        }
        _ => {}
    }
    let text = "Performing the TLS bootstrap".to_owned();
    say(Step { phase: "kubelet-start", text, warning: false });
    let access = AccessOptions {
        kubeconfig: Some(paths.kubeconfig()),
        bootstrap_kubeconfig: Some(paths.bootstrap_kubeconfig()),
        pki_dir: paths.pki(),
        node_name: options.node_name.clone(),
        rotate: true,
        qps: None,
        burst: None,
    };
    connect(access, stop).await?;
    Ok(())
}

/// The cluster's configuration for all nodes; `None` where kubeadm did not make one.
async fn kubelet_config(client: &kube::Client) -> Result<Option<String>, JoinError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    match api.get("kubelet-config").await {
        Ok(found) => Ok(found.data.and_then(|mut data| data.remove("kubelet"))),
        // 403 is what a token gets for what is not there, where no Role of kubeadm's names it.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 401 => Err(JoinError::KubeletConfig {
            problem:
                "the API server does not accept the bootstrap credentials: the token has expired or is wrong. Use \
                      'kubeadm token create --print-join-command' on the control-plane node to create a new one"
                    .to_owned(),
        }),
        Err(error) => Err(JoinError::KubeletConfig { problem: reason(&error) }),
    }
}

/// Fails when a node of that name is Ready: two machines would fight over it.
async fn check_name(client: &kube::Client, name: &str) -> Result<(), JoinError> {
    let api: Api<Node> = Api::all(client.clone());
    // Not everybody who may join may look; the signer and NodeRestriction have the last word anyway.
    let Ok(Some(node)) = api.get_opt(name).await else { return Ok(()) };
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return Err(JoinError::NodeExists { name: name.to_owned() });
    }
    Ok(())
}
