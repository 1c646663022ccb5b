//! A laboratory for a test, and sockets in it.
#![allow(dead_code)]

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use opengrid_lab::{
    control::{LinkStats, Reply, Request, Route, Set, Stats},
    fabric::HostId,
    laboratory::{Config, Laboratory},
    link::LinkSettings,
    measure::Way,
    namespace,
};

pub const MS: Duration = Duration::from_millis(1);
pub const A: HostId = HostId(0);
pub const B: HostId = HostId(1);
pub const C: HostId = HostId(2);
/// For what must not come.
pub const SILENCE: Duration = Duration::from_millis(150);
/// What neighbours on the same cores spoil is measured again, so many times at most.
const ROUNDS: usize = 6;

pub struct Lab {
    pub name: String,
    pub laboratory: Laboratory,
}

impl Lab {
    /// `None`, with the reason printed, where this machine cannot do it.
    pub fn up(hosts: u8, links: LinkSettings) -> Option<Self> {
        Self::up_seeded(hosts, links, 1)
    }

    pub fn up_seeded(hosts: u8, links: LinkSettings, seed: u64) -> Option<Self> {
        if let Some(reason) = namespace::why_not() {
            println!("skipped: {reason}");
            return None;
        }
        let name = test_name('t');
        let laboratory = Laboratory::up(&Config { name: name.clone(), hosts, mtu: 1500, links, seed }).unwrap();
        Some(Self { name, laboratory })
    }

    pub fn way(&self, from: HostId, to: HostId) -> Way {
        Way::open(&self.name, from, to).unwrap()
    }

    pub fn tell(&self, request: Request) -> Reply {
        let reply = self.laboratory.handle().ask_blocking(request);
        assert!(reply.ok, "{reply:?}");
        reply
    }

    pub fn set(&self, set: Set) {
        self.tell(Request::Set(set));
    }

    pub fn cut(&self, from: HostId, to: HostId) {
        self.tell(Request::Cut(route(from, to)));
    }

    pub fn heal(&self, from: HostId, to: HostId) {
        self.tell(Request::Heal(route(from, to)));
    }

    pub fn stats(&self) -> Stats {
        self.tell(Request::Stats).stats.unwrap()
    }

    pub fn link_stats(&self, from: HostId, to: HostId) -> LinkStats {
        self.stats().links.into_iter().find(|link| (link.from, link.to) == (from, to)).unwrap()
    }
}

/// Of this process alone.
pub fn test_name(kind: char) -> String {
    format!("og{kind}{}x", std::process::id())
}

pub fn route(from: HostId, to: HostId) -> Route {
    Route { from: Some(from), to: Some(to), both_ways: false }
}

/// The numbers that were sent and arrive before `patience` passes without one.
pub fn numbers(socket: &UdpSocket, patience: Duration) -> Vec<u32> {
    arrivals(socket, patience).into_iter().map(|(number, _)| number).collect()
}

pub fn arrivals(socket: &UdpSocket, patience: Duration) -> Vec<(u32, Instant)> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 2048];
    let next = || match socket.recv(&mut buffer) {
        Ok(_) => Some((u32::from_le_bytes(buffer[..4].try_into().unwrap()), Instant::now())),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    };
    std::iter::from_fn(next).collect()
}

pub fn send(way: &Way, number: u32, bytes: usize) {
    let mut packet = vec![0; bytes.max(4)];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    way.from.send(&packet).unwrap();
}

/// Measures until it is good enough, and asserts that it was.
pub fn eventually<T: std::fmt::Debug>(good: impl Fn(&T) -> bool, mut measure: impl FnMut() -> T) {
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let value = measure();
        if good(&value) {
            return;
        }
        seen.push(value);
    }
    panic!("not in {ROUNDS} rounds: {seen:?}");
}
