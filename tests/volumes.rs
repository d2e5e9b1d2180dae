//! Files: every operation, in several languages, on every kind of volume.

use super::support::Place;

#[test]
fn fs_check_passes_on_every_kind_of_volume() {
    let place = Place::with_images(&["fs-check", "fs-check-p2", "posix-check-c", "init"]);
    for image in ["fs-check", "fs-check-p2", "posix-check-c"] {
        // The C program takes its directory as it is, the Rust ones by name.
        let [disk, memory, own] = if image == "posix-check-c" {
            [r#"["/disk"]"#, r#"["/memory"]"#, r#"["/tmp"]"#]
        } else {
            [r#"["--dir", "/disk", "--read-only", "/frozen"]"#, r#"["--dir", "/memory"]"#, r#"["--dir", "/tmp"]"#]
        };
        place.write_manifest(
            &format!("{image}.yaml"),
            &format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {image}}}
spec:
  restartPolicy: Never
  volumes: [{{name: disk, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory}}}}, {{name: frozen, emptyDir: {{}}}}]
  initContainers:
  - {{name: init, image: "test/init:v1", args: ["/frozen/file", "ice"], volumeMounts: [{{name: frozen, mountPath: /frozen}}]}}
  containers:
  - {{name: disk, image: "test/{image}:v1", args: {disk}, volumeMounts: [{{name: disk, mountPath: /disk}}, {{name: frozen, mountPath: /frozen, readOnly: true}}]}}
  - {{name: memory, image: "test/{image}:v1", args: {memory}, volumeMounts: [{{name: memory, mountPath: /memory}}]}}
  - {{name: own, image: "test/{image}:v1", args: {own}}}
"#
            ),
        );
    }
    let node = place.start();
    for image in ["fs-check", "fs-check-p2", "posix-check-c"] {
        node.wait_for(image, "has ended", |pod| {
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
        });
        for container in ["disk", "memory", "own"] {
            let log = node.logs(image, container);
            assert!(log.lines().any(|line| line.contains("-check: ")), "{image}/{container} gave no verdict: {log}");
            let failed = log.lines().filter(|line| line.starts_with("FAIL") && !is_libcs(image, line));
            let failed: Vec<_> = failed.collect();
            assert!(failed.is_empty(), "{image}/{container}: {failed:#?}");
        }
    }
}

/// What wasi-libc gets wrong on any host: for WASI 0.2 programs `stat` of a link asks for the link itself, and a failed
/// stream write is EIO whatever the host's error was; `telldir` has 32 bits, and a disk's cookies have 64.
fn is_libcs(image: &str, line: &str) -> bool {
    [
        ("fs-check-p2", "FAIL a symbolic link leads to its target"),
        ("fs-check-p2", "FAIL /dev/full is full: write failed with I/O error"),
        ("posix-check-c", "FAIL seekdir returns to where telldir was"),
    ]
    .iter()
    .any(|(of, known)| *of == image && line.starts_with(known))
}
