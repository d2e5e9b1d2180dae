//! One direction of an in-process connection: a bounded queue of byte chunks.
//!
//! In: slices or `Bytes` of the writer. Out: the same bytes in order, then end of file, or the news that the
//! connection is dead. Large copies happen outside the lock, so that the two sides run in parallel; small
//! writes are appended to the last chunk, so that a byte never costs a chunk. An empty pipe holds no buffer.
//! Does not know sockets, errors of a connection, or who its ends are.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;

use super::account::Account;
use super::wait::Waiters;
use crate::errno::Errno;

/// The largest chunk: what a front-end moves per call, and small enough to stay in a core's cache.
const CHUNK: usize = 64 * 1024;
/// Writes up to this size are copied under the lock, behind the bytes already there.
const SMALL: usize = 2048;
/// The least capacity of a chunk, so that single bytes share one allocation.
const CHUNK_MIN: usize = 512;
/// Places for chunks an empty pipe keeps, so that a ping-pong does not allocate its queue each time.
const IDLE_CHUNKS: usize = 8;
/// What a pipe may hold while its pod is over its buffer limit: enough for every pipe to progress.
const PRESSURE_WINDOW: usize = 4096;

/// One direction of a connection.
pub(super) struct Pipe {
    state: Mutex<State>,
    account: Option<Arc<Account>>,
    /// Woken when there is something to read.
    pub(super) reader: Waiters,
    /// Woken when there is room to write.
    pub(super) writer: Waiters,
}

struct State {
    chunks: VecDeque<Chunk>,
    len: usize,
    window: usize,
    /// The writer will write no more.
    finished: bool,
    /// The reader reads what is there, then end of file.
    read_shut: bool,
    /// The reader closed: what is written vanishes.
    abandoned: bool,
    /// The connection was reset.
    dead: bool,
}

struct Chunk {
    data: Data,
    charged: u64,
}

enum Data {
    /// Ours, with room at its end.
    Open(BytesMut),
    /// A front-end's, taken without a copy.
    Shared(Bytes),
}

impl Data {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Open(data) => data,
            Self::Shared(data) => data,
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Self::Open(data) => data.advance(n),
            Self::Shared(data) => data.advance(n),
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Self::Open(data) => data.truncate(n),
            Self::Shared(data) => data.truncate(n),
        }
    }

    fn split_to(&mut self, n: usize) -> Bytes {
        match self {
            Self::Open(data) => data.split_to(n).freeze(),
            Self::Shared(data) => data.split_to(n),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Open(data) => data.freeze(),
            Self::Shared(data) => data,
        }
    }
}

/// What a write met.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes were queued.
    Queued(usize),
    /// The reader has closed; the bytes vanished.
    Vanished(usize),
}

/// Why nothing was read or written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing there, or no room.
    Wait,
    /// The direction ended in order.
    End,
    /// The connection was reset, or this side shut the direction down.
    Dead,
    /// The account refused.
    Refused(Errno),
}

impl Pipe {
    pub(super) fn new(window: usize, account: Option<Arc<Account>>) -> Self {
        let state = State {
            chunks: VecDeque::new(),
            len: 0,
            window,
            finished: false,
            read_shut: false,
            abandoned: false,
            dead: false,
        };
        Self { state: Mutex::new(state), account, reader: Waiters::default(), writer: Waiters::default() }
    }

    /// Queues as much of `from` as there is room for.
    pub(super) fn write(&self, from: &[u8]) -> Result<Written, Stop> {
        let mut state = self.state.lock();
        let room = match self.room(&state)? {
            Room::Vanishing => return Ok(Written::Vanished(from.len())),
            Room::Bytes(room) => room,
        };
        if from.is_empty() {
            return Ok(Written::Queued(0));
        }
        let n = from.len().min(room);
        if n == 0 {
            return Err(Stop::Wait);
        }
        if n <= SMALL {
            let n = self.append(&mut state, &from[..n])?;
            drop(state);
            self.reader.wake();
            return Ok(Written::Queued(n));
        }
        drop(state);
        // The copy runs outside the lock. Another writer may take the room meanwhile: `push` looks again.
        self.push(Data::Open(BytesMut::from(&from[..n.min(CHUNK)])))
    }

    /// Queues the front of `from` without a copy, and splits it off.
    pub(super) fn write_bytes(&self, from: &mut Bytes) -> Result<Written, Stop> {
        if from.len() <= SMALL {
            let written = self.write(from)?;
            let (Written::Queued(n) | Written::Vanished(n)) = written;
            from.advance(n);
            return Ok(written);
        }
        let room = self.room(&self.state.lock())?;
        let room = match room {
            Room::Vanishing => return Ok(Written::Vanished(from.split_to(from.len()).len())),
            Room::Bytes(0) => return Err(Stop::Wait),
            Room::Bytes(room) => room,
        };
        let written = self.push(Data::Shared(from.slice(..from.len().min(room))))?;
        let (Written::Queued(n) | Written::Vanished(n)) = written;
        from.advance(n);
        Ok(written)
    }

    /// Queues a chunk, cut to the room there is now.
    fn push(&self, mut data: Data) -> Result<Written, Stop> {
        let mut state = self.state.lock();
        let len = data.as_slice().len();
        let n = match self.room(&state)? {
            Room::Vanishing => return Ok(Written::Vanished(len)),
            Room::Bytes(0) => return Err(Stop::Wait),
            Room::Bytes(room) => len.min(room),
        };
        // What is cut off stays allocated, so it is charged with the rest.
        self.charge(len)?;
        data.truncate(n);
        state.len += n;
        state.chunks.push_back(Chunk { data, charged: len as u64 });
        drop(state);
        self.reader.wake();
        Ok(Written::Queued(n))
    }

    /// Copies a small write behind the last bytes, in a new chunk where they have no room.
    fn append(&self, state: &mut State, from: &[u8]) -> Result<usize, Stop> {
        let mut rest = from;
        if let Some(Chunk { data: Data::Open(tail), .. }) = state.chunks.back_mut() {
            let fits = (tail.capacity() - tail.len()).min(rest.len());
            tail.extend_from_slice(&rest[..fits]);
            rest = &rest[fits..];
        }
        let appended = from.len() - rest.len();
        state.len += appended;
        if rest.is_empty() {
            return Ok(from.len());
        }
        let mut data = BytesMut::with_capacity(rest.len().max(CHUNK_MIN));
        match self.charge(data.capacity()) {
            Err(_) if appended > 0 => return Ok(appended),
            other => other?,
        }
        data.extend_from_slice(rest);
        state.len += rest.len();
        let charged = data.capacity() as u64;
        state.chunks.push_back(Chunk { data: Data::Open(data), charged });
        Ok(from.len())
    }

    /// Moves bytes out: several small chunks, or at most one large one.
    pub(super) fn read(&self, into: &mut [u8]) -> Result<usize, Stop> {
        let mut state = self.state.lock();
        if state.len == 0 {
            return Err(state.nothing());
        }
        let mut copied = 0;
        let mut freed = 0;
        let mut large = None;
        while copied < into.len() {
            let Some(front) = state.chunks.front_mut() else { break };
            let wanted = into.len() - copied;
            let bytes = front.data.as_slice();
            let n = bytes.len().min(wanted);
            if n > SMALL {
                // A short read is legal; going on would let two readers interleave.
                if copied == 0 {
                    large = Some(state.take(n, &mut freed));
                    copied = n;
                }
                break;
            }
            into[copied..copied + n].copy_from_slice(&bytes[..n]);
            copied += n;
            state.skip(n, &mut freed);
        }
        self.after_read(state, freed);
        if let Some(large) = large {
            into[..copied].copy_from_slice(&large);
        }
        Ok(copied)
    }

    /// Takes one chunk, or its first `max` bytes, without a copy.
    pub(super) fn read_bytes(&self, max: usize) -> Result<Bytes, Stop> {
        let mut state = self.state.lock();
        if state.len == 0 {
            return Err(state.nothing());
        }
        let mut freed = 0;
        let front = state.chunks.front().map_or(0, |chunk| chunk.data.as_slice().len());
        let bytes = state.take(front.min(max), &mut freed);
        self.after_read(state, freed);
        Ok(bytes)
    }

    /// Copies the first bytes and leaves them.
    pub(super) fn peek(&self, into: &mut [u8]) -> Result<usize, Stop> {
        let state = self.state.lock();
        if state.len == 0 {
            return Err(state.nothing());
        }
        let mut copied = 0;
        for chunk in &state.chunks {
            let bytes = chunk.data.as_slice();
            let n = bytes.len().min(into.len() - copied);
            into[copied..copied + n].copy_from_slice(&bytes[..n]);
            copied += n;
        }
        Ok(copied)
    }

    fn after_read(&self, state: parking_lot::MutexGuard<'_, State>, freed: u64) {
        let wake = self.has_room(&state);
        drop(state);
        self.release(freed);
        if wake {
            self.writer.wake();
        }
    }

    /// The writer writes no more; the reader drains, then meets the end.
    pub(super) fn finish(&self) {
        self.state.lock().finished = true;
        self.reader.wake();
        self.writer.wake();
    }

    /// The reader wants no more after what is there.
    pub(super) fn shut_read(&self) {
        self.state.lock().read_shut = true;
        self.reader.wake();
    }

    /// The reader closed. Returns how many bytes it never read.
    pub(super) fn abandon(&self) -> usize {
        let (unread, freed) = {
            let mut state = self.state.lock();
            state.abandoned = true;
            let freed = state.chunks.iter().map(|chunk| chunk.charged).sum();
            state.chunks = VecDeque::new();
            (std::mem::take(&mut state.len), freed)
        };
        self.release(freed);
        self.writer.wake();
        unread
    }

    /// The connection was reset: what was received can still be read, as on Linux; nothing can be written.
    pub(super) fn kill(&self) {
        self.state.lock().dead = true;
        self.reader.wake();
        self.writer.wake();
    }

    pub(super) fn set_window(&self, window: usize) {
        self.state.lock().window = window;
        self.writer.wake();
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state.lock().finished
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().len
    }

    pub(super) fn readable(&self) -> bool {
        let state = self.state.lock();
        state.len > 0 || state.finished || state.read_shut || state.dead
    }

    pub(super) fn writable(&self) -> bool {
        let state = self.state.lock();
        state.dead || state.finished || state.abandoned || self.has_room(&state)
    }

    /// How much a write would take now.
    pub(super) fn write_room(&self) -> Result<usize, Stop> {
        let state = self.state.lock();
        match self.room(&state)? {
            Room::Vanishing => Ok(state.window),
            Room::Bytes(room) => Ok(room),
        }
    }

    fn window(&self, state: &State) -> usize {
        let pressed = self.account.as_ref().is_some_and(|account| account.under_pressure());
        if pressed { state.window.min(PRESSURE_WINDOW) } else { state.window }
    }

    /// A writer is woken at half a window, not at a byte: as Linux, to move large pieces.
    fn has_room(&self, state: &State) -> bool {
        state.len * 2 <= self.window(state)
    }

    fn room(&self, state: &State) -> Result<Room, Stop> {
        if state.dead || state.finished {
            return Err(Stop::Dead);
        }
        if state.abandoned {
            return Ok(Room::Vanishing);
        }
        let window = self.window(state);
        if window < state.window
            && let Some(account) = &self.account
        {
            account.note_pressure();
        }
        Ok(Room::Bytes(window.saturating_sub(state.len)))
    }

    fn charge(&self, bytes: usize) -> Result<(), Stop> {
        let Some(account) = &self.account else { return Ok(()) };
        account.charge(bytes as u64).map_err(Stop::Refused)
    }

    fn release(&self, bytes: u64) {
        if let Some(account) = self.account.as_ref().filter(|_| bytes > 0) {
            account.release(bytes);
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let freed = self.state.get_mut().chunks.iter().map(|chunk| chunk.charged).sum();
        self.release(freed);
    }
}

enum Room {
    Bytes(usize),
    Vanishing,
}

impl State {
    /// What an empty pipe says.
    fn nothing(&self) -> Stop {
        if self.finished || (self.read_shut && !self.dead) {
            Stop::End
        } else if self.dead {
            Stop::Dead
        } else {
            Stop::Wait
        }
    }

    fn skip(&mut self, n: usize, freed: &mut u64) {
        let front = self.chunks.front_mut().expect("the caller looked at the front chunk");
        front.data.advance(n);
        if front.data.as_slice().is_empty() {
            *freed += self.chunks.pop_front().map_or(0, |chunk| chunk.charged);
        }
        self.removed(n);
    }

    fn take(&mut self, n: usize, freed: &mut u64) -> Bytes {
        let front = self.chunks.front_mut().expect("the caller looked at the front chunk");
        let bytes = if n == front.data.as_slice().len() {
            let chunk = self.chunks.pop_front().expect("the caller looked at the front chunk");
            *freed += chunk.charged;
            chunk.data.into_bytes()
        } else {
            front.data.split_to(n)
        };
        self.removed(n);
        bytes
    }

    fn removed(&mut self, n: usize) {
        self.len -= n;
        if self.len == 0 && self.chunks.capacity() > IDLE_CHUNKS {
            // An idle connection keeps no memory worth counting, its queue included.
            self.chunks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::account::PodBuffers;
    use super::*;
    use proptest::prelude::*;

    fn read_all(pipe: &Pipe, max: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = vec![0; max];
        while let Ok(n) = pipe.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        all
    }

    #[test]
    fn a_full_pipe_takes_no_more_until_half_of_it_is_read() {
        let pipe = Pipe::new(8192, None);
        assert_eq!(pipe.write(&[1; 10_000]), Ok(Written::Queued(8192)));
        assert_eq!(pipe.write(&[1]), Err(Stop::Wait));
        assert_eq!(pipe.read(&mut [0; 4000]), Ok(4000));
        assert!(!pipe.writable());
        assert_eq!(pipe.read(&mut [0; 96]), Ok(96));
        assert!(pipe.writable());
    }

    #[test]
    fn single_bytes_share_a_chunk() {
        let pod = PodBuffers::alone(1 << 20);
        let pipe = Pipe::new(8192, Some(Arc::new(Account::new(pod.clone(), None))));
        for _ in 0..500 {
            assert_eq!(pipe.write(b"x"), Ok(Written::Queued(1)));
        }
        assert_eq!(pod.used(), 512);
        assert_eq!(read_all(&pipe, 100), vec![b'x'; 500]);
        assert_eq!(pod.used(), 0);
    }

    #[test]
    fn a_pod_over_its_limit_still_moves_bytes_through_small_windows() {
        let pod = PodBuffers::alone(1000);
        let pipe = Pipe::new(1 << 20, Some(Arc::new(Account::new(pod.clone(), None))));
        assert_eq!(pipe.write(&[0; 3000]), Ok(Written::Queued(3000)));
        assert_eq!(pipe.write(&[0; 3000]), Ok(Written::Queued(1096)));
        assert_eq!(pipe.write(&[0; 3000]), Err(Stop::Wait));
        assert_eq!(read_all(&pipe, 8192).len(), 4096);
        assert_eq!(pipe.write(&[0; 3000]), Ok(Written::Queued(3000)));
        drop(pipe);
        assert_eq!(pod.used(), 0);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in_and_the_account_returns_to_zero(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 1usize..9000), 1..80),
        ) {
            let pod = PodBuffers::alone(1 << 30);
            let pipe = Pipe::new(16 * 1024, Some(Arc::new(Account::new(pod.clone(), None))));
            let (mut sent, mut got, mut next) = (Vec::new(), Vec::new(), 0u8);
            for (write, copy, n) in steps {
                if write {
                    let data: Vec<u8> = (0..n).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let result = if copy { pipe.write(&data) } else { pipe.write_bytes(&mut Bytes::from(data.clone())) };
                    match result {
                        Ok(Written::Queued(taken)) => sent.extend_from_slice(&data[..taken]),
                        other => prop_assert_eq!(other, Err(Stop::Wait)),
                    }
                } else if copy {
                    let mut buffer = vec![0; n];
                    if let Ok(n) = pipe.read(&mut buffer) { got.extend_from_slice(&buffer[..n]); }
                } else if let Ok(bytes) = pipe.read_bytes(n) {
                    got.extend_from_slice(&bytes);
                }
                prop_assert_eq!(pipe.len(), sent.len() - got.len());
                prop_assert!(pipe.len() <= 16 * 1024);
            }
            got.extend(read_all(&pipe, 1000));
            prop_assert_eq!(got, sent);
            prop_assert_eq!(pod.used(), 0);
        }
    }
}
