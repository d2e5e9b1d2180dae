//! Joins a client's streams to those of a program: `exec`, `attach`, over whatever brought the client here.
//!
//! In: the streams of both sides. Out: bytes both ways, then how it ended on the error stream, then the end of every
//! stream. Does not start programs (`runtime`), does not know which pod this is (`exec`) or what carries the streams
//! (`streaming`). Waits where its reader does not read: nothing is queued here but one buffer for each stream.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::channel::{Outcome, TerminalSize};

/// Bytes copied at once: one frame.
const CHUNK_BYTES: usize = 32 * 1024;
/// The longest terminal size taken: `{"Width":65535,"Height":65535}`, with room for spaces.
const MAX_SIZE_BYTES: usize = 1024;

/// A stream read.
pub(super) type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// A stream written.
pub(super) type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A program's streams; what a client did not ask for is `None`.
pub(super) struct RemoteStreams {
    /// To the program; dropping it is end of file.
    pub(super) stdin: Option<BoxWrite>,
    /// From the program.
    pub(super) stdout: Option<BoxRead>,
    /// From the program.
    pub(super) stderr: Option<BoxRead>,
    /// Takes the client's terminal sizes.
    pub(super) resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
    /// Resolves when the program has ended and its output was written.
    pub(super) outcome: futures::future::BoxFuture<'static, Outcome>,
}

/// A client's streams, the other way round.
pub(super) struct ClientStreams {
    /// From the client.
    pub(super) stdin: Option<BoxRead>,
    /// To the client.
    pub(super) stdout: Option<BoxWrite>,
    /// To the client.
    pub(super) stderr: Option<BoxWrite>,
    /// Terminal sizes, one JSON document after the other.
    pub(super) resize: Option<BoxRead>,
    /// How it ended.
    pub(super) error: BoxWrite,
    /// As what.
    pub(super) report: Report,
    /// Directions that the client opened and that are not used: they end when the others do.
    pub(super) unused: Vec<BoxWrite>,
}

/// How a client is told how its command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// A `Status` with the exit code: v4 and later.
    Status,
    /// A sentence, and nothing after a success.
    Text,
}

/// Copies until the program has ended and all of its output was sent.
pub(super) async fn join(client: ClientStreams, program: RemoteStreams) {
    let ClientStreams { stdin, mut stdout, mut stderr, resize, mut error, report, mut unused } = client;
    let input = async {
        tokio::join!(copy_input(stdin, program.stdin), take_sizes(resize, program.resize));
        // The client may end its input long before the program ends.
        std::future::pending::<()>().await;
    };
    let output = async {
        // Output first: a client may stop reading when it knows how the command ended.
        let outputs = async {
            tokio::join!(copy_output(program.stdout, &mut stdout), copy_output(program.stderr, &mut stderr));
        };
        let ((), outcome) = tokio::join!(outputs, program.outcome);
        let text = match report {
            Report::Status => Some(outcome.to_status()),
            Report::Text => outcome.to_text(),
        };
        // A client that has gone needs no status.
        if let Some(text) = text {
            let _ = error.write_all(text.as_bytes()).await;
        }
        let _ = error.shutdown().await;
        for stream in stdout.iter_mut().chain(&mut stderr).chain(&mut unused) {
            let _ = stream.shutdown().await;
        }
    };
    tokio::select! {
        () = output => {}
        // Never ends; dropped with the program.
        () = input => {}
    }
}

async fn copy_output(from: Option<BoxRead>, to: &mut Option<BoxWrite>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            // The program gets a broken pipe: nobody reads this output any more.
            return;
        }
    }
}

async fn copy_input(from: Option<BoxRead>, to: Option<BoxWrite>) {
    let Some(mut from) = from else { return };
    // A container without stdin takes nothing; what the client sends is thrown away with its stream.
    let Some(mut to) = to else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn take_sizes(from: Option<BoxRead>, resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>) {
    let (Some(mut from), Some(resize)) = (from, resize) else { return };
    let mut unread = Vec::new();
    let mut buffer = vec![0; MAX_SIZE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        unread.extend_from_slice(&buffer[..count]);
        match sizes(&mut unread) {
            Some(sizes) => sizes.into_iter().for_each(&resize),
            None => return tracing::debug!("Stopped reading terminal sizes that are none"),
        }
    }
}

/// Takes the sizes off the front of `unread` and leaves what is not whole yet; `None` when it can never be one.
fn sizes(unread: &mut Vec<u8>) -> Option<Vec<TerminalSize>> {
    let mut found = Vec::new();
    let mut documents = serde_json::Deserializer::from_slice(unread).into_iter();
    let mut whole = 0;
    while let Some(document) = documents.next() {
        match document {
            Ok(size) => found.push(size),
            Err(error) if error.is_eof() => break,
            Err(_) => return None,
        }
        whole = documents.byte_offset();
    }
    unread.drain(..whole);
    (unread.len() <= MAX_SIZE_BYTES).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::io::DuplexStream;

    use super::*;

    #[test]
    fn sizes_are_read_one_after_the_other_in_any_pieces() {
        let size = |width, height| TerminalSize { width, height };
        let mut unread = br#"{"Width":80,"Height":24}{"Width":100,"#.to_vec();
        assert_eq!(sizes(&mut unread), Some(vec![size(80, 24)]));
        unread.extend_from_slice(br#""Height":50} "#);
        assert_eq!(sizes(&mut unread), Some(vec![size(100, 50)]));
        for (case, bytes) in [("no JSON", b"}".to_vec()), ("no end of it", vec![b'['; 2 * MAX_SIZE_BYTES])] {
            assert_eq!(sizes(&mut bytes.clone()), None, "{case}");
        }
    }

    struct Client {
        stdin: DuplexStream,
        stdout: DuplexStream,
        error: DuplexStream,
    }

    fn client(report: Report) -> (Client, ClientStreams) {
        let [(stdin, its_stdin), (stdout, its_stdout), (error, its_error)] =
            std::array::from_fn(|_| tokio::io::duplex(1024));
        let streams = ClientStreams {
            stdin: Some(Box::new(its_stdin)),
            stdout: Some(Box::new(its_stdout)),
            stderr: None,
            resize: None,
            error: Box::new(its_error),
            report,
            unused: Vec::new(),
        };
        (Client { stdin, stdout, error }, streams)
    }

    /// A program that copies its input to its output and exits with `code`.
    fn cat(code: u8) -> RemoteStreams {
        let (program_in, stdin) = tokio::io::duplex(1024);
        let (stdout, mut program_out) = tokio::io::duplex(1024);
        let outcome = async move {
            let mut program_in = program_in;
            let _ = tokio::io::copy(&mut program_in, &mut program_out).await;
            Outcome::Exited(code)
        };
        RemoteStreams {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize: None,
            outcome: Box::pin(outcome),
        }
    }

    async fn read(mut stream: DuplexStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_end_of_stdin_reaches_the_program_and_its_end_the_client() {
        for (report, code, expected) in [
            (Report::Status, 3, Outcome::Exited(3).to_status()),
            (Report::Text, 3, Outcome::Exited(3).to_text().unwrap()),
            (Report::Text, 0, String::new()),
        ] {
            let (mut client, streams) = client(report);
            let joined = tokio::spawn(join(streams, cat(code)));
            client.stdin.write_all(b"hello").await.unwrap();
            drop(client.stdin);
            assert_eq!(read(client.stdout).await, "hello");
            assert_eq!(read(client.error).await, expected);
            joined.await.unwrap();
        }
    }

    /// Counts what is taken from it.
    struct Endless(Arc<Mutex<usize>>);

    impl AsyncRead for Endless {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
            into: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            *self.0.lock() += into.remaining();
            let rest = into.remaining();
            into.put_slice(&vec![b'y'; rest]);
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_up_the_program_and_costs_one_buffer() {
        let (client, streams) = client(Report::Status);
        let taken = Arc::new(Mutex::new(0));
        let program = RemoteStreams {
            stdin: None,
            stdout: Some(Box::new(Endless(taken.clone()))),
            stderr: None,
            resize: None,
            outcome: Box::pin(std::future::pending()),
        };
        let mut joined = tokio_test_poll(join(streams, program));
        for _ in 0..10 {
            assert!(joined.poll(), "it waits, and is not woken");
        }
        assert_eq!(*taken.lock(), CHUNK_BYTES, "nothing is read ahead of what is sent");
        drop(client);
    }

    /// A future polled by hand with a waker that counts.
    struct Polled {
        future: std::pin::Pin<Box<dyn Future<Output = ()>>>,
        woken: Arc<Count>,
        polls: usize,
    }

    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn tokio_test_poll(future: impl Future<Output = ()> + 'static) -> Polled {
        Polled { future: Box::pin(future), woken: Arc::new(Count(0.into())), polls: 0 }
    }

    impl Polled {
        /// Whether it is pending, and has not asked to be polled again but to start with.
        fn poll(&mut self) -> bool {
            let waker = self.woken.clone().into();
            let pending = self.future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending();
            self.polls += 1;
            pending && self.woken.0.load(std::sync::atomic::Ordering::Relaxed) <= 1
        }
    }
}
