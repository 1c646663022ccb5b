//! What the laboratory itself costs: one-way times of UDP packets and how many pass, between real sockets.
//!
//! A time is taken on one thread, which sends at one host and receives at another: one clock, and of wake-ups only the
//! laboratory's and the receiver's. That thread goes before ordinary ones as the laboratory's does, so that neighbours
//! on the same cores are left out of the figure.

use std::{
    io,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    control::{Request, Stats},
    fabric::HostId,
    laboratory::{Config, LabError, Laboratory, go_first, namespace_name},
    link::LinkSettings,
    namespace::{self, NamespaceError},
    packet,
};

/// For a packet that is expected; a longer wait means that it was lost.
const PATIENCE: Duration = Duration::from_secs(2);
const WARM_UP: u32 = 100;
/// IP and UDP headers.
const HEADER_BYTES: usize = 28;
const DELAYS_MS: [u64; 4] = [0, 10, 25, 50];
/// Without a delay, so that a measurement is not one burst.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("a socket in the laboratory failed: {0}")]
    Socket(#[from] io::Error),
    #[error("the laboratory does not answer: {0}")]
    Control(String),
}

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Whether the laboratory's thread has real-time priority.
    pub realtime: bool,
    pub one_way: Vec<OneWay>,
    pub flood: Vec<Flood>,
    /// One TCP connection.
    pub tcp_bytes_per_s: f64,
}

/// How much longer than the set delay packets took, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct OneWay {
    pub delay_ms: u64,
    pub packets: usize,
    pub p50_us: f64,
    pub p99_us: f64,
    pub worst_us: f64,
    /// Until the laboratory had handed it over; what is missing to the above is the receiver's waking up.
    pub late_p50_us: u64,
    pub late_p99_us: u64,
}

/// As fast as one thread can send.
#[derive(Clone, Debug, Serialize)]
pub struct Flood {
    pub packet_bytes: usize,
    pub delivered_per_s: f64,
}

/// Everything, on laboratories of its own of that name. `packets` are sent without a delay, a tenth of them with each.
///
/// # Errors
/// Where a laboratory cannot be, or its packets do not arrive.
pub fn all(name: &str, packets: u32, flood_for: Duration) -> Result<Figures, MeasureError> {
    let one_way = DELAYS_MS.map(|delay_ms| one_way(name, delay_ms, packets)).into_iter().collect::<Result<_, _>>()?;
    let laboratory = up(name, 0)?;
    let way = Way::open(name, HostId(0), HostId(1))?;
    let flood = [64, 1500].map(|bytes| flood(&laboratory, &way, bytes, flood_for));
    let flood = flood.into_iter().collect::<Result<_, _>>()?;
    let tcp_bytes_per_s = tcp(name, flood_for)?;
    Ok(Figures { realtime: laboratory.is_realtime(), one_way, flood, tcp_bytes_per_s })
}

fn up(name: &str, delay_ms: u64) -> Result<Laboratory, MeasureError> {
    let links = LinkSettings { delay: Duration::from_millis(delay_ms), ..Default::default() };
    Ok(Laboratory::up(&Config { name: name.to_owned(), hosts: 2, mtu: 1500, links, seed: 1 })?)
}

fn one_way(name: &str, delay_ms: u64, packets: u32) -> Result<OneWay, MeasureError> {
    let laboratory = up(name, delay_ms)?;
    let way = Way::open(name, HostId(0), HostId(1))?;
    let times = if delay_ms == 0 { way.times(packets, PAUSE)? } else { way.times(packets / 10, Duration::ZERO)? };
    let over = |time: Duration| (time.as_secs_f64() - Duration::from_millis(delay_ms).as_secs_f64()) * 1e6;
    let at = |percent| over(percentile(&times, percent));
    let (p50_us, p99_us, worst_us) = (at(50), at(99), at(100));
    let Stats { late_p50_us, late_p99_us, .. } = stats(&laboratory)?;
    Ok(OneWay { delay_ms, packets: times.len(), p50_us, p99_us, worst_us, late_p50_us, late_p99_us })
}

/// UDP from one host to another.
pub struct Way {
    pub from: UdpSocket,
    pub to: UdpSocket,
}

impl Way {
    /// # Errors
    /// When the laboratory `name` has no such hosts.
    pub fn open(name: &str, from: HostId, to: HostId) -> Result<Self, MeasureError> {
        let bind =
            |host| namespace::within(&namespace_name(name, host), || UdpSocket::bind((packet::address(host), 0)));
        let (from, to) = (bind(from)??, bind(to)??);
        from.connect(to.local_addr()?)?;
        to.connect(from.local_addr()?)?;
        to.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { from, to })
    }

    /// How long each of `packets` took, one after the other with pauses.
    ///
    /// # Errors
    /// When a packet does not arrive within two seconds.
    pub fn times(&self, packets: u32, pause: Duration) -> io::Result<Vec<Duration>> {
        let take = || {
            go_first();
            (0..WARM_UP.min(packets)).try_for_each(|number| self.time(number, pause).map(|_| ()))?;
            (0..packets).map(|number| self.time(number, pause)).collect()
        };
        thread::scope(|scope| scope.spawn(take).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn time(&self, number: u32, pause: Duration) -> io::Result<Duration> {
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        let (started, mut buffer) = (Instant::now(), [0; 8]);
        self.from.send(&number.to_le_bytes())?;
        loop {
            let bytes = self.to.recv(&mut buffer)?;
            let took = started.elapsed();
            if buffer[..bytes] == number.to_le_bytes() {
                return Ok(took);
            }
        }
    }
}

/// By nearest rank; zero of nothing.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn stats(laboratory: &Laboratory) -> Result<Stats, MeasureError> {
    let reply = laboratory.handle().ask_blocking(Request::Stats);
    reply.stats.ok_or_else(|| MeasureError::Control(reply.error.unwrap_or_default()))
}

fn delivered(laboratory: &Laboratory) -> Result<u64, MeasureError> {
    Ok(stats(laboratory)?.links.iter().map(|link| link.delivered).sum())
}

/// Packets of `bytes` with their headers, counted by the laboratory.
fn flood(laboratory: &Laboratory, way: &Way, bytes: usize, flood_for: Duration) -> Result<Flood, MeasureError> {
    let (over, payload) = (AtomicBool::new(false), vec![0; bytes - HEADER_BYTES]);
    let send = || {
        while !over.load(Ordering::Relaxed) {
            // What does not fit the device's queue is dropped there.
            let _ = way.from.send(&payload);
        }
    };
    thread::scope(|scope| {
        scope.spawn(send);
        let counted = count(laboratory, flood_for);
        over.store(true, Ordering::Relaxed);
        Ok(Flood { packet_bytes: bytes, delivered_per_s: counted? })
    })
}

fn count(laboratory: &Laboratory, flood_for: Duration) -> Result<f64, MeasureError> {
    let (before, started) = (delivered(laboratory)?, Instant::now());
    thread::sleep(flood_for);
    let more = delivered(laboratory)? - before;
    Ok(more as f64 / started.elapsed().as_secs_f64())
}

fn tcp(name: &str, send_for: Duration) -> Result<f64, MeasureError> {
    let (from, to) = (namespace_name(name, HostId(0)), namespace_name(name, HostId(1)));
    let listener = namespace::within(&to, || TcpListener::bind((packet::address(HostId(1)), 0)))??;
    let address = listener.local_addr()?;
    let mut sender = namespace::within(&from, || TcpStream::connect_timeout(&address, PATIENCE))??;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let receive = move || -> io::Result<u64> {
        let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
        loop {
            match receiver.read(&mut buffer)? {
                0 => return Ok(total),
                bytes => total += bytes as u64,
            }
        }
    };
    let receiving = thread::spawn(receive);
    let (started, chunk) = (Instant::now(), vec![0; 1 << 18]);
    while started.elapsed() < send_for {
        sender.write_all(&chunk)?;
    }
    drop(sender);
    let total = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(total as f64 / started.elapsed().as_secs_f64())
}
