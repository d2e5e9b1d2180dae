//! Volumes of objects that change while guests read them: an update is seen as a whole or not at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::volumes::{holder, shared_directory};
use crate::cluster::{Cluster, NodeOptions, Space, block_on};
use crate::support::eventually;

/// Updates that land while the guests read.
const LAST: u32 = 40;

/// Four readers, one a kind of volume, each of several files that always change together.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {generation: "0"}, annotations: {generation: "0"}}
spec:
  nodeSelector: {wasilet.dev/test: SPACE}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: config, image: "test/coherent:v1", args: [/data, LAST, a, b, c], volumeMounts: [{name: config, mountPath: /data}]}
  - {name: secret, image: "test/coherent:v1", args: [/data, LAST, a, b, c], volumeMounts: [{name: secret, mountPath: /data}]}
  - {name: projected, image: "test/coherent:v1", args: [/data, LAST, deep/a, deep/er/b, c], volumeMounts: [{name: projected, mountPath: /data}]}
  - {name: fields, image: "test/coherent:v1", args: [/data, LAST, label, annotation], volumeMounts: [{name: fields, mountPath: /data}]}
  volumes:
  - {name: config, configMap: {name: generation}}
  - {name: secret, secret: {secretName: generation}}
  - name: projected
    projected:
      sources:
      - configMap: {name: generation, items: [{key: a, path: deep/a}, {key: b, path: deep/er/b}, {key: c, path: c}]}
      - secret: {name: generation, items: [{key: a, path: secret}]}
  - name: fields
    downwardAPI:
      items:
      - {path: label, fieldRef: {fieldPath: "metadata.labels['generation']"}}
      - {path: annotation, fieldRef: {fieldPath: "metadata.annotations['generation']"}}
"#;

/// The content of an update: files of several sizes, each with the update's number on every line.
fn content(generation: u32) -> Value {
    let lines = |count: usize| format!("{generation}\n").repeat(count);
    json!({"a": lines(1), "b": lines(5_000), "c": lines(300)})
}

fn update(space: &Space<'_>, generation: u32) {
    let params = PatchParams::default();
    let data = json!({"data": content(generation)});
    block_on(space.api::<ConfigMap>().patch("generation", &params, &Patch::Merge(&data))).unwrap();
    let data = json!({"stringData": content(generation)});
    block_on(space.api::<Secret>().patch("generation", &params, &Patch::Merge(&data))).unwrap();
    let text = json!({"generation": generation.to_string()});
    let fields = json!({"metadata": {"labels": text, "annotations": text}});
    block_on(space.api::<Pod>().patch("reader", &params, &Patch::Merge(&fields))).unwrap();
}

/// A volume that is written in place, file after file: the reader has to see it, or it would see nothing.
fn the_reader_tells_what_is_not_whole(space: &Space<'_>, dir: &Path) {
    fs::create_dir(dir.join("..1")).unwrap();
    symlink("..1", dir.join("..data")).unwrap();
    let files = ["a", "b", "c"];
    let write = |file: &str, generation: u32| fs::write(dir.join("..1").join(file), format!("{generation}\n")).unwrap();
    for file in files {
        symlink(format!("..data/{file}"), dir.join(file)).unwrap();
        write(file, 0);
    }
    let pod = holder("control", "restartPolicy: Never", &format!("hostPath: {{path: {}}}", dir.display()));
    let pod = pod.replace("test/tools:v1", "test/coherent:v1");
    space.apply(
        &pod.replace("command: [/bin/sleeper, --file, /data/seen, control]", r#"args: [/data, "1000000000", a, b, c]"#),
    );
    space.wait_ready("control");
    let mut generation = 0;
    eventually("it sees a mix", || {
        generation += 1;
        for file in files {
            write(file, generation);
            std::thread::sleep(Duration::from_millis(10));
        }
        let log = space.kubectl(&["logs", "control"]).stdout;
        if log.contains("FAIL") { Ok(()) } else { Err(log) }
    });
    space.wait_phase("control", "Failed");
}

#[test]
fn a_guest_that_reads_without_a_pause_never_sees_two_updates_together() {
    let space = Cluster::shared().space("coherence");
    let (dir, allowed) = shared_directory(&space);
    let _node = space.node(NodeOptions { images: &["coherent"], node: &allowed, ..NodeOptions::default() });
    if space.cluster().try_plane().is_some() {
        the_reader_tells_what_is_not_whole(&space, &dir);
    }
    for kind in ["ConfigMap", "Secret"] {
        let data = if kind == "Secret" { "stringData" } else { "data" };
        space.apply(
            &json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "generation"}, data: content(0)})
                .to_string(),
        );
    }
    space.apply(&PODS.replace("LAST", &format!("\"{LAST}\"")));
    space.wait_ready("reader");
    for generation in 1..=LAST {
        update(&space, generation);
    }
    let containers = ["config", "secret", "projected", "fields"];
    let logs = |container: &str| space.kubectl(&["logs", "reader", "--container", container]).stdout;
    for container in containers {
        let log = eventually("every reader meets the last update", || {
            let log = logs(container);
            if log.contains("coherent: ") || log.contains("FAIL") {
                Ok(log)
            } else {
                Err(format!("{container}: {log}"))
            }
        });
        assert!(!log.contains("FAIL"), "{container}: {log}");
        let met = log.lines().filter(|line| line.parse::<u32>().is_ok()).count();
        println!("{container} met {met} updates; {}", log.lines().last().unwrap_or_default());
        // Updates that come fast may be passed over; one that sees the last alone was not reading meanwhile.
        assert!(met > 5, "{container} met {met} of {LAST} updates: {log}");
    }
    space.wait_phase("reader", "Succeeded");
}
