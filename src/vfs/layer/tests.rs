//! Layers: what a tar means, and what hostile ones come to.

use std::io::Write;

use super::*;
use crate::vfs::testkit::{Item, layer_of, stack_of, tar_of};
use crate::vfs::tree::LowerView;

/// The image's tree as lines: path, then content, target or `/`.
fn listing(stack: &LayerStack) -> Vec<String> {
    let tree = &stack.tree;
    let mut out = Vec::new();
    let mut todo = vec![(0, String::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut place = 0;
        while let Some((name, id)) = tree.child_at(dir, place) {
            place += 1;
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            out.push(match tree.view(id) {
                LowerView::Dir => {
                    todo.push((id, path.clone()));
                    format!("{path}/")
                }
                LowerView::Link(target) => format!("{path} -> {target}"),
                LowerView::File { tar, offset, size } => {
                    let mut bytes = vec![0; size as usize];
                    std::os::unix::fs::FileExt::read_exact_at(&**tar, &mut bytes, offset).unwrap();
                    format!("{path} = {}", String::from_utf8(bytes).unwrap())
                }
                _ => format!("{path} ?"),
            });
        }
    }
    out.sort();
    out
}

/// What is tried, the layers, the tree.
type Case<'a> = (&'a str, &'a [&'a [Item<'a>]], &'a [&'a str]);

#[test]
fn layers_apply_as_container_runtimes_unpack_them() {
    use Item::{Dir, File, Hard, Link};
    let cases: [Case<'_>; 9] = [
        ("a later file replaces", &[&[File("a", "1")], &[File("a", "2")]], &["a = 2"]),
        ("a whiteout removes a tree", &[&[File("d/x", "1"), File("k", "1")], &[File(".wh.d", "")]], &["k = 1"]),
        (
            "an opaque directory hides what is below it, wherever the marker stands",
            &[&[File("d/old", "1")], &[File("d/new", "2"), File("d/.wh..wh..opq", "")]],
            &["d/", "d/new = 2"],
        ),
        (
            "a directory over a directory keeps its children",
            &[&[File("d/x", "1")], &[Dir("d"), File("d/y", "2")]],
            &["d/", "d/x = 1", "d/y = 2"],
        ),
        ("a file over a directory replaces it", &[&[File("d/x", "1")], &[File("d", "2")]], &["d = 2"]),
        (
            "a parent that is a link is followed inside the root",
            &[&[Dir("usr/lib"), Link("lib", "/usr/lib")], &[File("lib/so", "1")]],
            &["lib -> /usr/lib", "usr/", "usr/lib/", "usr/lib/so = 1"],
        ),
        (
            "a link that climbs stops at the root",
            &[&[Link("up", "../../../etc")], &[File("up/passwd", "1")]],
            &["etc/", "etc/passwd = 1", "up -> ../../../etc"],
        ),
        ("a hard link shares its file", &[&[File("a", "1"), Hard("b", "a")]], &["a = 1", "b = 1"]),
        ("names that climb are clamped", &[&[File("x", "1")], &[File("y", "2")]], &["x = 1", "y = 2"]),
    ];
    for (case, layers, expected) in cases {
        assert_eq!(listing(&stack_of(layers)), expected, "{case}");
    }
}

#[test]
fn paths_of_members_are_cleaned() {
    for (path, clean) in [("./a//b/", "a/b"), ("/a", "a"), ("../../x", "x"), ("a/../../b", "b"), ("./", "")] {
        assert_eq!(index::normal(path).as_deref(), Some(clean));
    }
    assert_eq!(index::normal(&"x".repeat(256)), None);
}

#[test]
fn a_link_loop_or_a_file_in_the_way_is_named() {
    for (items, path) in [
        (&[Item::Link("a", "b"), Item::Link("b", "a"), Item::File("a/x", "1")][..], "a/x"),
        (&[Item::File("f", "1"), Item::File("f/x", "1")][..], "f/x"),
        (&[Item::Hard("h", "missing")][..], "h"),
    ] {
        match LayerStack::from_parts(vec![layer_of(items)]) {
            Err(LayerError::BadEntry { path: named }) => assert_eq!(named, path),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn long_names_come_through() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let target = "t".repeat(300);
    let stack = stack_of(&[&[Item::File(&long, "1"), Item::Link("l", &target)]]);
    let lines = listing(&stack);
    assert!(lines.contains(&format!("{long} = 1")) && lines.contains(&format!("l -> {target}")), "{lines:?}");
}

#[test]
fn a_cut_tar_is_damaged_not_short() {
    let tar = tar_of(&[Item::File("a", &"x".repeat(5000))]);
    tar.set_len(2048).unwrap();
    assert!(matches!(build_index(&tar), Err(LayerError::BadTar { what: "cut off", .. })));
    let mut garbage = tempfile::tempfile().unwrap();
    garbage.write_all(&[7; 1024]).unwrap();
    assert!(matches!(build_index(&garbage), Err(LayerError::BadTar { offset: 0, .. })));
}

#[test]
fn an_index_knows_when_it_was_torn() {
    let (_, index) = layer_of(&[Item::File("a", "1"), Item::Link("l", "a"), Item::Dir("d"), Item::Hard("h", "a")]);
    let bytes = index.to_bytes();
    assert_eq!(Index::from_bytes(&bytes).unwrap(), index);
    for cut in 0..bytes.len() {
        assert!(Index::from_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    let mut flipped = bytes.clone();
    flipped[20] ^= 1;
    assert!(Index::from_bytes(&flipped).is_err());
}

#[test]
fn the_same_layers_are_merged_once_while_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let spec = LayerSpec {
        diff_id: Digest::of(dir.path().as_os_str().as_encoded_bytes()),
        tar: dir.path().join("tar"),
        index: dir.path().join("index"),
    };
    let mut tar = tar_of(&[Item::File("a", "1")]);
    build_index(&tar).unwrap().write(&spec.index).unwrap();
    std::io::Seek::rewind(&mut tar).unwrap();
    std::io::copy(&mut tar, &mut File::create(&spec.tar).unwrap()).unwrap();
    let first = LayerStack::open(std::slice::from_ref(&spec)).unwrap();
    assert!(Arc::ptr_eq(&first, &LayerStack::open(std::slice::from_ref(&spec)).unwrap()));
    let old = Arc::downgrade(&first);
    drop(first);
    assert!(old.upgrade().is_none(), "nothing but containers keeps it");
}
