//! One question to one name server: by UDP, and by TCP when the answer does not fit or the pod wants it so.
//!
//! In: a question and a server. Out: its answer. It goes out by the pod's own sockets, so that whatever holds for the pod's
//! traffic (Services, policies) holds for its names; a server that no pod can reach, on the node's loopback or link-local,
//! is asked by the node, as with dnsPolicy `Default` behind a local resolver. A datagram that is not the answer is ignored.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

use super::super::account::OwnerId;
use super::super::kernel::{KernelSocket, Place};
use super::super::node::dial_kernel;
use super::super::options::UdpOptions;
use super::super::pod::PodNetwork;
use super::super::route::{Destination, Family};
use super::super::tcp::TcpStream;
use super::super::udp::UdpSocket;
use super::Answer;
use crate::errno::Errno;

/// Whose the resolver's sockets are: no container's.
const OWNER: OwnerId = OwnerId(u64::MAX);
/// A datagram of a server with EDNS: the size that needs no fragments anywhere.
const PAYLOAD: u16 = 1232;

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) edns: bool,
    pub(super) use_tcp: bool,
}

/// Why there is no answer; another server may have one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It did not answer in time.
    #[error("no answer of {server} within {} s", wait.as_secs())]
    TimedOut {
        /// Which server.
        server: SocketAddr,
        /// How long it had.
        wait: Duration,
    },
    /// It could not be reached.
    #[error("asking {server}: {source}")]
    Unreachable {
        /// Which server.
        server: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says that it cannot tell.
    #[error("{server} answered {code}")]
    Refused {
        /// Which server.
        server: SocketAddr,
        /// In its words.
        code: ResponseCode,
    },
}

/// Asks; the answer is to this question, whole, and authoritative enough to end the search for servers.
pub(super) async fn ask(
    pod: &Arc<PodNetwork>,
    question: &Question,
    server: SocketAddr,
    wait: Duration,
) -> Result<Answer, Failure> {
    let asked = tokio::time::timeout(wait, exchange(pod, question, server)).await;
    let message = asked.map_err(|_| Failure::TimedOut { server, wait })?;
    let message = message.map_err(|source| Failure::Unreachable { server, source })?;
    match message.metadata.response_code {
        ResponseCode::NoError => Ok(Answer::Addresses(
            message
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(a) => Some(a.0.into()),
                    RData::AAAA(aaaa) => Some(aaaa.0.into()),
                    _ => None,
                })
                .collect(),
        )),
        ResponseCode::NXDomain => Ok(Answer::NoSuchName),
        code => Err(Failure::Refused { server, code }),
    }
}

async fn exchange(pod: &Arc<PodNetwork>, question: &Question, server: SocketAddr) -> io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(question.name.clone(), question.kind));
    if question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        query.set_edns(edns);
    }
    let bytes = query.to_vec().map_err(io::Error::other)?;
    if !question.use_tcp {
        let socket = Datagrams::open(pod, server).map_err(os)?;
        let answer = socket.exchange(&bytes, |answer| answers(answer, &query)).await?;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
    }
    by_tcp(pod, server, &query, &bytes).await
}

/// Whether a message is the answer to this very question.
fn answers(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && match (answer.queries.first(), query.queries.first()) {
            (Some(told), Some(asked)) => told.name == asked.name && told.query_type == asked.query_type,
            // A server that cannot parse a question does not repeat it.
            (None, _) => answer.metadata.response_code != ResponseCode::NoError,
            _ => false,
        }
}

async fn by_tcp(pod: &Arc<PodNetwork>, server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = connect(pod, server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
        if answers(&answer, query) {
            return Ok(answer);
        }
    }
}

fn os(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw())
}

/// Whether the pod's own sockets lead to the server.
fn is_reachable(pod: &PodNetwork, server: SocketAddr) -> bool {
    pod.uses_node_sockets()
        || match pod.routes().classify(server.ip()) {
            Destination::Loopback(_) | Destination::Node | Destination::Denied(_) => false,
            Destination::Pod(_) | Destination::Cluster | Destination::Outside => true,
        }
}

async fn connect(pod: &Arc<PodNetwork>, server: SocketAddr) -> io::Result<TcpStream> {
    if !is_reachable(pod, server) {
        return dial_kernel(pod.factory(), server).await.map_err(os);
    }
    let socket = pod.tcp_socket(OWNER, Family::of(server.ip())).map_err(os)?;
    socket.connect(server).await.map_err(os)?;
    Ok(socket.into_stream())
}

/// A socket for one question.
enum Datagrams {
    Pod(Arc<UdpSocket>),
    Node(KernelSocket),
}

impl Datagrams {
    fn open(pod: &Arc<PodNetwork>, server: SocketAddr) -> Result<Self, Errno> {
        let family = Family::of(server.ip());
        if is_reachable(pod, server) {
            let socket = pod.udp_socket(OWNER, family)?;
            // Only the server is heard, and a refusal is.
            socket.connect(server)?;
            return Ok(Self::Pod(socket));
        }
        let anywhere = SocketAddr::new(family.unspecified(), 0);
        let (socket, _) = pod.factory().udp_at(Place::Node, anywhere, &UdpOptions::default())?;
        socket.connect_datagrams(server)?;
        Ok(Self::Node(socket))
    }

    async fn exchange(&self, query: &[u8], is_answer: impl Fn(&Message) -> bool) -> io::Result<Message> {
        loop {
            match self.send(query) {
                Err(Errno::Again) => self.writable().await,
                Err(errno) => return Err(os(errno)),
                Ok(_) => break,
            }
        }
        loop {
            match self.receive() {
                Err(Errno::Again) => self.readable().await,
                Err(errno) => return Err(os(errno)),
                Ok(bytes) => match Message::from_vec(&bytes) {
                    Ok(answer) if is_answer(&answer) => return Ok(answer),
                    _ => {}
                },
            }
        }
    }

    fn send(&self, query: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Pod(socket) => socket.try_send_to(query, None),
            Self::Node(socket) => socket.write(query),
        }
    }

    fn receive(&self) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Pod(socket) => Ok(socket.try_recv()?.0.to_vec()),
            Self::Node(socket) => {
                let mut buffer = vec![0; 4096];
                let length = socket.read(&mut buffer)?;
                buffer.truncate(length);
                Ok(buffer)
            }
        }
    }

    async fn readable(&self) {
        match self {
            Self::Pod(socket) => socket.readable().await,
            Self::Node(socket) => socket.ready(Interest::READABLE).await,
        }
    }

    async fn writable(&self) {
        match self {
            Self::Pod(socket) => socket.writable().await,
            Self::Node(socket) => socket.ready(Interest::WRITABLE).await,
        }
    }
}
