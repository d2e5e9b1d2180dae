//! Threads for file calls that may hang: one bounded pool per mount of somebody else's files.
//!
//! In: closures. Out: their results. A hung NFS server exhausts its own mount's threads and nothing else, which
//! the runtime's shared blocking pool could not promise. Threads start on demand and leave when idle.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::errno::Errno;

/// Threads of one mount: enough to overlap a disk's queue, few enough that a thousand mounts can hang.
const MAX_THREADS: usize = 4;
/// Calls accepted at once; more callers wait asynchronously, where a kill reaches them.
const MAX_CALLS: usize = 64;
/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Cheap to clone; threads end when the last clone is gone and the queue is empty.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    calls: Semaphore,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    /// No thread yet.
    pub(crate) fn new() -> Self {
        let shared = Shared { queue: Mutex::default(), ready: Condvar::new(), calls: Semaphore::new(MAX_CALLS) };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `job` on a thread of the pool. When the future is dropped the job still ends on its own.
    ///
    /// # Errors
    /// `EAGAIN` when the machine has no thread left, `EIO` when the job panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Errno> {
        let _call = self.shared.calls.acquire().await.map_err(|_| Errno::Io)?;
        let (reply, result) = oneshot::channel();
        self.push(Box::new(move || {
            // The caller may have been killed: nobody listens then.
            let _ = reply.send(job());
        }))?;
        result.await.map_err(|_| Errno::Io)
    }

    fn push(&self, job: Job) -> Result<(), Errno> {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads >= MAX_THREADS {
            drop(queue);
            self.shared.ready.notify_one();
            return Ok(());
        }
        queue.threads += 1;
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name("vfs-foreign".to_owned()).spawn(move || work(&shared));
        if started.is_err() {
            queue.threads -= 1;
            if queue.threads == 0 {
                queue.jobs.pop_back();
                return Err(Errno::Again);
            }
        }
        Ok(())
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queue = shared.queue.lock();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                queue.idle += 1;
                let late = shared.ready.wait_for(&mut queue, IDLE).timed_out();
                queue.idle -= 1;
                if late && queue.jobs.is_empty() {
                    queue.threads -= 1;
                    return;
                }
            }
        };
        // A panic is the job's: its reply is dropped, the caller gets EIO, the thread goes on.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_io_error_and_the_pool_goes_on() {
        let pool = Pool::new();
        assert_eq!(pool.run(|| -> u8 { panic!("a job's own fault") }).await, Err(Errno::Io));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn hung_calls_hold_their_own_threads_only() {
        let (hung, well) = (Pool::new(), Pool::new());
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let stuck: Vec<_> = (0..MAX_THREADS)
            .map(|_| {
                let (pool, gate) = (hung.clone(), Arc::clone(&gate));
                tokio::spawn(async move { pool.run(move || gate.lock().recv().is_err()).await })
            })
            .collect();
        assert_eq!(well.run(|| 1).await, Ok(1));
        drop(release);
        for task in stuck {
            assert_eq!(task.await.unwrap(), Ok(true));
        }
    }
}
