//! Requests of guests to other servers: the hooks of `wasi:http/outgoing-handler`.
//!
//! In: a request the guest built. Out: the response, or the guest's code for what failed. Connections are kept
//! and shared by the instances of one process.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::connector::{CONNECT_TIMEOUT, PodConnector};
use super::{body, errors};
use crate::runtime::process::Process;

/// How long a response may take to begin, and to go on, when the guest did not say: the stock default.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);
/// Unused connections kept for one server, and how long: a burst's worth, gone before most servers give up.
const IDLE_PER_HOST: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a body that the guest writes holds on its way to the network.
const BODY_CHUNK: usize = 64 * 1024;
const BODY_CHUNKS: usize = 2;

type PodClient = Client<PodConnector, WasiBody>;
type Outcome = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// The way out of one process. Clones share their connections.
#[derive(Clone)]
pub struct PodHttp(Arc<Shared>);

struct Shared {
    process: Arc<Process>,
    /// Made at the first request: most guests send none.
    client: OnceLock<PodClient>,
}

impl PodHttp {
    /// The way out of `process`.
    pub fn new(process: Arc<Process>) -> Self {
        Self(Arc::new(Shared { process, client: OnceLock::new() }))
    }

    fn client(&self) -> PodClient {
        let make = || {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .build(PodConnector::new(self.0.process.clone()))
        };
        self.0.client.get_or_init(make).clone()
    }
}

async fn send(client: PodClient, request: Request<WasiBody>, options: RequestOptions) -> Outcome {
    let first_byte = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let sending = CONNECT_TIMEOUT.scope(options.connect_timeout, client.request(request));
    // The connection has a limit of its own; what is left is the server's time to answer.
    let limit = first_byte.saturating_add(options.connect_timeout.unwrap_or(Duration::ZERO));
    let response = match tokio::time::timeout(limit, sending).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(errors::request_error(&error)),
        Err(_) => return Err(Error::ConnectionReadTimeout),
    };
    let silence = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
    // The client drives its connections itself, so nothing is left to do for the caller.
    Ok((response.map(|incoming| body::timed(incoming, silence)), Box::new(async { Ok(()) })))
}

impl WasiHttpHooks for PodHttp {
    /// The stock megabyte is host memory that no container is charged for.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        errors::body_error(error)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Outcome> + Send> {
        Box::new(send(self.client(), request, options.unwrap_or_default()))
    }
}
