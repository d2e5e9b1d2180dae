//! NetworkPolicies: who of this node's pods may talk to whom.
//!
//! In: [`PolicyNews`] in the order in which they are heard, and one question a connection. Out: yes or no. Opens nothing
//! and knows no socket; sockets ask when they connect, accept, send and receive.
//!
//! | standing | a connection of a pod with another pod or the world |
//! |---|---|
//! | off: no cluster, or one whose API server does not let this node read policies | allowed, as by a network without them |
//! | waiting: policies were never read by this node | refused: what was not read is never taken as allow |
//! | in force | by the policies, newest first read; what the API server says no more stays as it was |
//!
//! Always allowed, as by CNI plugins: what stays inside a pod, and what the node itself sends to its pods (probes,
//! `kubectl port-forward`) or they to it. A pod on the node's network is not subject to any policy. A change holds for every
//! new connection at once; connections that are there live on.

mod guard;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::ids::PodRef;
use crate::pod::policies::{Labels, Peer, PolicyNews, PolicyPod, PolicySnapshot, PolicySpec, Port, Rule, Which};
use crate::pod::run::PortProtocol;

/// What policies there are, and whether they are in force.
#[derive(Default)]
pub struct PolicyTable {
    known: RwLock<Known>,
    /// [`Standing`], read for each connection and datagram.
    standing: AtomicU8,
    generation: AtomicU64,
    changed: Notify,
}

/// Whether policies are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// There are none for this node.
    Off = 0,
    /// They have to be read first.
    Waiting = 1,
    /// They are.
    InForce = 2,
}

#[derive(Default)]
struct Known {
    /// By namespace and name.
    policies: HashMap<String, BTreeMap<String, PolicySpec>>,
    namespaces: HashMap<String, Labels>,
    pods: HashMap<PodRef, PolicyPod>,
    by_ip: HashMap<IpAddr, PodRef>,
    /// What was read as a whole at least once.
    read: HashSet<&'static str>,
}

/// Which way a connection goes, seen from the pod a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// One connection or first datagram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow<'a> {
    pub(super) direction: Direction,
    /// The pod of this node that is asked about.
    pub(super) subject: &'a PodRef,
    /// The other side's address.
    pub(super) peer: IpAddr,
    pub(super) protocol: PortProtocol,
    /// The port that is connected to, whichever side it is of.
    pub(super) port: u16,
}

impl PolicyTable {
    /// Whether policies are in force.
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Off,
            1 => Standing::Waiting,
            _ => Standing::InForce,
        }
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// From now on there is a cluster whose policies have to be read first.
    pub fn expect(&self) {
        self.set(Standing::Waiting);
    }

    /// Takes news; returns the standing when they changed it.
    pub fn take(&self, news: PolicyNews) -> Option<Standing> {
        let before = self.standing();
        if matches!(news, PolicyNews::Forbidden(_)) {
            // Who was let read once keeps what was read: it is not allowed now what was denied.
            if before == Standing::Waiting {
                self.set(Standing::Off);
            }
        } else {
            let mut known = self.known.write();
            known.take(news);
            if known.read.len() == 3 {
                self.set(Standing::InForce);
            }
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        let after = self.standing();
        (after != before).then_some(after)
    }

    /// How many news were taken: whether a snapshot is still what is known.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// All that is known; `None` while policies are not in force.
    pub fn snapshot(&self) -> Option<PolicySnapshot> {
        if self.standing() != Standing::InForce {
            return None;
        }
        let known = self.known.read();
        Some(PolicySnapshot {
            policies: known.policies.values().flat_map(BTreeMap::values).cloned().collect(),
            namespaces: known.namespaces.iter().map(|(name, labels)| (name.clone(), labels.clone())).collect(),
            pods: known.pods.values().cloned().collect(),
        })
    }

    /// Begins with what an earlier run knew, until the API server says more.
    pub fn restore(&self, snapshot: PolicySnapshot) {
        self.take(PolicyNews::Namespaces(snapshot.namespaces));
        self.take(PolicyNews::Pods(snapshot.pods));
        self.take(PolicyNews::Policies(snapshot.policies));
    }

    /// Waits until it is known whether policies are in force. Cancel-safe.
    pub(super) async fn decided(&self) {
        loop {
            let changed = self.changed.notified();
            if self.standing() != Standing::Waiting {
                return;
            }
            changed.await;
        }
    }

    /// Whether a connection may be.
    pub(super) fn allows(&self, flow: &Flow<'_>) -> bool {
        match self.standing() {
            Standing::Off => true,
            Standing::Waiting => false,
            Standing::InForce => self.known.read().allows(flow),
        }
    }

    /// Whether the pod that has an address, wherever it runs, lets a pod of this node in. A node elsewhere, or a pod that
    /// is not known, decides for itself.
    pub(super) fn lets_in(&self, from: IpAddr, to: IpAddr, protocol: PortProtocol, port: u16) -> bool {
        match self.standing() {
            Standing::Off | Standing::Waiting => true,
            Standing::InForce => {
                let known = self.known.read();
                known.by_ip.get(&to).is_none_or(|subject| {
                    let direction = Direction::Ingress;
                    known.allows(&Flow { direction, subject, peer: from, protocol, port })
                })
            }
        }
    }
}

impl Known {
    fn take(&mut self, news: PolicyNews) {
        match news {
            PolicyNews::Policies(all) => {
                self.policies.clear();
                for policy in all {
                    self.put_policy(policy);
                }
                self.read.insert("policies");
            }
            PolicyNews::Policy(policy) => self.put_policy(policy),
            PolicyNews::PolicyGone(namespace, name) => {
                if let Some(policies) = self.policies.get_mut(&namespace) {
                    policies.remove(&name);
                    if policies.is_empty() {
                        self.policies.remove(&namespace);
                    }
                }
            }
            PolicyNews::Namespaces(all) => {
                self.namespaces = all.into_iter().collect();
                self.read.insert("namespaces");
            }
            PolicyNews::Namespace(name, labels) => drop(self.namespaces.insert(name, labels)),
            PolicyNews::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            PolicyNews::Pods(all) => {
                self.pods.clear();
                self.by_ip.clear();
                for pod in all {
                    self.put_pod(pod);
                }
                self.read.insert("pods");
            }
            PolicyNews::Pod(pod) => self.put_pod(pod),
            PolicyNews::PodGone(pod) => self.remove_pod(&pod),
            PolicyNews::Forbidden(_) => {}
        }
    }

    fn put_policy(&mut self, policy: PolicySpec) {
        self.policies.entry(policy.namespace.clone()).or_default().insert(policy.name.clone(), policy);
    }

    fn put_pod(&mut self, pod: PolicyPod) {
        self.remove_pod(&pod.pod);
        self.by_ip.extend(pod.ips.iter().map(|ip| (*ip, pod.pod.clone())));
        self.pods.insert(pod.pod.clone(), pod);
    }

    fn remove_pod(&mut self, pod: &PodRef) {
        let Some(known) = self.pods.remove(pod) else { return };
        for ip in known.ips {
            // Another pod may have the address already.
            if self.by_ip.get(&ip) == Some(pod) {
                self.by_ip.remove(&ip);
            }
        }
    }

    fn allows(&self, flow: &Flow<'_>) -> bool {
        let Some(policies) = self.policies.get(&flow.subject.namespace) else { return true };
        let subject = self.pods.get(flow.subject);
        let peer = self.by_ip.get(&flow.peer).and_then(|pod| self.pods.get(pod));
        let mut isolated = false;
        for policy in policies.values() {
            let rules = match flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            // A pod whose labels are not known yet, or a selector that is not understood, is taken as selected.
            if !subject.is_none_or(|pod| policy.subject.matches(&pod.labels).unwrap_or(true)) {
                continue;
            }
            isolated = true;
            let target = match flow.direction {
                Direction::Ingress => subject,
                Direction::Egress => peer,
            };
            let matching = |rule: &Rule| {
                rule.peers
                    .as_ref()
                    .is_none_or(|peers| peers.iter().any(|one| self.is_peer(one, policy, flow.peer, peer)))
                    && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| is_port(port, flow, target)))
            };
            // Where the subject is not known no rule can be trusted to be about it.
            if subject.is_some() && rules.iter().any(matching) {
                return true;
            }
        }
        !isolated
    }

    fn is_peer(&self, wanted: &Peer, policy: &PolicySpec, ip: IpAddr, pod: Option<&PolicyPod>) -> bool {
        match wanted {
            Peer::Block { within, except } => within.contains(ip) && !except.iter().any(|block| block.contains(ip)),
            Peer::Pods { namespaces, pods } => pod.is_some_and(|pod| {
                let namespace = match namespaces {
                    None => pod.pod.namespace == policy.namespace,
                    Some(selector) => self
                        .namespaces
                        .get(&pod.pod.namespace)
                        .and_then(|labels| selector.matches(labels))
                        .unwrap_or(false),
                };
                namespace && pods.matches(&pod.labels).unwrap_or(false)
            }),
        }
    }
}

fn is_port(wanted: &Port, flow: &Flow<'_>, target: Option<&PolicyPod>) -> bool {
    wanted.protocol == flow.protocol
        && match &wanted.which {
            Which::Any => true,
            Which::Range(first, last) => (*first..=*last).contains(&flow.port),
            Which::Named(name) => target.is_some_and(|pod| {
                pod.ports
                    .iter()
                    .any(|(known, protocol, port)| known == name && *protocol == flow.protocol && *port == flow.port)
            }),
        }
}
