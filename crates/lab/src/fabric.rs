//! All links between the hosts and the packets under way (pure): packets go in with the time, and come out when due.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use crate::link::{Fate, Link, LinkSettings};

/// As many as have addresses in 10.77.0.0/24.
pub const HOSTS_MAX: u8 = 250;
/// Memory for packets under way on all links: 100 ms at 20 Gbit/s.
pub const UNDER_WAY_BYTES_MAX: usize = 256 << 20;
/// What keeping a packet costs beside its bytes, so that tiny ones are bounded, too.
const PACKET_OVERHEAD_BYTES: usize = 96;

/// A host by its number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct HostId(pub u8);

/// A packet that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery<P> {
    pub to: HostId,
    pub due: Duration,
    pub packet: P,
}

/// `P` is a packet's bytes.
#[derive(Debug)]
pub struct Fabric<P> {
    hosts: u8,
    /// `from * hosts + to`.
    links: Vec<Link>,
    under_way: BinaryHeap<Reverse<UnderWay<P>>>,
    under_way_bytes: usize,
    under_way_bytes_max: usize,
    sequence: u64,
}

impl<P: AsRef<[u8]>> Fabric<P> {
    /// Equal links everywhere; each draws its luck from the seed and its own ends.
    pub fn new(hosts: u8, settings: &LinkSettings, seed: u64) -> Self {
        let pairs = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
        let link = |(from, to)| Link::new(settings.clone(), seed << 16 | u64::from(from) << 8 | u64::from(to));
        Self {
            hosts,
            links: pairs.map(link).collect(),
            under_way: BinaryHeap::new(),
            under_way_bytes: 0,
            under_way_bytes_max: UNDER_WAY_BYTES_MAX,
            sequence: 0,
        }
    }

    pub fn hosts(&self) -> u8 {
        self.hosts
    }

    /// `None` when there is no such host.
    pub fn link(&self, from: HostId, to: HostId) -> Option<&Link> {
        self.links.get(self.index(from, to)?)
    }

    pub fn link_mut(&mut self, from: HostId, to: HostId) -> Option<&mut Link> {
        let index = self.index(from, to)?;
        self.links.get_mut(index)
    }

    fn index(&self, from: HostId, to: HostId) -> Option<usize> {
        let exist = from.0 < self.hosts && to.0 < self.hosts;
        exist.then(|| usize::from(from.0) * usize::from(self.hosts) + usize::from(to.0))
    }

    /// A packet enters a link. `packet` is called for its bytes only if it will arrive.
    pub fn send(&mut self, now: Duration, from: HostId, to: HostId, bytes: usize, packet: impl FnOnce() -> P) {
        let Some(index) = self.index(from, to) else { return };
        let link = &mut self.links[index];
        let Fate::Arrives(due) = link.offer(now, bytes) else { return };
        if self.under_way_bytes + bytes + PACKET_OVERHEAD_BYTES > self.under_way_bytes_max {
            link.counters.queue_full += 1;
            return;
        }
        self.under_way_bytes += bytes + PACKET_OVERHEAD_BYTES;
        let (sequence, cuts) = (self.sequence, link.cuts());
        self.sequence += 1;
        self.under_way.push(Reverse(UnderWay { due, sequence, link: index, cuts, packet: packet() }));
    }

    /// When the next packet is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.under_way.peek().map(|Reverse(first)| first.due)
    }

    /// The next packet that is due at `now`, in order of arrival. What its link was cut under is gone.
    pub fn take_due(&mut self, now: Duration) -> Option<Delivery<P>> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(UnderWay { due, link: index, cuts, packet, .. }) = self.under_way.pop()?;
            let bytes = packet.as_ref().len();
            self.under_way_bytes -= bytes + PACKET_OVERHEAD_BYTES;
            let link = &mut self.links[index];
            if link.cuts() != cuts {
                link.counters.cut += 1;
                continue;
            }
            link.counters.delivered += 1;
            link.counters.delivered_bytes += bytes as u64;
            return Some(Delivery { to: HostId((index % usize::from(self.hosts)) as u8), due, packet });
        }
        None
    }
}

#[derive(Debug)]
struct UnderWay<P> {
    due: Duration,
    /// Equal times keep the order of sending.
    sequence: u64,
    link: usize,
    cuts: u32,
    packet: P,
}

impl<P> UnderWay<P> {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.sequence)
    }
}

impl<P> PartialEq for UnderWay<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for UnderWay<P> {}

impl<P> PartialOrd for UnderWay<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for UnderWay<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests;
