//! One direction between two hosts (pure): when a packet arrives, if at all.
//!
//! A packet passes, in this order: a queue in front of a transmitter of a fixed rate (drop-tail; the transmitter is a
//! virtual finish time, no timer), loss, and the way itself, which takes the delay and a uniform share of the jitter. A
//! packet lost on the way has used up its share of the rate, as on a real line.

use std::{num::NonZeroU64, time::Duration};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// A packet under way is kept in memory: longer delays say nothing that this one does not.
pub const DELAY_MAX: Duration = Duration::from_secs(60);
pub const LOSS_PPM_MAX: u32 = 1_000_000;
pub const QUEUE_BYTES_DEFAULT: u64 = 1 << 20;
pub const QUEUE_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSettings {
    /// What every packet takes, at most [`DELAY_MAX`].
    pub delay: Duration,
    /// A packet takes up to this much longer, drawn uniformly; at most [`DELAY_MAX`].
    pub jitter: Duration,
    /// Packets lost of a million, drawn for each by itself.
    pub loss_ppm: u32,
    /// Bytes of IP packets per second; `None` is without limit.
    pub rate: Option<NonZeroU64>,
    /// What may wait for the transmitter; without a rate nothing waits.
    pub queue_bytes: u64,
    /// Whether jitter may let packets overtake each other.
    pub reorder: bool,
}

impl Default for LinkSettings {
    /// A perfect link.
    fn default() -> Self {
        let queue_bytes = QUEUE_BYTES_DEFAULT;
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss_ppm: 0, rate: None, queue_bytes, reorder: false }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at this time.
    Arrives(Duration),
    /// Lost by chance.
    Lost,
    /// The transmitter's queue, or the memory for packets under way, was full.
    QueueFull,
    /// The link is cut.
    Cut,
}

/// Packets, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub lost: u64,
    pub queue_full: u64,
    /// Offered to a cut link, or under way when it was cut.
    pub cut: u64,
}

/// Times are counted from any common origin and never go back.
#[derive(Debug)]
pub struct Link {
    settings: LinkSettings,
    cut: bool,
    /// How often it was cut: what was under way at a cut belongs to an older one and never arrives.
    cuts: u32,
    transmitter_free_at: Duration,
    last_arrival: Duration,
    random: Xoshiro256PlusPlus,
    pub(crate) counters: Counters,
}

impl Link {
    pub fn new(settings: LinkSettings, seed: u64) -> Self {
        Self {
            settings,
            cut: false,
            cuts: 0,
            transmitter_free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            counters: Counters::default(),
        }
    }

    /// Decides over one packet of `bytes` that the sender hands over at `now`.
    pub fn offer(&mut self, now: Duration, bytes: usize) -> Fate {
        let fate = self.fate(now, bytes as u64);
        match fate {
            Fate::Arrives(_) => {}
            Fate::Lost => self.counters.lost += 1,
            Fate::QueueFull => self.counters.queue_full += 1,
            Fate::Cut => self.counters.cut += 1,
        }
        fate
    }

    fn fate(&mut self, now: Duration, bytes: u64) -> Fate {
        // Both are drawn for every packet, so that the n-th packet's luck depends on the seed alone.
        let loss = self.random.random_range(0..LOSS_PPM_MAX);
        let jitter = self.settings.jitter.mul_f64(self.random.random::<f64>());
        if self.cut {
            return Fate::Cut;
        }
        let Some(sent) = self.transmit(now, bytes) else { return Fate::QueueFull };
        if loss < self.settings.loss_ppm {
            return Fate::Lost;
        }
        let mut arrival = sent + self.settings.delay + jitter;
        if !self.settings.reorder {
            arrival = arrival.max(self.last_arrival);
        }
        self.last_arrival = arrival;
        Fate::Arrives(arrival)
    }

    /// When the packet's last byte has left; `None` when the queue has no room for it.
    fn transmit(&mut self, now: Duration, bytes: u64) -> Option<Duration> {
        let Some(rate) = self.settings.rate else { return Some(now) };
        let wait = self.transmitter_free_at.saturating_sub(now);
        let waiting_bytes = wait.as_nanos() * u128::from(rate.get()) / NANOS_PER_S;
        // An idle transmitter takes any packet.
        if wait > Duration::ZERO && waiting_bytes + u128::from(bytes) > u128::from(self.settings.queue_bytes) {
            return None;
        }
        let nanos = (u128::from(bytes) * NANOS_PER_S).div_ceil(u128::from(rate.get()));
        let free_at = now + wait + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.transmitter_free_at = free_at;
        Some(free_at)
    }

    pub fn settings(&self) -> &LinkSettings {
        &self.settings
    }

    /// For packets offered from now on. What is under way keeps its time, and without `reorder` nobody overtakes it.
    pub fn set(&mut self, settings: LinkSettings) {
        if settings.rate != self.settings.rate {
            self.transmitter_free_at = Duration::ZERO;
        }
        self.settings = settings;
    }

    /// From now on nothing arrives, not even what is under way: a black hole that nobody is told of.
    pub fn cut(&mut self) {
        if !self.cut {
            self.cuts = self.cuts.wrapping_add(1);
        }
        self.cut = true;
        self.last_arrival = Duration::ZERO;
        self.transmitter_free_at = Duration::ZERO;
    }

    pub fn heal(&mut self) {
        self.cut = false;
    }

    pub fn is_cut(&self) -> bool {
        self.cut
    }

    pub(crate) fn cuts(&self) -> u32 {
        self.cuts
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }
}

const NANOS_PER_S: u128 = 1_000_000_000;

#[cfg(test)]
mod tests;
