//! Execs and attaches: streams between a client and a process.
//!
//! In: keys and bytes of a client. Out: a session with tokio's IO traits, a way to resize, and the exit code. A session
//! that is dropped leaves an exec running with closed pipes, as a node's does.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::error::{ExecError, LookupError, StartError};
use super::super::process::pipe::{self, PipeReader, PipeWriter};
use super::super::process::stdio::{Input, Output};
use super::super::process::{ExitStatus, Process, Signal};
use super::super::scheduler::Credit;
use super::super::tty::{Terminal, WindowSize};
use super::lookup::Fallback;
use super::{Container, Launch};
use crate::pod::run::{ExecSpec, Stdin, StdioSpec, Tty};

/// One exec or attach.
pub struct Session {
    /// Where the client's input goes, unless stdin is closed.
    pub stdin: Option<SessionInput>,
    /// Standard output, or the terminal's screen.
    pub stdout: SessionOutput,
    /// Standard error; a terminal has none.
    pub stderr: Option<SessionOutput>,
    terminal: Option<Arc<Terminal>>,
    end: SessionEnd,
}

#[derive(Clone)]
enum SessionEnd {
    Process(Arc<Process>),
    Container(Arc<Container>),
}

/// Tells how a session ended; separate from the streams, which move to other tasks.
#[derive(Clone)]
pub struct SessionWait(SessionEnd);

/// Changes the window of a session's terminal. Does not keep the terminal: its output ends with the programs that have it.
#[derive(Clone)]
pub struct SessionResize(Option<Weak<Terminal>>);

impl Session {
    /// The client's window changed; nothing without a terminal.
    pub fn resize(&self, size: WindowSize) {
        self.resizer().resize(size);
    }

    /// A handle to resize with while the session's parts are elsewhere.
    #[must_use]
    pub fn resizer(&self) -> SessionResize {
        SessionResize(self.terminal.as_ref().map(Arc::downgrade))
    }

    /// A handle to wait with while the session's parts are elsewhere.
    #[must_use]
    pub fn waiter(&self) -> SessionWait {
        SessionWait(self.end.clone())
    }

    /// The exit code of the exec, or of the attached container. Cancel-safe.
    pub async fn wait(&self) -> u8 {
        self.waiter().wait().await
    }

    /// Ends the program of an exec that took too long. An attached container is left alone.
    pub fn kill(&self) {
        if let SessionEnd::Process(process) = &self.end {
            process.kill(ExitStatus::Signaled(Signal::KILL));
        }
    }
}

impl SessionWait {
    /// The exit code of the exec, or of the attached container. Cancel-safe.
    pub async fn wait(&self) -> u8 {
        match &self.0 {
            SessionEnd::Process(process) => process.exit_status().await.code(),
            SessionEnd::Container(container) => container.wait().await,
        }
    }
}

impl SessionResize {
    /// The client's window changed; nothing without a terminal.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = self.0.as_ref().and_then(Weak::upgrade) {
            terminal.resize(size);
        }
    }
}

impl Container {
    /// Runs another program with this container's files, network and charges.
    pub(in super::super) async fn exec(self: &Arc<Self>, spec: ExecSpec) -> Result<Session, ExecError> {
        if !self.is_running() {
            return Err(ExecError::NotRunning { id: self.spec.id.clone() });
        }
        let (stdout, screen) = pipe::pipe(Some(self.charge.clone()));
        let (parts, input, out, err) = match spec.stdio.tty {
            Tty::Terminal => {
                let terminal = Arc::new(Terminal::new(Output::Pipe(screen)));
                let side = Output::Terminal(terminal.clone());
                let stdin = stdin_of_terminal(&spec.stdio, &terminal);
                let input = Input::Terminal(terminal.clone());
                ((stdin, None, Some(terminal)), input, side.clone(), side)
            }
            Tty::None => {
                let (stderr, errors) = pipe::pipe(Some(self.charge.clone()));
                let (stdin, input) = match spec.stdio.stdin {
                    Stdin::Closed => (None, Input::Closed),
                    Stdin::Open | Stdin::Once => {
                        let (reader, writer) = pipe::pipe(Some(self.charge.clone()));
                        (Some(SessionInput::new(InputSide::Pipe(writer))), Input::Pipe(reader))
                    }
                };
                ((stdin, Some(SessionOutput::new(stderr)), None), input, Output::Pipe(screen), Output::Pipe(errors))
            }
        };
        let (stdin, stderr, terminal) = parts;
        let fds = self.fd_table(input, out, err)?;
        let launch = Launch {
            program: spec.argv.first().ok_or(StartError::Lookup(LookupError::Empty))?.clone(),
            parent: 0,
            argv: spec.argv,
            env: self.spec.env.clone(),
            cwd: self.spec.working_dir.clone(),
            fds,
            credit: Credit::Exec,
        };
        let process = self.launch(launch, Fallback::None).await?;
        if let Some(terminal) = &terminal {
            let process = Arc::downgrade(&process);
            terminal.on_signal(move |signal: Signal| {
                if let Some(process) = process.upgrade() {
                    process.signal(signal);
                }
            });
        }
        Ok(Session { stdin, stdout: SessionOutput::new(stdout), stderr, terminal, end: SessionEnd::Process(process) })
    }

    /// Connects a client to the streams of the container's own program.
    pub(in super::super) fn attach(self: &Arc<Self>) -> Result<Session, ExecError> {
        let not_running = || ExecError::NotRunning { id: self.spec.id.clone() };
        if !self.is_running() {
            return Err(not_running());
        }
        let (stdout, out) = pipe::pipe(None);
        let (stderr, err) = match self.has_terminal() {
            true => (None, None),
            false => {
                let (reader, writer) = pipe::pipe(None);
                (Some(SessionOutput::new(reader)), Some(writer))
            }
        };
        self.output.attach(Some(out), err).map_err(|_| not_running())?;
        Ok(Session {
            stdin: self.attached_stdin(),
            stdout: SessionOutput::new(stdout),
            stderr,
            terminal: self.terminal.clone(),
            end: SessionEnd::Container(self.clone()),
        })
    }

    fn attached_stdin(&self) -> Option<SessionInput> {
        if let Some(terminal) = &self.terminal {
            return stdin_of_terminal(&self.spec.stdio, terminal);
        }
        let mut side = self.stdin.lock();
        let writer = match self.spec.stdio.stdin {
            Stdin::Closed => None,
            Stdin::Open => side.writer.clone(),
            // The first client takes the only writer with it: end of file when it leaves.
            Stdin::Once => side.writer.take(),
        };
        writer.map(|writer| SessionInput::new(InputSide::Pipe(writer)))
    }

    /// Sends the keys ^C and ^\ and window changes of the container's own terminal to its first process.
    pub(in super::super) fn connect_own_terminal(self: &Arc<Self>) {
        let Some(terminal) = &self.terminal else { return };
        let container = Arc::downgrade(self);
        terminal.on_signal(move |signal: Signal| {
            // One that has ended needs no signal.
            if let Some(process) = container.upgrade().and_then(|container| container.tree.first().ok()) {
                process.signal(signal);
            }
        });
    }
}

fn stdin_of_terminal(spec: &StdioSpec, terminal: &Arc<Terminal>) -> Option<SessionInput> {
    let side = match spec.stdin {
        Stdin::Closed => return None,
        Stdin::Open => InputSide::Terminal(Arc::downgrade(terminal)),
        Stdin::Once => InputSide::LastTerminal(Arc::downgrade(terminal)),
    };
    Some(SessionInput::new(side))
}

enum InputSide {
    Pipe(PipeWriter),
    /// A client that is still there must not keep the screen of a program that has ended.
    Terminal(Weak<Terminal>),
    /// Hangs up when the client leaves.
    LastTerminal(Weak<Terminal>),
    Closed,
}

type Waiting = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

/// The client's side of standard input. Dropped or shut down, it is the end of file where the spec says so.
pub struct SessionInput {
    side: InputSide,
    waiting: Waiting,
}

impl SessionInput {
    fn new(side: InputSide) -> Self {
        Self { side, waiting: None }
    }

    fn close(&mut self) {
        if let InputSide::LastTerminal(terminal) = &self.side
            && let Some(terminal) = terminal.upgrade()
        {
            terminal.hang_up();
        }
        self.side = InputSide::Closed;
        self.waiting = None;
    }
}

impl Drop for SessionInput {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for SessionInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let pipe = match &self.side {
                InputSide::Terminal(terminal) | InputSide::LastTerminal(terminal) => {
                    let Some(terminal) = terminal.upgrade() else {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    };
                    terminal.input(bytes);
                    return Poll::Ready(Ok(bytes.len()));
                }
                InputSide::Closed => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                InputSide::Pipe(pipe) => pipe,
            };
            match pipe.try_write(bytes) {
                Err(crate::errno::Errno::Again) => {
                    let (pipe, wanted) = (pipe.clone(), bytes.len());
                    self.waiting = Some(Box::pin(async move { pipe.writable(wanted).await }));
                }
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(errno) => return Poll::Ready(Err(io::Error::from_raw_os_error(errno.raw()))),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

/// The client's side of an output stream; ends when every process that holds it has ended.
pub struct SessionOutput {
    pipe: PipeReader,
    waiting: Waiting,
}

impl SessionOutput {
    fn new(pipe: PipeReader) -> Self {
        Self { pipe, waiting: None }
    }
}

impl AsyncRead for SessionOutput {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            match self.pipe.try_read(buffer.initialize_unfilled()) {
                Err(crate::errno::Errno::Again) => {
                    let pipe = self.pipe.clone();
                    self.waiting = Some(Box::pin(async move { pipe.readable().await }));
                }
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(errno) => return Poll::Ready(Err(io::Error::from_raw_os_error(errno.raw()))),
            }
        }
    }
}
