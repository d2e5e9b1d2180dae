//! Bulk: nothing is lost, reordered or invented, whatever the sizes and the number of threads.

use super::*;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A stream of bytes that a position tells.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

async fn check(mut reader: impl tokio::io::AsyncRead + Unpin, total: usize) {
    let mut at = 0;
    let mut buffer = vec![0; 50_000];
    loop {
        let n = reader.read(&mut buffer).await.expect("read");
        if n == 0 {
            break;
        }
        assert!(buffer[..n] == pattern(at, n), "bytes differ near {at}");
        at += n;
    }
    assert_eq!(at, total);
}

async fn send(mut writer: impl tokio::io::AsyncWrite + Unpin, total: usize) {
    let (mut at, mut size) = (0, 1);
    while at < total {
        let n = size.min(total - at);
        writer.write_all(&pattern(at, n)).await.expect("written");
        at += n;
        size = size * 7 % 190_001 + 1;
    }
    writer.shutdown().await.expect("shut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_megabytes_arrive_as_they_were_sent_both_ways_at_once() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (client, server) = pair(&one).await;
    let total = 30_000_000;
    let (client_read, client_write) = tokio::io::split(client.into_stream());
    let (server_read, server_write) = tokio::io::split(server.into_stream());
    let tasks = [
        tokio::spawn(send(client_write, total)),
        tokio::spawn(send(server_write, total)),
        tokio::spawn(check(client_read, total)),
        tokio::spawn(check(server_read, total)),
    ];
    for task in tasks {
        task.await.expect("done");
    }
    assert_eq!(one.buffered(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_client_gets_what_a_pod_sends() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (listener, _) = listener(&one, "0.0.0.0:0");
    let reach = one.listeners()[0].node.expect("a kernel listener");
    let total = 10_000_000;
    let client = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(reach).await.expect("connected");
        let (read, write) = stream.into_split();
        tokio::join!(check(read, total), send(write, total));
    });
    let (read, write) = tokio::io::split(listener.accept().await.expect("accepted").into_stream());
    tokio::join!(check(read, total), send(write, total));
    client.await.expect("done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_buffers_pass_without_a_copy() {
    let node = node(|_| {});
    let one = pod(&node, "one");
    let (client, server) = pair(&one).await;
    let sent = Bytes::from(pattern(0, 200_000));
    let mut rest = sent.clone();
    assert_eq!(client.try_write_bytes(&mut rest), Ok(200_000));
    let got = server.try_read_bytes(usize::MAX).expect("there");
    assert_eq!(got.as_ptr(), sent.as_ptr());
    let writer = tokio::spawn(async move {
        let mut left = Bytes::from(pattern(0, 3_000_000));
        while !left.is_empty() {
            match client.try_write_bytes(&mut left) {
                Ok(_) => {}
                Err(Errno::Again) => client.writable().await,
                Err(errno) => panic!("{errno}"),
            }
        }
    });
    let mut at = 0;
    loop {
        match server.try_read_bytes(70_000) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => {
                assert!(bytes[..] == pattern(at, bytes.len()), "bytes differ near {at}");
                at += bytes.len();
            }
            Err(Errno::Again) => server.readable().await,
            Err(errno) => panic!("{errno}"),
        }
    }
    assert_eq!(at, 3_000_000);
    writer.await.expect("done");
}
