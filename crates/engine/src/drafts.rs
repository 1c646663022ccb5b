//! Speculation: guesses of the next tokens that go through the pipeline with the last one, so that one lap may bring
//! several tokens. What is drawn decides, token by token, with the same sampler as without guesses; a guess that misses
//! costs its time and nothing else. Pure: the caller measures.
//!
//! Guesses are looked up in the text so far: what followed the last tokens when they stood there before ("prompt lookup
//! decoding", Saxena 2023; `n-gram` in vLLM), or drawn by a draft model beside the last stage. How many are worth their
//! time, and whose, follows from means of each source: how many come true, what a lap takes, and what a row more takes,
//! the time to guess it included.

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
/// were found again, of 4 to 7, of 8, and those of a draft model: better than a short end, worse than a long one.
const KNOWN_BEFORE: [Accepted; 4] = [
    Accepted { seen: 4.0, right: 2.0 },
    Accepted { seen: 4.0, right: 3.0 },
    Accepted { seen: 4.0, right: 3.6 },
    Accepted { seen: 4.0, right: 3.2 },
];
const OF_MODEL: usize = 3;
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

/// Where guesses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    #[default]
    Text,
    /// The draft model.
    Model,
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

/// Guesses of one source that can be had for the next lap.
#[derive(Clone, Copy, Debug)]
struct Offer {
    source: Source,
    /// Of the text: the length of the end that was found again.
    suffix: usize,
    available: usize,
}

impl Offer {
    /// Each guess that comes true makes the end that was found again one longer.
    fn kind(self, at: usize) -> usize {
        match (self.source, self.suffix + at) {
            (Source::Model, _) => OF_MODEL,
            (Source::Text, 0..4) => 0,
            (Source::Text, 4..8) => 1,
            (Source::Text, _) => 2,
        }
    }
}

/// How many guesses are worth it, of one session, and whose.
#[derive(Clone, Debug)]
pub struct Drafting {
    accepted: [Accepted; 4],
    /// Of the present lap.
    offer: Offer,
    /// Seconds of a lap without guesses, and of each row more with guesses of a source.
    lap_s: Option<f32>,
    row_s: [Option<f32>; 2],
    /// Since guesses of a source went along.
    laps_since: [u32; 2],
    laps_with: u32,
}

impl Default for Drafting {
    fn default() -> Self {
        Self {
            accepted: KNOWN_BEFORE,
            offer: Offer { source: Source::Text, suffix: 0, available: 0 },
            lap_s: None,
            row_s: [None; 2],
            laps_since: [0; 2],
            laps_with: 0,
        }
    }
}

impl Drafting {
    /// Whose guesses go with the next lap, and how many at most: of those that were looked up, or of `by_model` that the
    /// draft model can give.
    pub fn choose(&mut self, found: Guesses<'_>, by_model: usize) -> (Source, usize) {
        let text = Offer { source: Source::Text, suffix: found.suffix, available: found.tokens.len() };
        let model = Offer { source: Source::Model, suffix: 0, available: by_model };
        let ((of_text, text_rate), (of_model, model_rate)) = (self.worth(text), self.worth(model));
        let (offer, guesses) =
            if of_model > 0 && (of_text == 0 || model_rate > text_rate) { (model, of_model) } else { (text, of_text) };
        self.offer = offer;
        (offer.source, guesses)
    }

    /// Whether guesses of the draft model would go along if it had any.
    pub fn wants_model(&self) -> bool {
        self.worth(Offer { source: Source::Model, suffix: 0, available: DRAFTS_MAX }).0 > 0
    }

    /// How many of the guesses are worth their time, and the tokens per second that they bring.
    fn worth(&self, offer: Offer) -> (usize, f32) {
        let Some(lap_s) = self.lap_s.filter(|_| self.laps_with < JUDGED_LAPS) else { return (0, 0.0) };
        let most = offer.available.min(DRAFTS_MAX);
        let Some(row_s) = self.row_s[offer.source as usize] else {
            let first = most.min(FIRST);
            return (first, self.rate(offer, first, lap_s, 0.0));
        };
        let rate = |guesses| self.rate(offer, guesses, lap_s, row_s);
        let mut best = (0, rate(0));
        for guesses in 1..=most {
            if rate(guesses) > best.1 {
                best = (guesses, rate(guesses));
            }
        }
        let trial_laps = TRIAL as f32 * row_s / lap_s.max(f32::MIN_POSITIVE);
        let rest = (trial_laps / TRIALS_SHARE).max(REST_LAPS);
        let is_trial = best.0 == 0 && self.laps_since[offer.source as usize] as f32 >= rest;
        if is_trial { (most.min(TRIAL), best.1) } else { best }
    }

    fn rate(&self, offer: Offer, guesses: usize, lap_s: f32, row_s: f32) -> f32 {
        let (mut tokens, mut all_true) = (1.0, 1.0);
        for at in 0..guesses {
            all_true *= self.accepted[offer.kind(at)].share();
            tokens += all_true;
        }
        tokens / (lap_s + guesses as f32 * row_s).max(f32::MIN_POSITIVE)
    }

    /// A lap with `guesses` took so long and so many of them came true.
    pub fn record(&mut self, guesses: usize, came_true: usize, seconds: f32) {
        self.laps_since.iter_mut().for_each(|laps| *laps = laps.saturating_add(1));
        if guesses == 0 {
            self.lap_s = Some(self.lap_s.map_or(seconds, |lap| lap + (seconds - lap) * NEWEST));
            self.laps_with = 0;
            return;
        }
        let source = self.offer.source as usize;
        self.laps_since[source] = 0;
        self.laps_with += 1;
        let looked_at = came_true + usize::from(came_true < guesses);
        for at in 0..looked_at {
            self.accepted[self.offer.kind(at)].record(at < came_true);
        }
        let more_s = self.lap_s.map_or(0.0, |lap| (seconds - lap) / guesses as f32).max(0.0);
        let row_s = &mut self.row_s[source];
        *row_s = Some(row_s.map_or(more_s, |row| row + (more_s - row) * NEWEST));
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

    /// What guesses of a source are like: the chance that one comes true, and what it takes, in seconds.
    #[derive(Clone, Copy)]
    struct Like {
        chance: f64,
        row: f32,
    }

    /// Tokens a second over `laps` with guesses of the text and of a draft model; so many laps carried those of the model.
    fn race(text: Option<Like>, model: Option<Like>, lap: f32, laps: u32) -> (f32, u32) {
        let mut drafting = Drafting::default();
        let (mut tokens, mut seconds, mut dice, mut of_model) = (0_usize, 0.0, 1_u64, 0);
        let mut roll = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 11) as f64 / (1_u64 << 53) as f64
        };
        let some = [0; DRAFTS_MAX];
        for _ in 0..laps {
            let found = Guesses { tokens: text.map_or(&[], |_| &some), suffix: SUFFIX_MIN };
            let (source, guesses) = drafting.choose(found, if model.is_some() { DRAFTS_MAX } else { 0 });
            let like = if source == Source::Model { model } else { text };
            let like = like.unwrap_or(Like { chance: 0.0, row: 0.0 });
            let came_true = (0..guesses).take_while(|_| roll() < like.chance).count();
            let took = lap + guesses as f32 * like.row;
            drafting.record(guesses, came_true, took);
            of_model += u32::from(source == Source::Model && guesses > 0);
            tokens += came_true + 1;
            seconds += took;
        }
        (tokens as f32 / seconds, of_model)
    }

    /// With guesses of either source alone.
    fn speeds(chance: f64, lap: f32, row: f32, laps: u32) -> [f32; 2] {
        let like = Some(Like { chance, row });
        [race(like, None, lap, laps).0, race(None, like, lap, laps).0]
    }

    #[test]
    fn useless_guesses_cost_little_and_good_ones_pay() {
        for (lap, row) in [(0.2, 0.005), (0.02, 0.005), (0.02, 0.015)] {
            let without = 1.0 / lap;
            for chance in [0.0, 0.3, 0.6, 0.8, 0.9, 0.98] {
                for fast in speeds(chance, lap, row, 300) {
                    assert!(fast >= without * 0.97, "{chance} at {lap} {row}: {fast} of {without}");
                }
            }
            let useless = Some(Like { chance: 0.0, row });
            let (fast, _) = race(useless, useless, lap, 600);
            assert!(fast >= without * 0.97, "both useless at {lap} {row}: {fast} of {without}");
        }
        let always = |chance: f32, guesses: usize| {
            (0..=guesses).map(|at| chance.powi(at as i32)).sum::<f32>() / (0.2 + guesses as f32 * 0.005)
        };
        for chance in [0.5, 0.7, 0.8, 0.9] {
            let best = (0..=DRAFTS_MAX).map(|guesses| always(chance, guesses)).fold(0.0, f32::max);
            for fast in speeds(f64::from(chance), 0.2, 0.005, 1_000) {
                assert!(fast >= best * 0.93, "{chance}: {fast}, with the best number each time {best}");
            }
        }
    }

    #[test]
    fn the_better_source_guesses() {
        let (good, bad) = (Some(Like { chance: 0.9, row: 0.01 }), Some(Like { chance: 0.2, row: 0.005 }));
        let (alone, _) = race(None, good, 0.2, 500);
        let (fast, of_model) = race(bad, good, 0.2, 500);
        assert!(of_model > 400 && fast >= alone * 0.97, "{of_model} of 500 laps, {fast} beside {alone}");
        let (alone, _) = race(good, None, 0.2, 500);
        let (fast, of_model) = race(good, bad, 0.2, 500);
        assert!(of_model < 50 && fast >= alone * 0.97, "{of_model} of 500 laps, {fast} beside {alone}");
        // It guesses right, and takes longer than the lap that it spares.
        let slow = Some(Like { chance: 0.9, row: 0.3 });
        let (fast, of_model) = race(None, slow, 0.2, 1_000);
        assert!(of_model < 20 && fast >= 5.0 * 0.97, "{of_model} of 1000 laps, {fast}");
    }

    #[test]
    fn long_ends_go_before_the_model_and_short_ones_behind() {
        let mut drafting = Drafting::default();
        let found = |suffix| Guesses { tokens: &[1, 2, 3], suffix };
        assert_eq!(drafting.choose(found(8), 8), (Source::Text, 0), "the first lap shows what a lap takes");
        assert!(!drafting.wants_model());
        drafting.record(0, 0, 0.1);
        assert!(drafting.wants_model());
        assert_eq!(drafting.choose(found(8), 8), (Source::Text, 3));
        assert_eq!(drafting.choose(found(2), 8), (Source::Model, FIRST));
        assert_eq!(drafting.choose(found(2), 0), (Source::Text, 3), "it has none");
    }
}
