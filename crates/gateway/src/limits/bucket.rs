//! A token bucket (the meter of RFC 2697, with one rate): `per_minute` units flow in evenly over a minute, up to
//! `per_minute` of them. Pure: whole numbers, and the time is handed in, in microseconds of any clock that does not go
//! back.

use std::{num::NonZeroU32, time::Duration};

/// Levels are kept in sixty-millionths of a unit: one microsecond adds `per_minute` of them, exactly.
const SCALE: i64 = 60_000_000;

/// May be in debt: what was used beyond a reservation is charged afterwards.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_minute: NonZeroU32,
    level: i64,
    at_us: u64,
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More than the bucket ever holds.
    TooLarge,
    /// Enough will have flowed in after this time, if nobody else takes it.
    Wait(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Units per minute.
    pub limit: u32,
    /// Whole units that can be taken now.
    pub remaining: u32,
    /// Until the bucket is full.
    pub full_in: Duration,
}

impl Bucket {
    pub fn full(per_minute: NonZeroU32, now_us: u64) -> Self {
        Self { per_minute, level: i64::from(per_minute.get()) * SCALE, at_us: now_us }
    }

    fn capacity(&self) -> i64 {
        i64::from(self.per_minute.get()) * SCALE
    }

    fn refill(&mut self, now_us: u64) {
        let elapsed = i64::try_from(now_us.saturating_sub(self.at_us)).unwrap_or(i64::MAX);
        let flowed_in = elapsed.saturating_mul(i64::from(self.per_minute.get()));
        self.level = self.level.saturating_add(flowed_in).min(self.capacity());
        self.at_us = self.at_us.max(now_us);
    }

    /// Takes `units`, all or nothing.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn take(&mut self, units: u64, now_us: u64) -> Result<(), Refused> {
        self.refill(now_us);
        if units > u64::from(self.per_minute.get()) {
            return Err(Refused::TooLarge);
        }
        let wanted = scaled(units);
        if wanted > self.level {
            return Err(Refused::Wait(self.time_to_gain(wanted.saturating_sub(self.level))));
        }
        self.level -= wanted;
        Ok(())
    }

    /// Replaces a reservation by what was used: the rest flows back, what exceeds it becomes debt.
    pub fn settle(&mut self, reserved: u64, used: u64, now_us: u64) {
        self.refill(now_us);
        let change = scaled(reserved).saturating_sub(scaled(used));
        self.level = self.level.saturating_add(change).min(self.capacity());
    }

    pub fn state(&mut self, now_us: u64) -> State {
        self.refill(now_us);
        State {
            limit: self.per_minute.get(),
            remaining: u32::try_from((self.level / SCALE).max(0)).unwrap_or(u32::MAX),
            full_in: self.time_to_gain(self.capacity().saturating_sub(self.level)),
        }
    }

    /// Rounded up, so that who waits so long is not refused again.
    fn time_to_gain(&self, level: i64) -> Duration {
        let rate = i64::from(self.per_minute.get());
        let us = level / rate + i64::from(level % rate != 0);
        Duration::from_micros(u64::try_from(us).unwrap_or(0))
    }
}

fn scaled(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX).saturating_mul(SCALE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(per_minute: u32) -> Bucket {
        Bucket::full(NonZeroU32::new(per_minute).unwrap(), 0)
    }

    #[test]
    fn a_minute_s_worth_at_once_then_evenly() {
        let mut bucket = full(60);
        for _ in 0..60 {
            bucket.take(1, 0).unwrap();
        }
        assert_eq!(bucket.take(1, 0), Err(Refused::Wait(Duration::from_secs(1))));
        assert_eq!(bucket.take(1, 999_999), Err(Refused::Wait(Duration::from_micros(1))));
        bucket.take(1, 1_000_000).unwrap();
        assert_eq!(bucket.take(61, 1_000_000), Err(Refused::TooLarge));
        let state = bucket.state(2_500_000);
        assert_eq!((state.limit, state.remaining, state.full_in), (60, 1, Duration::from_millis(58_500)));
    }

    #[test]
    fn what_exceeds_a_reservation_is_paid_later() {
        let mut bucket = full(100);
        bucket.take(10, 0).unwrap();
        bucket.settle(10, 150, 0);
        assert_eq!(bucket.state(0).remaining, 0);
        assert_eq!(bucket.take(1, 0), Err(Refused::Wait(Duration::from_micros(30_600_000))));
        bucket.take(1, 30_600_000).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Op {
        Pass(u64),
        Take(u64),
        Settle(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (0..90_000_000u64).prop_map(Op::Pass),
            (0..2_000u64).prop_map(Op::Take),
            (0..2_000u64).prop_map(Op::Settle),
        ];
        proptest::collection::vec(op, 0..120)
    }

    proptest! {
        /// Never more than a full bucket and what flowed in; and who is told to wait is served after that time.
        #[test]
        fn use_is_bounded_and_waits_are_true(per_minute in 1..1_000u32, ops in ops()) {
            let mut bucket = full(per_minute);
            let (mut now, mut used, mut reserved) = (0u64, 0u64, Vec::new());
            for op in ops {
                match op {
                    Op::Pass(us) => now += us,
                    Op::Take(units) => match bucket.take(units, now) {
                        Ok(()) => reserved.push(units),
                        Err(Refused::TooLarge) => prop_assert!(units > u64::from(per_minute)),
                        Err(Refused::Wait(time)) => {
                            let us = time.as_micros() as u64;
                            prop_assert!(us > 0);
                            prop_assert!(bucket.clone().take(units, now + us - 1).is_err());
                            prop_assert!(bucket.clone().take(units, now + us).is_ok());
                        }
                    },
                    Op::Settle(share) => {
                        if let Some(units) = reserved.pop() {
                            let actual = units.min(share);
                            bucket.settle(units, actual, now);
                            used += actual;
                        }
                    }
                }
                let state = bucket.state(now);
                prop_assert!(state.remaining <= per_minute && state.full_in <= Duration::from_secs(60));
                let allowed = u128::from(per_minute) * (60_000_000 + u128::from(now));
                let taken = u128::from(used + reserved.iter().sum::<u64>()) * 60_000_000;
                prop_assert!(taken <= allowed, "{taken} > {allowed}");
            }
        }

        #[test]
        fn no_number_overflows(per_minute in 1..=u32::MAX, units: u64, used: u64, times: [u64; 3]) {
            let mut bucket = full(per_minute);
            for now in times {
                let _ = bucket.take(units, now);
                bucket.settle(units, used, now);
                let state = bucket.state(now);
                prop_assert!(state.remaining <= per_minute);
            }
        }
    }
}
