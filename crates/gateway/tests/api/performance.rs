//! What the gateway itself costs, in front of a grid that answers at once. The bars are loose: other work shares the
//! machine; a failure means that something is slower by a factor, not by a percentage.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fake::{Act, say, served};

/// One request on a connection that stays open; returns when the answer is complete.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) {
    stream.write_all(request).await.unwrap();
    buffer.clear();
    loop {
        let mut part = [0; 4_096];
        let count = stream.read(&mut part).await.unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(buffer));
        buffer.extend_from_slice(&part[..count]);
        let Some(border) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..border]).to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        if buffer.len() >= border + 4 + length.parse::<usize>().unwrap() {
            assert!(head.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(buffer));
            return;
        }
    }
}

fn request(host: &str) -> Vec<u8> {
    let body = json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_costs_little() {
    let s = served().await;
    s.grid.set(|job| say(job, b""));
    let request = request(&s.client.address.to_string());
    let (mut stream, mut buffer) = (TcpStream::connect(s.client.address).await.unwrap(), Vec::new());
    stream.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    for _ in 0..500 {
        let start = Instant::now();
        exchange(&mut stream, &request, &mut buffer).await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let p50 = times[times.len() / 2];

    let start = Instant::now();
    let clients = (0..8).map(|_| {
        let (request, address) = (request.clone(), s.client.address);
        tokio::spawn(async move {
            let (mut stream, mut buffer) = (TcpStream::connect(address).await.unwrap(), Vec::new());
            for _ in 0..500 {
                exchange(&mut stream, &request, &mut buffer).await;
            }
        })
    });
    for client in futures::future::join_all(clients).await {
        client.unwrap();
    }
    let per_second = 4_000.0 / start.elapsed().as_secs_f64();
    println!("gateway: p50 {p50:?}, {per_second:.0} requests/s");
    assert!(p50 < Duration::from_millis(10), "p50 {p50:?}");
    assert!(per_second > 500.0, "{per_second:.0} requests/s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_streams_are_held_without_work() {
    const STREAMS: usize = 400;
    let s = served().await;
    s.grid.set(|_| vec![Act::Hang]);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams
            .push(s.client.open("/v1/completions", &json!({ "model": "bytes", "prompt": "x", "stream": true })).await);
    }
    while s.grid.jobs.lock().len() < STREAMS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(s.client.get("/health").await.status, 200);
    drop(streams);
    s.grid.wait_cancelled(STREAMS).await;
}
