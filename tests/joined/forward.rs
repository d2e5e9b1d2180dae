//! `kubectl port-forward`: a gigabyte through it arrives as it was sent, over as many connections as one opens.

use std::io::{Read, Write};
use std::process::Stdio;

use sha2::{Digest, Sha256};

use crate::cluster::{LONG, Space};
use crate::support::eventually;

/// There and back: a gigabyte in all.
const BYTES: usize = 512 << 20;

/// What is sent: no two blocks alike, so that one lost, doubled or misplaced is found.
struct Pattern {
    state: u64,
    left: usize,
}

impl Pattern {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, left: BYTES }
    }

    fn next(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.left);
        for chunk in buffer[..count].chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes()[..chunk.len()]);
        }
        self.left -= count;
        count
    }
}

/// Forwards to a pod that echoes on `port`.
///
/// kubectl listens in the cluster's network, which this process is not in: bash, which is, joins a connection to pipes.
pub fn port_forward(space: &Space<'_>, pod: &str, port: u16) {
    let log = space.cluster().logs().join(format!("port-forward-{}.log", space.name()));
    let file = std::fs::File::create(&log).expect("a file");
    let mut command = space.kubectl_command(&["port-forward", pod, &format!(":{port}")]);
    let mut forward = command.stdout(file.try_clone().expect("a file")).stderr(file).spawn().expect("kubectl starts");
    let local = eventually("kubectl says where it listens", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let address = said.lines().find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next());
        address.map(str::to_owned).ok_or(said.clone())
    });
    // A connection that comes and goes does not end the forwarding.
    for _ in 0..3 {
        echo(space, &local, 100_000);
    }
    echo(space, &local, BYTES);
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(forward.try_wait().expect("our own child").is_none(), "kubectl gave up:\n{said}");
    let _ = forward.kill();
    let _ = forward.wait();
}

fn echo(space: &Space<'_>, port: &str, bytes: usize) {
    const JOIN: &str = r#"exec 3<>"/dev/tcp/127.0.0.1/$1"; cat <&3 & cat >&3; kill $!"#;
    let mut command = space.cluster().command("bash");
    command.args(["-c", JOIN, "bash", port]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut bash = command.spawn().expect("bash starts");
    let mut to = bash.stdin.take().expect("it is piped");
    let mut from = bash.stdout.take().expect("it is piped");
    // Kept open until everything is back: the end of its input is the end of the connection.
    let (done, all_back) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let (mut pattern, mut sent, mut hash) = (Pattern::new(), 0, Sha256::new());
        let mut buffer = vec![0; 256 * 1024];
        while sent < bytes {
            let room = buffer.len().min(bytes - sent);
            let count = pattern.next(&mut buffer[..room]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
            hash.update(&buffer[..count]);
            sent += count;
        }
        let _ = all_back.recv_timeout(LONG);
        drop(to);
        hash.finalize()
    });
    let (mut received, mut hash) = (0, Sha256::new());
    let mut buffer = vec![0; 256 * 1024];
    while received < bytes {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                received += count;
            }
        }
    }
    drop(done);
    let sent = writer.join().expect("the writer does not panic");
    assert_eq!(received, bytes, "everything comes back");
    assert_eq!(hash.finalize(), sent, "and as it was");
    let _ = bash.kill();
    let _ = bash.wait();
}
