//! `make soak`: a day of pods on one node, and what is left of them.
//!
//! `SOAK_PODS` pods of many kinds (20,000: one every four seconds of a day, here as fast as the node takes them) come and go
//! on the built node, some while they start, with execs, logs, config updates and faults, among them agents killed with
//! SIGKILL. No clock is moved: what the node does by time of day it does as often as the run is long.
//!
//! Each agent's baseline is taken without pods after a part of the same churn, which fills caches and pools; after each
//! round of the rest, without pods again, it must have no more open files, threads, map areas, tasks, sandboxes, addresses
//! and metric series than then, and its memory must be flat. Nothing of any pod may be on disk at the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use churn::{Churn, Counts};
use node::Node;
use vitals::{Vitals, paths, slope};

#[path = "soak/churn.rs"]
mod churn;
#[path = "soak/kinds.rs"]
mod kinds;
#[path = "soak/node.rs"]
mod node;
#[path = "soak/vitals.rs"]
mod vitals;

/// Part of the pods for each agent; all but the last end by SIGKILL.
const LIVES: [f64; 4] = [0.05, 0.05, 0.05, 0.85];
/// The same for a quick look.
const QUICK: [f64; 2] = [0.2, 0.8];
/// Below it, it is one.
const MANY: usize = 5000;
/// Pods of a round, and the most rounds of a life.
const ROUND: (usize, usize) = (800, 12);
/// Pods after which what an agent remembers of those that are gone (8192 Events, 4096 objects to count Events of) is full.
const WARM: usize = 5000;
/// How much more memory an agent may have at the end of its life than at its baseline, KiB, and by the fit of all rounds.
const FLAT: f64 = 16.0 * 1024.0;

/// One agent's part.
struct Life {
    pods: usize,
    /// Of these, those before the baseline.
    warm: usize,
    baseline: Vitals,
    end: Vitals,
    /// PSS by pods since the baseline.
    memory: Vec<(f64, f64)>,
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
    let Some(pods) = number("SOAK_PODS") else {
        println!("soak: not asked for (make soak)");
        return;
    };
    let alive = number("SOAK_ALIVE").unwrap_or(200).clamp(12, pods.max(12));
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests");
    let mut node = Node::new(&guests);
    let mut churn = Churn::new(alive, 0x5eed);
    let begin = Instant::now();
    let mut kept = None;
    let mut lives = Vec::new();
    let parts: &[f64] = if pods < MANY { &QUICK } else { &LIVES };
    for (number, part) in parts.iter().enumerate() {
        let up = node.start();
        println!("agent {} answers after {:.2} s", number + 1, up.as_secs_f64());
        let life = live(&mut node, &mut churn, (pods as f64 * part) as usize);
        // What the first agent had with nothing to do is what a node keeps.
        kept.get_or_insert_with(|| paths(&node));
        if number + 1 < parts.len() {
            // Among pods that run, start and end.
            churn.run(&node, alive.min(life.pods / 2).max(12));
            node.end(Signal::KILL);
            churn.forget_clients();
            churn.remove_some(&node);
        }
        lives.push(life);
    }
    let ended_well = node.end(Signal::TERM);
    let left: BTreeSet<PathBuf> = paths(&node).difference(&kept.unwrap_or_default()).cloned().collect();
    let failed = close(&node, &churn.counts, &lives, &left, ended_well, begin.elapsed());
    std::process::exit(i32::from(failed));
}

/// Warms an agent up, takes its baseline, and goes on in rounds.
fn live(node: &mut Node, churn: &mut Churn, pods: usize) -> Life {
    let warm = (pods / 3).min(WARM);
    let begin = Instant::now();
    churn.run(node, warm);
    churn.drain(node);
    let baseline = Vitals::calm(node, None);
    println!("  warm after {warm} pods, {:.0} s: {} KiB", begin.elapsed().as_secs_f64(), baseline.pss);
    let mut memory = vec![(0.0, baseline.pss as f64)];
    let mut end = baseline.clone();
    let rounds = ((pods - warm) / ROUND.0).clamp(1, ROUND.1);
    for round in 1..=rounds {
        let (begin, created) = (Instant::now(), churn.counts.created);
        churn.run(node, (pods - warm) / rounds);
        let took = begin.elapsed().as_secs_f64();
        let drained = churn.drain(node);
        assert!(node.lives(), "the agent died:\n{}", node.last_words());
        end = Vitals::calm(node, Some(&baseline));
        let pods = churn.counts.created - created;
        memory.push((memory[round - 1].0 + pods as f64, end.pss as f64));
        let counted: Vec<String> =
            end.figures().iter().map(|figure| format!("{} {}", figure.value, figure.name)).collect();
        println!(
            "  round {round}: {pods} pods in {took:.0} s ({:.0}/s), gone {:.1} s later; {} KiB ({} anonymous), {}",
            pods as f64 / took,
            drained.as_secs_f64(),
            end.pss,
            end.anonymous,
            counted.join(", ")
        );
    }
    Life { pods, warm, baseline, end, memory }
}

/// A line of the closing table, and whether it is as it should be.
struct Row {
    agent: String,
    what: &'static str,
    from: String,
    to: String,
    bound: String,
    met: bool,
}

impl Row {
    fn count(agent: &str, what: &'static str, from: usize, to: usize, bound: usize) -> Self {
        let [from, to_, bound_] = [from, to, bound].map(|count| count.to_string());
        Self { agent: agent.to_owned(), what, from, to: to_, bound: bound_, met: to <= bound }
    }

    /// Of so many tries most went well: the churn did what it says.
    fn most(what: &'static str, (tries, well): (usize, usize)) -> Self {
        let (from, to, bound) = (tries.to_string(), well.to_string(), ">= 75 %".to_owned());
        Self { agent: "all".to_owned(), what, from, to, bound, met: well * 4 >= tries * 3 }
    }
}

impl Life {
    fn rows(&self, number: usize) -> Vec<Row> {
        let agent = format!("{number} ({} pods)", self.pods);
        let pairs = self.end.figures().into_iter().zip(self.baseline.figures());
        let mut rows: Vec<Row> = pairs
            .map(|(end, then)| Row::count(&agent, end.name, then.value, end.value, then.value + then.slack))
            .collect();
        let (from, to) = (self.baseline.pss as f64, self.end.pss as f64);
        let each = slope(&self.memory);
        let fitted = each * self.memory.last().map_or(0.0, |point| point.0);
        // Before that its memory grows as it fills, which says nothing.
        let judged = self.warm >= WARM;
        let mut memory = |what, from: f64, to: f64, said: String, bound: f64| {
            let bound_ = if judged { format!("{bound:.0}") } else { "-".to_owned() };
            let met = !judged || to <= bound;
            rows.push(Row { agent: agent.clone(), what, from: format!("{from:.0}"), to: said, bound: bound_, met });
        };
        memory("PSS, KiB", from, to, format!("{to:.0}"), from + FLAT);
        let said = format!("{fitted:.0} ({:.0} a 1000 pods)", each * 1000.0);
        memory("growth by the fit, KiB", 0.0, fitted, said, FLAT);
        rows
    }
}

/// The closing table; says whether anything failed.
fn close(
    node: &Node,
    counts: &Counts,
    lives: &[Life],
    left: &BTreeSet<PathBuf>,
    ended_well: bool,
    took: Duration,
) -> bool {
    println!("\n{} pods in {:.0} s, {} agents killed", counts.created, took.as_secs_f64(), lives.len() - 1);
    let done = [
        ("replaced", counts.replaced),
        ("deleted while starting", counts.young),
        ("execs", counts.execs.0),
        ("execs cut off", counts.cut),
        ("logs", counts.logs),
        ("config updates", counts.configs),
        ("bad manifests", counts.garbage),
        ("pages", counts.pages.0),
        ("odd connections", counts.connections),
    ];
    println!("{}", done.map(|(what, count)| format!("{what} {count}")).join(", "));
    let panics = node.panics();
    let mut rows: Vec<Row> = lives.iter().enumerate().flat_map(|(number, life)| life.rows(number + 1)).collect();
    rows.push(Row::count("all", "files left of pods", 0, left.len(), 0));
    rows.push(Row::count("all", "panics", 0, panics.len(), 0));
    rows.push(Row::count("all", "SIGTERM that did not end it well", 0, usize::from(!ended_well), 0));
    rows.push(Row::most("execs that did well", counts.execs));
    rows.push(Row::most("pages served", counts.pages));
    println!("\n| agent | what | after the warm-up | at the end | may be | |\n|---|---|---|---|---|---|");
    for Row { agent, what, from, to, bound, met } in &rows {
        println!("| {agent} | {what} | {from} | {to} | {bound} | {} |", if *met { "ok" } else { "FAILED" });
    }
    for (number, life) in lives.iter().enumerate() {
        for leak in life.end.above(&life.baseline) {
            println!("agent {}: {leak}", number + 1);
        }
    }
    for path in left.iter().take(40) {
        println!("left: {}", path.display());
    }
    for line in panics {
        println!("{line}");
    }
    rows.iter().any(|row| !row.met)
}
