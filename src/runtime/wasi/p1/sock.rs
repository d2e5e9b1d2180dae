//! The four socket calls of preview 1.
//!
//! In: descriptors of listening or connected sockets (preopened or accepted). Out: calls of the pod's network.

use wiggle::GuestPtr;

use super::{Memory, Result, convert, description, types};
use crate::errno::Errno;
use crate::network::Shutdown;
use crate::runtime::process::{Access, DescriptionKind, FileDescription, Process, StatusFlags};

/// `sock_accept`.
pub(super) async fn accept(process: &Process, fd: types::Fd, flags: types::Fdflags) -> Result<types::Fd> {
    let listener = description(process, fd)?;
    let socket = listener.as_tcp()?;
    let accepted = loop {
        match socket.try_accept() {
            Err(Errno::Again) if !listener.status().contains(StatusFlags::NONBLOCK) => socket.readable().await,
            done => break done?,
        }
    };
    let both = Access::READ | Access::WRITE;
    let description = FileDescription::new(DescriptionKind::Tcp(accepted), both, convert::status_flags(flags));
    process.fds().insert(description).map(types::Fd::from)
}

/// `sock_recv`. One buffer at a time is asked for; the first decides whether to wait.
pub(super) async fn receive(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::IovecArray,
    flags: types::Riflags,
) -> Result<(u32, types::Roflags)> {
    if !description.is_socket() {
        return Err(Errno::NotSock);
    }
    if flags.contains(types::Riflags::RECV_PEEK) {
        return peek(memory, description, iovs).await;
    }
    let mut total = super::fd::read(memory, description, iovs).await?;
    if flags.contains(types::Riflags::RECV_WAITALL) {
        total = wait_for_all(memory, description, iovs, total).await?;
    }
    Ok((total, types::Roflags::empty()))
}

/// Fills the rest of the buffers, until they are full or the stream ends.
async fn wait_for_all(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::IovecArray,
    mut total: u32,
) -> Result<u32> {
    let mut skip = total;
    for buffer in iovs.iter() {
        let iov = memory.read(buffer?)?;
        let mut filled = skip.min(iov.buf_len);
        skip -= filled;
        while filled < iov.buf_len {
            // A stream that is always ahead of us must not keep the thread.
            tokio::task::consume_budget().await;
            let count = (iov.buf_len - filled).min(64 * 1024);
            let bytes = memory.as_slice_mut(iov.buf.add(filled)?.as_array(count))?.ok_or(Errno::Fault)?;
            match description.read(bytes).await {
                Ok(0) | Err(_) => return Ok(total),
                Ok(got) => {
                    filled += got as u32;
                    total = total.saturating_add(got as u32);
                }
            }
        }
    }
    Ok(total)
}

async fn peek(
    memory: &mut Memory<'_>,
    description: &FileDescription,
    iovs: types::IovecArray,
) -> Result<(u32, types::Roflags)> {
    super::fd::check_count(iovs.len())?;
    let Some(buffer) = first_buffer(memory, iovs)? else { return Ok((0, types::Roflags::empty())) };
    loop {
        let bytes = memory.as_slice_mut(buffer)?.ok_or(Errno::Fault)?;
        let peeked = match description.kind() {
            DescriptionKind::Tcp(socket) => socket.try_peek(bytes),
            DescriptionKind::Udp(socket) => socket.try_peek_from(bytes).map(|received| received.len),
            _ => Err(Errno::NotSock),
        };
        match peeked {
            Err(Errno::Again) if !description.status().contains(StatusFlags::NONBLOCK) => description.readable().await,
            done => return done.map(|count| (count as u32, types::Roflags::empty())),
        }
    }
}

fn first_buffer(memory: &Memory<'_>, iovs: types::IovecArray) -> Result<Option<GuestPtr<[u8]>>> {
    for buffer in iovs.iter() {
        let iov = memory.read(buffer?)?;
        if iov.buf_len > 0 {
            return Ok(Some(iov.buf.as_array(iov.buf_len.min(64 * 1024))));
        }
    }
    Ok(None)
}

/// `sock_shutdown`.
pub(super) fn shutdown(description: &FileDescription, how: types::Sdflags) -> Result<()> {
    let how = match (how.contains(types::Sdflags::RD), how.contains(types::Sdflags::WR)) {
        (true, true) => Shutdown::Both,
        (true, false) => Shutdown::Read,
        (false, true) => Shutdown::Write,
        (false, false) => return Err(Errno::Inval),
    };
    description.as_tcp()?.shutdown(how)
}
