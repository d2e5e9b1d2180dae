//! `/metrics/cadvisor`: the series that dashboards and alerts are written against.
//!
//! In: a summary. Out: those of cAdvisor's series that mean something here, with its labels (`container`, `id`,
//! `image`, `name`, `namespace`, `pod`). A container's series name all of them; a pod's have an empty `container` and
//! `image`, and the node's all empty but `id="/"`, as from a kubelet. Pure.

use super::super::stats::{ContainerDetail, ContainerStats, CpuStats, MemoryStats, NetworkStats, PodStats, Summary};
use super::resource::{seconds, unix_seconds};
use super::text::{Exposition, Kind};

/// What a series is of.
struct Subject<'a> {
    id: String,
    container: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    cpu: Option<&'a CpuStats>,
    memory: Option<&'a MemoryStats>,
    stats: Option<(&'a ContainerStats, &'a ContainerDetail)>,
    network: Option<&'a NetworkStats>,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Subject<'_> {
    /// The labels, with some more of the series' own, in the order of the alphabet.
    fn labels<'b>(&'b self, more: &[(&'static str, &'b str)]) -> Labels<'b> {
        let mut labels = vec![
            ("container", self.container),
            ("id", self.id.as_str()),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        labels.extend(more);
        labels.sort_unstable();
        labels
    }
}

/// The machine, for its two series.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineInfo {
    pub(super) cores: usize,
}

pub(super) fn encode(summary: &Summary, machine: MachineInfo) -> String {
    let subjects = subjects(summary);
    let mut text = Exposition::default();
    of_cpu_and_memory(&mut text, &subjects);
    of_containers(&mut text, &subjects);
    of_networks(&mut text, &subjects);
    text.family("machine_cpu_cores", Kind::Gauge, "Number of logical CPU cores.").sample(
        &[],
        machine.cores as f64,
        None,
    );
    if let Some(memory) = &summary.node.memory {
        let capacity = memory.available_bytes.unwrap_or(0) + memory.working_set_bytes;
        text.family("machine_memory_bytes", Kind::Gauge, "Amount of memory installed on the machine.").sample(
            &[],
            capacity as f64,
            None,
        );
    }
    text.finish()
}

fn subjects(summary: &Summary) -> Vec<Subject<'_>> {
    let node = Subject {
        id: "/".to_owned(),
        container: "",
        image: "",
        name: "",
        namespace: "",
        pod: "",
        cpu: summary.node.cpu.as_ref(),
        memory: summary.node.memory.as_ref(),
        stats: None,
        network: summary.node.network.as_ref(),
    };
    let mut subjects = vec![node];
    for pod in &summary.pods {
        subjects.push(Subject {
            cpu: Some(&pod.cpu),
            memory: Some(&pod.memory),
            network: pod.network.as_ref(),
            ..of(pod, "")
        });
        for container in &pod.containers {
            let Some(detail) = &container.detail else { continue };
            subjects.push(Subject {
                container: &container.name,
                image: &detail.image,
                name: &detail.id,
                cpu: Some(&container.cpu),
                memory: Some(&container.memory),
                stats: Some((container, detail)),
                ..of(pod, &detail.id)
            });
        }
    }
    subjects
}

/// A subject of a pod that has nothing yet. There is no cgroup; the id has the shape of one, which some rules match.
fn of<'a>(pod: &'a PodStats, container_id: &str) -> Subject<'a> {
    let mut id = format!("/kubepods/pod{}", pod.pod_ref.uid);
    if !container_id.is_empty() {
        id = format!("{id}/{container_id}");
    }
    Subject {
        id,
        container: "",
        image: "",
        name: "",
        namespace: &pod.pod_ref.namespace,
        pod: &pod.pod_ref.name,
        cpu: None,
        memory: None,
        stats: None,
        network: None,
    }
}

fn of_cpu_and_memory(text: &mut Exposition, subjects: &[Subject<'_>]) {
    let help = "Cumulative cpu time consumed in seconds.";
    let mut family = text.family("container_cpu_usage_seconds_total", Kind::Counter, help);
    for subject in subjects {
        if let Some(cpu) = subject.cpu {
            let value = seconds(cpu.usage_core_nano_seconds);
            family.sample(&subject.labels(&[("cpu", "total")]), value, Some(cpu.time.0));
        }
    }
    let figures: [(&'static str, &'static str, fn(&MemoryStats) -> u64); 3] = [
        ("container_memory_working_set_bytes", "Current working set in bytes.", |memory| memory.working_set_bytes),
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |memory| memory.usage_bytes,
        ),
        ("container_memory_rss", "Size of RSS in bytes.", |memory| memory.rss_bytes),
    ];
    for (name, help, value) in figures {
        let mut family = text.family(name, Kind::Gauge, help);
        for subject in subjects {
            if let Some(memory) = subject.memory {
                family.sample(&subject.labels(&[]), value(memory) as f64, Some(memory.time.0));
            }
        }
    }
}

fn of_containers(text: &mut Exposition, subjects: &[Subject<'_>]) {
    type Figure = fn(&ContainerStats, &ContainerDetail) -> Option<f64>;
    // A period of 100 ms, as the kubelet sets it.
    let figures: [(&'static str, &'static str, Figure); 11] = [
        ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", |_, detail| {
            Some(detail.memory_peak_bytes as f64)
        }),
        ("container_processes", "Number of processes running inside the container.", |_, detail| {
            Some(detail.processes as f64)
        }),
        ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", |stats, _| {
            Some(unix_seconds(stats.start_time))
        }),
        ("container_last_seen", "Last time a container was seen by the exporter", |stats, _| {
            Some(stats.cpu.time.0.as_second() as f64)
        }),
        ("container_spec_memory_limit_bytes", "Memory limit for the container.", |_, detail| {
            Some(detail.memory_limit_bytes.unwrap_or(0) as f64)
        }),
        ("container_spec_cpu_period", "CPU period of the container.", |_, _| Some(100_000.0)),
        ("container_spec_cpu_quota", "CPU quota of the container.", |_, detail| {
            detail.cpu_limit_milli.map(|milli| milli as f64 * 100.0)
        }),
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            |stats, _| stats.rootfs.as_ref().map(|fs| fs.used_bytes as f64),
        ),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            |stats, _| stats.rootfs.as_ref().map(|fs| fs.capacity_bytes as f64),
        ),
        ("container_fs_inodes_free", "Number of available Inodes", |stats, _| {
            stats.rootfs.as_ref()?.inodes_free.map(|inodes| inodes as f64)
        }),
        ("container_fs_inodes_total", "Number of Inodes", |stats, _| {
            stats.rootfs.as_ref()?.inodes.map(|inodes| inodes as f64)
        }),
    ];
    for (name, help, value) in figures {
        let mut family = text.family(name, Kind::Gauge, help);
        for subject in subjects {
            let Some((stats, detail)) = subject.stats else { continue };
            let Some(value) = value(stats, detail) else { continue };
            let more: &[_] = if name.starts_with("container_fs_") { &[("device", "")] } else { &[] };
            let time = if name.starts_with("container_spec_") { None } else { Some(stats.cpu.time.0) };
            family.sample(&subject.labels(more), value, time);
        }
    }
}

fn of_networks(text: &mut Exposition, subjects: &[Subject<'_>]) {
    use super::super::stats::InterfaceStats;
    let figures: [(&'static str, &'static str, fn(&InterfaceStats) -> u64); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |i| {
            i.rx_errors
        }),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
        ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", |i| {
            i.tx_errors
        }),
    ];
    for (name, help, value) in figures {
        let mut family = text.family(name, Kind::Counter, help);
        for subject in subjects {
            let Some(network) = subject.network else { continue };
            for interface in &network.interfaces {
                let labels = subject.labels(&[("interface", interface.name.as_str())]);
                family.sample(&labels, value(interface) as f64, Some(network.time.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn the_series_of_dashboards_have_their_labels() {
        let text = encode(&testing::summary(), MachineInfo { cores: 2 });
        let id = "a".repeat(64);
        let labels = format!(
            "container=\"app\",id=\"/kubepods/podu1/{id}\",image=\"example.com/app:1\",name=\"{id}\",namespace=\"ns\",pod=\"web\""
        );
        let with_cpu = labels.replace(",id=", ",cpu=\"total\",id=");
        let with_device = labels.replace(",id=", ",device=\"\",id=");
        for line in [
            format!("container_cpu_usage_seconds_total{{{with_cpu}}} 1.5 1767225660250"),
            format!("container_memory_working_set_bytes{{{labels}}} 524288 1767225660250"),
            format!("container_memory_rss{{{labels}}} 524288 1767225660250"),
            format!("container_spec_memory_limit_bytes{{{labels}}} 1048576"),
            format!("container_spec_cpu_quota{{{labels}}} 25000"),
            format!("container_fs_usage_bytes{{{with_device}}} 7 1767225660250"),
            "container_network_receive_bytes_total{container=\"\",id=\"/kubepods/podu1\",image=\"\",interface=\"eth0\",name=\"\",namespace=\"ns\",pod=\"web\"} 5 1767225660250".to_owned(),
            "container_cpu_usage_seconds_total{container=\"\",cpu=\"total\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} 42 1767225660250".to_owned(),
            "machine_cpu_cores 2".to_owned(),
            "machine_memory_bytes 2097152".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_family_stands_together_and_is_typed_once() {
        let text = encode(&testing::summary(), MachineInfo { cores: 1 });
        let mut seen = std::collections::HashSet::new();
        let mut current = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split(' ').next().unwrap();
                assert!(seen.insert(current), "{current} twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(current), "{line} in {current}");
            }
        }
        assert!(seen.len() > 15, "{seen:?}");
    }
}
