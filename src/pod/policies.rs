//! NetworkPolicies as plain data, and what their selectors select.
//!
//! In: objects of the API. Out: what `network` decides with, and what could not be understood. Decides nothing about a
//! connection and watches nothing. What is not understood never allows: a peer, port or rule that means nothing to this
//! node matches nothing, and a selector of pods that means nothing selects every pod, since to be selected is to be
//! isolated.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use serde::{Deserialize, Serialize};

use super::run::PortProtocol;
use crate::ids::PodRef;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// One change in what is known of policies and of what they select.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyNews {
    /// All policies there are.
    Policies(Vec<PolicySpec>),
    /// One that is new or changed.
    Policy(PolicySpec),
    /// One that was deleted: namespace and name.
    PolicyGone(String, String),
    /// All namespaces there are.
    Namespaces(Vec<(String, Labels)>),
    /// One that is new or changed.
    Namespace(String, Labels),
    /// One that was deleted.
    NamespaceGone(String),
    /// All pods there are.
    Pods(Vec<PolicyPod>),
    /// One that is new or changed.
    Pod(PolicyPod),
    /// One that was deleted or has ended.
    PodGone(PodRef),
    /// The API server does not let this node read them, in its words.
    Forbidden(String),
}

/// A pod of the cluster as policies see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPod {
    /// Its namespace and name.
    pub pod: PodRef,
    /// Its addresses; none for a pod on its node's network, which policies do not select.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// Ports of its containers that have names.
    pub ports: Vec<(String, PortProtocol, u16)>,
}

/// All that was known at one moment, to begin with after a restart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicySnapshot {
    /// Policies.
    pub policies: Vec<PolicySpec>,
    /// Namespaces by name.
    pub namespaces: Vec<(String, Labels)>,
    /// Pods.
    pub pods: Vec<PolicyPod>,
}

impl PolicyPod {
    /// `None` for a pod that has ended: its addresses may be another's.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let spec = pod.spec.as_ref();
        let ips = match spec.and_then(|spec| spec.host_network) {
            Some(true) => Vec::new(),
            _ => {
                let all = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
                all.filter_map(|ip| ip.ip.parse().ok()).collect()
            }
        };
        let containers =
            spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let protocol = protocol(port.protocol.as_deref())?;
            Some((port.name.clone()?, protocol, u16::try_from(port.container_port).ok()?))
        });
        Some(Self {
            pod: Self::key_of(pod),
            ips,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
        })
    }

    /// Its namespace and name.
    #[must_use]
    pub fn key_of(pod: &Pod) -> PodRef {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        PodRef { namespace: text(&pod.metadata.namespace), name: text(&pod.metadata.name) }
    }
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// Its namespace: that of the pods it selects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods it isolates.
    pub subject: Selector,
    /// What may come in; `None` when it says nothing about that.
    pub ingress: Option<Vec<Rule>>,
    /// What may go out.
    pub egress: Option<Vec<Rule>>,
    /// What this node does not understand of it, for a person.
    pub problems: Vec<String>,
}

/// One rule: both halves have to match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// The other side; `None` is everybody.
    pub peers: Option<Vec<Peer>>,
    /// The port that is connected to; `None` is every port.
    pub ports: Option<Vec<Port>>,
}

/// The other side of a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Peer {
    /// Pods.
    Pods {
        /// Of which namespaces; `None` is the policy's own.
        namespaces: Option<Selector>,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// These.
        within: Block,
        /// But not these.
        except: Vec<Block>,
    },
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    base: IpAddr,
    prefix: u8,
}

impl Block {
    fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if base.is_ipv4() { 32 } else { 128 }).then_some(Self { base, prefix })
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let differs = match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => u128::from(base.to_bits() ^ ip.to_bits()) << 96,
            (IpAddr::V6(base), IpAddr::V6(ip)) => base.to_bits() ^ ip.to_bits(),
            _ => return false,
        };
        differs.leading_zeros() >= u32::from(self.prefix)
    }
}

/// A port of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its transport.
    pub protocol: PortProtocol,
    /// Which.
    pub which: Which,
}

/// Which ports of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// All.
    Any,
    /// From the one to the other.
    Range(u16, u16),
    /// That of a container of the pod that is connected to.
    Named(String),
}

/// A label selector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selector {
    /// All must hold; `None` is a selector that this node does not understand.
    requirements: Option<Vec<Requirement>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Selector {
    fn of(selector: &LabelSelector) -> Self {
        let equal = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| Some(Requirement::In(key.clone(), vec![value.clone()])));
        let expressions = selector.match_expressions.iter().flatten().map(|expression| {
            let (key, values) = (expression.key.clone(), expression.values.clone().unwrap_or_default());
            match expression.operator.as_str() {
                "In" => Some(Requirement::In(key, values)),
                "NotIn" => Some(Requirement::NotIn(key, values)),
                "Exists" => Some(Requirement::Exists(key)),
                "DoesNotExist" => Some(Requirement::DoesNotExist(key)),
                _ => None,
            }
        });
        Self { requirements: equal.chain(expressions).collect() }
    }

    /// Whether it selects who has these labels; `None` when it is not understood.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> Option<bool> {
        let holds = |requirement: &Requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        };
        self.requirements.as_ref().map(|all| all.iter().all(holds))
    }
}

fn protocol(name: Option<&str>) -> Option<PortProtocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(PortProtocol::Tcp),
        "UDP" => Some(PortProtocol::Udp),
        _ => None,
    }
}

impl PolicySpec {
    /// Reads one.
    #[must_use]
    pub fn of(policy: &NetworkPolicy) -> Self {
        let default = NetworkPolicySpec::default();
        let spec = policy.spec.as_ref().unwrap_or(&default);
        let mut problems = Vec::new();
        let subject = spec.pod_selector.as_ref().map_or(Selector { requirements: Some(Vec::new()) }, Selector::of);
        if subject.requirements.is_none() {
            problems.push("podSelector has an operator this node does not know, so it selects every pod".to_owned());
        }
        // The API server's default: Ingress always, Egress when there are rules for it.
        let wanted = |direction: &str| match &spec.policy_types {
            Some(types) if !types.is_empty() => types.iter().any(|known| known == direction),
            _ => direction == "Ingress" || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        };
        let ingress = spec.ingress.iter().flatten().map(|rule| (rule.from.as_ref(), rule.ports.as_ref()));
        let egress = spec.egress.iter().flatten().map(|rule| (rule.to.as_ref(), rule.ports.as_ref()));
        let ingress = wanted("Ingress").then(|| rules("ingress", ingress, &mut problems));
        let egress = wanted("Egress").then(|| rules("egress", egress, &mut problems));
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (namespace, name) = (text(&policy.metadata.namespace), text(&policy.metadata.name));
        Self { namespace, name, subject, ingress, egress, problems }
    }
}

type RuleParts<'a> = (Option<&'a Vec<NetworkPolicyPeer>>, Option<&'a Vec<NetworkPolicyPort>>);

fn rules<'a>(direction: &str, rules: impl Iterator<Item = RuleParts<'a>>, problems: &mut Vec<String>) -> Vec<Rule> {
    let one = |(index, (peers, ports)): (usize, RuleParts<'a>)| {
        let place = format!("{direction}[{index}]");
        // An empty list is as none: everybody, every port.
        let peers = peers.filter(|peers| !peers.is_empty());
        let peers = peers.map(|peers| peers.iter().filter_map(|peer| read_peer(peer, &place, problems)).collect());
        let ports = ports.filter(|ports| !ports.is_empty());
        let ports = ports.map(|ports| ports.iter().filter_map(|port| read_port(port, &place, problems)).collect());
        Rule { peers, ports }
    };
    rules.enumerate().map(one).collect()
}

fn read_peer(peer: &NetworkPolicyPeer, place: &str, problems: &mut Vec<String>) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        return read_block(block, place, problems);
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        problems.push(format!("{place} has a peer of a kind this node does not know, so it matches nobody"));
        return None;
    }
    let namespaces = peer.namespace_selector.as_ref().map(Selector::of);
    let pods = peer.pod_selector.as_ref().map_or(Selector { requirements: Some(Vec::new()) }, Selector::of);
    Some(Peer::Pods { namespaces, pods })
}

fn read_block(block: &IPBlock, place: &str, problems: &mut Vec<String>) -> Option<Peer> {
    let within = Block::parse(&block.cidr);
    let except: Option<Vec<Block>> = block.except.iter().flatten().map(|text| Block::parse(text)).collect();
    let read = within.zip(except).map(|(within, except)| Peer::Block { within, except });
    if read.is_none() {
        problems
            .push(format!("{place} has an ipBlock {} that is no range of addresses, so it matches nobody", block.cidr));
    }
    read
}

fn read_port(port: &NetworkPolicyPort, place: &str, problems: &mut Vec<String>) -> Option<Port> {
    let number = |port: i32| u16::try_from(port).ok();
    let which = match (&port.port, port.end_port) {
        (None, None) => Some(Which::Any),
        (Some(IntOrString::Int(first)), last) => {
            number(*first).zip(number(last.unwrap_or(*first))).map(|(first, last)| Which::Range(first, last))
        }
        (Some(IntOrString::String(name)), None) => Some(Which::Named(name.clone())),
        (Some(IntOrString::String(_)) | None, Some(_)) => None,
    };
    let read = protocol(port.protocol.as_deref()).zip(which).map(|(protocol, which)| Port { protocol, which });
    if read.is_none() && port.protocol.as_deref() != Some("SCTP") {
        problems.push(format!("{place} has a port this node does not understand, so it matches none"));
    }
    read
}

#[cfg(test)]
#[path = "policies/tests.rs"]
mod tests;
