//! The commands of `wasilet`, their arguments and exit codes.
//!
//! In: `argv`. Out: text on stdout, errors on stderr, an exit code (0 done, 1 failed, 2 bad usage; `exec` and `go`
//! return the program's own). Holds no logic of the node: each command is a few calls of the rooms below.

mod client;
mod exec;
mod go;
pub mod image;
mod join;
mod logs;
mod output;
mod paths;
mod play;
mod ps;
mod rbac;
mod run;
mod signals;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;

use self::client::{Client, ClientError};
use self::output::OutputFormat;
use crate::ids::Digest;
use crate::image::ImageService;
use crate::telemetry::{self, Format, Level};

/// A Kubernetes node whose containers are WebAssembly.
#[derive(Debug, Parser)]
#[command(name = "wasilet", version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Where the node keeps images, volumes and state
    /// [default: /var/lib/wasilet for root, else $XDG_DATA_HOME/wasilet]
    #[arg(long, global = true, env = "WASILET_ROOT_DIR", value_name = "DIR", hide_env_values = true)]
    root_dir: Option<PathBuf>,
    /// Say more of what the node does; twice for everything ($WASILET_LOG takes a filter such as wasilet::worker=debug)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Write the node's own messages as JSON lines
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node: static pods from a directory of manifests, until stopped
    Run(run::RunArguments),
    /// Make this machine a node of a cluster, with the flags of 'kubeadm join'
    Join(join::JoinArguments),
    /// Run one manifest in the foreground, its logs and events here; Ctrl-C ends it
    Play(play::PlayArguments),
    /// Manage the images on this node
    Image(image::ImageArgs),
    /// List the pods of the node
    Ps(ps::PsArguments),
    /// Print the log of a container
    Logs(logs::LogsArguments),
    /// Run another program in a container
    Exec(exec::ExecArguments),
    /// Print the rights that a node needs to serve Services and NetworkPolicies: 'wasilet rbac | kubectl apply -f -'
    Rbac(rbac::RbacArguments),
    /// Run go for wasip1, with a standard library whose sockets, signals and files are real in a container here
    Go(go::GoArguments),
    /// Print the version
    Version {
        /// Output format
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // ring is the only provider built in; a second call (there is none) would be refused, not harmful.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("wasilet")
        .enable_all()
        .build()
        .expect("the kernel gives a process its first threads");
    let code = runtime.block_on(dispatch(arguments));
    // A blocking read of stdin cannot be cancelled: the process does not wait for it.
    runtime.shutdown_background();
    code
}

async fn dispatch(arguments: Arguments) -> ExitCode {
    let Arguments { global, command } = arguments;
    let result = match command {
        Command::Run(args) => run::run(&global, args).await,
        Command::Join(args) => join::join(&global, args).await,
        Command::Play(args) => play::play(&global, args).await,
        Command::Image(args) => image_command(&global, args).await,
        Command::Ps(args) => ps::ps(&global.client(), &args).await,
        Command::Logs(args) => logs::logs(&global.client(), &args).await,
        Command::Exec(args) => exec::exec(&global.client(), args).await,
        Command::Rbac(args) => rbac::rbac(&args),
        Command::Go(args) => go::go(args).await,
        Command::Version { output } => version(output),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "wasilet", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

impl Global {
    /// The root directory in force.
    fn root_dir(&self) -> PathBuf {
        self.root_dir.clone().unwrap_or_else(paths::default_root_dir)
    }

    /// Sets up logging at a command's own level, raised by `--verbose`.
    fn init_logging(&self, level: Level) -> anyhow::Result<()> {
        let format = if self.log_json { Format::Json } else { Format::Text };
        Ok(telemetry::init(format, level.raised(self.verbose))?)
    }

    /// A client of the node that owns the root directory.
    fn client(&self) -> Client {
        Client::new(&paths::socket(&self.root_dir()))
    }
}

async fn image_command(global: &Global, args: image::ImageArgs) -> anyhow::Result<ExitCode> {
    global.init_logging(Level::Warn)?;
    let service = crate::agent::open_images(&global.root_dir())?;
    let in_use = images_in_use(&global.client(), &service).await?;
    Ok(image::run(args, &service, &in_use).await)
}

/// Manifests of the images that pods of a running node refer to: they are not removed from under it.
async fn images_in_use(client: &Client, images: &ImageService) -> anyhow::Result<HashSet<Digest>> {
    let pods: List<Pod> = match client.get_json("/pods").await {
        Ok(pods) => pods,
        // Without a node nothing is in use.
        Err(ClientError::NoNode { .. }) => return Ok(HashSet::new()),
        Err(error) => return Err(error.into()),
    };
    let mut in_use = HashSet::new();
    for spec in pods.items.iter().filter_map(|pod| pod.spec.as_ref()) {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for name in containers.filter_map(|container| container.image.as_ref()) {
            // An image that is not there cannot be removed either.
            if let Ok(image) = images.inspect(name).await {
                in_use.insert(image.manifest_digest);
            }
        }
    }
    Ok(in_use)
}

fn version(output: OutputFormat) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        OutputFormat::Table => println!("wasilet {version}"),
        OutputFormat::Json => println!("{}", serde_json::json!({ "version": version, "runtime": "wasmtime 48.0.8" })),
    }
    Ok(ExitCode::SUCCESS)
}
