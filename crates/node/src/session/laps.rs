//! How long the laps of a chain took. Pure.

use std::{collections::VecDeque, time::Duration};

/// The slowest of so many sets how long one may take.
const LAPS_REMEMBERED: usize = 16;
/// What comes within such a part of the lap before belongs to it.
const LAP_PART: u32 = 8;

#[derive(Debug, Default)]
pub struct Laps {
    latest: VecDeque<Duration>,
    /// Tokens that followed the latest one quickly took so long, all together.
    quick: Duration,
}

impl Laps {
    /// From one message with tokens to the next. Guesses that come true follow each other quickly and say nothing of how long a
    /// lap takes; a lap that was held up once, on the other hand, makes all that follow look quick. So the latest one counts
    /// until others have taken as long together, and is a quarter shorter then.
    pub fn note(&mut self, took: Duration) {
        let quick_to = self.latest.back().map(|latest| *latest / LAP_PART);
        let Some(latest) = self.latest.back_mut().filter(|_| quick_to.is_some_and(|limit| took < limit)) else {
            self.quick = Duration::ZERO;
            self.latest.push_back(took);
            if self.latest.len() > LAPS_REMEMBERED {
                self.latest.pop_front();
            }
            return;
        };
        self.quick += took;
        if self.quick >= *latest {
            self.quick = Duration::ZERO;
            *latest = *latest * 3 / 4;
        }
    }

    pub fn last(&self) -> Duration {
        self.latest.back().copied().unwrap_or_default()
    }

    pub fn slowest(&self) -> Duration {
        self.latest.iter().max().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn guesses_that_come_true_do_not_shorten_a_lap() {
        let mut laps = Laps::default();
        for _ in 0..40 {
            laps.note(ms(400));
            (0..99).for_each(|_| laps.note(ms(4)));
            assert_eq!((laps.last(), laps.slowest()), (ms(400), ms(400)));
        }
    }

    #[test]
    fn one_that_was_held_up_is_forgotten() {
        let mut laps = Laps::default();
        laps.note(ms(300));
        laps.note(ms(5_000));
        let mut ordinary = 0;
        while laps.slowest() > ms(300) {
            laps.note(ms(300));
            ordinary += 1;
        }
        assert!(ordinary < 80, "{ordinary} laps");
        laps.note(ms(350));
        assert_eq!((laps.last(), laps.slowest()), (ms(350), ms(350)));
    }
}
