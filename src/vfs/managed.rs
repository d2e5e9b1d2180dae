//! Files whose content the node owns and replaces live: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
//!
//! One [`ManagedFile`] is made per pod and mounted into each of its containers, as the kubelet bind-mounts one
//! `etc-hosts` of the pod. Writable in place, because images' entrypoints do append to `/etc/hosts` and the kubelet
//! lets them: the write is seen by the pod's containers and lost when the node replaces the content. With a
//! read-only root they are EROFS. Removing or renaming one is EBUSY, it being a mount.

use std::sync::Arc;

use parking_lot::RwLock;

use super::FileType;
use super::perm::Attr;
use super::tree::{Budget, Data, Inode, NewBody, ROOT, Store, TreeFs};

/// Bytes a guest may add to such a file; a hosts file of that size is no longer one.
const ROOM: u64 = 1 << 20;

/// A file with content in memory, shared by the containers of a pod. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ManagedFile {
    pub(crate) fs: Arc<TreeFs>,
    pub(crate) inode: Arc<Inode>,
}

impl ManagedFile {
    /// With this content, mode 0o644, owner 0:0.
    #[must_use]
    pub fn new(content: &[u8]) -> Self {
        let fs = TreeFs::memory(ROOM, None, 0o755);
        let attr = Attr { uid: 0, gid: 0, mode: 0o644, kind: FileType::Regular };
        let inode =
            fs.txn().create(ROOT, "content", &attr, NewBody::File).expect("a new tree has room for its first node");
        let file = Self { fs, inode };
        file.replace(content);
        file
    }

    /// Replaces the content in one step; a read sees the old bytes or the new ones.
    pub fn replace(&self, content: &[u8]) {
        let store = Store::Memory(Budget::new(content.len() as u64 + ROOM, None));
        let mut data = Data::empty(&store);
        let written = data.write_at(&store, content, 0);
        debug_assert_eq!(written, Ok(content.len()), "the budget was made for it");
        if let Some(slot) = self.inode.data() {
            let slot: &RwLock<Data> = slot;
            *slot.write() = data;
        }
        self.inode.mark_modified();
    }
}
