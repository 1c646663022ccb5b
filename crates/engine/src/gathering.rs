//! How long a stage waits for sessions that are to be in its next step: see [`Spans::gathering`](crate::spans::Spans::gathering).

use std::time::{Duration, Instant};

/// How long sessions that wait for others have waited. Pure: the caller says when it is.
#[derive(Debug, Default)]
pub struct Gathering {
    since: Option<Instant>,
    last_step: Option<Instant>,
    /// From step to step, as a mean.
    lap: Duration,
}

/// A session that is late by so many laps went another way.
const GATHER_LAPS: f32 = 1.5;
const GATHER_MAX: Duration = Duration::from_millis(100);
/// What comes from one step comes within this time.
const GATHER_STEP: Duration = Duration::from_millis(3);
/// Weight of the newest lap.
const NEWEST: f32 = 0.125;

impl Gathering {
    /// What is left of the patience at this moment.
    pub fn patience(&mut self, now: Instant, for_all: bool) -> Duration {
        let since = *self.since.get_or_insert(now);
        let whole = if for_all { self.lap.mul_f32(GATHER_LAPS).clamp(GATHER_STEP, GATHER_MAX) } else { GATHER_STEP };
        whole.saturating_sub(now.saturating_duration_since(since))
    }

    /// A step begins.
    pub fn stepped(&mut self, now: Instant) {
        // What was waited here is no part of a lap: waits would make longer waits.
        let waited = self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if let Some(before) = self.last_step.replace(now) {
            let lap = now.saturating_duration_since(before).saturating_sub(waited).min(GATHER_MAX);
            self.lap = self.lap.mul_f32(1.0 - NEWEST) + lap.mul_f32(NEWEST);
        }
    }

    /// Nobody waits any more.
    pub fn rest(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_do_not_grow_by_themselves() {
        let (mut gathering, mut now) = (Gathering::default(), Instant::now());
        let lap = Duration::from_millis(10);
        for _ in 0..200 {
            now += lap;
            let patience = gathering.patience(now, true);
            assert!(patience <= lap.mul_f32(GATHER_LAPS), "{patience:?}");
            now += patience;
            assert_eq!(gathering.patience(now, true), Duration::ZERO);
            gathering.stepped(now);
        }
        assert!(gathering.patience(now, true) > lap, "and are as long as a lap");
        gathering.rest();
        now += Duration::from_secs(9);
        assert!(gathering.patience(now, true) > lap, "each wait has its own");
        assert!(gathering.patience(now, false) <= GATHER_STEP, "what comes from one step comes at once");
    }
}
