//! `wasilet exec`: another program in a running container, with its streams, terminal and exit code.
//!
//! In: argv and this process's stdio. Out: the program's output and its exit code. Speaks the remote-command
//! protocol of [`crate::server::channel`].

use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::client::Client;
use super::logs::{encode, split_pod};
use crate::server::channel::{Channel, Frame, Outcome, TerminalSize, V5};

/// Arguments of `wasilet exec`.
#[derive(Debug, clap::Args)]
pub struct ExecArguments {
    /// The pod, as `NAME` or `NAMESPACE/NAME`
    pod: String,
    /// The container; the first one of the pod if left out
    #[arg(long, short)]
    container: Option<String>,
    /// Namespace of the pod
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Pass stdin to the program
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the program a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Runs the program and returns its exit code.
///
/// # Errors
/// When no node answers, there is no such container or program, or the connection breaks.
pub async fn exec(client: &Client, args: ExecArguments) -> anyhow::Result<ExitCode> {
    let (namespace, pod) = split_pod(&args.pod, &args.namespace);
    let container = args.container.as_deref().map_or_else(|| "-".to_owned(), encode);
    let tty = args.tty && rustix::termios::isatty(rustix::stdio::stdin());
    if args.tty && !tty {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let mut path = format!("/exec/{}/{}/{container}?output=1&error=1", encode(namespace), encode(pod));
    path.push_str(if args.stdin { "&input=1" } else { "" });
    path.push_str(if tty { "&tty=1" } else { "" });
    for word in &args.command {
        path.push_str("&command=");
        path.push_str(&encode(word));
    }
    let socket = client.websocket(&path, V5).await.with_context(|| format!("pod {namespace}/{pod}"))?;
    let raw = tty.then(RawTerminal::enter).transpose()?;
    let outcome = stream(socket, args.stdin, tty).await;
    drop(raw);
    match outcome? {
        Outcome::Exited(code) => Ok(ExitCode::from(code)),
        Outcome::Failed(message) => bail!(message),
    }
}

/// Copies streams both ways until the program's `Status` arrives.
async fn stream(
    socket: tokio_tungstenite::WebSocketStream<tokio::net::UnixStream>,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<Outcome> {
    let (mut to_node, mut from_node) = socket.split();
    // Two frames: enough to read ahead while one is sent; stdin must not pile up here.
    let (frames, mut outgoing) = mpsc::channel::<Frame>(2);
    if stdin {
        tokio::spawn(send_stdin(frames.clone()));
    }
    if tty {
        tokio::spawn(send_sizes(frames.clone()));
    }
    let mut open = true;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        tokio::select! {
            // Cancel-safe: `recv` loses nothing; the guard stops a closed queue from spinning us.
            frame = outgoing.recv(), if open => match frame {
                Some(frame) => {
                    // The program has ended and the node has closed its side: how it ended is still to be read.
                    open = to_node.send(Message::Binary(frame.encode())).await.is_ok();
                }
                None => open = false,
            },
            // Cancel-safe: a message not yet complete stays in the stream's buffer.
            message = from_node.next() => match message {
                Some(Ok(Message::Binary(message))) => match Frame::decode(&message)? {
                    Frame::Data(Channel::Stdout, data) => { stdout.write_all(&data).await?; stdout.flush().await?; }
                    Frame::Data(Channel::Stderr, data) => { stderr.write_all(&data).await?; stderr.flush().await?; }
                    Frame::Data(Channel::Error, status) => {
                        return Outcome::from_status(&status).context("the node's exit status cannot be read");
                    }
                    Frame::Data(..) | Frame::Close(_) => {}
                },
                Some(Ok(Message::Close(_))) | None => bail!("the node closed the connection before the program ended"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the connection to the node broke"),
            },
        }
    }
}

async fn send_stdin(frames: mpsc::Sender<Frame>) {
    let mut stdin = tokio::io::stdin();
    // kubectl's own piece size for stdin.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                let data = Bytes::copy_from_slice(&buffer[..n]);
                if frames.send(Frame::Data(Channel::Stdin, data)).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = frames.send(Frame::Close(Channel::Stdin)).await;
}

async fn send_sizes(frames: mpsc::Sender<Frame>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
            let size = TerminalSize { width: size.ws_col, height: size.ws_row };
            let data = serde_json::to_vec(&size).expect("two numbers serialize");
            if frames.send(Frame::Data(Channel::Resize, data.into())).await.is_err() {
                return;
            }
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// Puts this process's terminal in raw mode; restores it when dropped.
struct RawTerminal {
    before: rustix::termios::Termios,
}

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).context("setting the terminal to raw mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        // Nothing is left to do for a terminal that is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
