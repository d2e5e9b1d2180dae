//! Memory of this node: the machine's, or what its control group may use of it.
//!
//! In: /proc/meminfo, the control groups (v2 and v1) this process is in. Out: [`Memory`]. A node that itself runs in a
//! container or a unit with a limit has that limit as its capacity: what is above is not its to give.

use std::path::{Path, PathBuf};

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// In all.
    pub capacity_bytes: u64,
    /// Not in use, or in use for what can be dropped (caches).
    pub available_bytes: u64,
}

impl Memory {
    /// Reads it. A machine that does not say has a gigabyte, half of it free.
    #[must_use]
    pub fn read() -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let machine = read(Path::new("/proc/meminfo")).as_deref().and_then(of_machine).unwrap_or_else(|| {
            tracing::warn!("Could not read /proc/meminfo, assumed 1 GiB");
            Self { capacity_bytes: 1 << 30, available_bytes: 1 << 29 }
        });
        let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        groups_of(&groups).iter().filter_map(|group| of_group(group, read)).fold(machine, Self::least)
    }

    fn least(self, other: Self) -> Self {
        Self {
            capacity_bytes: self.capacity_bytes.min(other.capacity_bytes),
            available_bytes: self.available_bytes.min(other.available_bytes),
        }
    }
}

/// `MemTotal` and `MemAvailable`.
fn of_machine(meminfo: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024))
    };
    Some(Memory { capacity_bytes: field("MemTotal")?, available_bytes: field("MemAvailable")? })
}

/// A directory of the control group file system, and the names its version has for things.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    directory: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The groups that bound this process, from its own up to the root; a container sees its own as the root.
fn groups_of(proc_cgroup: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in proc_cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, version) = if controllers.is_empty() {
            ("/sys/fs/cgroup", Version::Two)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", Version::One)
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        groups.extend(path.ancestors().map(|path| Group { directory: Path::new(mount).join(path), version }));
    }
    groups
}

/// The limit of a group and what is left of it as the kubelet counts: usage without inactive file pages is in use.
/// `None` for a group without limit, or one that cannot be seen.
fn of_group(group: &Group, read: impl Fn(&Path) -> Option<String>) -> Option<Memory> {
    let (limit, usage, inactive) = match group.version {
        Version::Two => ("memory.max", "memory.current", "inactive_file"),
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    };
    let number = |name: &str| read(&group.directory.join(name))?.trim().parse::<u64>().ok();
    // Version 1 writes "no limit" as a number near 2^63.
    let capacity_bytes = number(limit).filter(|limit| *limit < 1 << 60)?;
    let used = number(usage)?;
    let stat = read(&group.directory.join("memory.stat")).unwrap_or_default();
    let of_stat = |line: &str| line.strip_prefix(inactive)?.trim().parse::<u64>().ok();
    let inactive = stat.lines().find_map(of_stat).unwrap_or(0);
    Some(Memory { capacity_bytes, available_bytes: capacity_bytes.saturating_sub(used.saturating_sub(inactive)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_the_tightest_group_bound_memory() {
        let meminfo = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\n";
        assert_eq!(of_machine(meminfo), Some(Memory { capacity_bytes: 1_024_000, available_bytes: 409_600 }));
        assert_eq!(of_machine("MemTotal: x kB"), None);
        let groups = groups_of("0::/system.slice/wasilet.service\n");
        let paths: Vec<_> = groups.iter().map(|group| group.directory.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["/sys/fs/cgroup/system.slice/wasilet.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/"]
        );
        let v1 = groups_of("5:cpu:/x\n4:memory:/docker/1\n");
        assert_eq!(v1[0], Group { directory: "/sys/fs/cgroup/memory/docker/1".into(), version: Version::One });
        let files = |path: &Path| match path.to_str().unwrap() {
            "/sys/fs/cgroup/system.slice/memory.max" => Some("500000\n".to_owned()),
            "/sys/fs/cgroup/system.slice/memory.current" => Some("300000\n".to_owned()),
            "/sys/fs/cgroup/system.slice/memory.stat" => Some("anon 1\ninactive_file 100000\n".to_owned()),
            "/sys/fs/cgroup/system.slice/wasilet.service/memory.max" => Some("max\n".to_owned()),
            _ => None,
        };
        assert_eq!(of_group(&groups[0], files), None);
        assert_eq!(of_group(&groups[1], files), Some(Memory { capacity_bytes: 500_000, available_bytes: 300_000 }));
        let unlimited = |path: &Path| path.ends_with("memory.limit_in_bytes").then(|| "9223372036854771712".to_owned());
        assert_eq!(of_group(&v1[0], unlimited), None);
        let real = Memory::read();
        assert!(real.capacity_bytes >= real.available_bytes && real.capacity_bytes > 0);
    }
}
