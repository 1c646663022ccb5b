//! When to wake up for a packet (pure): as long before it is due as waking up takes, to be on time.
//!
//! A sleeping thread runs some time after its timer has fired: 0.1 to 0.3 ms on a virtual machine whose idle cores are
//! given away. The mean of that is learnt, sleep ends so much earlier, and the rest is polled. Polling takes at most a
//! tenth of a core, because the programs under test need them; beyond that packets are late by the wake-up.

use std::time::Duration;

/// A lag that is rarer or longer is not anticipated.
const LAG_MAX: Duration = Duration::from_micros(300);
/// Of the distance to a new sample, which the mean then goes.
const MEAN_SHARE: u32 = 8;
/// One of so many is what polling may take of the time.
const POLL_SHARE: i64 = 10;
const CREDIT_MAX_NS: i64 = 5_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Look for packets without sleeping.
    Poll,
    /// Sleep until then, or until a host sends something.
    Until(Duration),
}

#[derive(Debug)]
pub struct Anticipation {
    lag: Duration,
    /// Nanoseconds that may be polled; below zero what was polled beyond.
    credit_ns: i64,
    asked_at: Duration,
    polling: bool,
}

impl Anticipation {
    pub fn new(now: Duration) -> Self {
        Self { lag: Duration::ZERO, credit_ns: CREDIT_MAX_NS, asked_at: now, polling: false }
    }

    /// How to wait at `now` for what is due next.
    pub fn wait(&mut self, now: Duration, due: Duration) -> Wait {
        let passed_ns = i64::try_from(now.saturating_sub(self.asked_at).as_nanos()).unwrap_or(i64::MAX);
        self.asked_at = now;
        let spent_ns = if self.polling { passed_ns } else { 0 };
        let earned_ns = passed_ns / POLL_SHARE;
        self.credit_ns = self.credit_ns.saturating_add(earned_ns).saturating_sub(spent_ns).min(CREDIT_MAX_NS);
        let may_poll = self.credit_ns > 0;
        self.polling = may_poll && due.saturating_sub(now) <= self.lag;
        match self.polling {
            true => Wait::Poll,
            false if may_poll => Wait::Until(due - self.lag),
            false => Wait::Until(due),
        }
    }

    /// Tells when a sleep that was to last until `planned` ended by itself.
    pub fn woke(&mut self, planned: Duration, now: Duration) {
        let sample = now.saturating_sub(planned).min(LAG_MAX);
        self.lag = self.lag * (MEAN_SHARE - 1) / MEAN_SHARE + sample / MEAN_SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn used_to(lag: Duration) -> Anticipation {
        let mut anticipation = Anticipation::new(Duration::ZERO);
        (0..100).for_each(|_| anticipation.woke(Duration::ZERO, lag));
        anticipation
    }

    #[test]
    fn sleep_ends_as_much_earlier_as_waking_up_takes_and_the_rest_is_polled() {
        let mut anticipation = used_to(100 * US);
        let Wait::Until(at) = anticipation.wait(Duration::ZERO, 1000 * US) else { panic!("polls for 1 ms") };
        assert!((900 * US..902 * US).contains(&at), "{at:?}");
        assert_eq!(anticipation.wait(905 * US, 1000 * US), Wait::Poll);
        assert_eq!(anticipation.wait(1005 * US, 1000 * US), Wait::Poll);
    }

    #[test]
    fn a_machine_that_wakes_up_at_once_is_never_polled() {
        let mut anticipation = Anticipation::new(Duration::ZERO);
        assert_eq!(anticipation.wait(Duration::ZERO, US), Wait::Until(US));
    }

    #[test]
    fn one_long_sleep_is_not_taken_for_the_rule() {
        let mut anticipation = Anticipation::new(Duration::ZERO);
        anticipation.woke(Duration::ZERO, Duration::from_secs(1));
        assert_eq!(anticipation.lag, LAG_MAX / MEAN_SHARE);
    }

    #[test]
    fn polling_takes_a_tenth_of_the_time_however_dense_packets_are() {
        let (mut anticipation, mut now, mut polled) = (used_to(300 * US), Duration::ZERO, Duration::ZERO);
        while now < Duration::from_secs(10) {
            match anticipation.wait(now, now + 50 * US) {
                Wait::Poll => {
                    now += 5 * US;
                    polled += 5 * US;
                }
                Wait::Until(at) => now = at,
            }
        }
        let share = polled.as_secs_f64() / now.as_secs_f64();
        assert!((0.08..0.11).contains(&share), "{share}");
    }
}
