//! Speculation: guesses of the next tokens that go through the pipeline with the last one, so that one lap may bring
//! several tokens. What is drawn decides, token by token, with the same sampler as without guesses; a guess that misses
//! costs its time and nothing else. Pure: the caller measures.
//!
//! Guesses are looked up in the text so far: what followed the last tokens when they stood there before ("prompt lookup
//! decoding", Saxena 2023; `n-gram` in vLLM). How many are worth their time follows from three means: how many come
//! true, what a lap takes, and what a row more takes.

use opengrid_protocol::session::Token;

/// Guesses of a lap at most.
pub const DRAFTS_MAX: usize = crate::spans::DECODE_ROWS_MAX - 1;
/// So many last tokens are looked for, the longer the better.
const SUFFIX_MAX: usize = 8;
const SUFFIX_MIN: usize = 2;
/// Weight of the newest in the means of times.
const NEWEST: f32 = 0.05;
/// Guesses of the first lap that has any, and of a lap that tries again after guesses did not pay.
const FIRST: usize = 4;
const TRIAL: usize = 2;
/// Laps between two such trials at least, and what share of the time they may cost.
const REST_LAPS: f32 = 24.0;
const TRIALS_SHARE: f32 = 0.01;
/// Laps after which one without guesses shows again what the others are to be compared with.
const JUDGED_LAPS: u32 = 64;
/// Guesses count as so many, and as so many that came true, before anything is known: after ends of 2 or 3 tokens that
/// were found again, of 4 to 7, and of 8.
const KNOWN_BEFORE: [Accepted; 3] =
    [Accepted { seen: 4.0, right: 2.0 }, Accepted { seen: 4.0, right: 3.0 }, Accepted { seen: 4.0, right: 3.6 }];
/// Older ones fade, so that what is remembered counts as so many.
const REMEMBERED: f32 = 40.0;

/// What may follow, as it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guesses<'t> {
    pub tokens: &'t [Token],
    /// So many last tokens stood before them then.
    pub suffix: usize,
}

/// What followed the end of `tokens` where that end occurred last, at most `most` tokens.
pub fn look_up(tokens: &[Token], most: usize) -> Guesses<'_> {
    let length = tokens.len();
    for suffix in (SUFFIX_MIN..=SUFFIX_MAX.min(length.saturating_sub(1))).rev() {
        let end = &tokens[length - suffix..];
        let earlier = &tokens[..length - 1];
        if let Some(at) = earlier.windows(suffix).rposition(|window| window == end) {
            let from = at + suffix;
            return Guesses { tokens: &tokens[from..length.min(from + most)], suffix };
        }
    }
    Guesses { tokens: &[], suffix: 0 }
}

/// Guesses that were looked at, and how many of them came true.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    seen: f32,
    right: f32,
}

impl Accepted {
    fn share(self) -> f32 {
        self.right / self.seen
    }

    fn record(&mut self, right: bool) {
        if self.seen >= REMEMBERED {
            self.right *= (REMEMBERED - 1.0) / self.seen;
            self.seen = REMEMBERED - 1.0;
        }
        self.seen += 1.0;
        self.right += f32::from(u8::from(right));
    }
}

fn kind(suffix: usize) -> usize {
    match suffix {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    }
}

/// How many guesses are worth it, of one session.
#[derive(Clone, Debug)]
pub struct Drafting {
    accepted: [Accepted; 3],
    /// Of the present lap.
    suffix: usize,
    /// Seconds of a lap without guesses, and of each row more.
    lap_s: Option<f32>,
    row_s: Option<f32>,
    laps_without: u32,
    laps_with: u32,
}

impl Default for Drafting {
    fn default() -> Self {
        Self { accepted: KNOWN_BEFORE, suffix: 0, lap_s: None, row_s: None, laps_without: 0, laps_with: 0 }
    }
}

impl Drafting {
    /// Those of the guesses that go with the next lap.
    pub fn choose<'t>(&mut self, guesses: Guesses<'t>) -> &'t [Token] {
        self.suffix = guesses.suffix;
        &guesses.tokens[..self.length(guesses.tokens.len())]
    }

    fn length(&self, available: usize) -> usize {
        let Some(lap_s) = self.lap_s.filter(|_| self.laps_with < JUDGED_LAPS) else { return 0 };
        let Some(row_s) = self.row_s else { return available.min(FIRST) };
        let most = available.min(DRAFTS_MAX);
        let best = self.best(most, lap_s, row_s);
        let trial_laps = TRIAL as f32 * row_s / lap_s.max(f32::MIN_POSITIVE);
        let rest = (trial_laps / TRIALS_SHARE).max(REST_LAPS);
        if best == 0 && self.laps_without as f32 >= rest { available.min(TRIAL) } else { best }
    }

    /// The number of guesses that brings the most tokens per second. Each that comes true makes the end that was found
    /// again one longer.
    fn best(&self, most: usize, lap_s: f32, row_s: f32) -> usize {
        let (mut best, mut best_rate) = (0, 0.0);
        let (mut tokens, mut all_true) = (0.0, 1.0);
        for guesses in 0..=most {
            tokens += all_true;
            all_true *= self.accepted[kind(self.suffix + guesses)].share();
            let rate = tokens / (lap_s + guesses as f32 * row_s).max(f32::MIN_POSITIVE);
            if rate > best_rate {
                (best, best_rate) = (guesses, rate);
            }
        }
        best
    }

    /// A lap with `guesses` took so long and so many of them came true.
    pub fn record(&mut self, guesses: usize, came_true: usize, seconds: f32) {
        if guesses == 0 {
            self.lap_s = Some(self.lap_s.map_or(seconds, |lap| lap + (seconds - lap) * NEWEST));
            self.laps_without += 1;
            self.laps_with = 0;
            return;
        }
        self.laps_without = 0;
        self.laps_with += 1;
        let looked_at = came_true + usize::from(came_true < guesses);
        for at in 0..looked_at {
            self.accepted[kind(self.suffix + at)].record(at < came_true);
        }
        let more_s = self.lap_s.map_or(0.0, |lap| (seconds - lap) / guesses as f32).max(0.0);
        self.row_s = Some(self.row_s.map_or(more_s, |row| row + (more_s - row) * NEWEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed_the_longest_and_latest_end_first() {
        assert_eq!(look_up(&[1, 2, 3, 9, 1, 2], 4), Guesses { tokens: &[3, 9, 1, 2], suffix: 2 });
        assert_eq!(look_up(&[1, 2, 3, 1, 2, 4, 1, 2], 1).tokens, [4], "the later one");
        assert_eq!(
            look_up(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1),
            Guesses { tokens: &[3], suffix: 3 },
            "the longer one"
        );
        assert_eq!(look_up(&[5, 5, 5, 5], 3).tokens, [5], "to the end of the text");
        for nothing in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert_eq!(look_up(nothing, 8), Guesses { tokens: &[], suffix: 0 });
        }
    }

    /// Tokens a second over `laps`, where each guess comes true with this chance, a lap takes `lap` and a row `row`.
    fn speed(chance: f64, lap: f32, row: f32, laps: u32) -> f32 {
        let mut drafting = Drafting::default();
        let (mut tokens, mut seconds, mut dice) = (0_usize, 0.0, 1_u64);
        let mut roll = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 11) as f64 / (1_u64 << 53) as f64
        };
        for _ in 0..laps {
            drafting.suffix = SUFFIX_MIN;
            let guesses = drafting.length(DRAFTS_MAX);
            let came_true = (0..guesses).take_while(|_| roll() < chance).count();
            let took = lap + guesses as f32 * row;
            drafting.record(guesses, came_true, took);
            tokens += came_true + 1;
            seconds += took;
        }
        tokens as f32 / seconds
    }

    #[test]
    fn useless_guesses_cost_little_and_good_ones_pay() {
        for (lap, row) in [(0.2, 0.005), (0.02, 0.005), (0.02, 0.015)] {
            let without = 1.0 / lap;
            assert!(speed(0.0, lap, row, 300) >= without * 0.97, "useless at {lap} {row}");
            for chance in [0.3, 0.6, 0.8, 0.9, 0.98] {
                let fast = speed(chance, lap, row, 300);
                assert!(fast >= without * 0.97, "{chance} at {lap} {row}: {fast} of {without}");
            }
        }
        let always = |chance: f32, guesses: usize| {
            (0..=guesses).map(|at| chance.powi(at as i32)).sum::<f32>() / (0.2 + guesses as f32 * 0.005)
        };
        for chance in [0.5, 0.7, 0.8, 0.9] {
            let best = (0..=DRAFTS_MAX).map(|guesses| always(chance, guesses)).fold(0.0, f32::max);
            let fast = speed(f64::from(chance), 0.2, 0.005, 1_000);
            assert!(fast >= best * 0.93, "{chance}: {fast}, with the best number each time {best}");
        }
    }
}
