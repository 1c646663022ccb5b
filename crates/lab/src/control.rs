//! What the control socket takes and answers, one JSON object a line, and what a request does to the links (pure).
//!
//! ```text
//! {"command":"set","from":0,"to":1,"both_ways":true,"delay_us":50000,"jitter_us":2000,"loss_ppm":1000,"rate_bytes_per_s":12500000}
//! {"command":"cut","from":0,"to":1}
//! {"command":"heal"}
//! {"command":"stats"}
//! ```
//!
//! Without `from` it is meant for links from all hosts, without `to` for those to all. `set` changes what it names and
//! leaves the rest.

use std::{num::NonZeroU64, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    fabric::{Fabric, HostId},
    link::{DELAY_MAX, LOSS_PPM_MAX, Link, LinkSettings, QUEUE_BYTES_MAX},
};

/// Longest line that is read.
pub const REQUEST_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    Set(Set),
    Cut(Route),
    Heal(Route),
    Stats,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<HostId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<HostId>,
    pub both_ways: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Set {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<HostId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<HostId>,
    pub both_ways: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_ppm: Option<u32>,
    /// 0 is without limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reorder: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

impl Reply {
    pub fn done() -> Self {
        Self { ok: true, error: None, stats: None }
    }

    pub fn refused(error: impl ToString) -> Self {
        Self { ok: false, error: Some(error.to_string()), stats: None }
    }

    pub fn stats(stats: Stats) -> Self {
        Self { ok: true, error: None, stats: Some(stats) }
    }
}

/// Counted since the start. Links that nothing was sent over are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub links: Vec<LinkStats>,
    /// Dropped because they were for nobody: IPv6, multicast, addresses without a host.
    pub no_receiver: u64,
    /// Those that a host's kernel would not take.
    pub not_taken: u64,
    /// Those that a host sent faster than the laboratory took them from its device; filled in outside of the thread that moves packets.
    pub overrun: u64,
    /// Late against the time due, in microseconds: the laboratory's own share of every delay.
    pub late_p50_us: u64,
    pub late_p99_us: u64,
    pub late_worst_us: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkStats {
    pub from: HostId,
    pub to: HostId,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub lost: u64,
    pub queue_full: u64,
    pub cut: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    #[error("there is no host {0}: they are numbered 0 to {1}")]
    NoHost(u8, u8),
    #[error("host {0} reaches itself without the laboratory: name another `to`")]
    ToItself(u8),
    #[error("{name} is {value}, at most {most} are possible")]
    TooMuch { name: &'static str, value: u64, most: u64 },
}

impl Set {
    fn route(&self) -> Route {
        Route { from: self.from, to: self.to, both_ways: self.both_ways }
    }

    fn check(&self) -> Result<(), ControlError> {
        let delay_most = DELAY_MAX.as_micros() as u64;
        at_most("delay_us", self.delay_us, delay_most)?;
        at_most("jitter_us", self.jitter_us, delay_most)?;
        at_most("loss_ppm", self.loss_ppm.map(u64::from), u64::from(LOSS_PPM_MAX))?;
        at_most("queue_bytes", self.queue_bytes, QUEUE_BYTES_MAX)
    }

    /// # Errors
    /// When a number is out of its bounds.
    pub fn changed(&self, settings: &LinkSettings) -> Result<LinkSettings, ControlError> {
        self.check()?;
        Ok(LinkSettings {
            delay: self.delay_us.map_or(settings.delay, Duration::from_micros),
            jitter: self.jitter_us.map_or(settings.jitter, Duration::from_micros),
            loss_ppm: self.loss_ppm.unwrap_or(settings.loss_ppm),
            rate: self.rate_bytes_per_s.map_or(settings.rate, NonZeroU64::new),
            queue_bytes: self.queue_bytes.unwrap_or(settings.queue_bytes),
            reorder: self.reorder.unwrap_or(settings.reorder),
        })
    }
}

fn at_most(name: &'static str, value: Option<u64>, most: u64) -> Result<(), ControlError> {
    match value {
        Some(value) if value > most => Err(ControlError::TooMuch { name, value, most }),
        _ => Ok(()),
    }
}

impl<P: AsRef<[u8]>> Fabric<P> {
    /// Does all of a request, or nothing when it is wrong. `Stats` changes nothing.
    ///
    /// # Errors
    /// When it names hosts that do not exist or numbers out of bounds.
    pub fn apply(&mut self, request: &Request) -> Result<(), ControlError> {
        match request {
            Request::Set(set) => {
                // Whether the numbers are possible does not depend on the link.
                set.check()?;
                self.each(&set.route(), |link| {
                    if let Ok(settings) = set.changed(link.settings()) {
                        link.set(settings);
                    }
                })
            }
            Request::Cut(route) => self.each(route, Link::cut),
            Request::Heal(route) => self.each(route, Link::heal),
            Request::Stats => Ok(()),
        }
    }

    fn each(&mut self, route: &Route, mut change: impl FnMut(&mut Link)) -> Result<(), ControlError> {
        for host in [route.from, route.to].into_iter().flatten() {
            if host.0 >= self.hosts() {
                return Err(ControlError::NoHost(host.0, self.hosts() - 1));
            }
        }
        if let (Some(from), true) = (route.from, route.from == route.to) {
            return Err(ControlError::ToItself(from.0));
        }
        let hosts = || (0..self.hosts()).map(HostId);
        let chosen = |host, from: Option<HostId>| from.is_none_or(|from| from == host);
        let meant = |from, to| chosen(from, route.from) && chosen(to, route.to);
        let pairs: Vec<_> = hosts()
            .flat_map(|from| hosts().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .filter(|(from, to)| meant(*from, *to) || (route.both_ways && meant(*to, *from)))
            .collect();
        for (from, to) in pairs {
            if let Some(link) = self.link_mut(from, to) {
                change(link);
            }
        }
        Ok(())
    }

    /// What the links counted.
    pub fn link_stats(&self) -> Vec<LinkStats> {
        let hosts = || (0..self.hosts()).map(HostId);
        let pairs = hosts().flat_map(|from| hosts().map(move |to| (from, to)));
        let counted = pairs.filter_map(|(from, to)| Some((from, to, self.link(from, to)?.counters())));
        let used = counted.filter(|(.., counters)| *counters != Default::default());
        used.map(|(from, to, counters)| LinkStats {
            from,
            to,
            delivered: counters.delivered,
            delivered_bytes: counters.delivered_bytes,
            lost: counters.lost,
            queue_full: counters.queue_full,
            cut: counters.cut,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
