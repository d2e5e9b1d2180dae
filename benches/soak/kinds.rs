//! The kinds of pods that come and go.

/// What a pod is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Waits; has programs to exec.
    Sleeper,
    /// The same as a component that listens.
    Component,
    /// A web server, a sidecar that rewrites its page on an emptyDir, and an init container.
    Web,
    /// Fails and is started again.
    Crashing,
    /// Traps, once.
    Trapping,
    /// Writes its log until it was rotated several times, and again.
    Flooding,
    /// Shows a ConfigMap and a Secret of its own and those that all share, which change.
    Configured,
    /// Ends well, once.
    Job,
    /// Takes more memory than it may.
    Greedy,
    /// Is asked how it is: a server that answers, and a program that never does well.
    Probed,
    /// Has memory volumes with something in them.
    Memory,
    /// Hears SIGTERM and says goodbye.
    Listening,
    /// Its init container fails for good.
    Stuck,
    /// Its image is in a registry that nobody runs.
    Imageless,
}

/// How often each is made: one turn of the churn.
pub const TURN: [Kind; 24] = {
    use Kind::{
        Component, Configured, Crashing, Flooding, Greedy, Imageless, Job, Listening, Memory, Probed, Sleeper, Stuck,
        Trapping, Web,
    };
    [
        Sleeper, Web, Crashing, Configured, Sleeper, Job, Probed, Component, Web, Greedy, Sleeper, Memory, Configured,
        Flooding, Listening, Sleeper, Web, Trapping, Probed, Crashing, Sleeper, Job, Stuck, Imageless,
    ]
};

/// The file of this name that has the objects all pods share, at this version.
pub fn settings(version: u64) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{version: \"{version}\"}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{token: \"t-{version}\"}}\n"
    )
}

/// A manifest; `nonce` makes another pod of the same name.
pub fn manifest(kind: Kind, name: &str, nonce: u64) -> String {
    let head = |policy: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  \
             terminationGracePeriodSeconds: 2\n"
        )
    };
    let one = |policy: &str, image: &str, args: &str| {
        let head = head(policy);
        format!("{head}  containers: [{{name: main, image: \"soak/{image}:v1\", args: {args}}}]\n")
    };
    match kind {
        Kind::Sleeper => one("Always", "tools", &format!("[\"{nonce}\"]")),
        Kind::Component => one("Always", "sleeper-p2", &format!("[\"--port\", \"9000\", \"{nonce}\"]")),
        Kind::Crashing => one("Always", "exit-code", "[\"3\"]"),
        Kind::Trapping => one("Never", "trap", "[\"stack\"]"),
        Kind::Flooding => one("Always", "flood", "[\"8000\", \"100\"]"),
        Kind::Job => one("OnFailure", "exit-code", "[\"0\"]"),
        Kind::Listening => one("Always", "signal", "[]"),
        Kind::Imageless => {
            let head = head("Always");
            format!("{head}  containers: [{{name: main, image: \"127.0.0.1:9/nobody/nothing:v1\"}}]\n")
        }
        Kind::Web => {
            let head = head("Always");
            format!(
                r#"{head}  volumes: [{{name: page, emptyDir: {{}}}}]
  initContainers:
  - {{name: init, image: "soak/init:v1", args: ["/data/index.html", "{nonce}"], volumeMounts: [{{name: page, mountPath: /data}}]}}
  containers:
  - name: web
    image: soak/web:v1
    args: ["--port", "8080"]
    ports: [{{containerPort: 8080}}]
    volumeMounts: [{{name: page, mountPath: /usr/share/nginx/html, readOnly: true}}]
  - {{name: updater, image: "soak/updater:v1", args: ["/data/index.html", "1"], volumeMounts: [{{name: page, mountPath: /data}}]}}
"#
            )
        }
        Kind::Configured => {
            let head = head("Always");
            format!(
                r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: of-{name}}}
data: {{nonce: "{nonce}"}}
---
{head}  volumes:
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: keys, secret: {{secretName: keys}}}}
  - name: all
    projected:
      sources: [{{configMap: {{name: of-{name}}}}}, {{downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}]
  containers:
  - name: main
    image: soak/tools:v1
    envFrom: [{{configMapRef: {{name: of-{name}}}}}]
    volumeMounts: [{{name: settings, mountPath: /etc/settings}}, {{name: keys, mountPath: /etc/keys}}, {{name: all, mountPath: /etc/all}}]
"#
            )
        }
        Kind::Greedy => {
            let head = head("OnFailure");
            format!(
                "{head}  containers: [{{name: main, image: \"soak/grow:v1\", args: [\"1\"], resources: {{limits: {{memory: 6Mi}}}}}}]\n"
            )
        }
        Kind::Probed => {
            let head = head("Always");
            format!(
                r#"{head}  containers:
  - name: web
    image: soak/web:v1
    args: ["--port", "8080"]
    startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, failureThreshold: 30}}
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
  - name: unwell
    image: soak/tools:v1
    lifecycle: {{postStart: {{exec: {{command: [/bin/sleeper, --show, /etc/hostname]}}}}}}
    livenessProbe: {{exec: {{command: [/bin/sleeper, --show, /none]}}, periodSeconds: 1, failureThreshold: 2}}
"#
            )
        }
        Kind::Memory => {
            let head = head("Always");
            format!(
                r#"{head}  volumes: [{{name: fast, emptyDir: {{medium: Memory, sizeLimit: 4Mi}}}}, {{name: disk, emptyDir: {{}}}}]
  containers:
  - {{name: fast, image: "soak/fill:v1", args: ["/data/file", "1"], volumeMounts: [{{name: fast, mountPath: /data}}]}}
  - {{name: disk, image: "soak/fill:v1", args: ["/data/file", "1"], volumeMounts: [{{name: disk, mountPath: /data}}]}}
"#
            )
        }
        Kind::Stuck => {
            let head = head("Always");
            format!(
                "{head}  initContainers: [{{name: init, image: \"soak/exit-code:v1\", args: [\"9\"]}}]\n  \
                 containers: [{{name: main, image: \"soak/tools:v1\"}}]\n"
            )
        }
    }
}
