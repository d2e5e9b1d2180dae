//! The CSI drivers of this node, by name.
//!
//! In: registrations. Out: where a driver listens, and what the API is told of it. Calls nobody.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::client::Socket;

/// What a driver says of this node: its part of CSINode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFacts {
    /// Its name of the node.
    pub node_id: String,
    /// Volumes it can have here at once; `None` for no limit.
    pub max_volumes: Option<i32>,
    /// Where the node is, in the driver's words: labels of the Node.
    pub topology: BTreeMap<String, String>,
}

/// What drivers say, by their names.
pub type DriversFacts = Arc<BTreeMap<String, DriverFacts>>;

#[derive(Debug, Clone)]
struct Driver {
    socket: Socket,
    /// The socket that registered it, by which it goes.
    registered_by: PathBuf,
}

/// The drivers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Drivers {
    known: Arc<RwLock<BTreeMap<String, Driver>>>,
    facts: watch::Sender<DriversFacts>,
}

impl Default for Drivers {
    fn default() -> Self {
        Self { known: Arc::default(), facts: watch::Sender::new(Arc::default()) }
    }
}

impl Drivers {
    pub(super) fn facts(&self) -> watch::Receiver<DriversFacts> {
        self.facts.subscribe()
    }

    /// Where a driver listens.
    ///
    /// # Errors
    /// The kubelet's words.
    pub(super) fn socket(&self, name: &str) -> Result<Socket, String> {
        let known = self.known.read();
        let found = known.get(name).map(|driver| driver.socket.clone());
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    pub(super) fn add(&self, name: &str, registered_by: PathBuf, socket: Socket, facts: DriverFacts) {
        self.known.write().insert(name.to_owned(), Driver { socket, registered_by });
        self.facts.send_if_modified(|all| {
            let news = all.get(name) != Some(&facts);
            if news {
                Arc::make_mut(all).insert(name.to_owned(), facts);
            }
            news
        });
    }

    /// Forgets the driver that this socket registered, unless another one did since.
    pub(super) fn remove(&self, name: &str, registered_by: &std::path::Path) {
        let mut known = self.known.write();
        if known.get(name).is_none_or(|driver| driver.registered_by != registered_by) {
            return;
        }
        known.remove(name);
        self.facts.send_if_modified(|all| Arc::make_mut(all).remove(name).is_some());
    }
}
