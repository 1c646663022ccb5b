//! With how many threads a small step is quickest at this moment. Pure: the caller measures.
//!
//! ggml's threads wait for each other by spinning, hundreds of times a token. Where another program wants the cores, all
//! wait for the one that is not scheduled: ten times slower than one thread alone. So fewer threads are tried when steps
//! become slow, and every now and then the neighbouring numbers, for a few steps each. Results are the same with any
//! number: see `SLICES.md`, "Batch invariance".

use std::time::Duration;

/// Larger steps take all threads: they compute long between two waits.
const SMALL_STEP_TOKENS: usize = 32;
/// Steps that a trial takes.
const TRIAL_STEPS: u32 = 8;
/// So many steps of a trial are enough where they are quicker by so much.
const CLEAR_STEPS: u32 = 4;
const CLEAR_GAIN: f64 = 0.7;
/// Steps of one size that the level in use must have been measured for.
const KNOWN_STEPS: u32 = 4;
/// Another number of threads must be quicker by so much.
const GAIN: f64 = 0.95;
/// Steps so much slower than before are a reason to try fewer threads at once.
const SLOWDOWN: f64 = 1.5;
/// A step counts as so many times the usual at most: one that is held up, as happens beside other stages, says little of a number
/// of threads. So many in a row count in full.
const HELD_UP_MAX: f64 = 2.0;
const HELD_UP_STEPS: u32 = 5;
/// Steps so much quicker than before are a reason to try more threads: whoever wanted the cores is gone.
const SPEEDUP: f64 = 0.75;
/// Computing time between two trials, in seconds; doubles while they find nothing better.
const REST_MIN_S: f64 = 0.25;
const REST_MAX_S: f64 = 8.0;
/// After fewer threads were better.
const REST_FEWER_S: f64 = 2.0;
/// A trial that cost time is followed by so many times as long without one, within bounds: of more threads, of fewer
/// (which only a machine that was slow from the start gains by: one that becomes slow is noticed without).
const REST_PER_COST_MORE: f64 = 30.0;
const REST_PER_COST_FEWER: f64 = 100.0;
const REST_COST_MAX_S: f64 = 30.0;
/// Weight of the newest step in a mean; and of the last of many that are held up.
const NEWEST: f64 = 0.03;
const NEWEST_HELD_UP: f64 = 0.25;

/// Numbers of threads to choose from: all, a half, a quarter, down to one.
pub fn levels(threads: u32) -> Vec<u32> {
    std::iter::successors(Some(threads.max(1)), |&threads| (threads > 1).then_some(threads / 2)).collect()
}

#[derive(Debug)]
pub struct Pace {
    levels: usize,
    /// In use; 0 is all threads.
    level: usize,
    /// By the number of tokens: steps of one size follow each other rarely where sessions come and go, or guesses.
    sizes: [Size; SMALL_STEP_TOKENS + 1],
    trial: Option<Trial>,
    rest_s: f64,
    rested_s: f64,
    fewer_next: bool,
}

/// Steps with the same number of tokens on the level in use.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    steps: u32,
    mean_s: f64,
    /// So many of the last steps were held up.
    held_up: u32,
    /// The mean when the level was settled on.
    settled_s: Option<f64>,
}

impl Size {
    /// The first few count as the quickest of them: a mean of so few would say how many were held up.
    fn record(&mut self, seconds: f64) {
        if !self.is_known() {
            self.mean_s = if self.steps == 0 { seconds } else { self.mean_s.min(seconds) };
            self.steps += 1;
            return;
        }
        let counted = self.bounded(seconds);
        self.held_up = if counted < seconds { self.held_up + 1 } else { 0 };
        let (counted, weight) =
            if self.held_up >= HELD_UP_STEPS { (seconds, NEWEST_HELD_UP) } else { (counted, NEWEST) };
        self.mean_s += (counted - self.mean_s) * weight;
    }

    fn bounded(&self, seconds: f64) -> f64 {
        seconds.min(self.mean_s * HELD_UP_MAX)
    }

    fn is_known(&self) -> bool {
        self.steps >= KNOWN_STEPS
    }
}

/// Steps of known sizes on another level, and how long they would have taken on the one in use.
#[derive(Clone, Copy, Debug)]
struct Trial {
    level: usize,
    steps: u32,
    seconds: f64,
    usual_s: f64,
    /// Those that were held up in full.
    lasted_s: f64,
}

impl Pace {
    pub fn new(levels: usize) -> Self {
        Self {
            levels: levels.max(1),
            level: 0,
            sizes: [Size::default(); SMALL_STEP_TOKENS + 1],
            trial: None,
            rest_s: REST_MIN_S,
            rested_s: 0.0,
            fewer_next: true,
        }
    }

    /// The level for a step of `tokens`.
    pub fn level(&mut self, tokens: usize) -> usize {
        let Some(size) = self.sizes.get(tokens) else { return 0 };
        if !size.is_known() {
            // There is nothing to compare it with.
            self.trial = None;
        }
        self.trial.map_or(self.level, |trial| trial.level)
    }

    /// How long the step took that [`Pace::level`] was asked about last.
    pub fn record(&mut self, tokens: usize, took: Duration) {
        let Some(size) = self.sizes.get_mut(tokens).filter(|_| self.levels > 1) else { return };
        let seconds = took.as_secs_f64();
        if let Some(trial) = self.trial.take() {
            let trial = Trial {
                level: trial.level,
                steps: trial.steps + 1,
                seconds: trial.seconds + size.bounded(seconds),
                usual_s: trial.usual_s + size.mean_s,
                lasted_s: trial.lasted_s + seconds,
            };
            self.judge(trial);
            return;
        }
        size.record(seconds);
        let size = *size;
        self.rested_s += seconds;
        let begin = |level| Trial { level, steps: 0, seconds: 0.0, usual_s: 0.0, lasted_s: 0.0 };
        self.trial = self.next_trial(size).map(begin);
    }

    fn next_trial(&mut self, size: Size) -> Option<usize> {
        if !size.is_known() {
            return None;
        }
        let fewer = (self.level + 1 < self.levels).then_some(self.level + 1);
        let slower = size.settled_s.is_some_and(|settled| size.mean_s > settled * SLOWDOWN);
        if slower && fewer.is_some() {
            return fewer;
        }
        let more = self.level.checked_sub(1);
        let quicker = size.settled_s.is_some_and(|settled| size.mean_s < settled * SPEEDUP);
        if quicker && more.is_some() {
            return more;
        }
        if self.rested_s < self.rest_s {
            return None;
        }
        self.fewer_next = !self.fewer_next;
        if self.fewer_next { fewer.or(more) } else { more.or(fewer) }
    }

    fn judge(&mut self, trial: Trial) {
        let whole = f64::from(TRIAL_STEPS) / f64::from(trial.steps);
        let hopeless = trial.seconds > trial.usual_s * whole * GAIN
            || (trial.steps > 1 && trial.seconds > trial.usual_s * SLOWDOWN);
        let clear = trial.steps >= CLEAR_STEPS && trial.seconds < trial.usual_s * CLEAR_GAIN;
        if trial.steps < TRIAL_STEPS && !hopeless && !clear {
            self.trial = Some(trial);
            return;
        }
        self.rested_s = 0.0;
        if hopeless {
            let per_cost = if trial.level > self.level { REST_PER_COST_FEWER } else { REST_PER_COST_MORE };
            let cost = trial.lasted_s - trial.usual_s;
            self.rest_s = (self.rest_s * 2.0).min(REST_MAX_S).max((cost * per_cost).min(REST_COST_MAX_S));
        } else {
            self.rest_s = if trial.level > self.level { REST_FEWER_S } else { REST_MIN_S };
            self.level = trial.level;
        }
        for size in &mut self.sizes {
            if hopeless {
                size.settled_s = size.is_known().then_some(size.mean_s).or(size.settled_s);
            } else {
                // As much quicker as those of the trial, until they are measured.
                let expected_s = size.is_known().then_some(size.mean_s * trial.seconds / trial.usual_s);
                *size = Size { settled_s: expected_s, ..Size::default() };
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Steps until `seconds` have passed; how many there were, and on which level the last one was.
    fn run(pace: &mut Pace, tokens: usize, seconds: f64, mut cost: impl FnMut(usize) -> f64) -> (u32, usize) {
        let (mut passed, mut steps, mut level) = (0.0, 0, 0);
        while passed < seconds {
            level = pace.level(tokens);
            let took = cost(level);
            pace.record(tokens, Duration::from_secs_f64(took));
            passed += took;
            steps += 1;
        }
        (steps, level)
    }

    const IDLE: [f64; 2] = [0.009, 0.012];
    const BUSY: [f64; 2] = [0.140, 0.024];

    #[test]
    fn levels_halve() {
        assert_eq!(levels(0), [1]);
        assert_eq!(levels(1), [1]);
        assert_eq!(levels(12), [12, 6, 3, 1]);
    }

    #[test]
    fn an_idle_machine_keeps_all_its_speed() {
        let mut pace = Pace::new(2);
        let (steps, level) = run(&mut pace, 1, 60.0, |level| IDLE[level]);
        assert_eq!(level, 0);
        assert!(f64::from(steps) * IDLE[0] > 60.0 * 0.99, "{steps} steps in 60 s");
    }

    #[test]
    fn a_busy_machine_gets_fewer_threads_and_a_free_one_all_again() {
        let mut pace = Pace::new(2);
        run(&mut pace, 1, 20.0, |level| IDLE[level]);
        let (steps, level) = run(&mut pace, 1, 2.0, |level| BUSY[level]);
        assert_eq!(level, 1, "noticed within 2 s");
        assert!(f64::from(steps) * BUSY[1] > 2.0 * 0.7, "{steps} steps");
        let (steps, _) = run(&mut pace, 1, 60.0, |level| BUSY[level]);
        assert!(f64::from(steps) * BUSY[1] > 60.0 * 0.95, "{steps} steps in 60 s");
        run(&mut pace, 1, 2.0 * REST_COST_MAX_S, |level| IDLE[level]);
        let (steps, level) = run(&mut pace, 1, 20.0, |level| IDLE[level]);
        assert_eq!(level, 0, "it comes back within twice the longest rest");
        assert!(f64::from(steps) * IDLE[0] > 20.0 * 0.98, "{steps} steps");
    }

    #[test]
    fn a_machine_that_is_busy_from_the_start_is_noticed_too() {
        let mut pace = Pace::new(4);
        let (_, level) = run(&mut pace, 4, 10.0, |level| [0.2, 0.1, 0.05, 0.02][level]);
        assert_eq!(level, 3);
    }

    #[test]
    fn large_steps_take_all_threads_and_one_level_is_never_left() {
        let mut pace = Pace::new(2);
        run(&mut pace, 1, 5.0, |level| BUSY[level]);
        assert_eq!(pace.level(1), 1);
        assert_eq!(pace.level(SMALL_STEP_TOKENS + 1), 0);
        assert_eq!(run(&mut Pace::new(1), 1, 5.0, |_| 0.01).1, 0);
    }

    /// Beside other stages on the same cores: every 40th step or so is held up, sometimes several in a row, on whichever level.
    #[test]
    fn steps_that_are_held_up_now_and_then_end_at_the_same_level() {
        for seed in 1..20_u64 {
            let (mut pace, mut dice, mut held_up) = (Pace::new(2), seed, 0);
            let mut all_threads = 0;
            for _ in 0..10_000 {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if (dice >> 33).is_multiple_of(80) {
                    held_up = 1 + (dice >> 40) % 3;
                }
                let level = pace.level(1);
                all_threads += u32::from(level == 0);
                let factor = if held_up > 0 { 4.0 } else { 1.0 };
                held_up = held_up.saturating_sub(1);
                pace.record(1, Duration::from_secs_f64(IDLE[level] / 2.0 * factor));
            }
            assert!(all_threads > 8_500, "seed {seed}: all threads in {all_threads} of 10000 steps");
        }
    }

    /// On busy cores one thread is slower, too: it becomes quicker when they are free.
    #[test]
    fn cores_that_become_free_are_noticed_at_once() {
        let mut pace = Pace::new(2);
        run(&mut pace, 1, 60.0, |level| BUSY[level]);
        let (steps, _) = run(&mut pace, 1, 3.0, |level| IDLE[level]);
        assert!(f64::from(steps) * IDLE[0] > 3.0 * 0.88, "{steps} steps in 3 s");
    }

    /// Steps of 1 to 4 tokens by turns, some of them held up.
    fn mixed(pace: &mut Pace, steps: usize, cost: [f64; 2]) -> f64 {
        let mut all_threads = 0;
        for step in 0..steps {
            let tokens = [1, 1, 3, 1, 2, 1, 4][step % 7];
            let level = pace.level(tokens);
            all_threads += usize::from(level == 0);
            let held_up = if step % 23 == 5 { 4.0 } else { 1.0 };
            pace.record(tokens, Duration::from_secs_f64(cost[level] * tokens as f64 * held_up));
        }
        all_threads as f64 / steps as f64
    }

    #[test]
    fn steps_of_other_sizes_are_not_compared() {
        let share = mixed(&mut Pace::new(2), 20_000, IDLE);
        assert!(share > 0.98, "all threads in {share} of the steps");
        let share = mixed(&mut Pace::new(2), 20_000, BUSY);
        assert!(share < 0.05, "all threads in {share} of the steps of a busy machine");
    }
}
