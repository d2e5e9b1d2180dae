//! What a file is, by its first bytes.
//!
//! In: the head of a file. Out: module, component, or a [`ShapeError`] that says what it is instead. Pure.

use super::shape::ShapeError;

/// How many bytes of a file [`wasm_kind`] wants.
pub const HEAD_BYTES: usize = 256;

/// The two kinds of WebAssembly binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WasmKind {
    /// A core module: version 1.
    Module,
    /// A component: layer 1.
    Component,
}

/// Tells the kind from `head`, the first [`HEAD_BYTES`] bytes (or all there are) of the file at `path`.
///
/// # Errors
/// What the file is instead, as [`ShapeError`].
pub fn wasm_kind(path: &str, head: &[u8]) -> Result<WasmKind, ShapeError> {
    match head {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(WasmKind::Module),
        // Bytes 6 and 7 are the layer: 1 for components; 4 and 5 the version, 0xd since 2023.
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(WasmKind::Component),
        [0, b'a', b's', b'm', a, b, c, d, ..] => {
            Err(ShapeError::WasmVersion { path: path.to_owned(), version: u32::from_le_bytes([*a, *b, *c, *d]) })
        }
        _ => Err(foreign(path, head)),
    }
}

fn foreign(path: &str, head: &[u8]) -> ShapeError {
    let native = |platform: String| ShapeError::NativeExecutable { path: path.to_owned(), platform };
    match head {
        [0x7f, b'E', b'L', b'F', ..] => native(format!("linux/{}", elf_architecture(head))),
        [b'M', b'Z', ..] => native("windows".to_owned()),
        [0xcf, 0xfa, 0xed, 0xfe, ..] | [0xca, 0xfe, 0xba, 0xbe, ..] => native("darwin".to_owned()),
        [b'#', b'!', rest @ ..] => ShapeError::Script { path: path.to_owned(), interpreter: interpreter(rest) },
        [] => ShapeError::NotWasm { path: path.to_owned(), start: "nothing: it is empty".to_owned() },
        _ => ShapeError::NotWasm {
            path: path.to_owned(),
            start: format!("bytes {}", hex::encode(&head[..head.len().min(8)])),
        },
    }
}

/// `e_machine` in Go's words.
fn elf_architecture(head: &[u8]) -> String {
    let big_endian = head.get(5) == Some(&2);
    let machine = match head.get(18..20) {
        Some(&[a, b]) if big_endian => u16::from_be_bytes([a, b]),
        Some(&[a, b]) => u16::from_le_bytes([a, b]),
        _ => 0,
    };
    match machine {
        3 => "386".to_owned(),
        8 => "mips".to_owned(),
        20 | 21 => "ppc64le".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "amd64".to_owned(),
        183 => "arm64".to_owned(),
        243 => "riscv64".to_owned(),
        258 => "loong64".to_owned(),
        other => format!("machine-{other}"),
    }
}

fn interpreter(rest: &[u8]) -> String {
    let line = rest.split(|c| *c == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(&line[..line.len().min(64)]);
    text.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_by_their_bytes() {
        assert_eq!(wasm_kind("/a", b"\0asm\x01\0\0\0rest").unwrap(), WasmKind::Module);
        assert_eq!(wasm_kind("/a", b"\0asm\x0d\0\x01\0rest").unwrap(), WasmKind::Component);
    }

    #[test]
    fn everything_else_is_named_for_what_it_is() {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        elf[18] = 62;
        for (head, message) in [
            (elf.as_slice(), "/bin/nginx is a linux/amd64 executable; this node runs WASI modules"),
            (b"#!/bin/sh -e\nexec", "/bin/nginx is a script for /bin/sh -e; this node runs WASI modules"),
            (b"MZ\x90\0", "/bin/nginx is a windows executable; this node runs WASI modules"),
            (b"", "/bin/nginx is not WebAssembly: it starts with nothing: it is empty"),
            (b"(module)", "/bin/nginx is not WebAssembly: it starts with bytes 286d6f64756c6529"),
            (b"\0asm\x02\0\0\0", "/bin/nginx is WebAssembly of unknown version 0x2"),
            (b"\0asm", "/bin/nginx is not WebAssembly: it starts with bytes 0061736d"),
        ] {
            assert_eq!(wasm_kind("/bin/nginx", head).unwrap_err().to_string(), message);
        }
    }
}
