//! Each scenario runs twice: on the kernel's loopback, through a `hostNetwork` pod, and on ours. The traces, which
//! hold every result and errno in order, must be the same.

use std::fmt::Debug;
use std::future::Future;
use std::net::IpAddr;

use super::*;

/// What a scenario saw.
#[derive(Default, Debug, PartialEq)]
struct Trace(Vec<String>);

impl Trace {
    fn note(&mut self, what: &str, result: impl Debug) {
        self.0.push(format!("{what}: {result:?}"));
    }
}

async fn same<F: Future<Output = Trace>>(name: &str, scenario: impl Fn(Arc<PodNetwork>) -> F) {
    let node = node(|_| {});
    let real = node.add_pod(spec("real", NetworkMode::Host)).expect("a pod on the kernel's loopback");
    let ours = pod(&node, "ours");
    let kernel = scenario(real).await;
    assert_eq!(scenario(ours).await, kernel, "{name}: ours (left) and the kernel (right)");
    assert!(!kernel.0.is_empty());
}

#[tokio::test]
async fn calls_on_sockets_in_the_wrong_state_fail_as_in_the_kernel() {
    same("states", |pod| async move {
        let mut trace = Trace::default();
        let fresh = tcp(&pod);
        trace.note("read unbound", fresh.try_read(&mut [0; 4]));
        trace.note("write unbound", fresh.try_write(b"x"));
        trace.note("accept unbound", fresh.try_accept().map(|_| ()));
        trace.note("peer of unbound", fresh.peer_addr());
        trace.note("local of unbound", fresh.local_addr());
        trace.note("shutdown unbound", fresh.shutdown(Shutdown::Both));
        trace.note("bind foreign", fresh.bind(addr("192.0.2.1:0")));
        trace.note("bind wrong family", fresh.bind(addr("[::1]:0")));
        trace.note("bind", fresh.bind(addr("127.0.0.1:0")));
        trace.note("bind again", fresh.bind(addr("127.0.0.1:0")));
        trace.note("accept bound", fresh.try_accept().map(|_| ()));
        trace.note("listen", fresh.listen(1));
        trace.note("listen again", fresh.listen(2));
        trace.note("accept none", fresh.try_accept().map(|_| ()));
        trace.note("connect a listener", fresh.start_connect(addr("127.0.0.1:9")));
        trace.note("read a listener", fresh.try_read(&mut [0; 4]));
        let (client, _server) = pair(&pod).await;
        trace.note("connect again", client.start_connect(addr("127.0.0.1:9")));
        trace.note("listen connected", client.listen(1));
        trace.note("accept connected", client.try_accept().map(|_| ()));
        trace.note("bind connected", client.bind(addr("127.0.0.1:0")));
        trace.note("finish again", client.try_finish_connect());
        trace.note("read nothing", client.try_read(&mut []));
        trace.note("write nothing", client.try_write(&[]));
        client.close();
        trace.note("read closed", client.try_read(&mut [0; 4]));
        trace.note("local of closed", client.local_addr());
        trace
    })
    .await;
}

#[tokio::test]
async fn addresses_in_use_are_the_kernels() {
    same("addresses", |pod| async move {
        let mut trace = Trace::default();
        for reuse in [true, false] {
            let make = || {
                let socket = tcp(&pod);
                socket.set_option(TcpOption::ReuseAddress(reuse)).expect("an option");
                socket
            };
            let (first, second, third) = (make(), make(), make());
            first.bind(addr("127.0.0.1:0")).expect("bound");
            let taken = first.local_addr().expect("an address");
            trace.note("share a bound address", second.bind(taken));
            trace.note(
                "bind another of loopback",
                make().bind(SocketAddr::new("127.0.0.2".parse::<IpAddr>().expect("ip"), taken.port())),
            );
            trace.note("first listens", first.listen(1));
            trace.note("second listens", second.listen(1).map_err(|errno| (reuse, errno)).is_ok() != reuse);
            trace.note("bind where one listens", third.bind(taken));
            trace.note(
                "bind the unspecified address over it",
                make().bind(SocketAddr::new("0.0.0.0".parse::<IpAddr>().expect("ip"), taken.port())),
            );
            drop((first, second));
            trace.note("bind when it is closed", third.bind(taken));
        }
        trace
    })
    .await;
}

#[tokio::test]
async fn ends_of_connections_are_the_kernels() {
    same("half-close", |pod| async move {
        let mut trace = Trace::default();
        let (client, server) = pair(&pod).await;
        trace.note("write", client.try_write(b"question"));
        trace.note("shut", client.shutdown(Shutdown::Write));
        trace.note("write after", client.try_write(b"x"));
        trace.note("peek", {
            server.readable().await;
            server.try_peek(&mut [0; 4])
        });
        trace.note("read", read(&server, 16).await);
        trace.note("end", read(&server, 16).await);
        trace.note("answer", server.try_write(b"answer"));
        trace.note("read answer", read(&client, 4).await);
        trace.note("read rest", read(&client, 4).await);
        drop(server);
        trace.note("end of answer", read(&client, 4).await);
        trace
    })
    .await;
    same("close with unread bytes", |pod| async move {
        let mut trace = Trace::default();
        let (client, server) = pair(&pod).await;
        trace.note("write", client.try_write(b"unread"));
        trace.note("write back", server.try_write(b"seen"));
        server.readable().await;
        drop(server);
        client.readable().await;
        trace.note("read what came", read(&client, 16).await);
        trace.note("read reset", read(&client, 16).await);
        trace.note("read again", read(&client, 16).await);
        trace.note("write", client.try_write(b"x"));
        trace.note("shutdown", client.shutdown(Shutdown::Write));
        trace
    })
    .await;
    same("write to a closed peer", |pod| async move {
        let mut trace = Trace::default();
        let (client, server) = pair(&pod).await;
        drop(server);
        trace.note("end", read(&client, 16).await);
        trace.note("first write", client.try_write(b"x"));
        trace.note("second write", client.try_write(b"x"));
        trace.note("end again", read(&client, 16).await);
        trace
    })
    .await;
    same("linger zero", |pod| async move {
        let mut trace = Trace::default();
        let (client, server) = pair(&pod).await;
        trace.note("linger", server.set_option(TcpOption::Linger(Some(std::time::Duration::ZERO))));
        drop(server);
        trace.note("read", read(&client, 16).await);
        trace.note("write", client.try_write(b"x"));
        trace
    })
    .await;
    same("shut reading", |pod| async move {
        let mut trace = Trace::default();
        let (client, server) = pair(&pod).await;
        server.try_write(b"before").expect("written");
        client.readable().await;
        trace.note("shut", client.shutdown(Shutdown::Read));
        trace.note("what came before", read(&client, 16).await);
        trace.note("end", read(&client, 16).await);
        trace.note("peer still writes", server.try_write(b"after"));
        trace.note("peer reads", {
            client.try_write(b"back").expect("written");
            read(&server, 16).await
        });
        trace
    })
    .await;
}

#[tokio::test]
async fn connects_end_as_in_the_kernel() {
    same("connect", |pod| async move {
        let mut trace = Trace::default();
        let (listener, at) = listener(&pod, "127.0.0.1:0");
        let gone = {
            let (probe, gone) = super::listener(&pod, "127.0.0.1:0");
            drop(probe);
            gone
        };
        let client = tcp(&pod);
        trace.note("refused", client.connect(gone).await);
        trace.note("then connected", client.connect(at).await);
        let server = listener.accept().await.expect("accepted");
        trace.note("peer", client.peer_addr().map(|peer| peer == at));
        trace.note("mutual", Ok::<_, Errno>(server.peer_addr() == client.local_addr()));
        trace.note("unspecified is loopback", {
            let client = tcp(&pod);
            let outcome = client.connect(SocketAddr::new(Family::V4.unspecified(), at.port())).await;
            (outcome, client.peer_addr().map(|peer| peer.ip()), client.local_addr().map(|local| local.ip()))
        });
        trace.note("wrong family", tcp(&pod).connect(addr("[::1]:1")).await);
        let twice = tcp(&pod);
        twice.bind(addr("127.0.0.1:0")).expect("bound");
        let bound = twice.local_addr();
        trace.note("bound connects", twice.connect(at).await);
        trace.note("keeps its address", twice.local_addr() == bound);
        trace.note("same pair again", {
            let other = tcp(&pod);
            (other.bind(bound.expect("an address")), other.connect(at).await)
        });
        drop(listener);
        trace.note("refused when the listener is gone", tcp(&pod).connect(at).await);
        trace
    })
    .await;
}

#[tokio::test]
async fn ipv6_and_dual_stack_are_the_kernels() {
    same("v6", |pod| async move {
        let mut trace = Trace::default();
        let v6 = |only: bool| {
            let socket = pod.tcp_socket(OWNER, Family::V6).expect("a socket");
            socket.set_option(TcpOption::V6Only(only)).expect("an option");
            socket
        };
        trace.note("option on v4", tcp(&pod).set_option(TcpOption::V6Only(true)));
        trace.note("mapped bind", v6(true).bind(addr("[::ffff:127.0.0.1]:0")));
        let (listener, at) = listener(&pod, "[::1]:0");
        let client = v6(true);
        trace.note("connect", client.connect(at).await);
        trace.note("accept", listener.accept().await.map(|server| server.peer_addr() == client.local_addr()));
        let dual = v6(false);
        dual.bind(addr("[::]:0")).expect("bound");
        dual.listen(4).expect("listening");
        trace.note("option when bound", dual.set_option(TcpOption::V6Only(true)));
        let port = dual.local_addr().expect("an address").port();
        trace.note("dual shows", dual.local_addr().map(|local| local.ip()));
        let client = tcp(&pod);
        trace.note("v4 to dual", client.connect(SocketAddr::from(([127, 0, 0, 1], port))).await);
        let server = dual.accept().await.expect("accepted");
        trace.note(
            "seen mapped",
            (server.peer_addr().map(|peer| peer.ip()), server.local_addr().map(|local| local.ip())),
        );
        let only = v6(true);
        only.bind(addr("[::]:0")).expect("bound");
        only.listen(4).expect("listening");
        let port = only.local_addr().expect("an address").port();
        trace.note("v4 to v6 only", tcp(&pod).connect(SocketAddr::from(([127, 0, 0, 1], port))).await);
        trace
    })
    .await;
}

#[tokio::test]
async fn datagrams_behave_as_in_the_kernel() {
    same("udp", |pod| async move {
        let mut trace = Trace::default();
        let (one, two) = (udp(&pod), udp(&pod));
        trace.note("send nowhere", one.try_send_to(b"x", None));
        one.bind(addr("127.0.0.1:0")).expect("bound");
        two.bind(addr("127.0.0.1:0")).expect("bound");
        let (at_one, at_two) = (one.local_addr().expect("bound"), two.local_addr().expect("bound"));
        trace.note("bind a taken address", udp(&pod).bind(at_one));
        trace.note("bind twice", one.bind(addr("127.0.0.1:0")));
        trace.note("nothing there", one.try_recv_from(&mut [0; 8]));
        trace.note("send", one.try_send_to(b"datagram", Some(at_two)));
        two.readable().await;
        trace.note("peek", two.try_peek_from(&mut [0; 3]).map(|seen| (seen.len, seen.from == at_one)));
        trace.note("cut", receive(&two, 4).await.map(|(data, seen)| (data, seen.datagram_len, seen.from == at_one)));
        trace.note("one datagram a call", two.try_recv_from(&mut [0; 8]));
        trace.note("empty", one.try_send_to(b"", Some(at_two)));
        trace.note("empty came", receive(&two, 4).await.map(|(data, _)| data));
        trace.note("too long", one.try_send_to(&vec![0; 65_508], Some(at_two)));
        trace.note("longest", one.try_send_to(&vec![7; 65_507], Some(at_two)));
        trace.note("longest came", receive(&two, 65_507).await.map(|(data, _)| data.len()));
        trace.note("peer of unconnected", one.peer_addr());
        trace.note("connect", one.connect(at_two));
        trace.note("peer", one.peer_addr() == Ok(at_two));
        let three = udp(&pod);
        three.try_send_to(b"stranger", Some(at_one)).expect("sent");
        two.try_send_to(b"friend", Some(at_one)).expect("sent");
        trace.note("only the peer", receive(&one, 16).await.map(|(data, _)| data));
        drop(two);
        trace.note("send to nobody", one.try_send_to(b"x", None));
        one.readable().await;
        trace.note("refused", one.try_recv_from(&mut [0; 8]));
        trace.note("once", one.try_recv_from(&mut [0; 8]));
        trace.note("disconnect", one.disconnect());
        trace.note("unconnected is not told", (one.try_send_to(b"x", Some(at_two)), one.try_recv_from(&mut [0; 8])));
        trace
    })
    .await;
}
