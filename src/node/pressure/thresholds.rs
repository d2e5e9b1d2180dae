//! Thresholds of eviction: what is measured, and when it is too little.
//!
//! In: `evictionHard`, observations. Out: the thresholds that are met and the conditions they make. Pure; by
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

/// One hard threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// What must be left of it.
    pub value: ThresholdValue,
}

/// Reads `evictionHard`.
///
/// # Errors
/// What cannot be read, in the kubelet's words.
pub fn parse_thresholds(given: &BTreeMap<String, String>) -> Result<Vec<Threshold>, String> {
    let mut thresholds = Vec::new();
    for (name, text) in given {
        let known = Signal::ALL.iter().find(|(known, _)| known == name);
        let Some((_, signal)) = known else { return Err(format!("unsupported eviction signal {name}")) };
        if let Some(value) = parse_value(name, text)? {
            thresholds.push(Threshold { signal: *signal, value });
        }
    }
    Ok(thresholds)
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
    let is_met = |threshold: &&Threshold| {
        observed.get(&threshold.signal).is_some_and(|seen| seen.available < threshold.value.of(seen.capacity))
    };
    let mut met: Vec<Threshold> = thresholds.iter().filter(is_met).copied().collect();
    met.sort_by_key(|threshold| !threshold.signal.is_memory());
    met
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
        let one = |signal, value| Ok(vec![Threshold { signal, value }]);
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
            Threshold { signal: Signal::NodeFsAvailable, value: ThresholdValue::Part(0.1) },
            Threshold { signal: Signal::MemoryAvailable, value: ThresholdValue::Quantity(100) },
            Threshold { signal: Signal::PidAvailable, value: ThresholdValue::Quantity(100) },
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
    async fn a_condition_stays_for_the_transition_period() {
        let period = Duration::from_secs(300);
        let threshold = Threshold { signal: Signal::NodeFsInodesFree, value: ThresholdValue::Quantity(1) };
        let (mut seen, start) = (LastSeen::default(), Instant::now());
        assert_eq!(seen.pressure(period, start), Pressure::default());
        seen.note(&[threshold], start);
        let disk = Pressure { disk: true, ..Pressure::default() };
        assert_eq!(seen.pressure(period, start + Duration::from_secs(299)), disk);
        assert_eq!(seen.pressure(period, start + Duration::from_secs(301)), Pressure::default());
        assert_eq!(seen.pressure(Duration::ZERO, start), disk, "without a period while it is seen");
    }
}
