//! Hostile layer tars and indexes: no panic, bounded memory, and an index that is accepted merges or is refused.

use std::io::Write;

use wasilet::vfs::layer::{Index, LayerStack, build_index};

/// Fixes the checksum of every 512-byte block, so that inputs get past the first check.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for header in bytes.chunks_exact_mut(512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fn try_tar(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    if let Ok(index) = build_index(&file) {
        assert!(index.len() <= bytes.len() / 512, "an entry needs a header");
        let again = Index::from_bytes(&index.to_bytes()).expect("what we wrote can be read");
        assert_eq!(again, index);
        if let Ok(stack) = LayerStack::from_parts(vec![(file, index)]) {
            // A path of 4095 bytes makes at most 2048 directories.
            assert!(stack.node_count() <= 1 + bytes.len() / 512 * 2048);
        }
    }
}

#[test]
fn layer_index() {
    bolero::check!().with_max_len(8192).for_each(|input: &[u8]| {
        try_tar(input);
        try_tar(&with_checksums(input));
        let _ = Index::from_bytes(input);
    });
}
