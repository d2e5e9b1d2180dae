//! Standard streams of a container: what fds 0, 1 and 2 of its first process are.
//!
//! In: `stdin`, `stdinOnce` and `tty`. Out: descriptions for the process, and the side that clients write to.

use std::sync::Arc;

use super::super::output::ContainerOutput;
use super::super::process::pipe::{self, PipeWriter};
use super::super::process::stdio::{Input, Output, OutputStream};
use super::super::process::{Access, DescriptionKind, FdTable, FileDescription, StatusFlags};
use super::super::tty::Terminal;
use crate::errno::Errno;
use crate::pod::run::{Stdin, StdioSpec, Tty};

/// Where attached clients write.
pub(super) struct StdinSide {
    /// What the first process reads; taken when it starts.
    pub(super) input: Input,
    /// The writing end of a stdin without a terminal.
    pub(super) writer: Option<PipeWriter>,
}

/// Makes the streams of a container.
pub(super) fn open(spec: &StdioSpec, output: &Arc<ContainerOutput>) -> (Option<Arc<Terminal>>, StdinSide) {
    match (spec.tty, spec.stdin) {
        (Tty::Terminal, stdin) => {
            let screen = Output::Container(output.clone(), OutputStream::Stdout);
            let terminal = Arc::new(Terminal::new(screen));
            if stdin == Stdin::Closed {
                terminal.hang_up();
            }
            let input = Input::Terminal(terminal.clone());
            (Some(terminal), StdinSide { input, writer: None })
        }
        (Tty::None, Stdin::Closed) => (None, StdinSide { input: Input::Closed, writer: None }),
        (Tty::None, Stdin::Open | Stdin::Once) => {
            let (reader, writer) = pipe::pipe(None);
            (None, StdinSide { input: Input::Pipe(reader), writer: Some(writer) })
        }
    }
}

/// An fd table with `input` at 0 and the outputs at 1 and 2.
///
/// # Errors
/// `EMFILE` when the limit is below three.
pub(super) fn table(limit: u32, input: Input, stdout: Output, stderr: Output) -> Result<FdTable, Errno> {
    let fds = FdTable::new(limit);
    let empty = StatusFlags::empty();
    if let (Input::Terminal(_), Output::Terminal(_)) = (&input, &stdout) {
        // One description for all three, as a login shell has.
        let both = Access::READ | Access::WRITE;
        let terminal = FileDescription::new(DescriptionKind::Terminal(input, stdout), both, empty);
        for _ in 0..3 {
            fds.insert(terminal.clone())?;
        }
        return Ok(fds);
    }
    fds.insert(FileDescription::new(DescriptionKind::Input(input), Access::READ, empty))?;
    fds.insert(FileDescription::new(DescriptionKind::Output(stdout), Access::WRITE, empty))?;
    fds.insert(FileDescription::new(DescriptionKind::Output(stderr), Access::WRITE, empty))?;
    Ok(fds)
}
