//! Speculation: guesses of the next tokens that follow the last one through the pipeline, so that several tokens are under
//! way at once. What is drawn decides, token by token, with the same sampler as without guesses; a guess that misses
//! costs its time and nothing else. Pure: the caller measures.
//!
//! Guesses are looked up in the text so far: what followed the last tokens when they stood there before ("prompt lookup
//! decoding", Saxena 2023; `n-gram` in vLLM), or drawn by a draft model beside the last stage. They wait for no verdict: each
//! that comes true lets more follow, and one that misses takes back all behind it. How many may be under way, and whose,
//! follows from means: how many of each source come true, what a lap takes, and what a row more costs, the time to guess it
//! included.

use std::collections::VecDeque;

use opengrid_protocol::{limits::GUESSES_MAX, session::Token};

/// So many last tokens are looked for, the longer the better.
const SUFFIX_MAX: usize = 32;
const SUFFIX_MIN: usize = 2;
/// Weight of the newest in the means of times, at least.
const NEWEST: f64 = 0.1;
/// Guesses of a lap that tries again after guesses did not pay.
const TRIAL: usize = 2;
/// Laps between two such trials at least, and what share of the time they may cost. The first few of a draft model come
/// sooner, each after twice as many laps as the one before: the moment that was measured may have been an unlucky one.
const REST_LAPS: f64 = 24.0;
const EARLY_REST_LAPS: u32 = 4;
const EARLY_TRIALS: u32 = 4;
const TRIALS_SHARE: f64 = 0.01;
/// Laps after which one without guesses shows again what the others are to be compared with.
const JUDGED_LAPS: u32 = 64;
/// Fewer guesses wait for company, while so many are under way.
const TOGETHER: usize = 4;
const UNDER_WAY: usize = 12;
/// What a row of a guess that misses costs a session that is alone, at least, in the time that the row takes. Where a lap
/// is mostly spent on links it runs ahead of what comes in its place, through stages that would do nothing; where it is
/// spent on computing, what comes in its place waits for it. Other sessions pay for all of it.
const WASTED_MIN: f64 = 0.2;
/// Guesses count as so many, and as so many that came true, before anything is known: after ends of 2 or 3 tokens that
/// were found again, of 4 to 7, of 8 to 15, longer ones, and those of a draft model: better than a short end, worse than a
/// long one.
const KNOWN_BEFORE: [Accepted; KINDS] = [
    Accepted { seen: 4.0, right: 2.0 },
    Accepted { seen: 4.0, right: 3.2 },
    Accepted { seen: 8.0, right: 7.4 },
    Accepted { seen: 20.0, right: 19.5 },
    Accepted { seen: 4.0, right: 3.2 },
];
const KINDS: usize = 5;
const OF_MODEL: usize = 4;
/// Guesses of a draft model under way at most, and in the first lap that has any: it computes while the lap waits.
const MODEL_MAX: usize = 16;
const MODEL_FIRST: usize = 4;
/// Older ones fade, so that what is remembered counts as so many.
const REMEMBERED: f64 = 40.0;

/// What may follow, as it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guesses<'t> {
    pub tokens: &'t [Token],
    /// So many last tokens stood before them then.
    pub suffix: usize,
}

/// What followed the end of `tokens` where the longest part of it occurred, the last time, at most `most` tokens.
pub fn look_up(tokens: &[Token], most: usize) -> Guesses<'_> {
    let mut found = Guesses { tokens: &[], suffix: 0 };
    let mut at = 0;
    for end in (SUFFIX_MIN..tokens.len()).rev() {
        let alike = |(earlier, last): &(&Token, &Token)| earlier == last;
        let before = tokens[..end].iter().rev();
        let suffix = before.zip(tokens.iter().rev()).take(SUFFIX_MAX).take_while(alike).count();
        if suffix > found.suffix.max(SUFFIX_MIN - 1) {
            (found.suffix, at) = (suffix, end);
            if suffix == SUFFIX_MAX {
                break;
            }
        }
    }
    if found.suffix > 0 {
        found.tokens = &tokens[at..tokens.len().min(at + most)];
    }
    found
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
    seen: f64,
    right: f64,
}

impl Accepted {
    fn share(self) -> f64 {
        self.right / self.seen
    }

    fn record(&mut self, right: bool) {
        if self.seen >= REMEMBERED {
            self.right *= (REMEMBERED - 1.0) / self.seen;
            self.seen = REMEMBERED - 1.0;
        }
        self.seen += 1.0;
        self.right += f64::from(u8::from(right));
    }
}

/// Guesses of one source that can be had now.
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
            (Source::Text, 8..16) => 2,
            (Source::Text, _) => 3,
        }
    }
}

/// A mean of which the first value is a guess.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    seen: u32,
}

impl Mean {
    fn guessed(value: f64) -> Self {
        Self { value, seen: 0 }
    }

    fn is_measured(&self) -> bool {
        self.seen > 0
    }

    fn record(&mut self, value: f64) {
        self.seen = self.seen.saturating_add(1);
        self.value += (value - self.value) * NEWEST.max(1.0 / f64::from(self.seen));
    }
}

/// The lap under way.
#[derive(Clone, Copy, Debug)]
struct Lap {
    /// When its token was drawn, or had left with guesses.
    began: f64,
    left: bool,
    /// Guesses that left with its token.
    guesses: usize,
    /// When the row of its token, and the latest of those guesses, were there, and how many of them.
    first: Option<f64>,
    seen: (f64, usize),
}

/// How many guesses are worth it, of one session. Times are in seconds from any moment on.
#[derive(Clone, Debug)]
pub struct Drafting {
    accepted: [Accepted; KINDS],
    /// Kinds of the guesses under way.
    under_way: VecDeque<usize>,
    lap: Option<Lap>,
    /// Of about so many that are as slow as this one.
    stages: f64,
    /// Seconds of a lap without guesses.
    lap_s: Mean,
    /// From row to row of guesses that left together.
    row_s: Mean,
    /// What a guess adds to its lap.
    added_s: Mean,
    /// What the draft model takes for a guess.
    guess_s: Mean,
    /// Laps since guesses of a source went along.
    laps_since: [u32; 2],
    laps_with: u32,
    source: Source,
    /// Of the guesses under way, the last so many have not left yet.
    chosen: usize,
}

impl Drafting {
    /// `lap_s` and `row_s` hold until they are measured.
    pub fn new(lap_s: f64, row_s: f64, stages: f64) -> Self {
        let guess = |value: f64| Mean::guessed(if value.is_finite() { value.max(1e-6) } else { 1.0 });
        Self {
            accepted: KNOWN_BEFORE,
            under_way: VecDeque::new(),
            lap: None,
            stages,
            lap_s: guess(lap_s),
            row_s: guess(row_s),
            added_s: Mean::guessed(0.0),
            guess_s: Mean::guessed(0.0),
            laps_since: [0; 2],
            laps_with: 0,
            source: Source::Text,
            chosen: 0,
        }
    }

    /// A token was drawn that no guess under way stands for: it leaves now, and all guesses before are void.
    pub fn begin(&mut self, now: f64) {
        self.under_way.clear();
        self.lap = Some(Lap { began: now, left: false, guesses: 0, first: None, seen: (now, 0) });
    }

    /// So many guesses came true, and the next one did not if `missed`.
    pub fn judged(&mut self, right: usize, missed: bool, now: f64) {
        let looked_at = (right + usize::from(missed)).min(self.under_way.len());
        for (at, kind) in self.under_way.drain(..looked_at).enumerate() {
            self.accepted[kind].record(at < right);
        }
        self.time(right, now);
    }

    fn time(&mut self, right: usize, now: f64) {
        let Some(lap) = &mut self.lap else { return };
        if lap.first.is_none() {
            let took = now - lap.began;
            lap.first = Some(now);
            // The first row alone is what a lap takes.
            lap.seen = (now, right);
            if lap.guesses == 0 {
                self.lap_s.record(took);
                self.laps_with = 0;
            } else {
                self.laps_with = self.laps_with.saturating_add(1);
                if self.lap_s.is_measured() {
                    self.added_s.record(((took - self.lap_s.value) / lap.guesses as f64).max(0.0));
                } else {
                    self.lap_s.value = took;
                }
            }
            return;
        }
        let (before, seen) = lap.seen;
        if right > 0 && seen < lap.guesses {
            self.row_s.record((now - before) / right as f64);
        }
        lap.seen = (now, seen + right);
    }

    /// Whose guesses follow those under way now, and how many at most, while `sessions` run in the stage: of those that were
    /// looked up, or of `by_model` that the draft model can give. [`Drafting::left`] is next.
    pub fn choose(&mut self, found: Guesses<'_>, by_model: usize, sessions: usize) -> (Source, usize) {
        let text = Offer { source: Source::Text, suffix: found.suffix, available: found.tokens.len() };
        let model = Offer { source: Source::Model, suffix: 0, available: by_model };
        let ((of_text, text_rate), (of_model, model_rate)) = (self.worth(text, sessions), self.worth(model, sessions));
        let (offer, guesses) = match () {
            () if self.begins() && self.laps_with >= JUDGED_LAPS => (text, 0),
            () if of_model > 0 && (of_text == 0 || model_rate > text_rate) => (model, of_model),
            () if of_text < TOGETHER && self.under_way.len() >= UNDER_WAY => (text, 0),
            () if self.keeps_to_model(text) => (text, 0),
            () => (text, of_text),
        };
        self.under_way.extend((0..guesses).map(|at| offer.kind(at)));
        self.chosen = guesses;
        if guesses > 0 {
            self.source = offer.source;
        }
        (offer.source, guesses)
    }

    /// Behind guesses of the text the model cannot go on: worse ones than its own wait for it.
    fn keeps_to_model(&self, text: Offer) -> bool {
        let share = |kind: usize| self.accepted[kind].share();
        self.under_way.back() == Some(&OF_MODEL) && share(text.kind(0)) < share(OF_MODEL)
    }

    /// So many guesses leave, no more than were chosen.
    pub fn left(&mut self, guesses: usize, now: f64) {
        let chosen = std::mem::take(&mut self.chosen);
        self.under_way.truncate(self.under_way.len() - chosen.saturating_sub(guesses));
        let begins = self.begins();
        let of_model = self.source == Source::Model;
        let Some(lap) = self.lap.as_mut().filter(|_| begins) else { return };
        self.laps_since.iter_mut().for_each(|laps| *laps = laps.saturating_add(1));
        if guesses > 0 {
            self.laps_since[self.source as usize] = 0;
            if of_model {
                self.guess_s.record((now - lap.began) / guesses as f64);
            }
        }
        (lap.left, lap.began, lap.guesses) = (true, now, guesses);
    }

    /// The token of the lap has not left yet.
    fn begins(&self) -> bool {
        self.lap.is_some_and(|lap| !lap.left)
    }

    /// Of the latest guesses.
    pub fn last_source(&self) -> Source {
        self.source
    }

    /// Whether guesses of the draft model would go along if it had any.
    pub fn wants_model(&self) -> bool {
        self.worth(Offer { source: Source::Model, suffix: 0, available: MODEL_MAX }, 1).0 > 0
    }

    /// Whether it could guess now: behind its own guesses, or where a lap begins.
    pub fn may_ask_model(&self) -> bool {
        self.under_way.iter().all(|kind| *kind == OF_MODEL) && self.wants_model()
    }

    /// How many bring more each, in the time of a row, than the laps do on the whole; and the tokens per second that come
    /// of it.
    fn worth(&self, offer: Offer, sessions: usize) -> (usize, f64) {
        let (mut all_true, mut tokens) = (1.0, 1.0);
        for kind in &self.under_way {
            all_true *= self.accepted[*kind].share();
            tokens += all_true;
        }
        let before = self.under_way.len();
        let most = match offer.source {
            Source::Text => GUESSES_MAX,
            Source::Model if !self.guess_s.is_measured() => MODEL_FIRST,
            Source::Model => MODEL_MAX,
        };
        let most = offer.available.min(most.saturating_sub(before));
        let cost = self.cost(offer.source, sessions);
        let time = |guesses: usize| self.lap_s.value + guesses as f64 * cost;
        let mut guesses = 0;
        while guesses < most {
            let next = all_true * self.accepted[offer.kind(guesses)].share();
            if next * time(before + guesses) <= tokens * cost {
                break;
            }
            all_true = next;
            tokens += next;
            guesses += 1;
        }
        let is_trial = guesses == 0 && self.begins() && self.rested(offer.source, cost);
        (if is_trial { most.min(TRIAL) } else { guesses }, tokens / time(before + guesses))
    }

    /// Seconds that a guess costs.
    fn cost(&self, source: Source, sessions: usize) -> f64 {
        let computing = self.stages * self.row_s.value / self.lap_s.value;
        let share = if sessions > 1 { sessions as f64 } else { computing.clamp(WASTED_MIN, 1.0) };
        let cost = (self.row_s.value * share).max(self.added_s.value);
        if source == Source::Model { cost + self.guess_s.value } else { cost }
    }

    fn rested(&self, source: Source, cost: f64) -> bool {
        let trial_laps = TRIAL as f64 * cost.max(self.row_s.value) / self.lap_s.value.max(f64::MIN_POSITIVE);
        let rest = (trial_laps / TRIALS_SHARE).max(REST_LAPS);
        let guessed = self.guess_s.seen;
        let is_early = source == Source::Model && (1..=EARLY_TRIALS).contains(&guessed) && cost < self.lap_s.value;
        let rest = if is_early { rest.min(f64::from(EARLY_REST_LAPS << guessed)) } else { rest };
        f64::from(self.laps_since[source as usize]) >= rest
    }
}

#[cfg(test)]
#[path = "drafts_tests.rs"]
mod tests;
