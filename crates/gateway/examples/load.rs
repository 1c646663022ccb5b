//! Load on a gateway for `./bench api`; Python is too slow to make it on the cores that the gateway needs.
//!
//! ```text
//! load latency ADDRESS COUNT < REQUEST            one connection, one request after the other
//! load rate ADDRESS SECONDS CONNECTIONS < REQUEST as many as the gateway answers
//! load hold ADDRESS COUNT < REQUEST               streams that stay open until this program is killed
//! ```
//!
//! REQUEST is the JSON body of a chat completion. A line of JSON goes to standard output: times in microseconds.

use std::{
    env, io,
    io::Read as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Streams that `hold` opens at once.
const OPENING: usize = 64;

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4_096) })
    }

    async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        self.stream.write_all(request).await
    }

    /// Reads until the head is here; its text and where the body begins.
    async fn head(&mut self) -> io::Result<(String, usize)> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_lowercase();
                return if head.starts_with("http/1.1 200") { Ok((head, end + 4)) } else { Err(self.refused()) };
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn refused(&self) -> io::Error {
        io::Error::other(String::from_utf8_lossy(&self.buffer).into_owned())
    }

    /// One request, and its answer to the end.
    async fn exchange(&mut self, request: &[u8]) -> io::Result<Duration> {
        let started = Instant::now();
        self.send(request).await?;
        let (head, body) = self.head().await?;
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.and_then(|text| text.parse().ok()).ok_or_else(|| self.refused())?;
        while self.buffer.len() < body + length {
            self.more().await?;
        }
        Ok(started.elapsed())
    }
}

fn request(address: SocketAddr, body: &str) -> Vec<u8> {
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// `times` in microseconds: the middle and the 99th percentile.
fn report(mut times: Vec<Duration>, elapsed: Duration) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0, Duration::as_micros);
    let rate = times.len() as f64 / elapsed.as_secs_f64();
    println!(r#"{{"count": {}, "per_s": {rate:.1}, "p50_us": {}, "p99_us": {}}}"#, times.len(), at(50), at(99));
}

async fn latency(address: SocketAddr, request: Vec<u8>, count: usize) -> io::Result<()> {
    let mut client = Client::connect(address).await?;
    let (started, mut times) = (Instant::now(), Vec::with_capacity(count));
    for _ in 0..count {
        times.push(client.exchange(&request).await?);
    }
    report(times, started.elapsed());
    Ok(())
}

async fn rate(address: SocketAddr, request: Vec<u8>, seconds: usize, connections: usize) -> io::Result<()> {
    let (started, end) = (Instant::now(), Instant::now() + Duration::from_secs(seconds as u64));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let request = request.clone();
        clients.spawn(async move {
            let (mut client, mut times) = (Client::connect(address).await?, Vec::new());
            while Instant::now() < end {
                times.push(client.exchange(&request).await?);
            }
            io::Result::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(client) = clients.join_next().await {
        times.extend(client.map_err(io::Error::other)??);
    }
    report(times, started.elapsed());
    Ok(())
}

async fn hold(address: SocketAddr, request: Vec<u8>, count: usize) -> io::Result<()> {
    let (mut opening, mut held, started) = (JoinSet::new(), Vec::with_capacity(count), Instant::now());
    for number in 0..count + OPENING {
        if number >= OPENING.min(count)
            && let Some(opened) = opening.join_next().await
        {
            held.push(opened.map_err(io::Error::other)??);
        }
        if number < count {
            let request = request.clone();
            opening.spawn(async move {
                let mut client = Client::connect(address).await?;
                client.send(&request).await?;
                client.head().await?;
                io::Result::Ok(client)
            });
        }
    }
    println!(r#"{{"count": {}, "seconds": {:.2}}}"#, held.len(), started.elapsed().as_secs_f64());
    loop {
        // Comment lines come and go; the streams stay.
        for client in &mut held {
            client.buffer.clear();
            match client.stream.try_read_buf(&mut client.buffer) {
                Ok(0) => return Err(io::Error::other("a stream ended")),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: load latency|rate|hold ADDRESS NUMBER [CONNECTIONS] < REQUEST");
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [mode, address, number, rest @ ..] = arguments.as_slice() else { return Err(usage()) };
    let address = address.parse().map_err(io::Error::other)?;
    let number: usize = number.parse().map_err(io::Error::other)?;
    let mut body = String::new();
    io::stdin().read_to_string(&mut body)?;
    let request = request(address, body.trim());
    match mode.as_str() {
        "latency" => latency(address, request, number).await,
        "rate" => {
            let connections = rest.first().ok_or_else(usage)?.parse().map_err(io::Error::other)?;
            rate(address, request, number, connections).await
        }
        "hold" => hold(address, request, number).await,
        _ => Err(usage()),
    }
}
