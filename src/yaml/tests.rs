//! What texts mean, and what is said about those that mean nothing.

use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Node {
    let mut documents = parse(text).unwrap_or_else(|e| panic!("{text}: {} {e}", e.place));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn as_json(text: &str) -> serde_json::Value {
    decode::<serde_json::Value>(&one(text)).unwrap().value
}

fn error(text: &str) -> String {
    match parse(text).and_then(|documents| decode::<serde_json::Value>(&documents[0]).map(drop)) {
        Ok(()) => panic!("accepted: {text}"),
        Err(error) => format!("{}: {error}", error.place),
    }
}

#[test]
fn scalars_mean_what_kubectl_makes_of_them() {
    for (text, expected) in [
        ("yes", "true"),
        ("on", "true"),
        ("N", "false"),
        ("~", "null"),
        ("null", "null"),
        ("0644", "420"),
        ("0o644", "420"),
        ("0x1F", "31"),
        ("0b11", "3"),
        ("1_000", "1000"),
        ("-5", "-5"),
        ("+5", "5"),
        ("089", "89.0"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("1.", "1.0"),
        ("18446744073709551615", "18446744073709551615"),
        ("2026-01-02", "\"2026-01-02\""),
        ("1.2.3", "\"1.2.3\""),
        ("--5", "\"--5\""),
        (".inf", "\".inf\""),
        ("1e", "\"1e\""),
        ("\"0644\"", "\"0644\""),
        ("'yes'", "\"yes\""),
        ("!!str 5", "\"5\""),
        ("|\n  a\n  b\n", "\"a\\nb\\n\""),
        ("1e999", "\"1e999\""),
        ("0x", "\"0x\""),
        ("12:30:45", "\"12:30:45\""),
        ("100m", "\"100m\""),
    ] {
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        assert_eq!(as_json(&format!("k: {text}"))["k"], expected, "{text}");
    }
}

#[test]
fn documents_are_separate_and_empty_ones_left_out() {
    let documents = parse("\u{feff}# note\n---\na: 1\n---\n---\n# only a note\n---\nb: 2\n...\n").unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[1].get("b").unwrap().place, Place { line: 8, column: 4 });
    assert!(parse("").unwrap().is_empty());
}

#[test]
fn anchors_and_merge_keys_work_within_a_document() {
    let text = "base: &b {x: 1, z: 2}\nuse:\n  <<: *b\n  z: 3\nlist: [*b, {<<: [{z: 9}, *b]}]\n";
    assert_eq!(
        as_json(text),
        serde_json::json!({"base": {"x": 1, "z": 2}, "use": {"z": 3, "x": 1}, "list": [{"x": 1, "z": 2}, {"z": 9, "x": 1}]})
    );
    assert_eq!(as_json("{y: 1, 5: 2}"), serde_json::json!({"true": 1, "5": 2}), "keys are resolved as in a cluster");
    assert!(error("a: &x 1\n---\nb: *x\n").contains("anchor"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, expected) in [
        ("a: 1\nb: 2\na: 3\n", "3:1: strict decoding error: key \"a\" already set in map"),
        ("{x: 1, x: 2}", "1:8: strict decoding error: key \"x\" already set in map"),
        ("a: *nope\n", "1:"),
        ("a: &a [*a]\n", "1:8: yaml: unknown anchor referenced, or an anchor that contains itself"),
        ("? [1]\n: 2\n", "1:3: yaml: a key must be a string"),
        ("a: !!binary aGk=\n", "1:4: yaml: unsupported tag \"tag:yaml.org,2002:binary\""),
        ("<<: 5\n", "1:5: yaml: map merge requires map"),
        ("a: b: c\n", "1:5: yaml: mapping values are not allowed in this context"),
        ("a:\n\t- b\n", "2:"),
        ("a: \"x\n", "1:"),
    ] {
        let found = error(text);
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
}

#[test]
fn bombs_and_towers_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..30 {
        let alias = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [{}]\n", [alias.as_str(); 9].join(","));
    }
    assert!(error(&bomb).contains("excessive aliasing"));
    assert!(error(&"[".repeat(100_000)).contains("recursion limit exceeded"), "the parser's own limit comes first");
    assert!(error(&"[".repeat(150)).contains("nested deeper than 100 levels"), "flow");
    assert!(error(&"- ".repeat(100_000)).contains("nested deeper than 100 levels"), "block");
    let mut tower = "a0: &a0 [x]\n".to_owned();
    for n in 1..200 {
        tower += &format!("a{n}: &a{n} [*a{}]\n", n - 1);
    }
    assert!(error(&tower).contains("nested deeper"));
}

#[derive(Debug, serde::Deserialize)]
#[allow(dead_code, reason = "only decoded")]
struct Port {
    name: Option<String>,
    port: i32,
}

#[derive(Debug, serde::Deserialize)]
#[allow(dead_code, reason = "only decoded")]
struct Spec {
    ports: Vec<Port>,
    #[serde(default)]
    flag: bool,
}

#[test]
fn unknown_fields_and_wrong_types_are_told_with_path_and_place() {
    let text = "ports:\n- port: 80\n  foo: {a: 1}\n- port: 81\n  bar: x\nextra: 1\n";
    let decoded = decode::<Spec>(&one(text)).unwrap();
    let shown: Vec<String> = decoded.unknown.iter().map(|u| format!("{} {u}", u.place)).collect();
    let expected =
        ["3:3 unknown field \"ports[0].foo\"", "5:3 unknown field \"ports[1].bar\"", "6:1 unknown field \"extra\""];
    assert_eq!(shown, expected);
    for (text, expected) in [
        ("ports:\n- port: http\n", "2:9: ports[0].port: expected a whole number (32 bits), found a string"),
        ("ports:\n- port: 5000000000\n", "2:9: ports[0].port: invalid value: expected a whole number (32 bits)"),
        (
            "ports:\n- {port: 1, name: 80}\n",
            "2:19: ports[0].name: expected a string, found a whole number (put it in quotes)",
        ),
        ("ports: {}\n", "1:8: ports: expected a list, found a mapping"),
        ("ports: [1]\n", "1:9: ports[0]: expected struct Port, found a whole number"),
        ("flag: 1\nports: []\n", "1:7: flag: expected a boolean, found a whole number"),
        ("- 1\n", "1:1: (root): expected struct Spec, found a list"),
    ] {
        let error = decode::<Spec>(&one(text)).unwrap_err();
        assert_eq!(format!("{}: {error}", error.place), expected);
    }
}

#[test]
fn a_quantity_may_be_a_number_and_a_mode_octal() {
    use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, ResourceRequirements};
    let text = "limits: {cpu: 1, memory: 1.5, pods: \"2\", storage: 1Gi}\n";
    let limits = decode::<ResourceRequirements>(&one(text)).unwrap().value.limits.unwrap();
    let shown: Vec<_> = limits.into_iter().map(|(name, quantity)| format!("{name}={}", quantity.0)).collect();
    assert_eq!(shown, ["cpu=1", "memory=1.5", "pods=2", "storage=1Gi"]);
    assert_eq!(decode::<ConfigMapVolumeSource>(&one("defaultMode: 0644")).unwrap().value.default_mode, Some(0o644));
}

proptest! {
    #[test]
    fn no_text_panics(text in "[-a-c0-9:{}\\[\\],&*!<>|?'\"\n\t #~.]{0,80}") {
        if let Ok(documents) = parse(&text) {
            for node in documents {
                let _ = decode::<serde_json::Value>(&node);
            }
        }
    }

    #[test]
    fn json_means_the_same_here(text in "[a-z ]{0,8}", number in any::<i32>(), flag in any::<bool>()) {
        let value = serde_json::json!({"k": [text, number, flag, null], "m": {"x": {"y": [[]]}}});
        prop_assert_eq!(as_json(&value.to_string()), value);
    }
}
