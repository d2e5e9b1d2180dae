//! What an agent holds, as the kernel and its own metrics tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::node::Node;

/// Longer than tokio keeps a blocking thread that has nothing to do (10 s).
const CALM: Duration = Duration::from_secs(12);
/// How long is waited for what is on its way out.
const LATEST: Duration = Duration::from_secs(75);

/// One reading.
#[derive(Debug, Clone, Default)]
pub struct Vitals {
    /// Open files by what they are.
    pub files: BTreeMap<String, usize>,
    /// Open files that say which blocks of 256 pod addresses are this agent's.
    pub leases: usize,
    /// Map areas by what is mapped.
    pub maps: BTreeMap<String, usize>,
    /// Threads by name.
    pub threads: BTreeMap<String, usize>,
    /// Series by metric.
    pub series: BTreeMap<String, usize>,
    /// `wasilet_tasks`, of both kinds of threads.
    pub tasks: usize,
    /// `wasilet_sandboxes`.
    pub sandboxes: usize,
    /// `wasilet_pod_addresses`.
    pub addresses: usize,
    /// PSS, KiB.
    pub pss: usize,
    /// What of it is anonymous memory.
    pub anonymous: usize,
}

/// A figure that is compared: its name, its value, what it is made of, and by how much it may be above that of the
/// baseline.
pub struct Figure<'a> {
    /// What it counts.
    pub name: &'static str,
    /// How many.
    pub value: usize,
    /// How many may come on top.
    pub slack: usize,
    /// Parts of it, where they are known.
    pub parts: Option<&'a BTreeMap<String, usize>>,
}

impl Vitals {
    /// Reads them now.
    pub fn read(node: &Node) -> Self {
        let process = PathBuf::from(format!("/proc/{}", node.pid()));
        let sockets = named_sockets();
        let mut vitals =
            Self { pss: memory(&process, "Pss:"), anonymous: memory(&process, "Pss_Anon:"), ..Self::default() };
        for entry in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            if sockets.get(&*target).is_some_and(|name| name.starts_with("@wasilet/pod-addresses/")) {
                vitals.leases += 1;
                continue;
            }
            *vitals.files.entry(kind_of_file(&target)).or_default() += 1;
        }
        for entry in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            *vitals.threads.entry(name.trim().to_owned()).or_default() += 1;
        }
        for line in fs::read_to_string(process.join("maps")).unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            let rights = words.nth(1).unwrap_or_default().to_owned();
            let what = words.nth(3).map_or_else(|| "anonymous".to_owned(), kind_of_file);
            *vitals.maps.entry(format!("{rights} {what}")).or_default() += 1;
        }
        for endpoint in ["/metrics", "/metrics/probes", "/metrics/resource", "/metrics/cadvisor"] {
            let text = node.get(endpoint).map(|(_, text)| text).unwrap_or_default();
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                *vitals.series.entry(name.to_owned()).or_default() += 1;
                let value = || line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0_usize);
                match name {
                    "wasilet_tasks" => vitals.tasks += value(),
                    "wasilet_sandboxes" => vitals.sandboxes = value(),
                    "wasilet_pod_addresses" => vitals.addresses = value(),
                    _ => {}
                }
            }
        }
        vitals
    }

    /// Reads them when the agent is calm: the least of some seconds, as long as it takes to be within `baseline`, or
    /// until the patience is over.
    pub fn calm(node: &Node, baseline: Option<&Self>) -> Self {
        let begin = Instant::now();
        let mut least = Self::read(node);
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = Self::read(node);
            let weight = |vitals: &Self| vitals.figures().iter().map(|figure| figure.value).sum::<usize>();
            let pss = now.pss.min(least.pss);
            if weight(&now) <= weight(&least) {
                least = now;
            }
            least.pss = pss;
            let settled = baseline.is_none_or(|baseline| least.above(baseline).is_empty());
            if begin.elapsed() >= if settled { CALM } else { LATEST } {
                return least;
            }
        }
    }

    /// The figures that are counted.
    pub fn figures(&self) -> [Figure<'_>; 8] {
        let figure = |name, parts: &'_ BTreeMap<String, usize>, slack| (name, parts.values().sum(), slack);
        let of = |(name, value, slack), parts| Figure { name, value, slack, parts };
        [
            of(figure("open files", &self.files, 0), Some(&self.files)),
            // An address rests for a minute before another pod has it: as many blocks as a minute's pods fill, here 270 a second.
            of(("blocks of addresses", self.leases, 64), None),
            // The blocking pool has one more or less as its work comes.
            of(figure("threads", &self.threads, 2), Some(&self.threads)),
            // Two a thread, and what the allocator maps as it likes.
            of(figure("map areas", &self.maps, 24), Some(&self.maps)),
            of(("tasks", self.tasks, 0), None),
            of(("sandboxes", self.sandboxes, 0), None),
            of(("pod addresses", self.addresses, 0), None),
            // A reason or an exit code that had not been seen before makes one.
            of(figure("metric series", &self.series, 8), Some(&self.series)),
        ]
    }

    /// What is above the baseline by more than it may: each with its parts that are.
    pub fn above(&self, baseline: &Self) -> Vec<String> {
        let pairs = self.figures().into_iter().zip(baseline.figures());
        let over = pairs.filter(|(now, then)| now.value > then.value + then.slack);
        over.map(|(now, then)| {
            let mut words = format!("{}: {} were {}", now.name, now.value, then.value);
            for (part, count) in now.parts.into_iter().flatten() {
                let before = then.parts.and_then(|parts| parts.get(part)).copied().unwrap_or(0);
                if *count > before {
                    let _ = write!(words, "\n    {part}: {count} were {before}");
                }
            }
            words
        })
        .collect()
    }
}

/// Names of Unix sockets by `socket:[INODE]`.
fn named_sockets() -> BTreeMap<String, String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let named = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(6);
        Some((format!("socket:[{}]", words.next()?), words.next()?.to_owned()))
    });
    named.collect()
}

/// A target of `/proc/PID/fd` or a name in `/proc/PID/maps` without what differs between two of a kind.
fn kind_of_file(target: &str) -> String {
    for kind in ["socket:", "pipe:"] {
        if target.starts_with(kind) {
            return kind.to_owned();
        }
    }
    let parts = target.split('/').map(|part| {
        let digits = part.chars().filter(char::is_ascii_digit).count();
        if digits > 3 { "*" } else { part }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// KiB of a line of `smaps_rollup`.
fn memory(process: &Path, line: &str) -> usize {
    let rollup = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
    let found = rollup.lines().find(|found| found.starts_with(line));
    found.and_then(|found| found.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Every file and directory below the node's places but those of images and programs, which are kept.
pub fn paths(node: &Node) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![node.root(), node.memory_root()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Least squares: how much the second grows for each of the first.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}
