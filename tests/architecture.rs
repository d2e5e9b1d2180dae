//! The house keeps its shape: imports point only downward, and only `runtime` knows wasmtime.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The levels of `src/lib.rs`, lowest first.
const LEVELS: &[&[&str]] = &[
    &["ids", "errno", "clock", "yaml"],
    &["config", "telemetry", "descriptors", "pod"],
    &["vfs", "objects", "events", "logs", "state", "identity"],
    &["image", "volume", "network"],
    &["runtime"],
    &["status", "probe"],
    &["worker"],
    &["source", "server", "node"],
    &["agent", "cli"],
];

/// `agent` builds every part and `cli` starts the agent: the one sideways import there is.
const ALLOWED_SIDEWAYS: &[(&str, &str)] = &[("cli", "agent")];

fn source_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            source_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

/// Every `(module, file, text)` below `src/`, without `lib.rs` and `main.rs`.
fn modules() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    let mut modules = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).expect("found below src");
        let first = inside.components().next().expect("not empty").as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        if module != "lib" && module != "main" {
            let text = fs::read_to_string(&file).expect("source is UTF-8");
            modules.push((module, inside.to_owned(), text));
        }
    }
    modules
}

/// The first segments of every `crate::` path in `text`, comments left out.
fn crate_paths(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(top_level_items(list)),
            None => found.push(first_segment(rest)),
        }
    }
    found
}

/// `a::{b, c}, d}` gives `a` and `d`: the items of a brace list up to its end.
fn top_level_items(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0;
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            c if depth == 0 => items.last_mut().expect("starts with one").push(c),
            _ => {}
        }
    }
    items.iter().map(|item| first_segment(item.trim())).filter(|item| !item.is_empty()).collect()
}

fn first_segment(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn every_module_has_a_level_and_imports_only_from_below() {
    let level_of: BTreeMap<&str, usize> =
        LEVELS.iter().enumerate().flat_map(|(level, names)| names.iter().map(move |name| (*name, level))).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, file, text) in modules() {
        let Some(&level) = level_of.get(module.as_str()) else {
            wrong.push(format!("{}: module `{module}` has no level", file.display()));
            continue;
        };
        for target in crate_paths(&text) {
            let Some(&below) = level_of.get(target.as_str()) else { continue };
            seen += 1;
            let sideways = ALLOWED_SIDEWAYS.contains(&(module.as_str(), target.as_str()));
            if target != module && below >= level && !sideways {
                wrong
                    .push(format!("{}: `{module}` (level {level}) imports `{target}` (level {below})", file.display()));
            }
        }
    }
    assert!(seen > 0, "the reader of imports found none: it is broken");
    assert!(wrong.is_empty(), "imports must point downward:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_runtime_knows_wasmtime() {
    let names = ["wasmtime::", "wasmtime_wasi", "wiggle::"];
    let strangers: Vec<_> = modules()
        .into_iter()
        .filter(|(module, _, text)| module != "runtime" && names.iter().any(|name| text.contains(name)))
        .map(|(_, file, _)| file)
        .collect();
    assert!(strangers.is_empty(), "wasmtime is imported outside src/runtime: {strangers:?}");
}

#[test]
fn pod_decides_without_effects() {
    let effects =
        ["tokio::", "std::fs", "std::net::Tcp", "SystemTime::now", "Instant::now", "rustix::", "Timestamp::now"];
    for (module, file, text) in modules() {
        if module == "pod" {
            for effect in effects {
                assert!(!text.contains(effect), "{}: `pod` is pure, yet it uses {effect}", file.display());
            }
        }
    }
}

#[test]
fn every_file_says_what_it_owns_and_stays_readable() {
    for (_, file, text) in modules() {
        assert!(text.starts_with("//!"), "{}: a file opens with `//!`: what it owns", file.display());
        let lines = text.lines().count();
        assert!(lines <= 800, "{}: {lines} lines; split it", file.display());
    }
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let text = "use crate::ids::PodUid;\nuse crate::{\n  pod::{run, plan},\n  vfs,\n};\n// crate::comment\nlet x = crate::errno::Errno::Io;";
    assert_eq!(crate_paths(text), ["ids", "pod", "vfs", "errno"]);
}
