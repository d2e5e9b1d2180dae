//! `wasi:cli`: arguments, environment, exit, standard streams and terminals of the process.
//!
//! In: a process. Out: the `Host` traits of wasmtime-wasi's bindings on [`View`]. Standard streams are
//! descriptors 0, 1 and 2, the same that preview 1 programs and `exec` use.

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::cli::{
    environment, exit, stderr, stdin, stdout, terminal_input, terminal_output, terminal_stderr, terminal_stdin,
    terminal_stdout,
};
use wasmtime_wasi::p2::pipe::{ClosedInputStream, ClosedOutputStream};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use super::View;
use super::command::ComponentExit;
use super::streams::{Sink, SinkOutput, Source, SourceInput};
use crate::runtime::process::Fd;
use terminal_input::TerminalInput;
use terminal_output::TerminalOutput;

const STDIN: Fd = 0;
const STDOUT: Fd = 1;
const STDERR: Fd = 2;

impl environment::Host for View<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.process.env().to_vec())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.process.argv().to_vec())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(Some(self.process.cwd().to_owned()))
    }
}

impl exit::Host for View<'_> {
    fn exit(&mut self, status: Result<(), ()>) -> wasmtime::Result<()> {
        self.exit_with_code(u8::from(status.is_err()))
    }

    fn exit_with_code(&mut self, code: u8) -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(ComponentExit(code)))
    }
}

impl View<'_> {
    /// A descriptor that is closed gives a stream that is.
    fn input(&mut self, fd: Fd) -> wasmtime::Result<Resource<DynInputStream>> {
        let stream: DynInputStream = match self.process.fds().get(fd) {
            Ok(open) => Box::new(SourceInput::new(Source::Description(open))),
            Err(_) => Box::new(ClosedInputStream),
        };
        Ok(self.table.push(stream)?)
    }

    fn output_to(&mut self, fd: Fd) -> wasmtime::Result<Resource<DynOutputStream>> {
        let stream: DynOutputStream = match self.process.fds().get(fd) {
            Ok(open) => Box::new(SinkOutput::new(Sink::Description(open))),
            Err(_) => Box::new(ClosedOutputStream),
        };
        Ok(self.table.push(stream)?)
    }

    fn is_terminal(&self, fd: Fd) -> bool {
        self.process.fds().get(fd).is_ok_and(|open| open.is_terminal())
    }

    fn terminal_output(&mut self, fd: Fd) -> wasmtime::Result<Option<Resource<TerminalOutput>>> {
        if self.is_terminal(fd) { Ok(Some(self.table.push(TerminalOutput)?)) } else { Ok(None) }
    }
}

impl stdin::Host for View<'_> {
    fn get_stdin(&mut self) -> wasmtime::Result<Resource<DynInputStream>> {
        self.input(STDIN)
    }
}

impl stdout::Host for View<'_> {
    fn get_stdout(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        self.output_to(STDOUT)
    }
}

impl stderr::Host for View<'_> {
    fn get_stderr(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        self.output_to(STDERR)
    }
}

impl terminal_input::Host for View<'_> {}

impl terminal_input::HostTerminalInput for View<'_> {
    fn drop(&mut self, terminal: Resource<TerminalInput>) -> wasmtime::Result<()> {
        self.table.delete(terminal)?;
        Ok(())
    }
}

impl terminal_output::Host for View<'_> {}

impl terminal_output::HostTerminalOutput for View<'_> {
    fn drop(&mut self, terminal: Resource<TerminalOutput>) -> wasmtime::Result<()> {
        self.table.delete(terminal)?;
        Ok(())
    }
}

impl terminal_stdin::Host for View<'_> {
    fn get_terminal_stdin(&mut self) -> wasmtime::Result<Option<Resource<TerminalInput>>> {
        if self.is_terminal(STDIN) { Ok(Some(self.table.push(TerminalInput)?)) } else { Ok(None) }
    }
}

impl terminal_stdout::Host for View<'_> {
    fn get_terminal_stdout(&mut self) -> wasmtime::Result<Option<Resource<TerminalOutput>>> {
        self.terminal_output(STDOUT)
    }
}

impl terminal_stderr::Host for View<'_> {
    fn get_terminal_stderr(&mut self) -> wasmtime::Result<Option<Resource<TerminalOutput>>> {
        self.terminal_output(STDERR)
    }
}
