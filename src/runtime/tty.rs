//! A terminal: the line discipline between a program and its client.
//!
//! In: keys of the client, output of the program. Out: edited lines to the program, echo and output with CR LF to
//! the client, ^C and ^\ as signals. Always cooked: WASI has no way for a program to ask for raw mode.

use std::collections::VecDeque;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::process::Signal;
use super::process::pipe::ATOMIC_WRITE;
use super::process::stdio::Output;
use crate::errno::Errno;

/// Longest line, as the kernel's `N_TTY_BUF_SIZE`; keys beyond it are dropped.
const MAX_LINE: usize = 4096;
/// Finished input a program has not read; keys beyond it are dropped, as by the kernel.
const MAX_READY: usize = 64 * 1024;

const INTERRUPT: u8 = 0x03; // ^C
const END_OF_FILE: u8 = 0x04; // ^D
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15; // ^U
const ERASE_WORD: u8 = 0x17; // ^W
const QUIT: u8 = 0x1c; // ^\
const DELETE: u8 = 0x7f;

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

#[derive(Default)]
struct State {
    line: Vec<u8>,
    ready: VecDeque<u8>,
    /// Lengths of the finished lines in `ready`; 0 is an end of file typed on an empty line.
    lines: VecDeque<usize>,
    hung_up: bool,
    size: Option<WindowSize>,
}

/// One terminal.
pub struct Terminal {
    state: Mutex<State>,
    output: Output,
    readable: Notify,
    on_signal: OnceLock<Box<dyn Fn(Signal) + Send + Sync>>,
}

impl Terminal {
    /// A terminal whose screen is `output`.
    #[must_use]
    pub fn new(output: Output) -> Self {
        Self { state: Mutex::default(), output, readable: Notify::new(), on_signal: OnceLock::new() }
    }

    /// Who gets ^C, ^\ and window changes; set once, after the process is made.
    pub fn on_signal(&self, action: impl Fn(Signal) + Send + Sync + 'static) {
        // Only the one who made the terminal calls this.
        let _ = self.on_signal.set(Box::new(action));
    }

    /// Keys from the client.
    pub fn input(&self, keys: &[u8]) {
        let mut echo = Vec::new();
        let mut signals = Vec::new();
        {
            let mut state = self.state.lock();
            for &key in keys {
                state.key(key, &mut echo, &mut signals);
            }
            // Under the lock: a program that already waits for the line must not answer before its echo. Echo that does
            // not fit is lost, as on a stopped terminal; input is not.
            let _ = self.output.try_write(&echo);
        }
        self.readable.notify_waiters();
        for signal in signals {
            self.signal(signal);
        }
    }

    /// The client has gone: reads end, and the program is told as by a modem.
    pub fn hang_up(&self) {
        self.state.lock().hung_up = true;
        self.readable.notify_waiters();
    }

    /// The client's window changed.
    pub fn resize(&self, size: WindowSize) {
        let changed = self.state.lock().size.replace(size) != Some(size);
        if changed {
            self.signal(Signal::WINCH);
        }
    }

    /// The client's window, once known.
    pub fn size(&self) -> Option<WindowSize> {
        self.state.lock().size
    }

    /// At most one line; `Ok(0)` is end of file.
    ///
    /// # Errors
    /// `EAGAIN` when no line is finished.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        let Some(&length) = state.lines.front() else {
            return if state.hung_up { Ok(0) } else { Err(Errno::Again) };
        };
        let count = length.min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(state.ready.drain(..count)) {
            *slot = byte;
        }
        if count == length {
            state.lines.pop_front();
        } else if let Some(rest) = state.lines.front_mut() {
            *rest -= count;
        }
        Ok(count)
    }

    /// Bytes a read would give now, and whether the client has gone.
    pub fn available(&self) -> (usize, bool) {
        let state = self.state.lock();
        (state.lines.front().copied().unwrap_or(0), state.hung_up || state.lines.front() == Some(&0))
    }

    /// Resolves when a read would not wait. Cancel-safe.
    pub async fn readable(&self) {
        loop {
            let changed = self.readable.notified();
            let waits = {
                let state = self.state.lock();
                state.lines.is_empty() && !state.hung_up
            };
            if !waits {
                return;
            }
            changed.await;
        }
    }

    /// Output of the program; LF becomes CR LF.
    ///
    /// # Errors
    /// As the screen's.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        // At most a screenful at once: the mapped form must fit as a whole, or half a CR LF could be lost.
        let bytes = &bytes[..bytes.len().min(MAX_LINE / 4)];
        let mapped = with_carriage_returns(bytes);
        match self.output.try_write(&mapped) {
            Ok(written) if written == mapped.len() => Ok(bytes.len()),
            Ok(written) => Ok(source_length(&mapped[..written])),
            Err(error) => Err(error),
        }
    }

    /// Whether a write would make progress now.
    pub fn is_writable(&self) -> bool {
        match &self.output {
            Output::Container(output, _) => output.is_writable(),
            // What a mapped line may need whole; less would spin its writer.
            Output::Pipe(pipe) => pipe.room().is_none_or(|room| room >= ATOMIC_WRITE),
            Output::Terminal(_) => true,
        }
    }

    /// Resolves when a write would make progress. Cancel-safe.
    pub async fn writable(&self) {
        match &self.output {
            Output::Container(output, _) => output.writable().await,
            Output::Pipe(pipe) => pipe.writable(ATOMIC_WRITE).await,
            Output::Terminal(_) => {} // A terminal's screen is never a terminal.
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(action) = self.on_signal.get() {
            action(signal);
        }
    }
}

impl State {
    fn key(&mut self, key: u8, echo: &mut Vec<u8>, signals: &mut Vec<Signal>) {
        match key {
            b'\r' | b'\n' => {
                echo.extend_from_slice(b"\r\n");
                self.line.push(b'\n');
                self.finish_line();
            }
            INTERRUPT | QUIT => {
                self.line.clear();
                let (shown, signal) =
                    if key == INTERRUPT { (b"^C\r\n", Signal::INT) } else { (b"^\\\r\n", Signal::QUIT) };
                echo.extend_from_slice(shown);
                signals.push(signal);
            }
            END_OF_FILE => self.finish_line(),
            BACKSPACE | DELETE => self.erase(echo),
            KILL_LINE => {
                while !self.line.is_empty() {
                    self.erase(echo);
                }
            }
            ERASE_WORD => {
                while self.line.last() == Some(&b' ') {
                    self.erase(echo);
                }
                while self.line.last().is_some_and(|&byte| byte != b' ') {
                    self.erase(echo);
                }
            }
            _ if self.line.len() + 1 >= MAX_LINE => echo.push(0x07),
            _ => {
                self.line.push(key);
                match key {
                    b'\t' | 0x20.. => echo.push(key),
                    _ => echo.extend_from_slice(&[b'^', key + 0x40]),
                }
            }
        }
    }

    fn finish_line(&mut self) {
        if self.ready.len() + self.line.len() <= MAX_READY {
            self.lines.push_back(self.line.len());
            self.ready.extend(&self.line);
        }
        self.line.clear();
    }

    /// Takes the last character off, all bytes of a UTF-8 one.
    fn erase(&mut self, echo: &mut Vec<u8>) {
        let Some(mut last) = self.line.pop() else { return };
        let columns = if last < 0x20 && last != b'\t' { 2 } else { 1 };
        while last & 0xc0 == 0x80 {
            match self.line.pop() {
                Some(byte) => last = byte,
                None => break,
            }
        }
        for _ in 0..columns {
            echo.extend_from_slice(b"\x08 \x08");
        }
    }
}

fn with_carriage_returns(bytes: &[u8]) -> Vec<u8> {
    let mut mapped = Vec::with_capacity(bytes.len() + 16);
    for &byte in bytes {
        if byte == b'\n' {
            mapped.push(b'\r');
        }
        mapped.push(byte);
    }
    mapped
}

/// How many bytes of the program a prefix of the mapped output stands for.
fn source_length(mapped: &[u8]) -> usize {
    let added = mapped.windows(2).filter(|pair| pair == b"\r\n").count();
    // A CR at the cut is either the program's own or the first half of ours; sent again it moves no cursor.
    let half = usize::from(mapped.last() == Some(&b'\r'));
    mapped.len() - added - half
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::process::pipe;

    fn terminal() -> (Terminal, pipe::PipeReader) {
        let (reader, writer) = pipe::pipe(None);
        (Terminal::new(Output::Pipe(writer)), reader)
    }

    fn read(terminal: &Terminal) -> Vec<u8> {
        let mut buffer = [0; 256];
        let count = terminal.try_read(&mut buffer).unwrap();
        buffer[..count].to_vec()
    }

    fn screen(reader: &pipe::PipeReader) -> String {
        let mut buffer = [0; 256];
        let count = reader.try_read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn a_line_is_read_when_it_is_finished_and_echoed_as_it_is_typed() {
        let (terminal, reader) = terminal();
        terminal.input(b"ls -l");
        assert_eq!(terminal.try_read(&mut [0; 8]), Err(Errno::Again));
        terminal.input("x\u{e9}\x7f\x7f\r".as_bytes());
        assert_eq!(read(&terminal), b"ls -l\n");
        assert!(screen(&reader).starts_with("ls -l"));
    }

    #[test]
    fn control_keys_edit_signal_and_end_input() {
        let (terminal, _reader) = terminal();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        terminal.on_signal(move |signal| log.lock().push(signal));
        terminal.input(b"one two\x17three\n");
        assert_eq!(read(&terminal), b"one three\n");
        terminal.input(b"gone\x15kept\x03new\n");
        assert_eq!(read(&terminal), b"new\n");
        terminal.input(b"\x04");
        assert_eq!(read(&terminal), b"");
        terminal.input(b"half\x04");
        assert_eq!(read(&terminal), b"half");
        assert_eq!(*seen.lock(), [Signal::INT]);
    }

    #[test]
    fn a_client_that_reads_nothing_stalls_the_program_and_nobody_else() {
        let (terminal, reader) = terminal();
        let written = |bytes: &[u8]| terminal.try_write(bytes);
        let mut sent = 0;
        while let Ok(count) = written(&[b'\n'; 700]) {
            assert!(count > 0, "a write that takes nothing would be tried for ever");
            sent += count;
        }
        // What is left has room for less than such a write.
        while written(b"x").is_ok() {}
        assert_eq!(written(b"x"), Err(Errno::Again));
        assert!(!terminal.is_writable());
        // What is typed is not lost with its echo, and ends up where it belongs.
        terminal.input(b"still here\r");
        assert_eq!(read(&terminal), b"still here\n");
        // Room for a part only: whoever waits for more is not told that there is, or it would spin.
        let mut shown = Vec::new();
        while !terminal.is_writable() {
            let mut buffer = [0; 1000];
            let count = reader.try_read(&mut buffer).unwrap();
            shown.extend_from_slice(&buffer[..count]);
        }
        assert!(written(&[b'\n'; MAX_LINE]).is_ok_and(|count| count > 0));
        while let Ok(count @ 1..) = reader.try_read(&mut [0; 4096]) {
            shown.resize(shown.len() + count, b'.');
        }
        assert!(sent * 2 <= shown.len() && shown.starts_with(b"\r\n\r\n"));
    }

    #[test]
    fn output_gets_carriage_returns_and_hang_up_ends_input() {
        let (terminal, reader) = terminal();
        assert_eq!(terminal.try_write(b"a\nb\n"), Ok(4));
        assert_eq!(screen(&reader), "a\r\nb\r\n");
        terminal.hang_up();
        assert_eq!(read(&terminal), b"");
        assert_eq!(source_length(b"a\r"), 1);
        assert_eq!(source_length(b"a\r\nb"), 3);
    }
}
