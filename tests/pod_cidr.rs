//! A node that may make a network namespace gives its pods addresses of a podCIDR, reached through the host's kernel like
//! any others. Each test is in a network namespace of its own: it needs privileges, and says so when it has none.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use wasilet::network::may_make_namespaces;

use super::support::{Place, eventually, http_get, pod_ip};

/// An address of the machine.
const NODE: &str = "198.51.100.1";

/// Runs a test as if it were alone on a machine whose address is [`NODE`].
#[allow(unsafe_code, reason = "unshare(2) is unsafe for its flag CLONE_FILES, which is not among these")]
fn alone(test: impl FnOnce() + Send + 'static) {
    if !may_make_namespaces() {
        crate::support::skipped("it needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace is unshared; the table of descriptors stays the process's.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a network namespace");
        ip("link set lo up");
        ip(&format!("addr add {NODE}/32 dev lo"));
        test();
    });
    thread.join().expect("the test");
}

/// ip(8) in the namespace of the calling thread.
fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A configuration with a podCIDR.
fn configure(place: &Place, cidr: &str) -> String {
    let path = place.path().join("config.yaml");
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodCIDR: {cidr}\n");
    std::fs::write(&path, text).expect("written");
    path.to_string_lossy().into_owned()
}

fn ping(to: &str) {
    let mut stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    stream.write_all(b"ping\n").expect("it reads");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it echoes");
    assert_eq!(&answer, b"ping\n");
}

#[test]
fn pods_keep_their_addresses_over_a_kill_and_no_server_of_the_host_answers_for_them() {
    alone(|| {
        let place = Place::with_images(&["net-check"]);
        place.write_manifest(
            "server.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: server}\nspec:\n  containers: [{name: server, image: \"test/net-check:v1\", args: [\"serve\", \"7000\"]}]\n",
        );
        let config = configure(&place, "10.244.1.0/24");
        let in_the_way = TcpListener::bind("0.0.0.0:7000").expect("a server of the host");
        let mut node = place.start_with(&["--config", &config]);
        let to = format!("{}:7000", pod_ip(&node.wait_ready("server")));
        assert!(to.starts_with("10.244.1."), "{to}");
        eventually("it listens", || TcpStream::connect(&to).map(drop).map_err(|error| error.to_string()));
        ping(&to);
        node.process.signal(rustix::process::Signal::KILL);
        node.process.wait();
        drop(node);

        let node = place.start_with(&["--config", &config]);
        node.wait_ready("server");
        eventually("it listens again", || TcpStream::connect(&to).map(drop).map_err(|error| error.to_string()));
        ping(&to);
        assert_eq!(ip("-o link show type veth").lines().count(), 1, "what the killed agent left is gone");
        drop(in_the_way);
        node.stop();
        eventually("the link goes with the node", || {
            let links = ip("-o link show type veth");
            if links.is_empty() { Ok(()) } else { Err(links) }
        });
    });
}

#[test]
fn a_pod_reaches_the_machine_and_a_host_port_reaches_the_pod() {
    alone(|| {
        let place = Place::with_images(&["net-check", "http-component"]);
        let server = TcpListener::bind((NODE, 0)).expect("a server of the host");
        let port = server.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        let datagrams = UdpSocket::bind((NODE, port)).expect("a server of the host");
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
                let _ = datagrams.send_to(&buffer[..length], from);
            }
        });
        place.write_manifest(
            "client.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: client}}\nspec:\n  restartPolicy: Never\n  containers: [{{name: main, image: \"test/net-check:v1\", args: [\"dial\", \"{NODE}\", \"{port}\"]}}]\n"
            ),
        );
        place.write_manifest(
            "web.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: main, image: \"test/http-component:v1\", ports: [{containerPort: 8080, hostPort: 80}]}\n",
        );
        let node = place.start_with(&["--config", &configure(&place, "10.244.1.0/24")]);
        let log = node.wait_log("client", "main", "net-check: ");
        assert!(log.contains(", 0 failed"), "{log}");
        node.wait_ready("web");
        for host in [NODE, "127.0.0.1", "10.244.1.1"] {
            let address = format!("{host}:80");
            let (code, _) =
                eventually("the port answers", || http_get(&address, "/").map_err(|error| error.to_string()));
            assert_eq!(code, 200, "{address}");
        }
        node.stop();
        assert!(TcpStream::connect((NODE, 80)).is_err(), "the port ended with the node");
        // Nothing of it is left for another: the machine's own ports are free.
        assert!(TcpListener::bind((NODE, 80)).is_ok() && UdpSocket::bind((NODE, 80)).is_ok());
    });
}
