//! Guessing against a pipe of stages and delays: tokens per second against the limit without loss.
#![allow(clippy::unwrap_used)]

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;
use crate::{
    batching::StepLimits,
    spans::{Chunk, FeedError, Part, Spans, guesses_at_once},
    stage,
};

#[test]
fn what_followed_before_is_guessed_the_longest_and_latest_end_first() {
    assert_eq!(look_up(&[1, 2, 3, 9, 1, 2], 4), Guesses { tokens: &[3, 9, 1, 2], suffix: 2 });
    assert_eq!(look_up(&[1, 2, 3, 1, 2, 4, 1, 2], 1).tokens, [4], "the later one");
    assert_eq!(look_up(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1), Guesses { tokens: &[3], suffix: 3 }, "the longer one");
    assert_eq!(look_up(&[5, 5, 5, 5], 3).tokens, [5], "to the end of the text");
    let twice: Vec<Token> = (0..50).chain(0..40).collect();
    assert_eq!(look_up(&twice, 3), Guesses { tokens: &[40, 41, 42], suffix: SUFFIX_MAX });
    for nothing in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
        assert_eq!(look_up(nothing, 8), Guesses { tokens: &[], suffix: 0 });
    }
}

/// Times in microseconds: a row alone in a stage, and a link; and what each row more in a step takes, as part of that.
#[derive(Clone, Copy, Debug)]
struct Pipe {
    stages: usize,
    row: u64,
    one_way: u64,
    more: f64,
}

impl Pipe {
    fn step(self, rows: usize) -> u64 {
        (self.row as f64 * (1.0 + (rows - 1) as f64 * self.more)) as u64
    }

    fn lap(self) -> u64 {
        self.stages as u64 * (self.row + self.one_way)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Arrives { stage: usize, lap: u32, from: usize, rows: usize },
    Done { stage: usize },
}

struct Stage {
    spans: Spans,
    inbox: Vec<(u32, usize, usize)>,
    step: Option<Chunk>,
}

/// One session. Guesses of the text, or of a draft model, are right at places where the dice say so, with its chance; behind a
/// wrong one they stand for nothing.
struct Run {
    pipe: Pipe,
    stages: Vec<Stage>,
    events: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    order: u64,
    now: u64,
    drafting: Drafting,
    text: Option<f64>,
    /// And how long a guess takes it.
    model: Option<(f64, u64)>,
    of_model: usize,
    dice: u64,
    /// What was guessed behind `known`: right or wrong.
    ahead: VecDeque<bool>,
    known: usize,
    lap: u32,
    suffix: usize,
    right: usize,
    places: usize,
}

const LIMITS: StepLimits = StepLimits { batch: 512, prefill: 512, prefill_amid_decoding: 64 };

impl Run {
    fn new(pipe: Pipe, chance: f64, dice: u64) -> Self {
        let part = Part { is_first: false, layers: 1, of: pipe.stages };
        let stage = |_| {
            let mut spans = Spans::new(1, 1_000_000, part);
            spans.open(0).unwrap();
            Stage { spans, inbox: Vec::new(), step: None }
        };
        // Known before the first lap: about what it takes to compute, and to compute the prompt over this network.
        let (lap, row) = (pipe.lap() as f64 * 1.3e-6, pipe.row as f64 * 1e-6);
        Self {
            pipe,
            stages: (0..pipe.stages).map(stage).collect(),
            events: BinaryHeap::new(),
            order: 0,
            now: 0,
            drafting: Drafting::new(lap, row, pipe.stages as f64),
            text: Some(chance),
            model: None,
            of_model: 0,
            dice,
            ahead: VecDeque::new(),
            known: 1,
            lap: 0,
            suffix: 0,
            right: 0,
            places: 1,
        }
    }

    fn roll(&mut self, chance: f64) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.dice >> 11) as f64 / (1_u64 << 53) as f64) < chance
    }

    fn at(&mut self, time: u64, what: Happens) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, what)));
    }

    /// Until so many tokens came; the time that they took.
    fn until(&mut self, tokens: usize) -> u64 {
        self.leaves(true, 0, false);
        while self.known < tokens {
            let Reverse((now, _, what)) = self.events.pop().unwrap();
            self.now = now;
            let stage = match what {
                Happens::Arrives { stage, lap, from, rows } => {
                    self.stages[stage].inbox.push((lap, from, rows));
                    stage
                }
                Happens::Done { stage } => {
                    self.done(stage);
                    stage
                }
            };
            self.turn(stage);
        }
        self.now
    }

    fn turn(&mut self, at: usize) {
        let stage = &mut self.stages[at];
        if stage.step.is_some() {
            return;
        }
        for (number, from, rows) in std::mem::take(&mut stage.inbox) {
            match stage.spans.feed(0, stage::Lap { epoch: 1, number }, from, rows) {
                Ok(_) | Err(FeedError::Old) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let Some(&chunk) = stage.spans.plan(LIMITS, guesses_at_once(1e6 / self.pipe.row as f32)).first() else {
            return;
        };
        stage.step = Some(chunk);
        self.at(self.now + self.pipe.step(chunk.rows), Happens::Done { stage: at });
    }

    fn done(&mut self, at: usize) {
        let stage = &mut self.stages[at];
        let chunk = stage.step.take().unwrap();
        stage.spans.computed(&[chunk]);
        if at + 1 == self.pipe.stages {
            return self.draw(chunk);
        }
        let lap = stage.spans.lap(0).number;
        // The node around the stage knows of a later lap already, and sends nothing that it took back.
        let taken_back = stage.inbox.iter().filter(|(later, ..)| *later > lap).map(|(_, from, _)| *from).min();
        let rows = chunk.rows.min(taken_back.unwrap_or(usize::MAX).saturating_sub(chunk.from));
        if rows > 0 {
            let arrives = Happens::Arrives { stage: at + 1, lap, from: chunk.from, rows };
            self.at(self.now + self.pipe.one_way, arrives);
        }
    }

    fn draw(&mut self, chunk: Chunk) {
        assert_eq!(chunk.from, self.known - 1, "a row too many or too few");
        let (mut right, mut begins, mut missed) = (0, false, false);
        for _ in 0..chunk.rows {
            self.known += 1;
            self.places += 1;
            match self.ahead.pop_front() {
                Some(true) => right += 1,
                guess => (begins, missed) = (true, guess.is_some()),
            }
            if begins {
                break;
            }
        }
        self.right += right;
        self.leaves(begins, right, missed);
    }

    fn leaves(&mut self, begins: bool, right: usize, missed: bool) {
        let now = self.now as f64 * 1e-6;
        self.drafting.judged(right, missed, now);
        let mut from = self.known + self.ahead.len();
        let mut rows = 0;
        if begins {
            self.drafting.begin(now);
            self.ahead.clear();
            (self.lap, self.suffix) = (self.lap + 1, SUFFIX_MIN);
            (from, rows) = (self.known - 1, 1);
            let last = self.pipe.stages - 1;
            self.stages[last].spans.begin_lap(0, self.lap, from);
        }
        let some = [0; GUESSES_MAX];
        let found = Guesses { tokens: self.text.map_or(&[], |_| &some), suffix: self.suffix };
        let at_hand = if self.model.is_some() && self.drafting.may_ask_model() { MODEL_MAX } else { 0 };
        let (source, more) = self.drafting.choose(found, at_hand, 1);
        assert!(self.ahead.len() + more <= GUESSES_MAX);
        let (chance, takes) = if source == Source::Model { self.model.unwrap() } else { (self.text.unwrap_or(0.0), 0) };
        self.of_model += usize::from(source == Source::Model && more > 0);
        self.now += takes * more as u64;
        self.drafting.left(more, self.now as f64 * 1e-6);
        self.suffix += if source == Source::Text { more } else { 0 };
        rows += more;
        for _ in 0..more {
            let is_right = self.roll(chance);
            self.ahead.push_back(is_right);
        }
        if rows > 0 {
            let arrives = Happens::Arrives { stage: 0, lap: self.lap, from, rows };
            self.at(self.now + self.pipe.one_way, arrives);
        }
    }
}

/// Tokens per second of answers of so many tokens, and the limit: each place that is guessed right costs the time of a row,
/// all others a lap.
fn against_limit(pipe: Pipe, chance: f64, tokens: usize, answers: u64) -> (f64, f64) {
    let (mut time, mut right, mut places) = (0, 0, 0);
    for answer in 0..answers {
        let mut run = Run::new(pipe, chance, answer * 7_919 + 1);
        time += run.until(tokens);
        (right, places) = (right + run.right, places + run.places);
    }
    let share = right as f64 / places as f64;
    let limit = 1e6 / ((1.0 - share) * pipe.lap() as f64 + share * pipe.row as f64);
    ((tokens as u64 - 1) as f64 * answers as f64 * 1e6 / time as f64, limit)
}

#[test]
fn the_pipe_is_kept_filled() {
    for (stages, row) in [(2, 3_700), (4, 1_900), (8, 1_250), (8, 10_000)] {
        for chance in [0.5, 0.7, 0.8, 0.9, 0.95, 0.98] {
            for (more, tokens, answers) in [(1.0, 96, 60), (1.0, 1_000, 6), (0.4, 96, 60)] {
                let pipe = Pipe { stages, row, one_way: 50_000, more };
                let (speed, limit) = against_limit(pipe, chance, tokens, answers);
                let ratio = speed / limit;
                println!("{pipe:?}, {tokens} tokens, {chance}: {speed:.1} of {limit:.1} tok/s, {ratio:.3}");
                assert!(ratio >= 0.85, "{pipe:?}, {tokens} tokens, {chance}: {ratio:.3} of the limit");
            }
        }
    }
}

#[test]
fn useless_guesses_cost_little() {
    for (stages, row) in [(2, 3_700), (4, 1_900), (8, 1_250), (4, 10_000)] {
        for one_way in [0, 500, 5_000, 50_000] {
            for (more, tokens) in [(1.0, 96), (1.0, 1_000), (0.4, 96)] {
                let pipe = Pipe { stages, row, one_way, more };
                let floor = (tokens as u64 - 1) * pipe.lap();
                let ratio = floor as f64 / Run::new(pipe, 0.0, 1).until(tokens) as f64;
                println!("{pipe:?}, {tokens} tokens: {ratio:.3}");
                assert!(ratio >= 0.97, "{pipe:?}, {tokens} tokens: {ratio:.3} of the speed without guesses");
            }
        }
    }
}

/// Tokens per second, and the laps and pieces whose guesses were the draft model's.
fn race(text: Option<f64>, model: Option<(f64, u64)>) -> (f64, usize, u32) {
    let pipe = Pipe { stages: 4, row: 1_900, one_way: 50_000, more: 0.4 };
    let mut run = Run::new(pipe, 0.0, 7);
    (run.text, run.model) = (text, model);
    let speed = 1_500.0 * 1e6 / run.until(1_501) as f64;
    (speed, run.of_model, run.lap)
}

#[test]
fn the_better_source_guesses() {
    let (good, bad) = (Some((0.9, 3_000)), Some((0.2, 3_000)));
    let without = race(None, None).0;
    let alone = race(None, good).0;
    let (fast, of_model, laps) = race(Some(0.2), good);
    assert!(
        of_model * 10 > laps as usize * 8 && fast >= alone * 0.95,
        "{of_model} in {laps} laps, {fast} beside {alone}"
    );
    let alone = race(Some(0.9), None).0;
    let (fast, of_model, laps) = race(Some(0.9), bad);
    assert!(of_model * 10 < laps as usize && fast >= alone * 0.95, "{of_model} in {laps} laps, {fast} beside {alone}");
    // It guesses right, and takes longer than the lap that it spares; or is of no use, which takes more laps to be sure of,
    // since its guesses cost little of one.
    for (slow, part) in [(Some((0.9, 300_000)), 10), (Some((0.0, 3_000)), 8)] {
        let (fast, of_model, laps) = race(None, slow);
        assert!(of_model * part < laps as usize && fast >= without * 0.97, "{of_model} in {laps} laps, {fast}");
    }
}

#[test]
fn long_ends_go_before_the_model_and_short_ones_behind() {
    let asked = |suffix, by_model| {
        let mut drafting = Drafting::new(0.1, 0.001, 2.0);
        drafting.begin(0.0);
        assert!(drafting.may_ask_model());
        drafting.choose(Guesses { tokens: &[1, 2, 3], suffix }, by_model, 1)
    };
    assert_eq!(asked(16, 8), (Source::Text, 3));
    assert_eq!(asked(2, 8), (Source::Model, MODEL_FIRST));
    assert_eq!(asked(2, 0), (Source::Text, 3), "it has none");
}

#[test]
fn a_model_that_gives_fewer_guesses_than_were_asked_for_is_judged_by_those() {
    let mut drafting = Drafting::new(0.1, 0.001, 2.0);
    drafting.begin(0.0);
    let (source, most) = drafting.choose(Guesses { tokens: &[], suffix: 0 }, 8, 1);
    assert_eq!((source, most), (Source::Model, MODEL_FIRST));
    drafting.left(1, 0.01);
    assert_eq!(drafting.under_way.len(), 1);
    drafting.judged(1, false, 0.2);
    assert!(drafting.under_way.is_empty());
}

#[test]
fn a_model_that_was_slow_once_is_tried_again_soon() {
    let mut drafting = Drafting::new(0.1, 0.001, 2.0);
    let (mut now, mut with) = (0.0, Vec::new());
    for lap in 0..60 {
        drafting.begin(now);
        let at_hand = if drafting.may_ask_model() { MODEL_MAX } else { 0 };
        let (_, guesses) = drafting.choose(Guesses { tokens: &[], suffix: 0 }, at_hand, 1);
        // The machine did something else meanwhile, the first time.
        let guess_s = if with.is_empty() { 0.095 } else { 0.003 };
        now += guesses as f64 * guess_s;
        drafting.left(guesses, now);
        if guesses > 0 {
            with.push(lap);
        }
        now += 0.1;
        drafting.judged(guesses, false, now);
    }
    assert!(with[0] <= 1 && with[1] > with[0] + 1, "it seems too slow at first: {with:?}");
    assert!(with[1] < 16 && with.len() > 40, "and is used again: {with:?}");
}
