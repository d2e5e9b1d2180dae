//! `/dev`: one immutable tree for all containers, over which each may make its own few nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::pod::run::Tty;
use crate::vfs::perm::Attr;
use crate::vfs::tree::{Budget, Builder, DeviceNode, Draft, DraftBody, LowerTree, Store, TreeFs};
use crate::vfs::{Charge, Device, FileType, Timestamp};

/// Bytes a container may keep in its `/dev`; some programs make a directory or a link there.
const LIMIT: u64 = 64 * 1024;

/// Which devices `/dev` has besides `null`, `zero`, `full`, `random`, `urandom`, `signal`, `stdin`, `stdout`,
/// `stderr`, `fd` (a link to `/proc/self/fd`) and the empty directories `shm`, `mqueue` and `pts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// `/dev/tty`.
    pub tty: Tty,
}

/// A container's `/dev`.
pub(super) fn filesystem(devices: Devices, charge: Option<Arc<dyn Charge>>) -> Arc<TreeFs> {
    static PLAIN: OnceLock<Arc<LowerTree>> = OnceLock::new();
    static TERMINAL: OnceLock<Arc<LowerTree>> = OnceLock::new();
    let shared = match devices.tty {
        Tty::None => &PLAIN,
        Tty::Terminal => &TERMINAL,
    };
    let lower = Arc::clone(shared.get_or_init(|| Arc::new(tree(devices.tty))));
    let budget = Budget::new(LIMIT, charge);
    TreeFs::new(lower, Store::Memory(Arc::clone(&budget)), budget)
}

fn tree(tty: Tty) -> LowerTree {
    let mut builder = Builder::new();
    let mut add = |name: &str, kind, mode, body| {
        let attr = Attr { uid: 0, gid: 0, mode, kind };
        builder.insert(0, name, Draft { attr, mtime: Timestamp::default(), parent: 0, body, layer: 0 });
    };
    let nodes = [
        ("null", DeviceNode::Null),
        ("zero", DeviceNode::Zero),
        ("full", DeviceNode::Full),
        ("random", DeviceNode::Random),
        ("urandom", DeviceNode::Random),
        ("signal", DeviceNode::Process(Device::Signal)),
        ("stdin", DeviceNode::Process(Device::Stdin)),
        ("stdout", DeviceNode::Process(Device::Stdout)),
        ("stderr", DeviceNode::Process(Device::Stderr)),
    ];
    for (name, device) in nodes {
        add(name, FileType::CharDevice, 0o666, DraftBody::Device(device));
    }
    if tty == Tty::Terminal {
        add("tty", FileType::CharDevice, 0o666, DraftBody::Device(DeviceNode::Process(Device::Tty)));
    }
    add("fd", FileType::Symlink, 0o777, DraftBody::Link("/proc/self/fd".into()));
    for (name, mode) in [("shm", 0o1777), ("mqueue", 0o1777), ("pts", 0o755)] {
        add(name, FileType::Directory, mode, DraftBody::Dir(BTreeMap::new()));
    }
    builder.finish(Vec::new())
}
