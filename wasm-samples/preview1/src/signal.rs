//! Signals from the node. In: `/dev/signal`, from which a guest reads one byte per signal, its number. Out: numbers, by
//! `poll_oneoff` with a time limit. Opening the device tells the node that this guest ends itself when asked to.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use wasip1::{
    CLOCKID_MONOTONIC, EVENTTYPE_CLOCK, EVENTTYPE_FD_READ, Event, Subscription, SubscriptionClock,
    SubscriptionFdReadwrite, SubscriptionU, SubscriptionUU,
};

/// The open device.
#[derive(Debug)]
pub struct Signals {
    device: File,
}

impl Signals {
    /// Opens `/dev/signal`.
    pub fn open() -> io::Result<Self> {
        Ok(Self { device: File::open("/dev/signal")? })
    }

    /// Waits for a signal's number, or `None` when `limit` is over first.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<u8>> {
        let timeout = limit.as_nanos().min(u128::from(u64::MAX)) as u64;
        let clock = SubscriptionClock { id: CLOCKID_MONOTONIC, timeout, precision: 0, flags: 0 };
        let device = SubscriptionFdReadwrite { file_descriptor: self.device.as_raw_fd() as u32 };
        let subscriptions = [
            subscription(0, EVENTTYPE_CLOCK.raw(), SubscriptionUU { clock }),
            subscription(1, EVENTTYPE_FD_READ.raw(), SubscriptionUU { fd_read: device }),
        ];
        let empty = || Event {
            userdata: 0,
            error: wasip1::ERRNO_SUCCESS,
            type_: EVENTTYPE_CLOCK,
            fd_readwrite: wasip1::EventFdReadwrite { nbytes: 0, flags: 0 },
        };
        let mut events = [empty(), empty()];
        // SAFETY: there is room for an event per subscription.
        let count = unsafe { wasip1::poll_oneoff(subscriptions.as_ptr(), events.as_mut_ptr(), subscriptions.len()) }
            .map_err(|error| io::Error::from_raw_os_error(i32::from(error.raw())))?;
        let Some(ready) = events[..count].iter().find(|event| event.userdata == 1) else { return Ok(None) };
        if ready.error != wasip1::ERRNO_SUCCESS {
            return Err(io::Error::from_raw_os_error(i32::from(ready.error.raw())));
        }
        let mut number = [0];
        self.device.read_exact(&mut number)?;
        Ok(Some(number[0]))
    }
}

fn subscription(userdata: u64, tag: u8, u: SubscriptionUU) -> Subscription {
    Subscription { userdata, u: SubscriptionU { tag, u } }
}
