//! What bytes are, by their first bytes alone.
//!
//! In: the beginning of a file. Out: module, component, or an error that says what it looks like instead. Media types
//! and file names are never asked.

use super::super::error::ProgramError;

/// The two binary formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WasmKind {
    /// A core module.
    Module,
    /// A component.
    Component,
}

/// Tells the format of `head`, the first bytes (at least 20 if there are as many) of the file called `program`.
///
/// # Errors
/// [`ProgramError::NotWasm`], [`ProgramError::LinuxExecutable`], [`ProgramError::Truncated`].
pub fn detect(program: &str, head: &[u8]) -> Result<WasmKind, ProgramError> {
    let name = || program.to_owned();
    match head {
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(WasmKind::Module),
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(WasmKind::Component),
        [b'\0', b'a', b's', b'm', version @ ..] if version.len() >= 4 => {
            let reason = format!("unknown binary version {}", hex::encode(&version[..4]));
            Err(ProgramError::Invalid { program: name(), reason })
        }
        [0x7f, b'E', b'L', b'F', rest @ ..] => {
            Err(ProgramError::LinuxExecutable { program: name(), platform: elf_platform(rest) })
        }
        // Any beginning of the magic, the empty file included.
        short if b"\0asm".starts_with(&short[..short.len().min(4)]) => {
            Err(ProgramError::Truncated { program: name(), offset: short.len() as u64 })
        }
        other => Err(ProgramError::NotWasm { program: name(), found: describe(other) }),
    }
}

/// GOOS/GOARCH of an ELF file, whose bytes after the magic these are.
fn elf_platform(rest: &[u8]) -> String {
    let machine = match rest.get(14..16) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    };
    let architecture = match machine {
        0x03 => "386",
        0x3e => "amd64",
        0x28 => "arm",
        0xb7 => "arm64",
        0xf3 => "riscv64",
        0x15 => "ppc64le",
        0x16 => "s390x",
        _ => return "Linux".to_owned(),
    };
    format!("linux/{architecture}")
}

fn describe(head: &[u8]) -> String {
    let known = match head {
        [b'#', b'!', ..] => Some("\"#!\", a script"),
        [b'M', b'Z', ..] => Some("\"MZ\", a Windows executable"),
        [0x1f, 0x8b, ..] => Some("a gzip header"),
        [b'P', b'K', 3, 4, ..] => Some("a zip header"),
        [b'(', b'm' | b'c', ..] => Some("WebAssembly text; compile it to the binary format first"),
        _ => None,
    };
    known.map_or_else(|| format!("bytes {}", hex::encode(&head[..head.len().min(4)])), str::to_owned)
}
