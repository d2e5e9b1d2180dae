//! poll(2) for sockets, which std has no door to. In: sockets and a time limit. Out: which are ready for what.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read or to accept, or the peer's end.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

/// What a socket is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    pub read: bool,
    pub write: bool,
}

impl Ready {
    pub fn any(self) -> bool {
        self.read || self.write
    }
}

/// Waits until one of the sockets is ready, or the limit (none: for good) is over. One answer per socket.
pub fn poll(sockets: &[(&dyn AsRawFd, Interest)], limit: Option<Duration>) -> io::Result<Vec<Ready>> {
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|(socket, interest)| libc::pollfd {
            fd: socket.as_raw_fd(),
            events: match interest {
                Interest::Read => libc::POLLIN,
                Interest::Write => libc::POLLOUT,
                Interest::Both => libc::POLLIN | libc::POLLOUT,
            },
            revents: 0,
        })
        .collect();
    let limit = limit.map_or(-1, |limit| limit.as_millis() as i32);
    // SAFETY: pointer and length are of one vector.
    if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let ended = libc::POLLHUP | libc::POLLERR;
    Ok(fds
        .iter()
        .map(|fd| Ready {
            read: fd.revents & (libc::POLLIN | ended) != 0,
            write: fd.revents & (libc::POLLOUT | ended) != 0,
        })
        .collect())
}

/// Waits for one socket to be readable; a limit that runs out is an error.
pub fn readable(socket: &dyn AsRawFd, limit: Duration) -> Result<(), String> {
    match poll(&[(socket, Interest::Read)], Some(limit)) {
        Ok(ready) if ready[0].read => Ok(()),
        Ok(_) => Err(format!("nothing to read after {limit:?}")),
        Err(error) => Err(format!("poll: {error}")),
    }
}
