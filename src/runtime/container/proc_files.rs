//! `/proc` and `/sys/fs/cgroup` as one process sees them.
//!
//! In: paths that the filesystem asks for. Out: files made at that moment from the process tree and the charges.
//! Only what programs are known to read: Go, Java and Node look for their limits in the cgroup files, tools look at
//! `/proc/self`. Nothing of the node shows, except its uptime and number of cores. Processes of other containers show
//! where the pod or a debug container's target says so, their environment, descriptors and files to the same user and to
//! user 0.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use super::super::process::{DescriptionKind, Pid, Process};
use super::Container;
use crate::network::Protocol;
use crate::pod::run::Access;
use crate::vfs::{Device, FileType, Provided, Provider};

const SELF_FILES: [(&str, FileType); 12] = [
    ("cmdline", FileType::Regular),
    ("comm", FileType::Regular),
    ("cwd", FileType::Symlink),
    ("environ", FileType::Regular),
    ("exe", FileType::Symlink),
    ("fd", FileType::Directory),
    ("limits", FileType::Regular),
    ("mounts", FileType::Regular),
    ("oom_score_adj", FileType::Regular),
    ("root", FileType::Symlink),
    ("stat", FileType::Regular),
    ("status", FileType::Regular),
];
const SYSTEM_FILES: [&str; 6] = ["cpuinfo", "loadavg", "meminfo", "mounts", "uptime", "version"];
const SOCKET_FILES: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];
const CGROUP_FILES: [&str; 10] = [
    "cgroup.controllers",
    "cpu.max",
    "cpu.stat",
    "cpu.weight",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "pids.current",
    "pids.max",
];
/// Version 1's names of some of them, by controller.
const CGROUP_V1: [(&str, &[&str]); 2] = [
    ("cpu", &["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares"]),
    ("memory", &["memory.limit_in_bytes", "memory.usage_in_bytes"]),
];
/// What version 1 shows for no limit.
const NO_LIMIT_V1: u64 = 0x7FFF_FFFF_FFFF_F000;
/// The unit of `/proc/self/stat`.
const CLOCK_TICKS: u128 = 100;

/// The provider of one process.
pub(super) struct ProcFiles {
    /// Whose system files: its own container's, or that whose root it looks into.
    container: Arc<Container>,
    process: Weak<Process>,
}

impl ProcFiles {
    /// Files of `process`.
    pub(super) fn new(container: Arc<Container>, process: Weak<Process>) -> Self {
        Self { container, process }
    }

    fn proc(&self, path: &str) -> Option<Provided> {
        let process = self.process.upgrade()?;
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        if first.is_empty() {
            return Some(self.proc_root());
        }
        if first == "self" {
            return of_process(&process, rest);
        }
        if let Ok(pid) = first.parse::<Pid>() {
            return self.of_pid(&process, pid, rest);
        }
        if first == "net" {
            return self.sockets(rest);
        }
        if first == "sys" {
            return sys(&self.container.spec().sysctls, rest);
        }
        if !rest.is_empty() {
            return None;
        }
        self.system(first).map(|text| Provided::File(text.into_bytes()))
    }

    /// `/proc/<pid>/...` as `viewer` sees it.
    fn of_pid(&self, viewer: &Process, pid: Pid, path: &str) -> Option<Provided> {
        let other = self.container.tree().pids().get(pid).ok()?;
        if other.pid() == viewer.pid() {
            return of_process(viewer, path);
        }
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        if matches!(first, "cwd" | "environ" | "exe" | "fd" | "root") && !viewer.may_touch(&other) {
            return None;
        }
        // Within a container a path is the same for all.
        let elsewhere = !Arc::ptr_eq(other.container(), viewer.container());
        let into = |target: &str| {
            let files = Self::new(other.container().clone(), self.process.clone());
            let tree = other.container().namespace().for_process(Arc::new(files));
            Some(Provided::Into { tree, target: target.to_owned() })
        };
        match (first, rest) {
            ("root", "") if elsewhere => into("/"),
            ("cwd", "") if elsewhere => into(other.cwd()),
            ("exe", "") if elsewhere => into(other.exe()),
            ("fd", fd) if !fd.is_empty() => {
                let fd = fd.parse().ok()?;
                viewer.descriptor_of(pid, fd).ok()?;
                Some(Provided::Device(Device::DescriptorOf { pid, fd }))
            }
            _ => of_process(&other, path),
        }
    }

    fn proc_root(&self) -> Provided {
        let mut entries: Vec<_> = SYSTEM_FILES.iter().map(|name| ((*name).to_owned(), FileType::Regular)).collect();
        entries.extend(["net", "self", "sys"].map(|name| (name.to_owned(), FileType::Directory)));
        let pids = self.container.tree().pids().running().into_iter().map(|process| process.pid().to_string());
        entries.extend(pids.map(|pid| (pid, FileType::Directory)));
        Provided::Directory(entries)
    }

    fn system(&self, name: &str) -> Option<String> {
        Some(match name {
            "cpuinfo" => {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                (0..cores).fold(String::new(), |mut text, core| {
                    let _ = write!(text, "processor\t: {core}\nmodel name\t: WebAssembly\n\n");
                    text
                })
            }
            "meminfo" => {
                let charge = self.container.charge();
                let used = charge.used() / 1024;
                let total = charge.limit().map_or_else(node_memory_kib, |limit| limit / 1024);
                let free = total.saturating_sub(used);
                format!("MemTotal: {total:>14} kB\nMemFree: {free:>15} kB\nMemAvailable: {free:>10} kB\n")
            }
            "loadavg" => {
                let running = self.container.tree().pids().running();
                let last = running.last().map_or(0, |process| process.pid());
                // The node's load is nothing of the container's.
                format!("0.00 0.00 0.00 1/{} {last}\n", running.len())
            }
            "mounts" => mounts(&self.container),
            "uptime" => {
                let info = rustix::system::sysinfo();
                format!("{}.00 0.00\n", info.uptime)
            }
            "version" => format!("Wasilet version {} (WASI)\n", env!("CARGO_PKG_VERSION")),
            _ => return None,
        })
    }

    /// `/proc/net/...`: the pod's own listening sockets, as Linux writes them.
    fn sockets(&self, table: &str) -> Option<Provided> {
        if table.is_empty() {
            let entries = SOCKET_FILES.iter().map(|name| ((*name).to_owned(), FileType::Regular));
            return Some(Provided::Directory(entries.collect()));
        }
        let table = SOCKET_FILES.iter().find(|name| **name == table)?;
        let (protocol, state) = if table.starts_with("tcp") { (Protocol::Tcp, "0A") } else { (Protocol::Udp, "07") };
        let mut text =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
                .to_owned();
        let listeners = self.container.network().listeners().into_iter();
        let ours = listeners.filter(|one| one.protocol == protocol && one.local.is_ipv6() == table.ends_with('6'));
        for (number, listener) in ours.enumerate() {
            let nobody = "0".repeat(if listener.local.is_ipv6() { 32 } else { 8 });
            let (address, port) = (hexadecimal(listener.local.ip()), listener.local.port());
            let _ = writeln!(
                text,
                "{number:>4}: {address}:{port:04X} {nobody}:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 0"
            );
        }
        Some(Provided::File(text.into_bytes()))
    }

    fn cgroup(&self, name: &str) -> Option<Provided> {
        if name.is_empty() {
            let entries = CGROUP_FILES.iter().map(|name| ((*name).to_owned(), FileType::Regular));
            let controllers = CGROUP_V1.iter().map(|(name, _)| ((*name).to_owned(), FileType::Directory));
            return Some(Provided::Directory(entries.chain(controllers).collect()));
        }
        if let Some((_, files)) = CGROUP_V1.iter().find(|(controller, _)| *controller == name) {
            let entries = files.iter().map(|name| ((*name).to_owned(), FileType::Regular));
            return Some(Provided::Directory(entries.collect()));
        }
        let container = &self.container;
        let (charge, cpu) = (container.charge(), container.cpu());
        let text = match name {
            "cgroup.controllers" => "cpu memory pids\n".to_owned(),
            "cpu.max" => match cpu.limits().milli {
                Some(milli) => format!("{} 100000\n", quota(milli)),
                None => "max 100000\n".to_owned(),
            },
            "cpu.stat" => {
                let (throttled, times) = cpu.throttled();
                format!(
                    "usage_usec {}\nnr_throttled {times}\nthrottled_usec {}\n",
                    cpu.used().as_micros(),
                    throttled.as_micros()
                )
            }
            "cpu.weight" => format!("{}\n", cpu.weight()),
            "memory.current" => format!("{}\n", charge.used()),
            "memory.events" => format!("oom {0}\noom_kill {0}\n", u8::from(charge.is_out_of_memory())),
            "memory.max" => charge.limit().map_or_else(|| "max\n".to_owned(), |limit| format!("{limit}\n")),
            "memory.peak" => format!("{}\n", charge.peak()),
            "pids.current" => format!("{}\n", container.tree().count()),
            "pids.max" => format!("{}\n", container.spec().limits.processes),
            // The same for programs that know only version 1.
            "cpu/cpu.cfs_period_us" => "100000\n".to_owned(),
            "cpu/cpu.cfs_quota_us" => {
                cpu.limits().milli.map_or_else(|| "-1\n".to_owned(), |m| format!("{}\n", quota(m)))
            }
            "cpu/cpu.shares" => format!("{}\n", cpu.limits().shares),
            "memory/memory.limit_in_bytes" => format!("{}\n", charge.limit().unwrap_or(NO_LIMIT_V1)),
            "memory/memory.usage_in_bytes" => format!("{}\n", charge.used()),
            _ => return None,
        };
        Some(Provided::File(text.into_bytes()))
    }
}

/// Microseconds of a period of 100 ms; a kernel takes no less than one.
fn quota(milli: u64) -> u64 {
    (milli * 100).max(1000)
}

impl Provider for ProcFiles {
    fn get(&self, path: &str) -> Option<Provided> {
        if let Some(rest) = path.strip_prefix("/sys/fs/cgroup") {
            return self.cgroup(rest.trim_start_matches('/'));
        }
        self.proc(path.strip_prefix("/proc")?.trim_start_matches('/'))
    }
}

/// `/proc/<pid>/...`, of the process itself or of what others may see.
fn of_process(process: &Process, path: &str) -> Option<Provided> {
    let file = |text: String| Some(Provided::File(text.into_bytes()));
    match path {
        "" => {
            let entries = SELF_FILES.iter().map(|&(name, kind)| (name.to_owned(), kind));
            Some(Provided::Directory(entries.collect()))
        }
        "cmdline" => file(process.argv().iter().fold(String::new(), |text, argument| text + argument + "\0")),
        "environ" => {
            file(process.env().iter().fold(String::new(), |text, (key, value)| text + key + "=" + value + "\0"))
        }
        "comm" => file(format!("{}\n", comm(process))),
        "cwd" => Some(Provided::Symlink(process.cwd().to_owned())),
        "exe" => Some(Provided::Symlink(process.exe().to_owned())),
        "limits" => {
            let limits = &process.container().spec().limits;
            file(format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max processes             {0:<20} {0:<20} processes \n\
                 Max open files            {1:<20} {1:<20} files     \n",
                limits.processes, limits.open_files
            ))
        }
        "mounts" => file(mounts(process.container())),
        "root" => Some(Provided::Symlink("/".to_owned())),
        "oom_score_adj" => file(format!("{}\n", process.container().spec().oom_score_adj)),
        "stat" => file(stat(process)),
        "status" => file(status(process)),
        "fd" => {
            let fds = process.fds().list().into_iter().map(|(fd, _)| (fd.to_string(), FileType::Symlink));
            Some(Provided::Directory(fds.collect()))
        }
        _ => {
            let fd = path.strip_prefix("fd/")?.parse().ok()?;
            let description = process.fds().get(fd).ok()?;
            match description.kind() {
                DescriptionKind::Directory(_) => None,
                _ => Some(Provided::Device(Device::Descriptor(fd))),
            }
        }
    }
}

/// `/proc/sys/...`: what of it is there, as directories.
fn sys(sysctls: &BTreeMap<String, String>, path: &str) -> Option<Provided> {
    let name = path.replace('/', ".");
    if let Some(value) = sysctls.get(&name) {
        return Some(Provided::File(format!("{value}\n").into_bytes()));
    }
    let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
    let mut entries = BTreeMap::new();
    for rest in sysctls.keys().filter_map(|key| key.strip_prefix(&prefix)) {
        match rest.split_once('.') {
            Some((directory, _)) => entries.insert(directory.to_owned(), FileType::Directory),
            None => entries.insert(rest.to_owned(), FileType::Regular),
        };
    }
    (!entries.is_empty()).then(|| Provided::Directory(entries.into_iter().collect()))
}

/// `/proc/mounts`: the root, what the node provides, and the pod's volumes. What a volume is made of is the node's affair.
fn mounts(container: &Container) -> String {
    let mode = |access| if access == Access::ReadWrite { "rw" } else { "ro" };
    let mut text = format!(
        "overlay / overlay {} 0 0\nproc /proc proc ro 0 0\ntmpfs /dev tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 ro 0 0\n",
        mode(container.spec().root)
    );
    for mount in &container.spec().mounts {
        let path = mount.mount_path.replace(' ', "\\040");
        let _ = writeln!(text, "{} {path} none {} 0 0", mount.volume, mode(mount.access));
    }
    text
}

/// An address as `/proc/net` has it: words of four bytes, each in the order of a little-endian machine.
fn hexadecimal(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.chunks(4).flat_map(|word| word.iter().rev()).fold(String::new(), |text, byte| format!("{text}{byte:02X}"))
}

/// The program's base name, at most 15 bytes as the kernel keeps.
fn comm(process: &Process) -> String {
    let name = process.argv().first().map_or("", |name| name.rsplit('/').next().unwrap_or(name));
    name.chars().take(15).collect()
}

fn stat(process: &Process) -> String {
    let container = process.container();
    let ticks = container.cpu().used().as_millis() * CLOCK_TICKS / 1000;
    let memory = container.charge().used();
    format!(
        "{pid} ({name}) R {parent} {pid} {pid} 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 0 {memory} {pages}\n",
        pid = process.pid(),
        name = comm(process),
        parent = process.parent(),
        pages = memory / 4096,
    )
}

fn status(process: &Process) -> String {
    let container = process.container();
    let credentials = container.credentials();
    let (uid, gid) = (credentials.uid, credentials.gid);
    let groups = credentials.groups.iter().fold(String::new(), |text, group| format!("{text}{group} "));
    format!(
        "Name:\t{name}\nUmask:\t{umask:04o}\nState:\tR (running)\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\n\
         Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nFDSize:\t{fds}\nGroups:\t{groups}\n\
         VmPeak:\t{peak:>8} kB\nVmSize:\t{size:>8} kB\nVmRSS:\t{size:>8} kB\nThreads:\t1\nCpus_allowed_list:\t0-{last_core}\n",
        name = comm(process),
        umask = process.umask(),
        pid = process.pid(),
        parent = process.parent(),
        fds = process.fds().open_count(),
        last_core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1),
        peak = container.charge().peak() / 1024,
        size = container.charge().used() / 1024,
    )
}

fn node_memory_kib() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::unnecessary_cast, reason = "the fields are 32 bits wide on some targets")]
    let bytes = info.totalram as u64 * u64::from(info.mem_unit);
    bytes / 1024
}
