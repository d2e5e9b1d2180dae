//! Names and versions of the machine, and how many processes it has.
//!
//! In: /etc/machine-id, DMI, /proc, /etc/os-release, uname. Out: strings as `status.nodeInfo` has them.

use std::path::Path;

/// The machine as `nodeInfo` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The product's UUID of the firmware; the machine id where only root may read that.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of the distribution.
    pub os_image: String,
    /// Cores this process may use; its control group's quota counts.
    pub cores: u32,
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
}

impl Machine {
    /// Reads everything; what is not there is empty.
    #[must_use]
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).map(|text| text.trim().to_owned()).ok();
        let given = |paths: &[&str]| paths.iter().find_map(|path| read(path).filter(|text| !text.is_empty()));
        let machine_id = given(&["/etc/machine-id", "/var/lib/dbus/machine-id"]).unwrap_or_default();
        let system_uuid = given(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid"]);
        let os_release = given(&["/etc/os-release", "/usr/lib/os-release"]).unwrap_or_default();
        Self {
            system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: given(&["/proc/sys/kernel/random/boot_id"]).unwrap_or_default(),
            kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
            os_image: pretty_name(&os_release).unwrap_or_else(|| "Unknown".to_owned()),
            cores: std::thread::available_parallelism()
                .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
            max_map_count: read("/proc/sys/vm/max_map_count").and_then(|text| text.parse().ok()),
        }
    }
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Processes and threads of the machine, which the kernel counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Processes {
    /// The most there can be; 0 when not known.
    pub most: u64,
    /// How many there are.
    pub running: u64,
}

impl Processes {
    /// Reads both.
    #[must_use]
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| read(path).trim().parse::<u64>().ok();
        let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        let most = limits.into_iter().flatten().min().unwrap_or(0);
        Self { most, running: of_loadavg(&read("/proc/loadavg")).unwrap_or(0) }
    }
}

/// `0.20 0.18 0.12 1/80 11206`: the number behind the stroke.
fn of_loadavg(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_machine_are_read() {
        assert_eq!(pretty_name("ID=x\nPRETTY_NAME=\"Alma 9\"\n").as_deref(), Some("Alma 9"));
        assert_eq!(pretty_name("ID=x\n"), None);
        assert_eq!(of_loadavg("0.20 0.18 0.12 1/80 11206"), Some(80));
        let machine = Machine::read();
        assert!(machine.cores >= 1 && !machine.kernel_version.is_empty() && !machine.boot_id.is_empty());
        let processes = Processes::read();
        assert!(processes.most > processes.running && processes.running > 0);
    }
}
