//! What the machine uses: CPU, memory, interfaces, processes, disks; of a cgroup when that is all the node has.
//!
//! In: `/proc` and `/sys/fs/cgroup`, as text. Out: numbers. Parsing is pure; what cannot be read is `None`.
//!
//! In a container of its own (the Helm chart) the node's bounds are that container's: where a cgroup above the agent
//! limits CPU or memory, its figures are the node's, as its capacity is then that limit.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::types::{InterfaceStats, RlimitStats, StatsTime};

/// One reading of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeReading {
    pub(super) cpu_nanoseconds: Option<u64>,
    pub(super) memory: Option<NodeMemory>,
}

/// Memory of the node, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeMemory {
    pub(super) capacity: u64,
    pub(super) usage: u64,
    pub(super) working_set: u64,
    pub(super) rss: u64,
}

/// The agent itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessReading {
    /// CPU time, all threads.
    pub(crate) cpu_nanoseconds: u64,
    /// Resident memory.
    pub(crate) resident_bytes: u64,
    /// Address space.
    pub(crate) virtual_bytes: u64,
    /// When it started.
    pub(crate) started_at: Timestamp,
}

/// Where the node's figures come from; looked for once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    /// The cgroup that limits CPU, if one does.
    cpu_cgroup: Option<PathBuf>,
    /// The cgroup that limits memory, if one does.
    memory_cgroup: Option<PathBuf>,
    pub(super) boot_time: Timestamp,
}

impl Machine {
    /// Looks at the cgroups above the agent (version 2 only; of version 1 the machine's figures are shown).
    pub(super) fn find() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| own_cgroup(&text));
        let limited = |file: &str, is_limit: fn(&str) -> bool| {
            let own = root.join(own.as_deref()?.trim_start_matches('/'));
            let mut above = own.ancestors().take_while(|dir| dir.starts_with(root));
            above
                .find(|dir| std::fs::read_to_string(dir.join(file)).is_ok_and(|text| is_limit(&text)))
                .map(Path::to_owned)
        };
        let boot = std::fs::read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text));
        Self {
            cpu_cgroup: limited("cpu.max", |text| !text.starts_with("max")),
            memory_cgroup: limited("memory.max", |text| !text.starts_with("max")),
            boot_time: boot.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// One reading. A few small virtual files: microseconds, nothing of it waits for a disk.
    pub(super) fn read(&self) -> NodeReading {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let cpu_nanoseconds = match &self.cpu_cgroup {
            Some(cgroup) => read(&cgroup.join("cpu.stat")).and_then(|text| cgroup_cpu(&text)),
            None => read(Path::new("/proc/stat")).and_then(|text| machine_cpu(&text, ticks_per_second())),
        };
        let machine = read(Path::new("/proc/meminfo")).and_then(|text| machine_memory(&text));
        let memory = match &self.memory_cgroup {
            Some(cgroup) => {
                let file = |name: &str| read(&cgroup.join(name));
                let number = |name: &str| file(name).and_then(|text| text.trim().parse::<u64>().ok());
                // A limit above what the machine has limits nothing.
                let capacity = number("memory.max").map(|max| max.min(machine.map_or(max, |machine| machine.capacity)));
                cgroup_memory(capacity, number("memory.current"), &file("memory.stat").unwrap_or_default())
            }
            None => machine,
        };
        NodeReading { cpu_nanoseconds, memory }
    }

    /// The agent's own figures.
    pub(crate) fn process(&self) -> Option<ProcessReading> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        process(&text, ticks_per_second(), rustix::param::page_size() as u64, self.boot_time)
    }
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

/// Interfaces of the network namespace the agent is in, and the name of the one with the default route; `None` where
/// there is only loopback.
pub(super) fn interfaces() -> Option<(Option<String>, Vec<InterfaceStats>)> {
    let interfaces = parse_interfaces(&std::fs::read_to_string("/proc/net/dev").ok()?);
    if interfaces.is_empty() {
        return None;
    }
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    Some((default_interface(&routes), interfaces))
}

/// Processes of the machine.
pub(super) fn processes(now: Timestamp) -> Option<RlimitStats> {
    let maximum = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(RlimitStats { time: StatsTime(now), maxpid: maximum, curproc: running })
}

/// The path of `0::PATH`, the line of version 2.
fn own_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn boot_seconds(stat: &str) -> Option<i64> {
    stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|seconds| seconds.trim().parse().ok())
}

/// The time all CPUs did something: user, nice, system, irq, softirq and steal, without idle and waiting for disks.
/// Guest time is in user's already.
fn machine_cpu(stat: &str, ticks_per_second: u64) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, rest @ ..] = fields.as_slice() else { return None };
    let ticks = user + nice + system + rest.iter().take(3).sum::<u64>();
    ticks.checked_mul(1_000_000_000 / ticks_per_second.max(1))
}

fn machine_memory(meminfo: &str) -> Option<NodeMemory> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let capacity = field("MemTotal")?;
    let usage = capacity.saturating_sub(field("MemFree")?);
    let working_set = usage.saturating_sub(field("Inactive(file)").unwrap_or(0));
    Some(NodeMemory { capacity, usage, working_set, rss: field("AnonPages").unwrap_or(0) })
}

fn cgroup_cpu(stat: &str) -> Option<u64> {
    let microseconds: u64 = cgroup_field(stat, "usage_usec")?;
    microseconds.checked_mul(1000)
}

fn cgroup_memory(capacity: Option<u64>, usage: Option<u64>, stat: &str) -> Option<NodeMemory> {
    let (capacity, usage) = (capacity?, usage?);
    let working_set = usage.saturating_sub(cgroup_field(stat, "inactive_file").unwrap_or(0));
    Some(NodeMemory { capacity, usage, working_set, rss: cgroup_field(stat, "anon").unwrap_or(0) })
}

fn cgroup_field(stat: &str, name: &str) -> Option<u64> {
    let fields = stat.lines().filter_map(|line| line.split_once(' '));
    fields.filter(|(field, _)| *field == name).find_map(|(_, value)| value.trim().parse().ok())
}

fn process(stat: &str, ticks_per_second: u64, page_bytes: u64, boot_time: Timestamp) -> Option<ProcessReading> {
    // After the name, which may have spaces and parentheses of its own.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let tick = 1_000_000_000 / ticks_per_second.max(1);
    let since_boot = std::time::Duration::from_nanos(field(22)?.checked_mul(tick)?);
    Some(ProcessReading {
        cpu_nanoseconds: (field(14)? + field(15)?).checked_mul(tick)?,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)?.checked_mul(page_bytes)?,
        started_at: boot_time.checked_add(since_boot).ok()?,
    })
}

fn parse_interfaces(dev: &str) -> Vec<InterfaceStats> {
    let rows = dev.lines().filter_map(|line| line.split_once(':'));
    let parsed = rows.filter_map(|(name, counters)| {
        let counters: Vec<u64> = counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
        Some(InterfaceStats {
            name: name.trim().to_owned(),
            rx_bytes: *counters.first()?,
            rx_errors: *counters.get(2)?,
            tx_bytes: *counters.get(8)?,
            tx_errors: *counters.get(10)?,
        })
    });
    // cAdvisor leaves loopback out too: its bytes never leave the machine.
    parsed.filter(|interface| interface.name != "lo").collect()
}

fn default_interface(routes: &str) -> Option<String> {
    let mut rows = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(1) == Some(&"00000000")).and_then(|row| row.first().map(|name| (*name).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 9 0\ncpu0 1 2 3 4\nbtime 1700000000\n";
        assert_eq!(machine_cpu(stat, 100), Some(1_710_000_000), "171 ticks of 10 ms");
        assert_eq!(boot_seconds(stat), Some(1_700_000_000));
        let meminfo = "MemTotal: 1000 kB\nMemFree:  400 kB\nAnonPages: 200 kB\nInactive(file): 100 kB\n";
        let expected = NodeMemory { capacity: 1_024_000, usage: 614_400, working_set: 512_000, rss: 204_800 };
        assert_eq!(machine_memory(meminfo), Some(expected));
        assert_eq!(cgroup_cpu("usage_usec 12\nuser_usec 5\n"), Some(12_000));
        let expected = NodeMemory { capacity: 100, usage: 50, working_set: 40, rss: 7 };
        assert_eq!(cgroup_memory(Some(100), Some(50), "anon 7\ninactive_file 10\n"), Some(expected));
        assert_eq!(cgroup_memory(None, Some(50), ""), None);
        assert_eq!(own_cgroup("12:cpu:/x\n0::/kubepods/pod\n").as_deref(), Some("/kubepods/pod"));
        for text in ["", "cpu", "cpu  a b c", "MemTotal:", ")", "btime x"] {
            assert_eq!((machine_cpu(text, 100), machine_memory(text), boot_seconds(text)), (None, None, None));
            assert_eq!(process(text, 100, 4096, Timestamp::UNIX_EPOCH), None);
        }
    }

    #[test]
    fn interfaces_and_their_default_are_found() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
                   face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                   lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 0 0 0 0 0 20 4 5 0 0 0 0 0\n";
        let eth0 = InterfaceStats { name: "eth0".into(), rx_bytes: 10, rx_errors: 3, tx_bytes: 20, tx_errors: 5 };
        assert_eq!(parse_interfaces(dev), [eth0]);
        let routes = "Iface\tDestination\tGateway\neth1\t0000A8C0\t0\neth0\t00000000\t0102A8C0\n";
        assert_eq!(default_interface(routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn the_agent_measures_itself() {
        let stat = "42 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 9 0 300 8192 2 0 0";
        let expected = ProcessReading {
            cpu_nanoseconds: 2_000_000_000,
            resident_bytes: 8192,
            virtual_bytes: 8192,
            started_at: "1970-01-01T00:00:03Z".parse().unwrap(),
        };
        assert_eq!(process(stat, 100, 4096, Timestamp::UNIX_EPOCH), Some(expected));
        let machine = Machine::find();
        assert!(machine.process().unwrap().resident_bytes > 0);
        assert!(machine.read().memory.unwrap().working_set > 0);
    }
}
