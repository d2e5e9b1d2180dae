//! The tables of promises hold: every row has a test with the real API server, or says why it has none, and what a row names
//! is there.

use std::collections::HashSet;
use std::fs;

use super::support::repository;

/// An upstream spec that a run takes: its file with the line, its name.
struct Spec {
    source: String,
    name: String,
}

/// The specs that exercise a node and mean something here, of the conformance suite and of NodeConformance.
fn specs() -> Vec<Spec> {
    let dir = repository().join("tests/conformance");
    let (mut specs, mut left_out) = (Vec::new(), HashSet::new());
    for file in ["specs.tsv", "sets/nodeconformance.tsv"] {
        let text = fs::read_to_string(dir.join(file)).expect("a list of specs");
        for line in text.lines().skip(1).filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [class, name, source, ..] = fields[..] else { panic!("{file}: {line}") };
            if class.starts_with(['C', 'D']) {
                left_out.insert(name.to_owned());
            } else {
                specs.push(Spec { source: source.to_owned(), name: name.to_owned() });
            }
        }
    }
    specs.retain(|spec| !left_out.contains(&spec.name));
    specs
}

/// Whether `joined::FILE` or `joined::FILE::TEST` is there; a test's name may be cut with dots.
fn is_joined(name: &str) -> bool {
    let (file, test) = name.split_once("::").unwrap_or((name, ""));
    let Ok(text) = fs::read_to_string(repository().join(format!("tests/joined/{file}.rs"))) else { return false };
    let wanted = test.trim_end_matches('.');
    text.split("#[test]").skip(1).any(|after| {
        let name = after.split_once("fn ").map_or("", |(_, rest)| rest);
        let end = if test.ends_with("...") { wanted.to_owned() } else { format!("{wanted}(") };
        test.is_empty() || name.starts_with(&end)
    })
}

/// What is wrong with what a row says of its tests.
fn complaints(cell: &str, specs: &[Spec]) -> Vec<String> {
    if cell.starts_with("no: ") {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut named = 0;
    for name in cell.split('`').skip(1).step_by(2) {
        let there = if let Some(test) = name.strip_prefix("joined::") {
            is_joined(test)
        } else if let Some((file, words)) = name.strip_prefix("e2e ").and_then(|spec| spec.split_once(": ")) {
            let file = format!("/{file}:");
            specs.iter().any(|spec| spec.source.contains(&file) && spec.name.contains(words))
        } else {
            continue;
        };
        named += 1;
        if !there {
            complaints.push(format!("there is no {name}"));
        }
    }
    if named == 0 {
        complaints.push("no test is named".to_owned());
    }
    complaints
}

#[test]
fn every_promise_names_tests_with_the_api_server_that_are_there() {
    let specs = specs();
    let mut wrong = Vec::new();
    let mut rows = 0;
    for (file, column) in [("promises.md", 3), ("promises-volumes.md", 2)] {
        let text = fs::read_to_string(repository().join("tests").join(file)).expect("a table");
        for line in text.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            if cells.contains(&"with the API server") {
                continue;
            }
            rows += 1;
            let cell = cells.get(column).copied().unwrap_or_default();
            let promise = cells[0];
            wrong.extend(
                complaints(cell, &specs).into_iter().map(|complaint| format!("{file}: {promise}: {complaint}")),
            );
        }
    }
    assert!(rows > 100, "the tables were read: {rows} rows");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_name_that_is_not_there_is_found_out() {
    let specs = specs();
    let good =
        "`joined::life`, `joined::life::sidecars_start_in_their_turn...`, `e2e node/container_probe.go: tcp:8080`";
    assert!(complaints(good, &specs).is_empty());
    for bad in [
        "",
        "`plan::tests`",
        "`joined::absent`",
        "`joined::life::sidecars_start`",
        "`e2e node/container_probe.go: tcp:8081`",
        "`e2e node/runtime.go: tcp:8080`",
        // Class C: it is not run.
        "`e2e node/security_context.go: should not allow privilege escalation when false`",
    ] {
        assert_eq!(complaints(bad, &specs).len(), 1, "{bad}");
    }
}
