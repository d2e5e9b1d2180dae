//! Thresholds of eviction: what is measured, and when it is too little.
//!
//! In: `evictionHard`, `evictionSoft` with its graces, observations. Out: the thresholds that are met and the conditions they make. Pure; by
//! `pkg/kubelet/eviction/helpers.go`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::admission::Pressure;
use crate::pod::quantity::Quantity;

/// Something that can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`.
    MemoryAvailable,
    /// `allocatableMemory.available`; here the same as memory: there is no group of pods.
    AllocatableMemoryAvailable,
    /// `nodefs.available`: the file system of the root directory.
    NodeFsAvailable,
    /// `nodefs.inodesFree`.
    NodeFsInodesFree,
    /// `imagefs.available`: the file system of images.
    ImageFsAvailable,
    /// `imagefs.inodesFree`.
    ImageFsInodesFree,
    /// `containerfs.available`: writable layers, which are on nodefs here.
    ContainerFsAvailable,
    /// `containerfs.inodesFree`.
    ContainerFsInodesFree,
    /// `pid.available`.
    PidAvailable,
}

impl Signal {
    const ALL: [(&str, Self); 9] = [
        ("memory.available", Self::MemoryAvailable),
        ("allocatableMemory.available", Self::AllocatableMemoryAvailable),
        ("nodefs.available", Self::NodeFsAvailable),
        ("nodefs.inodesFree", Self::NodeFsInodesFree),
        ("imagefs.available", Self::ImageFsAvailable),
        ("imagefs.inodesFree", Self::ImageFsInodesFree),
        ("containerfs.available", Self::ContainerFsAvailable),
        ("containerfs.inodesFree", Self::ContainerFsInodesFree),
        ("pid.available", Self::PidAvailable),
    ];

    /// As settings name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, signal)| *signal == self).map_or("", |(name, _)| name)
    }

    fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        known.map(|(_, signal)| *signal).ok_or_else(|| format!("unsupported eviction signal {name}"))
    }

    /// The word for the resource in messages.
    #[must_use]
    pub const fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable | Self::ContainerFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree | Self::ImageFsInodesFree | Self::ContainerFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether it is about memory, which is reclaimed before all else.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        matches!(self, Self::MemoryAvailable | Self::AllocatableMemoryAvailable)
    }

    /// Whether it is about a disk: images nobody uses can go before a pod has to.
    #[must_use]
    pub const fn is_disk(self) -> bool {
        !self.is_memory() && !matches!(self, Self::PidAvailable)
    }

    /// A number of it, as messages show it.
    #[must_use]
    pub fn show(self, amount: u64) -> String {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        match self.resource() {
            "memory" | "ephemeral-storage" => Quantity::from_bytes(amount).to_string(),
            _ => amount.to_string(),
        }
    }
}

/// How much must be left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ThresholdValue {
    /// This much: bytes, inodes, processes.
    Quantity(u64),
    /// This part of the whole, between 0 and 1.
    Part(f64),
}

impl ThresholdValue {
    /// As a number, of a whole of `capacity`.
    #[must_use]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(amount) => amount,
            Self::Part(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// One threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// What must be left of it.
    pub value: ThresholdValue,
    /// How long it has to be met before a pod ends for it; `None` is a hard threshold.
    pub grace: Option<Duration>,
    /// How much more must be free before it counts as left behind.
    pub minimum_reclaim: Option<ThresholdValue>,
}

impl Threshold {
    /// A hard one.
    #[must_use]
    pub const fn hard(signal: Signal, value: ThresholdValue) -> Self {
        Self { signal, value, grace: None, minimum_reclaim: None }
    }
}

/// Reads `evictionHard` or `evictionSoft`.
///
/// # Errors
/// What cannot be read, in the kubelet's words.
pub fn parse_thresholds(given: &BTreeMap<String, String>) -> Result<Vec<Threshold>, String> {
    let mut thresholds = Vec::new();
    for (name, text) in given {
        let signal = Signal::parse(name)?;
        if let Some(value) = parse_value(name, text)? {
            thresholds.push(Threshold::hard(signal, value));
        }
    }
    Ok(thresholds)
}

/// Reads `evictionSoftGracePeriod`.
///
/// # Errors
/// What cannot be read.
pub fn parse_graces(given: &BTreeMap<String, String>) -> Result<HashMap<Signal, Duration>, String> {
    let read = |(name, text): (&String, &String)| Ok((Signal::parse(name)?, crate::config::parse_duration(text)?));
    given.iter().map(read).collect()
}

/// Reads `evictionMinimumReclaim`.
///
/// # Errors
/// What cannot be read, in the kubelet's words.
pub fn parse_reclaims(given: &BTreeMap<String, String>) -> Result<HashMap<Signal, ThresholdValue>, String> {
    let read = |(name, text): (&String, &String)| {
        let signal = Signal::parse(name)?;
        let value = match text.strip_suffix('%') {
            Some(percent) => match percent.trim().parse::<f64>() {
                Ok(percent) if percent > 0.0 => ThresholdValue::Part(percent / 100.0),
                _ => return Err(format!("eviction percentage minimum reclaim {name} must be positive: {text}")),
            },
            None => {
                let quantity: Quantity = text.parse().map_err(|error| format!("{name}: {error}"))?;
                let amount = u64::try_from(quantity.value());
                ThresholdValue::Quantity(
                    amount.map_err(|_| format!("negative eviction minimum reclaim specified for {name}"))?,
                )
            }
        };
        Ok((signal, value))
    };
    given.iter().map(read).collect()
}

/// `None` for 0% and 100%, which switch a threshold off.
fn parse_value(signal: &str, text: &str) -> Result<Option<ThresholdValue>, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let number: f64 = percent.trim().parse().map_err(|_| format!("invalid percentage {text:?} for {signal}"))?;
        return match number {
            n if !(0.0..=100.0).contains(&n) => {
                Err(format!("eviction percentage threshold {signal} must be >= 0% and <= 100%"))
            }
            n if n <= 0.0 || n >= 100.0 => Ok(None),
            n => Ok(Some(ThresholdValue::Part(n / 100.0))),
        };
    }
    let quantity: Quantity = text.parse().map_err(|error| format!("{signal}: {error}"))?;
    match u64::try_from(quantity.value()) {
        Ok(amount) if amount > 0 => Ok(Some(ThresholdValue::Quantity(amount))),
        _ => Err(format!("eviction threshold {signal} must be positive: {text}")),
    }
}

/// How much of something there is, and is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The whole.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
}

/// What was measured.
pub type Observations = HashMap<Signal, Observation>;

/// Thresholds of which less is left than they say; memory first, as it is reclaimed first.
#[must_use]
pub fn met(thresholds: &[Threshold], observed: &Observations) -> Vec<Threshold> {
    let mut met: Vec<Threshold> =
        thresholds.iter().filter(|threshold| is_met(threshold, observed, 0)).copied().collect();
    met.sort_by_key(|threshold| !threshold.signal.is_memory());
    met
}

fn is_met(threshold: &Threshold, observed: &Observations, more: u64) -> bool {
    let least = |seen: &Observation| threshold.value.of(seen.capacity).saturating_add(more);
    observed.get(&threshold.signal).is_some_and(|seen| seen.available < least(seen))
}

/// Which thresholds were met before, and since when.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    met_since: Vec<(Threshold, Instant)>,
    /// Those that pods ended for: they hold until what is to be reclaimed at least is free.
    acted_on: Vec<Threshold>,
}

impl History {
    /// Takes a look in: all thresholds that hold now (what makes the conditions of the node), and those of them whose grace
    /// is over (what pods end for).
    pub fn look(
        &mut self,
        thresholds: &[Threshold],
        observed: &Observations,
        now: Instant,
    ) -> (Vec<Threshold>, Vec<Threshold>) {
        let mut holding = met(thresholds, observed);
        for threshold in &self.acted_on {
            let capacity = observed.get(&threshold.signal).map_or(0, |seen| seen.capacity);
            let more = threshold.minimum_reclaim.map_or(0, |reclaim| reclaim.of(capacity));
            if is_met(threshold, observed, more) && !holding.contains(threshold) {
                holding.push(*threshold);
            }
        }
        holding.sort_by_key(|threshold| !threshold.signal.is_memory());
        let since = |threshold: &Threshold| {
            self.met_since.iter().find(|(known, _)| known == threshold).map_or(now, |(_, since)| *since)
        };
        let met_since: Vec<_> = holding.iter().map(|threshold| (*threshold, since(threshold))).collect();
        let is_over = |(threshold, since): &&(Threshold, Instant)| {
            now.duration_since(*since) >= threshold.grace.unwrap_or_default()
        };
        let due: Vec<Threshold> = met_since.iter().filter(is_over).map(|(threshold, _)| *threshold).collect();
        self.met_since = met_since;
        self.acted_on.clone_from(&due);
        (holding, due)
    }
}

/// When each condition was last seen true: it stays so for the transition period, so that it does not flap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastSeen {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pid: Option<Instant>,
}

impl LastSeen {
    /// Notes the thresholds that are met now.
    pub fn note(&mut self, met: &[Threshold], now: Instant) {
        for threshold in met {
            let seen = match threshold.signal {
                signal if signal.is_memory() => &mut self.memory,
                signal if signal.is_disk() => &mut self.disk,
                _ => &mut self.pid,
            };
            *seen = Some(now);
        }
    }

    /// The conditions that were seen within `period`.
    #[must_use]
    pub fn pressure(&self, period: Duration, now: Instant) -> Pressure {
        let recent = |seen: Option<Instant>| seen.is_some_and(|at| now.duration_since(at) < period || at == now);
        Pressure { memory: recent(self.memory), disk: recent(self.disk), pid: recent(self.pid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(signal: &str, text: &str) -> Result<Vec<Threshold>, String> {
        parse_thresholds(&[(signal.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn thresholds_are_quantities_or_parts() {
        let one = |signal, value| Ok(vec![Threshold::hard(signal, value)]);
        for (signal, text, expected) in [
            ("memory.available", "100Mi", one(Signal::MemoryAvailable, ThresholdValue::Quantity(100 << 20))),
            ("nodefs.available", "10%", one(Signal::NodeFsAvailable, ThresholdValue::Part(0.1))),
            ("nodefs.inodesFree", "0%", Ok(vec![])),
            ("imagefs.available", "100%", Ok(vec![])),
            ("disk", "1", Err("unsupported eviction signal disk".to_owned())),
            ("pid.available", "0", Err("eviction threshold pid.available must be positive: 0".to_owned())),
            (
                "pid.available",
                "101%",
                Err("eviction percentage threshold pid.available must be >= 0% and <= 100%".to_owned()),
            ),
        ] {
            assert_eq!(parse(signal, text), expected, "{signal} {text}");
        }
        assert!(parse("memory.available", "x").is_err());
    }

    #[test]
    fn memory_is_reclaimed_first_and_unknown_signals_never() {
        let thresholds = [
            Threshold::hard(Signal::NodeFsAvailable, ThresholdValue::Part(0.1)),
            Threshold::hard(Signal::MemoryAvailable, ThresholdValue::Quantity(100)),
            Threshold::hard(Signal::PidAvailable, ThresholdValue::Quantity(100)),
        ];
        let observed: Observations = [
            (Signal::NodeFsAvailable, Observation { capacity: 1000, available: 99 }),
            (Signal::MemoryAvailable, Observation { capacity: 1000, available: 99 }),
        ]
        .into();
        let signals: Vec<_> = met(&thresholds, &observed).iter().map(|threshold| threshold.signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable, Signal::NodeFsAvailable]);
        let exact: Observations = [(Signal::NodeFsAvailable, Observation { capacity: 1000, available: 100 })].into();
        assert!(met(&thresholds, &exact).is_empty(), "as much as it says is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_threshold_holds_after_its_grace_and_until_enough_is_free() {
        let seconds = Duration::from_secs;
        let soft = Threshold {
            grace: Some(seconds(90)),
            minimum_reclaim: Some(ThresholdValue::Quantity(50)),
            ..Threshold::hard(Signal::MemoryAvailable, ThresholdValue::Quantity(200))
        };
        let hard = Threshold::hard(Signal::MemoryAvailable, ThresholdValue::Quantity(100));
        let (mut history, start) = (History::default(), Instant::now());
        for (case, at, available, holding, due) in [
            ("nothing", 0, 300, vec![], vec![]),
            ("met, and in its grace", 10, 150, vec![soft], vec![]),
            ("left behind: the grace begins again", 20, 220, vec![], vec![]),
            ("met again", 30, 150, vec![soft], vec![]),
            ("a hard one has no grace", 40, 50, vec![hard, soft], vec![hard]),
            ("still", 119, 150, vec![soft], vec![]),
            ("the grace is over", 120, 150, vec![soft], vec![soft]),
            ("above it, and not by what is to be reclaimed", 130, 249, vec![soft], vec![soft]),
            ("enough", 140, 250, vec![], vec![]),
            ("from the beginning", 150, 240, vec![], vec![]),
        ] {
            let observed: Observations = [(Signal::MemoryAvailable, Observation { capacity: 1000, available })].into();
            let looked = history.look(&[hard, soft], &observed, start + seconds(at));
            assert_eq!(looked, (holding, due), "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_stays_for_the_transition_period() {
        let period = Duration::from_secs(300);
        let threshold = Threshold::hard(Signal::NodeFsInodesFree, ThresholdValue::Quantity(1));
        let (mut seen, start) = (LastSeen::default(), Instant::now());
        assert_eq!(seen.pressure(period, start), Pressure::default());
        seen.note(&[threshold], start);
        let disk = Pressure { disk: true, ..Pressure::default() };
        assert_eq!(seen.pressure(period, start + Duration::from_secs(299)), disk);
        assert_eq!(seen.pressure(period, start + Duration::from_secs(301)), Pressure::default());
        assert_eq!(seen.pressure(Duration::ZERO, start), disk, "without a period while it is seen");
    }
}
