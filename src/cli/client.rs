//! Talks to a node on this machine through its Unix socket: plain requests, streamed bodies, WebSockets.
//!
//! In: a socket path and a request path. Out: bodies, or a typed error that names the socket and what to do.
//! Does not format anything.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// A node's socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why the node did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("no node answers on {}: is 'wasilet run' or 'wasilet play' running with this --root-dir?", socket.display())]
    NoNode {
        /// The socket tried.
        socket: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the node on {} closed the connection", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The node answered with an error of its own.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The body, which says what is wrong.
        message: String,
    },
    /// The answer is not what this version understands.
    #[error("the node's answer to {path} cannot be read: is it of another version?")]
    Unreadable {
        /// The request.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The upgrade to a WebSocket failed.
    #[error("{message}")]
    WebSocket {
        /// What the node said.
        message: String,
    },
}

impl Client {
    /// A client of the node whose socket is at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let failed = |source| ClientError::NoNode { socket: self.socket.clone(), source };
        UnixStream::connect(&self.socket).await.map_err(failed)
    }

    /// Sends `GET path` and returns the answer with its body unread.
    ///
    /// # Errors
    /// [`ClientError`] when no node answers, or it refuses.
    pub async fn get(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Broken { socket: self.socket.clone(), source };
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends by itself when the body has been read or dropped: it owns only this request's connection.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .expect("paths are built by this crate, percent-encoded");
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        Err(ClientError::Refused { status, message: String::from_utf8_lossy(&body).trim().to_owned() })
    }

    /// Sends `GET path` and reads the whole answer as JSON.
    ///
    /// # Errors
    /// As [`Self::get`], and when the body is not JSON of that type.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let broken = |source| ClientError::Broken { socket: self.socket.clone(), source };
        let body = self.get(path).await?.into_body().collect().await.map_err(broken)?.to_bytes();
        serde_json::from_slice(&body).map_err(|source| ClientError::Unreadable { path: path.to_owned(), source })
    }

    /// Opens a WebSocket with one of `protocols`.
    ///
    /// # Errors
    /// As [`Self::get`]; a refusal carries the node's own words.
    pub async fn websocket(&self, path: &str, protocols: &str) -> Result<WebSocketStream<UnixStream>, ClientError> {
        use tokio_tungstenite::tungstenite::Error;
        let stream = self.connect().await?;
        let mut request = format!("ws://localhost{path}")
            .into_client_request()
            .map_err(|error| ClientError::WebSocket { message: error.to_string() })?;
        let protocols = protocols.parse().expect("subprotocol names are ASCII");
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocols);
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => {
                let message = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                Err(ClientError::Refused { status: response.status(), message: message.trim().to_owned() })
            }
            Err(error) => Err(ClientError::WebSocket { message: error.to_string() }),
        }
    }
}
