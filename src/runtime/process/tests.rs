//! Descriptors, pipes and signals, without an engine.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::pipe::{self, CAPACITY};
use super::*;
use crate::errno::Errno;
use crate::runtime::limits::MemoryCharge;

fn signals() -> Arc<FileDescription> {
    let listener = SignalListener::new(Arc::new(SignalQueue::default()));
    FileDescription::new(DescriptionKind::Signals(listener), Access::READ, StatusFlags::empty())
}

#[test]
fn descriptors_are_the_lowest_free_numbers_up_to_the_limit() {
    let fds = FdTable::new(3);
    for expected in 0..3 {
        assert_eq!(fds.insert(signals()), Ok(expected));
    }
    assert_eq!(fds.insert(signals()), Err(Errno::MFile));
    fds.remove(1).unwrap();
    assert_eq!(fds.insert(signals()), Ok(1));
    assert_eq!(fds.set(3, signals()).err(), Some(Errno::BadF));
    assert_eq!(fds.remove(9).err(), Some(Errno::BadF));
}

#[test]
fn renumber_moves_and_closes_and_wants_both_open() {
    let fds = FdTable::new(8);
    let (first, second) = (signals(), signals());
    fds.insert(first.clone()).unwrap();
    fds.insert(second.clone()).unwrap();
    assert_eq!(fds.renumber(0, 7), Err(Errno::BadF));
    assert_eq!(fds.renumber(0, 0), Ok(()));
    assert_eq!(fds.renumber(0, 1), Ok(()));
    assert!(Arc::ptr_eq(&fds.get(1).unwrap(), &first));
    assert_eq!(fds.get(0).err(), Some(Errno::BadF));
    assert_eq!(Arc::strong_count(&second), 1, "what was there is closed");
}

#[test]
fn a_pipe_ends_both_ways() {
    let (reader, writer) = pipe::pipe(None);
    assert_eq!(reader.try_read(&mut [0; 4]), Err(Errno::Again));
    assert_eq!(writer.try_write(b"last"), Ok(4));
    drop(writer);
    assert_eq!(reader.try_read(&mut [0; 9]), Ok(4));
    assert_eq!(reader.try_read(&mut [0; 9]), Ok(0));
    let (reader, writer) = pipe::pipe(None);
    let other = reader.clone();
    drop(reader);
    assert_eq!(writer.try_write(b"x"), Ok(1));
    drop(other);
    assert_eq!(writer.try_write(b"x"), Err(Errno::Pipe));
}

#[test]
fn a_pipe_is_charged_for_what_it_holds_and_nothing_when_idle() {
    let charge = MemoryCharge::new(Some(80 * 1024));
    let (reader, writer) = pipe::pipe(Some(charge.clone()));
    assert_eq!(writer.try_write(&[1; CAPACITY + 10]), Ok(CAPACITY));
    assert_eq!(writer.try_write(b"x"), Err(Errno::Again));
    assert_eq!(charge.used(), CAPACITY as u64);
    let (_second_reader, second) = pipe::pipe(Some(charge.clone()));
    assert_eq!(second.try_write(&[0; 20 * 1024]), Err(Errno::NoMem));
    assert!(charge.is_out_of_memory());
    let mut rest = CAPACITY;
    while rest > 0 {
        rest -= reader.try_read(&mut [0; 5000]).unwrap();
    }
    assert_eq!(charge.used(), 0);
}

#[test]
fn small_writes_are_all_or_nothing() {
    let (reader, writer) = pipe::pipe(None);
    assert_eq!(writer.try_write(&vec![0; CAPACITY - 10]), Ok(CAPACITY - 10));
    assert_eq!(writer.try_write(&[1; 11]), Err(Errno::Again));
    assert_eq!(writer.try_write(&[1; 10]), Ok(10));
    assert_eq!(reader.available(), (CAPACITY, false));
}

#[tokio::test]
async fn a_full_pipe_holds_its_writer_until_it_is_read() {
    let (reader, writer) = pipe::pipe(None);
    let sent: Vec<u8> = (0..CAPACITY * 3).map(|byte| byte as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move { writer.write_all(&sent).await });
    let mut received = Vec::new();
    let mut buffer = [0; 7000];
    loop {
        match reader.read(&mut buffer).await.unwrap() {
            0 => break,
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
    writing.await.unwrap().unwrap();
    assert_eq!(received, expected);
}

#[tokio::test(start_paused = true)]
async fn signals_are_a_set_read_in_order_and_wake_readers() {
    let queue = Arc::new(SignalQueue::default());
    assert!(!queue.has_listeners());
    let listener = SignalListener::new(queue.clone());
    assert!(queue.has_listeners());
    assert_eq!(listener.try_read(&mut [0; 4]), Err(Errno::Again));
    let waiting = tokio::time::timeout(Duration::from_secs(1), listener.readable());
    let (woken, ()) = tokio::join!(waiting, async {
        queue.raise(Signal::TERM);
        queue.raise(Signal::INT);
        queue.raise(Signal::TERM);
    });
    woken.unwrap();
    let mut buffer = [0; 4];
    assert_eq!(listener.try_read(&mut buffer), Ok(2));
    assert_eq!(buffer, [2, 15, 0, 0]);
    drop(listener);
    assert!(!queue.has_listeners());
    assert_eq!(Signal::new(64), Err(Errno::Inval));
    assert_eq!(Signal::new(0), Err(Errno::Inval));
}

proptest! {
    /// Against a plain queue: what goes in comes out, and never more than the capacity is inside.
    #[test]
    fn a_pipe_is_a_bounded_queue(steps in proptest::collection::vec((any::<bool>(), 0usize..9000), 1..60)) {
        let (reader, writer) = pipe::pipe(Some(MemoryCharge::new(None)));
        let mut model = std::collections::VecDeque::new();
        let mut next = 0_u8;
        for (write, size) in steps {
            if write {
                let bytes: Vec<u8> = (0..size).map(|offset| next.wrapping_add(offset as u8)).collect();
                if let Ok(count) = writer.try_write(&bytes) {
                    model.extend(&bytes[..count]);
                    next = next.wrapping_add(count as u8);
                }
            } else {
                let mut buffer = vec![0; size];
                if let Ok(count) = reader.try_read(&mut buffer) {
                    let expected: Vec<u8> = model.drain(..count).collect();
                    prop_assert_eq!(&buffer[..count], &expected[..]);
                }
            }
            prop_assert!(model.len() <= CAPACITY);
            prop_assert_eq!(reader.available().0, model.len());
        }
    }
}
