//! The immutable part of a tree: an image's merged layers, or a fixed set such as `/dev`.
//!
//! In: a finished [`Builder`]. Out: lookups by number and name in compact arrays, shared by all containers of an
//! image. One node costs 64 bytes and its name; nothing here changes after it was made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::DeviceNode;
use crate::vfs::perm::Attr;
use crate::vfs::{FileType, Timestamp};

/// A node's number: its inode id less one. 0 is the root.
pub(crate) type LowerId = u32;

/// Where text is in [`LowerTree::text`].
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

#[derive(Debug)]
struct LowerNode {
    attr: Attr,
    nlink: u32,
    parent: LowerId,
    mtime: Timestamp,
    body: LowerBody,
}

#[derive(Debug, Clone, Copy)]
enum LowerBody {
    File { layer: u32, offset: u64, size: u64 },
    Dir { first: u32, count: u32 },
    Link(Span),
    Device(DeviceNode),
    Other,
}

/// What a lower node holds, as its users see it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LowerView<'a> {
    File {
        tar: &'a Arc<std::fs::File>,
        offset: u64,
        size: u64,
    },
    Dir,
    Link(&'a str),
    Device(DeviceNode),
    /// A FIFO, a socket, a block device of an image: shown, never opened.
    Other,
}

/// The immutable tree.
#[derive(Debug)]
pub(crate) struct LowerTree {
    nodes: Box<[LowerNode]>,
    /// Children of all directories, each directory's sorted by name.
    entries: Box<[(Span, LowerId)]>,
    text: Box<str>,
    layers: Box<[Arc<std::fs::File>]>,
}

impl LowerTree {
    /// A root directory (0755, 0:0) and nothing else.
    pub(crate) fn empty() -> Arc<Self> {
        static EMPTY: std::sync::OnceLock<Arc<LowerTree>> = std::sync::OnceLock::new();
        Arc::clone(EMPTY.get_or_init(|| Arc::new(Builder::new().finish(Vec::new()))))
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it is an image's, and no fixed set.
    pub(crate) fn is_image(&self) -> bool {
        !self.layers.is_empty()
    }

    fn text(&self, span: Span) -> &str {
        &self.text[span.start as usize..(span.start + span.len) as usize]
    }

    pub(crate) fn attr(&self, id: LowerId) -> Attr {
        self.nodes[id as usize].attr
    }

    pub(crate) fn nlink(&self, id: LowerId) -> u32 {
        self.nodes[id as usize].nlink
    }

    pub(crate) fn mtime(&self, id: LowerId) -> Timestamp {
        self.nodes[id as usize].mtime
    }

    pub(crate) fn parent(&self, id: LowerId) -> LowerId {
        self.nodes[id as usize].parent
    }

    pub(crate) fn view(&self, id: LowerId) -> LowerView<'_> {
        match self.nodes[id as usize].body {
            LowerBody::File { layer, offset, size } => {
                LowerView::File { tar: &self.layers[layer as usize], offset, size }
            }
            LowerBody::Dir { .. } => LowerView::Dir,
            LowerBody::Link(span) => LowerView::Link(self.text(span)),
            LowerBody::Device(device) => LowerView::Device(device),
            LowerBody::Other => LowerView::Other,
        }
    }

    /// A child by name: its place among the directory's children, and its number.
    pub(crate) fn child(&self, id: LowerId, name: &str) -> Option<(u32, LowerId)> {
        let entries = self.children(id);
        let place = entries.binary_search_by(|(span, _)| self.text(*span).cmp(name)).ok()?;
        Some((place as u32, entries[place].1))
    }

    /// How many children.
    pub(crate) fn child_count(&self, id: LowerId) -> u32 {
        self.children(id).len() as u32
    }

    /// The child at a place.
    pub(crate) fn child_at(&self, id: LowerId, place: u32) -> Option<(&str, LowerId)> {
        let &(span, child) = self.children(id).get(place as usize)?;
        Some((self.text(span), child))
    }

    fn children(&self, id: LowerId) -> &[(Span, LowerId)] {
        match self.nodes[id as usize].body {
            LowerBody::Dir { first, count } => &self.entries[first as usize..(first + count) as usize],
            _ => &[],
        }
    }
}

/// A node while the tree is being made.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) attr: Attr,
    pub(crate) mtime: Timestamp,
    pub(crate) parent: LowerId,
    pub(crate) body: DraftBody,
    /// The layer that last spoke of it; whiteouts look at this.
    pub(crate) layer: u32,
}

/// What a [`Draft`] holds.
#[derive(Debug)]
pub(crate) enum DraftBody {
    File { layer: u32, offset: u64, size: u64 },
    Dir(BTreeMap<Box<str>, LowerId>),
    Link(Box<str>),
    Device(DeviceNode),
    Other,
}

/// Makes a [`LowerTree`]: nodes may be replaced and dropped until it is finished.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) drafts: Vec<Draft>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        let attr = Attr { uid: 0, gid: 0, mode: 0o755, kind: FileType::Directory };
        let body = DraftBody::Dir(BTreeMap::new());
        Self { drafts: vec![Draft { attr, mtime: Timestamp::default(), parent: 0, body, layer: 0 }] }
    }

    /// Adds a child, replacing one of that name.
    pub(crate) fn insert(&mut self, parent: LowerId, name: &str, draft: Draft) -> LowerId {
        let id = self.drafts.len() as LowerId;
        self.drafts.push(Draft { parent, ..draft });
        self.link(parent, name, id);
        id
    }

    /// Gives a node a name in a directory.
    pub(crate) fn link(&mut self, parent: LowerId, name: &str, id: LowerId) {
        if let DraftBody::Dir(children) = &mut self.drafts[parent as usize].body {
            children.insert(name.into(), id);
        }
    }

    /// Numbers what is still reachable, breadth first so that a directory's children lie together.
    pub(crate) fn finish(self, layers: Vec<Arc<std::fs::File>>) -> LowerTree {
        const UNSEEN: LowerId = LowerId::MAX;
        let mut numbers = vec![UNSEEN; self.drafts.len()];
        let mut order: Vec<LowerId> = vec![0];
        let mut links = vec![0u32; self.drafts.len()];
        numbers[0] = 0;
        links[0] = 2;
        let (mut at, mut entry_count, mut text_len) = (0, 0usize, 0usize);
        while let Some(&old) = order.get(at) {
            at += 1;
            if let DraftBody::Dir(children) = &self.drafts[old as usize].body {
                for (name, &child) in children {
                    (entry_count, text_len) = (entry_count + 1, text_len + name.len());
                    let is_dir = matches!(self.drafts[child as usize].body, DraftBody::Dir(_));
                    links[child as usize] += if is_dir { 2 } else { 1 };
                    links[old as usize] += u32::from(is_dir);
                    if numbers[child as usize] == UNSEEN {
                        numbers[child as usize] = order.len() as LowerId;
                        order.push(child);
                    }
                }
            }
        }
        self.compact(&numbers, &links, &order, &Sizes { entries: entry_count, text: text_len }, layers)
    }

    fn compact(
        mut self,
        numbers: &[LowerId],
        links: &[u32],
        order: &[LowerId],
        sizes: &Sizes,
        layers: Vec<Arc<std::fs::File>>,
    ) -> LowerTree {
        let mut text = String::with_capacity(sizes.text);
        let mut entries = Vec::with_capacity(sizes.entries);
        let mut nodes = Vec::with_capacity(order.len());
        let mut add = |s: &str| {
            let span = Span { start: text.len() as u32, len: s.len() as u32 };
            text.push_str(s);
            span
        };
        for &old in order {
            let draft = &mut self.drafts[old as usize];
            let body = match std::mem::replace(&mut draft.body, DraftBody::Other) {
                DraftBody::File { layer, offset, size } => LowerBody::File { layer, offset, size },
                DraftBody::Link(target) => LowerBody::Link(add(&target)),
                DraftBody::Device(device) => LowerBody::Device(device),
                DraftBody::Other => LowerBody::Other,
                DraftBody::Dir(children) => {
                    let (first, count) = (entries.len() as u32, children.len() as u32);
                    entries.extend(children.iter().map(|(name, &child)| (add(name), numbers[child as usize])));
                    LowerBody::Dir { first, count }
                }
            };
            nodes.push(LowerNode {
                attr: draft.attr,
                nlink: links[old as usize],
                parent: numbers[draft.parent as usize],
                mtime: draft.mtime,
                body,
            });
        }
        LowerTree { nodes: nodes.into(), entries: entries.into(), text: text.into(), layers: layers.into() }
    }
}

/// Room that the arrays of a finished tree need.
struct Sizes {
    entries: usize,
    text: usize,
}
