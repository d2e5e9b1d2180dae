//! `wasilet image` as a person uses it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::MODULE;
use super::registry::{Auth, Registry, Tls};

fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wasilet"));
    command.arg("--root-dir").arg(root).arg("image").args(args).env("HOME", root);
    command
}

fn wasilet(root: &Path, args: &[&str]) -> Output {
    command(root, args).output().expect("the binary runs")
}

fn succeed(root: &Path, args: &[&str]) -> String {
    let output = wasilet(root, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn load_push_pull_ls_inspect_tag_rm_and_prune_do_what_they_say() {
    let registry = Registry::start(Auth::Htpasswd, Tls::None);
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let file = dir.path().join("app.wasm");
    fs::write(&file, [MODULE, &[1; 4096]].concat()).unwrap();
    let image = registry.name("team/app:1");
    let loaded = succeed(&here, &["load", file.to_str().unwrap(), &image]);
    assert!(loaded.starts_with(&format!("Loaded image: {image} (")), "{loaded}");
    let refused = wasilet(&here, &["push", &image]);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.starts_with("error: ") && complaint.contains("refused access"), "{complaint}");
    let pushed = succeed(&here, &["push", &image, "--creds", "wasilet:secret"]);
    assert!(pushed.starts_with(&format!("{}/team/app@sha256:", registry.host())), "{pushed}");
    let pulled = wasilet(&there, &["pull", &image, "--creds", "wasilet:secret"]);
    assert_eq!(String::from_utf8_lossy(&pulled.stdout), pushed, "the digest a pod's status shows");
    let lines = String::from_utf8_lossy(&pulled.stderr).into_owned();
    assert!(lines.contains(&format!("Successfully pulled image \"{image}\" in ")), "{lines}");
    let table = succeed(&there, &["ls"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["IMAGE", "TAG", "IMAGE", "ID", "KIND", "AGE", "SIZE"]);
    assert_eq!(rows[1][..2], [&registry.name("team/app"), "1"]);
    assert_eq!(rows[1][3], "artifact");
    let json: serde_json::Value = serde_json::from_str(&succeed(&there, &["ls", "-o", "json"])).unwrap();
    assert_eq!(json["images"][0]["repoTags"][0], image.as_str());
    let inspected: serde_json::Value =
        serde_json::from_str(&succeed(&there, &["inspect", "--verify", &image])).unwrap();
    assert_eq!(inspected[0]["config"]["entrypoint"][0], "/app.wasm");
    succeed(&there, &["tag", &image, "app:mine"]);
    let untagged = succeed(&there, &["rm", &image]);
    assert_eq!(untagged, format!("Untagged: {image}\n"), "the other name keeps it");
    let removed = succeed(&there, &["rm", rows[1][2]]);
    assert!(
        removed.contains("Untagged: docker.io/library/app:mine") && removed.contains("Deleted: sha256:"),
        "{removed}"
    );
    assert!(succeed(&here, &["prune", "--all"]).contains("Total reclaimed space: "));
    assert_eq!(succeed(&here, &["ls", "--quiet"]), "");
    let stdin = fs::File::open(&file).unwrap();
    let spooled = command(&here, &["load", "-", "from-stdin"]).stdin(stdin).output().unwrap();
    assert!(spooled.status.success(), "{}", String::from_utf8_lossy(&spooled.stderr));
    let missing = wasilet(&there, &["inspect", "nothing"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "error: image \"nothing\" is not on this node\n");
}
