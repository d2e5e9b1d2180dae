//! A thousand pods from one manifest directory: each runs, logs its own nonce, and answers an exec and a dial.

use std::io::Read;
use std::net::TcpStream;

use super::support::{Place, eventually, pod_ip, text};

const PODS: usize = 1000;

#[test]
fn a_thousand_pods_run_and_each_answers_for_itself() {
    let place = Place::alone().loaded(&["sleeper-p2"]);
    for i in 0..PODS {
        // Every second one could be preview 1; the dial needs sockets, which preview 1 has not got.
        place.write_manifest(
            &format!("p{i}.yaml"),
            &format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: p{i}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: test/sleeper-p2:v1
    args: ["--file", "/tmp/nonce", "--port", "7000", "nonce-{i}-of-the-crowd"]
"#
            ),
        );
    }
    let node = place.start();
    let pods = eventually("a thousand pods run", || {
        let pods = node.pods();
        let running =
            pods.iter().filter(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
        if running == PODS { Ok(pods) } else { Err(format!("{running} of {PODS}\n{}", node.process.output())) }
    });
    let ips: std::collections::BTreeSet<String> = pods.iter().map(pod_ip).collect();
    assert_eq!(ips.len(), PODS, "every pod has an address of its own");
    for pod in &pods {
        let name = pod.metadata.name.clone().expect("a name");
        let i: usize = name.trim_start_matches('p').trim_end_matches("-node").parse().expect("pN-node");
        let nonce = format!("nonce-{i}-of-the-crowd");
        let dialled = eventually("the pod answers a dial", || {
            let mut answer = String::new();
            let mut stream = TcpStream::connect(format!("{}:7000", pod_ip(pod))).map_err(|e| e.to_string())?;
            stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
            Ok(answer)
        });
        assert_eq!(dialled.trim(), nonce, "{name} was dialled");
        let log = text(&place.run(&["logs", &name]).stdout);
        assert!(log.lines().any(|line| line.trim() == nonce || line.ends_with(&nonce)), "{name} logged {log:?}");
        let exec = place.run(&["exec", &name, "--", "/app.wasm", "--show", "/tmp/nonce"]);
        assert_eq!(text(&exec.stdout).trim(), nonce, "{name} was asked: {}", text(&exec.stderr));
    }
}
