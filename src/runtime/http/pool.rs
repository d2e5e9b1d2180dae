//! Instances of an HTTP component between requests.
//!
//! In: a pre-linked component. Out: an [`Instance`] for one request at a time; afterwards it waits here for the
//! next. One that trapped, served its share, or waited too long is dropped: whatever a guest leaks ends with it. A
//! component that cannot serve a second time (JavaScript's keep their one event) gets a new instance for every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::{WasiBody, p2};

use super::outgoing::PodHttp;
use super::view;
use crate::runtime::engine::GuestEngine;
use crate::runtime::process::Process;
use crate::runtime::store::{Guest, StoreFor, new_store};

/// Requests one instance serves: wasmtime's own `serve` has the same number for components of WASI 0.3.
const MAX_REUSE: u32 = 128;
/// How long an unused instance keeps its memory.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Unused instances kept at most: enough for a burst on a small node.
const MAX_IDLE: usize = 32;

/// Takes the guest's answer, wherever `response-outparam.set` is called.
pub type Answer = Box<
    dyn FnOnce(Result<http::Response<p2::body::HyperOutgoingBody>, p2::bindings::http::types::ErrorCode>) + Send + Sync,
>;

/// A live instance, serving one request or none.
pub struct Instance {
    store: Store<Guest>,
    proxy: Proxy,
    served: u32,
    _live: Live,
}

/// Counts an instance for as long as it has memory. Dropped after the store, as fields drop in order.
struct Live(Arc<Population>);

#[derive(Default)]
struct Population {
    live: AtomicUsize,
    /// An instance came back or is gone.
    changed: Notify,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

impl Instance {
    /// Whether it served another request before the one at hand.
    pub fn is_reused(&self) -> bool {
        self.served > 1
    }

    /// Runs the handler for one request. Returns when the handler does, which may be long after it answered.
    ///
    /// # Errors
    /// A trap; the instance must not be used again.
    pub async fn handle(&mut self, request: http::Request<WasiBody>, answer: Answer) -> wasmtime::Result<()> {
        self.served += 1;
        let mut http = view(self.store.data_mut());
        let request = http.new_incoming_request(Scheme::Http, request)?;
        let answer = http.new_response_outparam_from_callback(answer)?;
        self.proxy.wasi_http_incoming_handler().call_handle(&mut self.store, request, answer).await
    }
}

struct Idle {
    instance: Instance,
    since: Instant,
}

/// Makes and keeps the instances of one component.
pub struct Pool {
    engine: GuestEngine,
    process: Arc<Process>,
    pre: ProxyPre<Guest>,
    outgoing: PodHttp,
    idle: Mutex<Vec<Idle>>,
    population: Arc<Population>,
    /// What the first instance took of the container's memory.
    instance_bytes: AtomicU64,
    /// An instance serves one request and goes.
    single_use: AtomicBool,
    /// An instance answered a second request.
    serves_again: AtomicBool,
}

impl Pool {
    /// An empty pool.
    pub fn new(engine: GuestEngine, process: Arc<Process>, pre: ProxyPre<Guest>) -> Self {
        let outgoing = PodHttp::new(process.clone());
        let (idle, population) = (Mutex::new(Vec::new()), Arc::default());
        let instance_bytes = AtomicU64::new(0);
        let (single_use, serves_again) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { engine, process, pre, outgoing, idle, population, instance_bytes, single_use, serves_again }
    }

    /// The process whose requests these are.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Makes the first instance and remembers what it weighs.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub async fn first(&self) -> wasmtime::Result<Instance> {
        let charge = self.process.container().charge();
        let before = charge.used();
        let instance = self.instantiate().await?;
        self.instance_bytes.store(charge.used().saturating_sub(before), Ordering::Relaxed);
        Ok(instance)
    }

    /// The instance used last, whose memory is warm, or a new one. Waits while a new one would push the
    /// container over its memory limit and others are at work: a burst of requests is no reason to be killed.
    /// Cancel-safe.
    ///
    /// # Errors
    /// No memory for a new one, or a trap while it initialises.
    pub async fn take(&self) -> wasmtime::Result<Instance> {
        loop {
            let changed = self.population.changed.notified();
            if let Some(idle) = self.idle.lock().pop() {
                return Ok(idle.instance);
            }
            if self.has_room() {
                return self.instantiate().await;
            }
            changed.await;
        }
    }

    fn has_room(&self) -> bool {
        let charge = self.process.container().charge();
        charge.has_room(self.instance_bytes.load(Ordering::Relaxed))
            || self.population.live.load(Ordering::Acquire) == 0
    }

    async fn instantiate(&self) -> wasmtime::Result<Instance> {
        self.population.live.fetch_add(1, Ordering::AcqRel);
        let live = Live(self.population.clone());
        let mut store = new_store(&self.engine, &self.process, StoreFor::Component);
        store.data_mut().component().http.share(self.outgoing.clone());
        let proxy = self.pre.instantiate_async(&mut store).await?;
        Ok(Instance { store, proxy, served: 0, _live: live })
    }

    /// From now on an instance serves one request. True for the first who says so.
    pub fn use_once(&self) -> bool {
        let first = !self.single_use.swap(true, Ordering::AcqRel);
        self.clear();
        first
    }

    /// Whether the component has shown that its instances answer more than one request.
    pub fn is_known_to_serve_again(&self) -> bool {
        self.serves_again.load(Ordering::Relaxed)
    }

    /// Takes back an instance that served a request without a trap.
    pub fn give_back(&self, instance: Instance) {
        if instance.is_reused() {
            self.serves_again.store(true, Ordering::Relaxed);
        }
        if instance.served >= MAX_REUSE || (instance.served > 0 && self.single_use.load(Ordering::Acquire)) {
            return;
        }
        {
            let mut idle = self.idle.lock();
            if idle.len() >= MAX_IDLE {
                return; // Arguments drop after locals, so the instance goes without the lock.
            }
            idle.push(Idle { instance, since: Instant::now() });
        }
        self.population.changed.notify_waiters();
    }

    /// Drops what waited too long. The oldest are first, as the newest are taken first.
    pub fn reap(&self) {
        let expired: Vec<Idle> = {
            let mut idle = self.idle.lock();
            let count = idle.iter().take_while(|idle| idle.since.elapsed() > IDLE_TIMEOUT).count();
            idle.drain(..count).collect()
        };
        drop(expired); // Unmapping memory takes a while, so not under the lock.
    }

    /// Drops every unused instance.
    pub fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }
}
