//! The network namespace that pod addresses live in.
//!
//! In: ranges of addresses. Out: sockets in a namespace where each of these addresses is local and which the node's own
//! namespace has a route to. One thread is in the namespace; it sets up links and routes ([`links`]) and makes sockets
//! ahead of need, since a socket belongs to the namespace of the thread that makes it. A guest takes a ready socket and
//! never waits for another thread but at the very first.
//!
//! The namespace has no name. It lives as long as this process, however that ends, and takes its links with it. Two
//! addresses of each range are ours: the first routes the range into the namespace, the second is the node's end.

mod links;
mod stash;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::net::SocketType;
use tokio::sync::{mpsc, oneshot};

use self::links::Links;
use self::stash::Stash;
use super::config::{IpRange, NetworkError};
use super::route::Family;
use crate::errno::Errno;

#[cfg(test)]
pub(super) use self::links::leave;
pub(super) use self::stash::Stock;

/// Takes the outcome of a command.
type Answer = Box<dyn FnOnce(Result<(), NetworkError>) + Send>;

/// What the thread is asked for.
enum Command {
    Add(IpRange, Answer),
    Remove(IpRange),
}

/// A namespace, until it is dropped.
pub(super) struct Namespace {
    stock: Arc<Stock>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Namespace {
    /// Makes the namespace and its links. Takes milliseconds, blocking.
    pub(super) fn new(seed: &str) -> Result<Self, NetworkError> {
        let stock = Arc::new(Stock::default());
        let (commands, asked) = mpsc::unbounded_channel();
        let (tell, made) = sync_channel(1);
        let (stash, link) = (Stash::new(stock.clone()), link_name(seed));
        std::thread::Builder::new()
            .name("pod-network".to_owned())
            .spawn(move || run(&link, stash, asked, &tell))
            .map_err(|source| NetworkError::Namespace { step: "starting its thread", source })?;
        made.recv().unwrap_or_else(|_| Err(gone()))?;
        Ok(Self { stock, commands })
    }

    /// Where its sockets are.
    pub(super) fn stock(&self) -> &Arc<Stock> {
        &self.stock
    }

    /// Makes every address of a range local to the namespace, and routes the range to it.
    pub(super) async fn add(&self, range: IpRange) -> Result<(), NetworkError> {
        let (answer, answered) = oneshot::channel();
        // Either error means that the thread is gone.
        drop(self.commands.send(Command::Add(range, Box::new(|outcome| drop(answer.send(outcome))))));
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// As [`Self::add`], blocking for some milliseconds, before the node has anything else to do.
    pub(super) fn add_now(&self, range: IpRange) -> Result<(), NetworkError> {
        let (answer, answered) = sync_channel(1);
        drop(self.commands.send(Command::Add(range, Box::new(move |outcome| drop(answer.send(outcome))))));
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Takes the routes of a range away.
    pub(super) fn remove(&self, range: IpRange) {
        drop(self.commands.send(Command::Remove(range)));
    }
}

fn gone() -> NetworkError {
    NetworkError::Namespace { step: "asking its thread", source: std::io::Error::other("it ended") }
}

/// The host's end of the veth pair: 15 characters at most, the same for the same seed, so that what a killed agent left
/// is recognised.
fn link_name(seed: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = hex::encode(Sha256::digest(seed.as_bytes()));
    format!("wasilet{}", &digest[..8])
}

/// The thread of the namespace: a runtime of its own, since netlink's sockets belong to namespaces too.
fn run(
    link: &str,
    stash: Stash,
    mut asked: mpsc::UnboundedReceiver<Command>,
    tell: &SyncSender<Result<(), NetworkError>>,
) {
    let failed = |source| NetworkError::Namespace { step: "starting its thread", source };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(tell.send(Err(failed(error)))),
    };
    runtime.block_on(async {
        let mut links = match Links::make(link).await {
            Ok(links) => links,
            Err(error) => return drop(tell.send(Err(error))),
        };
        drop(tell.send(Ok(())));
        loop {
            tokio::select! {
                // Cancel-safe: a command is received or stays in the queue.
                command = asked.recv() => match command {
                    Some(Command::Add(range, answer)) => answer(links.add(range).await),
                    Some(Command::Remove(range)) => links.remove(range).await,
                    None => break,
                },
                // Cancel-safe: a notice is taken or stays.
                () = stash.wanted() => stash.fill(),
            }
        }
        links.end().await;
    });
}

impl Stock {
    /// A TCP socket of the namespace, neither bound nor connected.
    pub(super) fn tcp(&self, family: Family) -> Result<std::os::fd::OwnedFd, Errno> {
        self.take(family, SocketType::STREAM)
    }

    /// A UDP socket of the namespace, not bound.
    pub(super) fn udp(&self, family: Family) -> Result<std::os::fd::OwnedFd, Errno> {
        self.take(family, SocketType::DGRAM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_of_one_machine_have_two_links_and_a_restarted_one_its_own() {
        assert_eq!(link_name("/var/lib/wasilet"), link_name("/var/lib/wasilet"));
        assert_ne!(link_name("/var/lib/wasilet"), link_name("/var/lib/wasilet2"));
        assert_eq!(link_name("/").len(), 15, "IFNAMSIZ is 16 with its NUL");
    }
}
