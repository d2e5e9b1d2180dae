//! Pods that come and go, and everything that is done to them meanwhile.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::kinds::{Kind, TURN, manifest, settings};
use super::node::{Node, PATIENCE};

/// Pods made at a time.
const WAVE: usize = 12;
/// Clients at a time: more would be the machine's load, not the node's.
const CLIENTS: usize = 4;
/// Connections that stall at a time.
const STALLED: usize = 24;
/// Of the pods of a wave, those that go again while they start.
const YOUNG: usize = 6;

/// How often each thing was done.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Pods created, those by a replaced manifest included.
    pub created: usize,
    /// Of these, deleted while they started.
    pub young: usize,
    /// Of these, by a changed manifest of the same name.
    pub replaced: usize,
    /// Execs that ran to their end, and those of them that did what they should.
    pub execs: (usize, usize),
    /// Execs whose client was killed.
    pub cut: usize,
    /// Logs read, whole or followed and dropped.
    pub logs: usize,
    /// Changes of ConfigMaps and Secrets.
    pub configs: usize,
    /// Manifests that are none.
    pub garbage: usize,
    /// Connections to pods that stalled or were reset, and to the node's own socket.
    pub connections: usize,
    /// Pages fetched.
    pub pages: (usize, usize),
}

/// A pod that should be there.
struct Living {
    name: String,
    kind: Kind,
}

/// A program of ours that talks to the node.
struct Client {
    child: Child,
    /// When it is killed; `None` for one that is waited for.
    cut_at: Option<Instant>,
    began: Instant,
}

/// The churn on one node; it outlives the node's agents.
pub struct Churn {
    /// What was done.
    pub counts: Counts,
    alive: usize,
    random: u64,
    serial: u64,
    acts: usize,
    waves: usize,
    living: VecDeque<Living>,
    addresses: Vec<SocketAddr>,
    clients: Vec<Client>,
    stalled: VecDeque<TcpStream>,
    garbage: Vec<&'static str>,
}

impl Churn {
    /// One that keeps about `alive` pods.
    pub fn new(alive: usize, seed: u64) -> Self {
        Self {
            counts: Counts::default(),
            alive,
            random: seed | 1,
            serial: 0,
            acts: 0,
            waves: 0,
            living: VecDeque::new(),
            addresses: Vec::new(),
            clients: Vec::new(),
            stalled: VecDeque::new(),
            garbage: Vec::new(),
        }
    }

    /// xorshift: the same churn each time.
    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % end.max(1) as u64) as usize
    }

    /// Makes so many pods, and takes the oldest away.
    pub fn run(&mut self, node: &Node, pods: usize) {
        let goal = self.counts.created + pods;
        while self.counts.created < goal {
            self.wave(node, WAVE.min(goal - self.counts.created));
        }
    }

    fn wave(&mut self, node: &Node, pods: usize) {
        if self.living.is_empty() {
            node.write("settings.yaml", &settings(self.serial));
        }
        for _ in 0..pods {
            self.serial += 1;
            let kind = TURN[self.serial as usize % TURN.len()];
            let name = format!("p{}", self.serial);
            node.write(&format!("{name}.yaml"), &manifest(kind, &name, self.serial));
            self.living.push_back(Living { name, kind });
            self.counts.created += 1;
        }
        let mut rest = Duration::from_millis(self.below(60) as u64);
        for _ in 0..pods / YOUNG {
            std::thread::sleep(rest);
            rest = Duration::from_millis(self.below(20) as u64);
            // Any of this wave, whatever it is about to do.
            let at = self.living.len() - 1 - self.below(pods - 1);
            let pod = self.living.remove(at).expect("a pod of this wave");
            node.remove(&format!("{}.yaml", pod.name));
            self.counts.young += 1;
        }
        while self.living.len() > self.alive {
            let pod = self.living.pop_front().expect("there are more than none");
            node.remove(&format!("{}.yaml", pod.name));
        }
        self.wait_for_room(node);
        self.waves += 1;
        if self.waves % 4 == 0 {
            self.find_addresses(node);
        }
        for _ in 0..pods / 3 {
            self.act(node);
        }
    }

    /// The node may be behind by some waves; by more, pods would be gone before they begin.
    fn wait_for_room(&mut self, node: &Node) {
        let begin = Instant::now();
        loop {
            self.reap();
            let (pods, logs) = (node.entries("pods"), node.entries("logs/pods"));
            let leaving = pods.saturating_sub(self.living.len());
            // Those without an image never have a log.
            let started = logs + self.living.len() / 24 + 2 * WAVE >= self.living.len();
            if leaving <= 3 * WAVE && started {
                return;
            }
            let why = format!("{pods} pods and {logs} logs where {} should be", self.living.len());
            assert!(begin.elapsed() < PATIENCE, "the node does not keep up: {why}\n{}", node.last_words());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn find_addresses(&mut self, node: &Node) {
        let servers: Vec<String> = self.of(Kind::Web).into_iter().map(|name| format!("{name}-node")).collect();
        let Some(shown) = node.pods() else { return };
        let of = |name: &String| shown.iter().find(|pod| pod.name == *name)?.ip.as_ref()?.parse().ok();
        self.addresses = servers.iter().filter_map(of).map(|ip| SocketAddr::new(ip, 8080)).collect();
    }

    /// Names of pods of a kind that are neither about to go nor just made.
    fn of(&self, kind: Kind) -> Vec<String> {
        let (from, to) = (self.living.len() / 3, self.living.len() * 2 / 3);
        let settled = self.living.range(from..to.max(from));
        settled.filter(|pod| pod.kind == kind).map(|pod| pod.name.clone()).collect()
    }

    fn pick(&mut self, kind: Kind) -> Option<String> {
        let mut names = self.of(kind);
        if names.is_empty() {
            return None;
        }
        let at = self.below(names.len());
        Some(names.swap_remove(at))
    }

    /// One of the things that happen to a node; each has its turn.
    fn act(&mut self, node: &Node) {
        self.acts += 1;
        match self.acts % 16 {
            0 => self.exec(node, Kind::Sleeper, &["/bin/sleeper", "--show", "/etc/hostname"], None),
            1 => self.exec(node, Kind::Sleeper, &["/bin/cat"], Some(400)),
            2 => self.exec(node, Kind::Configured, &["sh", "-c", "cat /etc/settings/version | wc -c; ls /"], None),
            3 => self.exec(node, Kind::Sleeper, &["sh", "-c", "echo a | cat; sleep 600 | cat"], Some(700)),
            4 => self.log(node, false),
            5 => self.log(node, true),
            6 => self.replace(node),
            7 => {
                self.counts.configs += 1;
                node.write("settings.yaml", &settings(self.serial));
            }
            8 => self.spoil(node),
            9 | 10 => self.stall(),
            11 => self.reset(),
            12 | 13 => self.fetch(),
            14 => self.own_socket(node),
            _ => self.exec_nothing(node),
        }
    }

    fn exec(&mut self, node: &Node, kind: Kind, argv: &[&str], cut_after: Option<u64>) {
        let Some(pod) = self.pick(kind) else { return };
        let mut command = node.wasilet();
        command.args(["exec", "-i", &format!("{pod}-node"), "--"]).args(argv);
        self.spawn(&mut command, cut_after);
    }

    /// A program that is not there; its failure is what is expected.
    fn exec_nothing(&mut self, node: &Node) {
        let Some(pod) = self.pick(Kind::Sleeper) else { return };
        let mut command = node.wasilet();
        command.args(["exec", &format!("{pod}-node"), "--", "/bin/nothing"]);
        self.spawn(&mut command, Some(PATIENCE.as_millis() as u64));
    }

    fn spawn(&mut self, command: &mut Command, cut_after: Option<u64>) {
        while self.clients.len() >= CLIENTS {
            self.reap();
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that is cut off has a stdin that stays open; the others find its end.
        let stdin = if cut_after.is_some() { Stdio::piped() } else { Stdio::null() };
        let child = command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a client starts");
        let began = Instant::now();
        let cut_at = cut_after.map(|millis| began + Duration::from_millis(millis));
        self.clients.push(Client { child, cut_at, began });
    }

    /// Kills clients whose time has come, and hears the others out.
    fn reap(&mut self) {
        let counts = &mut self.counts;
        self.clients.retain_mut(|client| match (client.child.try_wait().expect("our own child"), client.cut_at) {
            (Some(status), None) => {
                counts.execs.0 += 1;
                counts.execs.1 += usize::from(status.success());
                false
            }
            (Some(_), Some(_)) => false,
            (None, Some(at)) if Instant::now() >= at => {
                counts.cut += 1;
                let _ = client.child.kill();
                let _ = client.child.wait();
                false
            }
            (None, _) => {
                assert!(client.began.elapsed() < PATIENCE * 2, "a client of the node never ends");
                true
            }
        });
    }

    fn log(&mut self, node: &Node, follow: bool) {
        let kind = [Kind::Flooding, Kind::Sleeper, Kind::Listening][self.below(3)];
        let Some(pod) = self.pick(kind) else { return };
        let query = if follow { "?follow=true" } else { "?tailLines=100" };
        let Ok(mut stream) = node.ask(&format!("/containerLogs/default/{pod}-node/main{query}")) else { return };
        self.counts.logs += 1;
        let mut some = [0; 4096];
        if follow {
            // Read a little, and go away.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
            let _ = stream.read(&mut some);
        } else {
            while stream.read(&mut some).is_ok_and(|count| count > 0) {}
        }
    }

    fn replace(&mut self, node: &Node) {
        let Some(pod) = self.pick(Kind::Configured) else { return };
        self.serial += 1;
        self.counts.created += 1;
        self.counts.replaced += 1;
        node.write(&format!("{pod}.yaml"), &manifest(Kind::Configured, &pod, self.serial));
    }

    fn spoil(&mut self, node: &Node) {
        const NONE: [(&str, &str); 4] = [
            ("garbage-0.yaml", "{{{ : : not yaml\n\t- ["),
            ("garbage-1.yaml", "apiVersion: v1\nkind: Teapot\nmetadata: {name: short}\n"),
            ("garbage-2.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n"),
            (
                "garbage-3.yaml",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: half}\nspec:\n  containers:\n  - {name: ma",
            ),
        ];
        let (file, text) = NONE[self.below(NONE.len())];
        self.counts.garbage += 1;
        match self.garbage.iter().position(|there| *there == file) {
            Some(at) => node.remove(self.garbage.swap_remove(at)),
            None => {
                node.write(file, text);
                self.garbage.push(file);
            }
        }
    }

    fn connect(&mut self) -> Option<TcpStream> {
        let at = self.below(self.addresses.len());
        let address = self.addresses.get(at)?;
        let stream = TcpStream::connect_timeout(address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        Some(stream)
    }

    /// Half a request, and then nothing for a long time.
    fn stall(&mut self) {
        let Some(mut stream) = self.connect() else { return };
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: ");
        self.counts.connections += 1;
        self.stalled.push_back(stream);
        if self.stalled.len() > STALLED {
            self.stalled.pop_front();
        }
    }

    /// A request whose answer nobody waits for.
    fn reset(&mut self) {
        let Some(mut stream) = self.connect() else { return };
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        // No lingering: the kernel sends RST.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        self.counts.connections += 1;
    }

    fn fetch(&mut self) {
        let Some(mut stream) = self.connect() else { return };
        self.counts.pages.0 += 1;
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut page = String::new();
        let _ = stream.read_to_string(&mut page);
        self.counts.pages.1 += usize::from(page.starts_with("HTTP/1.1 200"));
    }

    /// The node's own API: what everybody asks for, and somebody who asks for nothing.
    fn own_socket(&mut self, node: &Node) {
        self.counts.connections += 1;
        for path in ["/stats/summary", "/metrics", "/metrics/cadvisor", "/nothing"] {
            drop(node.ask(path));
        }
        let silent = std::os::unix::net::UnixStream::connect(node.root().join("wasilet.sock"));
        drop(silent);
    }

    /// Lets clients go that a dead agent left behind.
    pub fn forget_clients(&mut self) {
        for client in &mut self.clients {
            let _ = client.child.kill();
            let _ = client.child.wait();
        }
        self.clients.clear();
        self.stalled.clear();
        self.addresses.clear();
    }

    /// Takes manifests away while nobody looks.
    pub fn remove_some(&mut self, node: &Node) {
        for _ in 0..self.living.len() / 3 {
            let pod = self.living.pop_front().expect("a third of them");
            node.remove(&format!("{}.yaml", pod.name));
        }
    }

    /// Ends every pod and waits until nothing of them is there; says how long that took.
    pub fn drain(&mut self, node: &Node) -> Duration {
        let begin = Instant::now();
        for pod in self.living.drain(..) {
            node.remove(&format!("{}.yaml", pod.name));
        }
        for file in self.garbage.drain(..) {
            node.remove(file);
        }
        node.remove("settings.yaml");
        self.addresses.clear();
        self.stalled.clear();
        while !self.clients.is_empty() {
            self.reap();
            std::thread::sleep(Duration::from_millis(10));
        }
        loop {
            let (pods, logs) = (node.entries("pods"), node.entries("logs/pods"));
            let shown = node.pods();
            if pods == 0 && logs == 0 && shown.as_ref().is_some_and(Vec::is_empty) {
                return begin.elapsed();
            }
            let shown: Vec<String> = shown.into_iter().flatten().map(|pod| pod.name).collect();
            let why = format!("{pods} directories, {logs} logs, {shown:?}");
            assert!(begin.elapsed() < PATIENCE, "pods do not end: {why}\n{}", node.last_words());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
