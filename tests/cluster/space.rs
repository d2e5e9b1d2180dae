//! One test's part of a cluster: a namespace, and nodes that take no pods but its own.
//!
//! In a manifest `SPACE` stands for the namespace: nodes carry the label `wasilet.dev/test: SPACE`, and pods select it.

use std::fmt::Debug;
use std::process::Command;

use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;

use super::kubectl::{Done, run};
use super::node::{Node, NodeOptions};
use super::sandbox::tail;
use super::{Cluster, LONG, api, block_on};

/// A namespace and what is in it. In a cluster that is not ours it is removed in the end.
pub struct Space<'c> {
    cluster: &'c Cluster,
    name: String,
}

impl<'c> Space<'c> {
    pub(super) fn new(cluster: &'c Cluster, test: &str) -> Self {
        let name = format!("{test}-{:04x}", rand::random::<u16>());
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.clone());
        block_on(namespaces.create(&PostParams::default(), &namespace)).expect("a namespace");
        let space = Self { cluster, name };
        // Pods are refused until their account is there.
        space.wait::<ServiceAccount>("default", "is there", |account| account.is_some());
        space
    }

    /// The cluster.
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// The namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts a node for this test alone and waits until it is Ready.
    pub fn node(&self, options: NodeOptions<'_>) -> Node<'c> {
        Node::start(self.cluster, &self.name, options)
    }

    /// Objects of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.client(), &self.name)
    }

    /// kubectl in this namespace, not started.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut all = vec!["--namespace", &self.name];
        all.extend(args);
        self.cluster.kubectl_command(&all)
    }

    /// kubectl to its end.
    pub fn kubectl(&self, args: &[&str]) -> Done {
        run(self.kubectl_command(args), b"")
    }

    /// kubectl to its end, with something to read.
    pub fn kubectl_with(&self, args: &[&str], stdin: &[u8]) -> Done {
        run(self.kubectl_command(args), stdin)
    }

    /// kubectl to a good end; what it wrote.
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.kubectl(args);
        assert_eq!(done.code, Some(0), "kubectl {args:?}: {}{}\n{}", done.stdout, done.stderr, self.dump(""));
        done.stdout
    }

    /// `kubectl apply` of a manifest in which `SPACE` is this namespace.
    pub fn apply(&self, manifest: &str) {
        let manifest = manifest.replace("SPACE", &self.name);
        let done = self.kubectl_with(&["apply", "--filename", "-"], manifest.as_bytes());
        assert_eq!(done.code, Some(0), "{}{}\n{manifest}", done.stdout, done.stderr);
    }

    /// A command beside the API server, to its end.
    pub fn host(&self, program: &str, args: &[&str]) -> Done {
        let mut command = self.cluster.command(program);
        command.args(args);
        run(command, b"")
    }

    /// Waits until an object of the namespace is as `wanted` says.
    pub fn wait<K>(&self, name: &str, what: &str, wanted: impl Fn(Option<&K>) -> bool) -> Option<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + Send
            + DeserializeOwned
            + 'static,
    {
        api::wait(&self.api::<K>(), name, LONG, wanted)
            .unwrap_or_else(|last| panic!("{} {name} {what}: it was\n{last}\n{}", K::kind(&()), self.dump(name)))
    }

    /// Waits until a pod is as `wanted` says.
    pub fn wait_pod(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        self.wait::<Pod>(name, what, |pod| pod.is_some_and(&wanted)).expect("it was seen")
    }

    /// Waits until every container is ready.
    pub fn wait_ready(&self, name: &str) -> Pod {
        self.wait_pod(name, "is ready", is_ready)
    }

    /// Waits for a phase.
    pub fn wait_phase(&self, name: &str, phase: &str) -> Pod {
        self.wait_pod(name, &format!("is {phase}"), |pod| phase_of(pod) == phase)
    }

    /// Waits until there is no such pod.
    pub fn wait_gone(&self, name: &str) {
        self.wait::<Pod>(name, "is gone", |pod| pod.is_none());
    }

    /// Waits until the pods of these labels are as `wanted` says, looking again now and then: a list has no one name to
    /// be told about.
    pub fn wait_pods(&self, labels: &str, what: &str, wanted: impl Fn(&[Pod]) -> bool) -> Vec<Pod> {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            let pods = self.pods(labels);
            if wanted(&pods) {
                return pods;
            }
            let now = std::time::Instant::now();
            assert!(now < deadline, "pods {labels} {what}: {:#?}\n{}", seen(&pods), self.dump(""));
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
    }

    /// The pods of these labels.
    pub fn pods(&self, labels: &str) -> Vec<Pod> {
        let list = block_on(self.api::<Pod>().list(&ListParams::default().labels(labels)));
        list.map(|list| list.items).unwrap_or_default()
    }

    /// The Events about an object, oldest first.
    pub fn events(&self, name: &str) -> Vec<Event> {
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        block_on(self.api::<Event>().list(&about)).map(|list| list.items).unwrap_or_default()
    }

    /// Waits for an Event about an object; its message.
    pub fn wait_event(&self, name: &str, reason: &str, words: &[&str]) -> String {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            let events = self.events(name);
            let told = |event: &&Event| {
                let message = event.message.as_deref().unwrap_or_default();
                event.reason.as_deref() == Some(reason) && words.iter().all(|word| message.contains(word))
            };
            if let Some(event) = events.iter().find(told) {
                return event.message.clone().unwrap_or_default();
            }
            let all: Vec<_> = events.iter().map(|event| (&event.reason, &event.message)).collect();
            let now = std::time::Instant::now();
            assert!(now < deadline, "no event {reason} {words:?} about {name}: {all:#?}\n{}", self.dump(name));
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
    }

    /// What a person would look at when something is not as it should be.
    pub fn dump(&self, pod: &str) -> String {
        let mut dump = String::new();
        let mut look = |args: &[&str]| {
            let done = self.kubectl(args);
            dump.push_str(&format!("---- kubectl {}\n{}{}\n", args.join(" "), done.stdout, done.stderr));
        };
        look(&["get", "all", "--output", "wide"]);
        look(&["get", "nodes", "--output", "wide", "--selector", &format!("wasilet.dev/test={}", self.name)]);
        if !pod.is_empty() {
            look(&["describe", "pod", pod]);
        }
        look(&["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        for entry in std::fs::read_dir(self.cluster.logs()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(&format!("{}.log", self.name)) {
                dump.push_str(&format!("---- {}\n{}\n", entry.path().display(), tail(&entry.path())));
            }
        }
        dump
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        // Our own cluster goes as a whole; another's is left as it was.
        if self.cluster.try_plane().is_none() {
            self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
            let kinds = "clusterroles,clusterrolebindings,persistentvolumes,csidrivers,certificatesigningrequests,runtimeclasses,priorityclasses";
            let all = self.cluster.kubectl(&["get", kinds, "--output", "name"]).stdout;
            let mut delete = vec!["delete", "--ignore-not-found", "--wait=false"];
            delete.extend(all.lines().filter(|object| object.contains(&self.name)));
            self.cluster.kubectl(&delete);
        }
    }
}

/// Whether the condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The phase.
pub fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn seen(pods: &[Pod]) -> Vec<(String, Option<String>, String, bool)> {
    let one = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        (pod.name_any(), node, phase_of(pod).to_owned(), is_ready(pod))
    };
    pods.iter().map(one).collect()
}
