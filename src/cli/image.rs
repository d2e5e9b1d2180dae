//! `wasilet image`: the images of this node, by hand.
//!
//! In: arguments and the image service. Out: tables or JSON on stdout, progress and errors on stderr, an exit
//! code: 0 done, 1 failed. Columns and words are crictl's and Docker's. Works on the store itself, whether a
//! node runs or not: two processes may share it.

mod progress;
mod table;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};

use crate::ids::Digest;
use crate::image::{
    BuildOptions, Credential, Image, ImageRef, ImageService, PruneScope, PullPolicy, PushReport, Removed, Spooled,
    chain,
};

use self::table::{Columns, human_size, summary_json, summary_rows};
use super::output::{OutputFormat, print_table};

/// `wasilet image ...`
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images on this node
    #[command(visible_alias = "list")]
    Ls {
        /// Only image ids
        #[arg(long, short)]
        quiet: bool,
        /// Show digests too
        #[arg(long)]
        digests: bool,
        /// Output format
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Pull images from their registries
    Pull {
        /// Names, such as ghcr.io/me/web:1
        #[arg(required = true, value_name = "NAME")]
        names: Vec<ImageRef>,
        #[command(flatten)]
        credentials: CredentialArgs,
        /// When to ask the registry: Always, or IfNotPresent
        #[arg(long, default_value_t = PullPolicy::Always, value_name = "POLICY")]
        policy: PullPolicy,
    },
    /// Load a .wasm file, an OCI layout, a `docker save` archive, or build an image from a directory
    Load(LoadArgs),
    /// Send an image of this node to a registry
    Push {
        /// The image; its name says the registry, unless a target does
        #[arg(value_name = "NAME")]
        name: String,
        /// Another name to push it as
        #[arg(value_name = "TARGET")]
        target: Option<ImageRef>,
        #[command(flatten)]
        credentials: CredentialArgs,
    },
    /// Give an image another name
    Tag {
        /// Name or id
        #[arg(value_name = "NAME")]
        name: String,
        /// The new name
        #[arg(value_name = "TARGET")]
        target: ImageRef,
    },
    /// Show everything about images, as JSON
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Read every blob and compare it with its digest
        #[arg(long)]
        verify: bool,
    },
    /// Remove images by name or id
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove images that have no name, and what interrupted pulls left
    Prune {
        /// Every image that no pod uses
        #[arg(long, short)]
        all: bool,
    },
}

#[derive(Debug, Args)]
struct CredentialArgs {
    /// User and password for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = "WASILET_REGISTRY_CREDS", hide_env_values = true)]
    creds: Option<String>,
    /// A Docker config.json with credentials
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// What to load
    path: PathBuf,
    /// The image's name; archives may bring their own
    #[arg(value_name = "NAME")]
    name: Option<ImageRef>,
    /// The program and its fixed arguments: builds an image with PATH's files (repeat for each word)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments (repeat for each word)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// An environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The working directory
    #[arg(long, value_name = "DIR", default_value = "")]
    workdir: String,
    /// The user, as UID or UID:GID
    #[arg(long, value_name = "USER", default_value = "")]
    user: String,
    /// A port the program listens on, such as 8080/tcp
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// A label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// The signal that ends it
    #[arg(long, value_name = "SIGNAL", default_value = "")]
    stop_signal: String,
    /// Keep it from garbage collection and prune, until `image rm`
    #[arg(long)]
    pin: bool,
}

impl LoadArgs {
    /// `None` when nothing about a container's defaults was said: the file then is what it is.
    fn build(&self) -> Option<BuildOptions> {
        let options = BuildOptions {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.clone(),
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            exposed_ports: self.expose.clone(),
            labels: self.label.clone(),
            stop_signal: self.stop_signal.clone(),
        };
        (options != BuildOptions::default()).then_some(options)
    }
}

/// Runs one command, beside a node that may run: `in_use` are the manifests of the images its pods use, which
/// neither `rm` nor `prune` takes.
pub async fn run(args: ImageArgs, service: &ImageService, in_use: &HashSet<Digest>) -> ExitCode {
    let result = match args.command {
        ImageCommand::Ls { quiet, digests, output } => {
            let columns = if digests { Columns::WithDigests } else { Columns::Usual };
            list(service, if quiet { Listing::Ids } else { Listing::Rows(columns) }, output).await
        }
        ImageCommand::Pull { names, credentials, policy } => pull(service, &names, &credentials, policy).await,
        ImageCommand::Load(args) => load(service, &args).await,
        ImageCommand::Push { name, target, credentials } => push(service, &name, target, &credentials).await,
        ImageCommand::Tag { name, target } => service.tag(&name, &target).await.map(drop).map_err(Into::into),
        ImageCommand::Inspect { names, verify } => {
            let check = if verify { Check::Blobs } else { Check::Nothing };
            inspect(service, &names, check).await
        }
        ImageCommand::Rm { names } => remove(service, &names, in_use).await,
        ImageCommand::Prune { all } => {
            let scope = if all { PruneScope::Unused } else { PruneScope::Dangling };
            prune(service, scope, in_use).await
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandFailed(message)) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A failure in words for the terminal.
struct CommandFailed(String);

impl<E: std::error::Error> From<E> for CommandFailed {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

type Outcome = Result<(), CommandFailed>;

enum Listing {
    Ids,
    Rows(Columns),
}

enum Check {
    Nothing,
    Blobs,
}

async fn list(service: &ImageService, listing: Listing, output: OutputFormat) -> Outcome {
    let images = service.list().await?;
    match (output, listing) {
        (OutputFormat::Json, _) => {
            let rows: Vec<serde_json::Value> = images.iter().map(summary_json).collect();
            print_json(&serde_json::json!({ "images": rows }))
        }
        (OutputFormat::Table, Listing::Ids) => {
            for image in &images {
                println!("{}", image.image_id);
            }
            Ok(())
        }
        (OutputFormat::Table, Listing::Rows(columns)) => {
            let mut header = vec!["IMAGE", "TAG", "IMAGE ID", "KIND", "AGE", "SIZE"];
            if columns == Columns::WithDigests {
                header.insert(2, "DIGEST");
            }
            let rows: Vec<Vec<String>> = images.iter().flat_map(|image| summary_rows(image, columns)).collect();
            Ok(print_table(&header, &rows)?)
        }
    }
}

async fn pull(service: &ImageService, names: &[ImageRef], credentials: &CredentialArgs, policy: PullPolicy) -> Outcome {
    for name in names {
        if service.is_toolbox(name) {
            // What a registry has under that name is for Linux.
            eprintln!(
                "{name} is the node's toolbox: nothing is asked of a registry (toolbox.images in its configuration)"
            );
        }
        let credentials = credentials.read(name)?;
        let display = progress::Display::new(name);
        let result = match policy {
            PullPolicy::Always => service.pull(name, &credentials, display.listener()).await,
            policy => service.ensure(&name.to_string(), policy, &credentials, display.listener()).await,
        };
        display.finish();
        let image = result.map_err(|error| CommandFailed(format!("{}: {}", error.reason(), error.message())))?;
        println!("{}", image.status_id());
    }
    Ok(())
}

async fn load(service: &ImageService, args: &LoadArgs) -> Outcome {
    // `docker save web | wasilet image load -`
    let from_stdin = args.path == Path::new("-");
    let spooled = if from_stdin { Some(service.spool(&mut std::io::stdin().lock())?) } else { None };
    let path = spooled.as_ref().map_or(args.path.as_path(), Spooled::path);
    let loaded = service.load(path, args.name.as_ref(), args.build().as_ref()).await;
    for image in loaded? {
        if args.pin {
            service.pin(&image).await?;
        }
        println!("Loaded image: {} ({}, {})", image.reference, &image.image_id.hex()[..13], human_size(image.size));
    }
    Ok(())
}

async fn push(service: &ImageService, name: &str, target: Option<ImageRef>, credentials: &CredentialArgs) -> Outcome {
    let target = match target {
        Some(target) => target,
        None => service.inspect(name).await?.reference,
    };
    let credentials = credentials.read(&target)?;
    let PushReport { digest, sent, already_there } = service.push(name, &target, &credentials).await?;
    eprintln!("Pushed {target}: {sent} blobs sent, {already_there} already there");
    println!("{}", target.at_digest(digest));
    Ok(())
}

async fn inspect(service: &ImageService, names: &[String], check: Check) -> Outcome {
    let mut documents: Vec<Image> = Vec::new();
    for name in names {
        let image = service.inspect(name).await?;
        if matches!(check, Check::Blobs) {
            service.verify(&image).await?;
        }
        documents.push(image);
    }
    print_json(&documents)
}

async fn remove(service: &ImageService, names: &[String], in_use: &HashSet<Digest>) -> Outcome {
    let mut failures = Vec::new();
    for name in names {
        // As docker rmi: one that cannot go does not keep the others.
        match service.remove(name, in_use).await {
            Ok(removed) => report_removed(&removed),
            Err(error) => failures.push(chain(&error)),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(CommandFailed(failures.join("\nerror: "))) }
}

async fn prune(service: &ImageService, scope: PruneScope, in_use: &HashSet<Digest>) -> Outcome {
    let removed = service.prune(scope, in_use, SystemTime::now()).await?;
    report_removed(&removed);
    println!("Total reclaimed space: {}", human_size(removed.freed_bytes));
    Ok(())
}

fn report_removed(removed: &Removed) {
    removed.untagged.iter().for_each(|name| println!("Untagged: {name}"));
    removed.deleted.iter().for_each(|id| println!("Deleted: {id}"));
}

fn print_json(value: &impl serde::Serialize) -> Outcome {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

impl CredentialArgs {
    fn read(&self, image: &ImageRef) -> Result<Vec<Credential>, CommandFailed> {
        let mut credentials = Vec::new();
        if let Some(pair) = &self.creds {
            let (user, password) =
                pair.split_once(':').ok_or_else(|| CommandFailed("--creds must be USER:PASSWORD".to_owned()))?;
            credentials.push(Credential::basic(image.registry(), user, password));
        }
        if let Some(file) = &self.auth_file {
            credentials.extend(Credential::from_path(file)?);
        }
        Ok(credentials)
    }
}
