//! Whole chains of flows over toy engines and links that deliver in any order: whatever is lost and when, the last
//! stage sees the true row of every token, once, in order.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use opengrid_protocol::pipeline::{Hop, PartId};
use proptest::prelude::*;

use super::*;
use crate::pipeline::{ahead::Ahead, recovery};

/// A row is its token (and the number of stages it went through) as four bytes.
const ROW_BYTES: usize = 4;
/// Rows that an engine computes at once.
const STEP_ROWS: usize = 8;
const RING_BYTES: usize = 64 * ROW_BYTES;

fn node(at: usize) -> NodeId {
    NodeId([at as u8; 32])
}

fn route(at: usize, count: usize, epoch: u32) -> Route {
    let next = (at + 1) % count;
    Route {
        epoch,
        previous: node((at + count - 1) % count),
        next: Hop { node: node(next), part: PartId([next as u8; 16]) },
    }
}

/// The model: the next token follows from all before.
fn follows(tokens: &[Token]) -> Token {
    tokens.iter().fold(7_u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token)) % 97
}

/// A part and its engine: what was fed and not computed, what was computed and not heard of, and the cache.
struct Station {
    flow: Flow,
    lap: Lap,
    waiting: VecDeque<Token>,
    events: VecDeque<(Lap, u32, Vec<u8>)>,
    cache: Vec<Token>,
    inbox: VecDeque<(NodeId, ToStage)>,
    early: Option<ToStage>,
    ahead: Ahead,
    /// What a standby for this station keeps, and its id.
    standby: Vec<Token>,
    standby_id: u8,
}

impl Station {
    /// As `Spans` does it.
    fn feed(&mut self, lap: Lap, from: u32, tokens: Vec<Token>) {
        if lap < self.lap {
            return;
        }
        self.lap = lap;
        let computed = self.cache.len();
        assert!(from as usize <= computed + self.waiting.len(), "a gap");
        self.waiting.truncate((from as usize).saturating_sub(computed));
        self.cache.truncate(from as usize);
        self.waiting.extend(tokens);
    }
}

struct Chain {
    stations: Vec<Station>,
    epoch: u32,
    tokens: Vec<Token>,
    true_until: u32,
    /// At the engine of the last stage: what was guessed behind `tokens`.
    guesses: VecDeque<Token>,
    lap: u32,
    /// Guesses are right or wrong by the dice.
    dice: u64,
    guesses_max: usize,
    rights: usize,
    /// Rows that all engines computed.
    computed: usize,
}

impl Chain {
    fn new(count: usize, prompt: Vec<Token>) -> Self {
        let true_until = prompt.len() as u32;
        let mut chain = Self {
            stations: Vec::new(),
            epoch: 1,
            tokens: prompt,
            true_until,
            guesses: VecDeque::new(),
            lap: 0,
            dice: 1,
            guesses_max: GUESSES_MAX,
            rights: 0,
            computed: 0,
        };
        chain.stations = (0..count).map(|at| chain.station(at, count)).collect();
        chain.start();
        chain
    }

    fn station(&self, at: usize, count: usize) -> Station {
        let kind = match at {
            0 => Kind::First,
            _ if at + 1 == count => Kind::Last { tokens: self.tokens.len() as u32 },
            _ => Kind::Middle,
        };
        let flow = Flow::new(kind, route(at, count, self.epoch), 10_000, ROW_BYTES, RING_BYTES);
        Station {
            flow,
            lap: Lap::default(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
            cache: Vec::new(),
            inbox: VecDeque::new(),
            early: None,
            ahead: Ahead::default(),
            standby: Vec::new(),
            standby_id: 0,
        }
    }

    /// The standby of a lost station takes its place, with the rows that it was sent.
    fn replacement(&mut self, at: usize) -> Station {
        let rows = std::mem::take(&mut self.stations[at].standby);
        let mut station = self.station(at, self.stations.len());
        let begins = station.flow.begin_with(rows.len() as u32) as usize;
        if begins > 0 {
            station.feed(Lap::default(), 0, rows[..begins].to_vec());
        }
        station.standby_id = self.stations[at].standby_id.wrapping_add(1);
        station
    }

    /// The gateway tells a station how far rows are true, and it sends some ahead.
    fn go_ahead(&mut self, at: usize) {
        if at + 1 == self.stations.len() {
            return;
        }
        let (node, id) = (node(at + 1), self.stations[at + 1].standby_id);
        let station = &mut self.stations[at];
        station.ahead.prepare(Hop { node, part: PartId([id; 16]) }, self.true_until);
        let Some((from, rows)) = station.ahead.next(&station.flow) else { return };
        let rows: Vec<Token> = rows.as_chunks::<ROW_BYTES>().0.iter().map(|row| u32::from_le_bytes(*row)).collect();
        let standby = &mut self.stations[at + 1].standby;
        assert_eq!(from as usize, standby.len(), "rows of a standby come without gaps, each once");
        standby.extend(&rows);
        assert_eq!(standby[..], self.tokens[..standby.len()], "a row of a guess that did not come true");
    }

    /// As the gateway does it, with all answers at once.
    fn mend(&mut self, lost: &[usize], leaves: Option<usize>) {
        self.epoch += 1;
        let count = self.stations.len();
        for at in 0..count {
            if lost.contains(&at) {
                self.stations[at] = self.replacement(at);
                self.new_sender(at, lost);
                self.new_head(at);
            } else if leaves == Some(at) {
                self.hand_over(at);
                self.new_head(at);
                self.new_sender(at, lost);
            } else {
                assert!(self.stations[at].flow.rewire(route(at, count, self.epoch)));
                self.stations[at].early = None;
                self.compute_until(at, Flow::settled);
            }
        }
        self.start();
    }

    /// A new engine of the last stage counts its laps anew, and has guessed nothing.
    fn new_head(&mut self, at: usize) {
        if at + 1 == self.stations.len() {
            (self.lap, self.guesses) = (0, VecDeque::new());
        }
    }

    /// What the station behind has of a sender that is gone is of no use: another sends from the first row on.
    fn new_sender(&mut self, at: usize, lost: &[usize]) {
        if let Some(behind) = self.stations.get_mut(at + 1).filter(|_| !lost.contains(&(at + 1))) {
            behind.standby.clear();
            behind.standby_id = behind.standby_id.wrapping_add(1);
        }
    }

    /// Another part takes the place of this one, and its cells.
    fn hand_over(&mut self, at: usize) {
        let (known, count) = (self.tokens.len() as u32, self.stations.len());
        let until = if at + 1 == count { known - 1 } else { self.true_until.min(known - 1) };
        let mut heir = self.station(at, count);
        let old = &mut self.stations[at];
        old.flow.stop();
        let until = until.min(old.flow.have()).min(heir.flow.cells_max()) as usize;
        let mut cells = std::mem::take(&mut old.cache);
        cells.truncate(until);
        assert!(heir.flow.is_fresh());
        if !cells.is_empty() {
            heir.flow.took_over(cells.len() as u32);
        }
        heir.cache = cells;
        heir.standby_id = old.standby_id.wrapping_add(1);
        self.stations[at] = heir;
    }

    fn start(&mut self) {
        let states: Vec<PartState> = self.stations.iter().map(|station| station.flow.state()).collect();
        let recovery = recovery::plan(&states, self.true_until);
        let drew = states.last().unwrap().drew;
        for (at, told) in recovery.parts.iter().enumerate() {
            assert!(self.stations[at].flow.start(told.keep, told.send_from));
        }
        let end = self.tokens.len() as u32 - u32::from(drew);
        if recovery.feed_from < end {
            let fed = self.tokens[recovery.feed_from as usize..end as usize].to_vec();
            let first = &mut self.stations[0];
            let lap = first.flow.feed(recovery.feed_from, fed.len()).unwrap();
            first.feed(lap, recovery.feed_from, fed);
        }
        if drew {
            assert!(self.stations.last_mut().unwrap().flow.again());
        }
    }

    fn compute_until(&mut self, at: usize, done: impl Fn(&Flow) -> bool) {
        while !done(&self.stations[at].flow) {
            assert!(!self.stations[at].waiting.is_empty(), "nothing to wait for: {:?}", self.stations[at].flow);
            self.compute(at);
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    /// The engine of a part computes one step of what waits.
    fn compute(&mut self, at: usize) {
        let count = self.stations.len();
        let station = &mut self.stations[at];
        let rows = station.waiting.len().min(STEP_ROWS);
        if rows == 0 {
            return;
        }
        let from = station.cache.len() as u32;
        let tokens: Vec<Token> = station.waiting.drain(..rows).collect();
        station.cache.extend(&tokens);
        self.computed += rows;
        if at + 1 < count {
            let rows: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            station.events.push_back((station.lap, from, rows));
        } else {
            self.draw();
        }
    }

    /// A part hears what its engine computed.
    fn hear(&mut self, at: usize) {
        let station = &mut self.stations[at];
        if !station.flow.has_room() {
            return;
        }
        if let Some((lap, from, rows)) = station.events.pop_front() {
            station.flow.made(lap, from, &rows);
        }
    }

    /// Draws what can be drawn; the last part hears of it at once.
    fn draw(&mut self) {
        let known = self.tokens.len();
        let (mut drawn, mut begins) = (Vec::new(), false);
        while !begins && self.stations.last().unwrap().cache.len() >= self.tokens.len() {
            let cache = &self.stations.last().unwrap().cache;
            assert_eq!(cache[..self.tokens.len()], self.tokens[..], "rows of other tokens than were drawn");
            let token = follows(&self.tokens);
            self.tokens.push(token);
            drawn.push(TokenOut { token, logprob: None, top: Vec::new() });
            begins = self.guesses.pop_front() != Some(token);
        }
        if drawn.is_empty() {
            return;
        }
        self.true_until = known as u32;
        let end = self.tokens.len() as u32;
        if begins {
            self.lap += 1;
            self.guesses.clear();
            let epoch = self.stations.last().unwrap().lap.epoch;
            let lap = Lap { epoch, number: self.lap };
            self.stations.last_mut().unwrap().feed(lap, end - 1, Vec::new());
        }
        let from = end + self.guesses.len() as u32;
        let mut all = self.tokens.clone();
        all.extend(&self.guesses);
        let more = (self.roll(40) as usize).min(self.guesses_max - self.guesses.len());
        for _ in 0..more {
            let guess = if self.roll(8) == 0 { 1_000 } else { follows(&all) };
            all.push(guess);
            self.guesses.push_back(guess);
        }
        let from = if begins { end - 1 } else { from };
        let next = Next { lap: self.lap, from, tokens: all[from as usize..].to_vec(), by_model: false };
        let judged = self.stations.last_mut().unwrap().flow.drew(&drawn, next);
        self.rights += judged.right;
        assert_eq!(judged.right + usize::from(begins), drawn.len());
        assert_eq!(judged.missed || judged.without, begins);
    }

    /// A part sends what it may to the next one.
    fn send(&mut self, at: usize) {
        if let Some(message) = self.stations[at].flow.next_message() {
            let next = (at + 1) % self.stations.len();
            self.stations[next].inbox.push_back((node(at), message));
        }
    }

    /// A part takes a message.
    fn take(&mut self, at: usize) {
        let station = &mut self.stations[at];
        if !station.flow.runs() {
            return;
        }
        let next = match station.early.take() {
            Some(message) => Some((station.flow.route().previous, message)),
            None => station.inbox.pop_front(),
        };
        let Some((sender, message)) = next else { return };
        match station.flow.take(sender, message, ROW_BYTES) {
            Taken::Feed { lap, from, carried: Carried::Tokens(tokens) } => station.feed(lap, from, tokens),
            Taken::Feed { lap, from, carried: Carried::Rows(rows) } => {
                let rows = rows.as_chunks::<ROW_BYTES>().0.iter().map(|row| u32::from_le_bytes(*row));
                station.feed(lap, from, rows.collect());
            }
            Taken::Feed { carried: Carried::Cells(_), .. } => panic!("cells are no input"),
            Taken::Stale => {}
            Taken::Early(message) => station.early = Some(message),
            Taken::Foreign => panic!("it came from a stranger"),
            Taken::Bad(why) => panic!("an honest part sent what is {why}"),
        }
    }

    fn act(&mut self, what: u8, at: usize) {
        match what {
            0 => self.compute(at),
            1 => self.send(at),
            2 => self.go_ahead(at),
            3 => self.hear(at),
            _ => self.take(at),
        }
    }

    /// Everything acts in turn until so many tokens are known.
    fn run_until(&mut self, tokens: usize) {
        for _ in 0..100_000 {
            if self.tokens.len() >= tokens {
                return;
            }
            for at in 0..self.stations.len() {
                (0..5).for_each(|what| self.act(what, at));
            }
        }
        let flows: Vec<&Flow> = self.stations.iter().map(|station| &station.flow).collect();
        panic!("the chain stands still at {} tokens: {flows:?}", self.tokens.len());
    }
}

#[test]
fn an_undisturbed_chain_draws_what_the_model_says() {
    let mut chain = Chain::new(3, vec![5, 6, 7]);
    chain.run_until(40);
    let mut expected = vec![5, 6, 7];
    while expected.len() < chain.tokens.len() {
        expected.push(follows(&expected));
    }
    assert_eq!(chain.tokens, expected);
    assert!(chain.rights > 20, "{} guesses came true", chain.rights);
}

#[test]
fn a_part_that_takes_over_lets_nobody_compute_anything_again() {
    for leaves in 0..3 {
        let mut chain = Chain::new(3, (0..80).collect());
        chain.guesses_max = 2;
        chain.run_until(100);
        let (known, computed) = (chain.tokens.len(), chain.computed);
        chain.mend(&[], Some(leaves));
        chain.run_until(known + 1);
        let again = chain.computed - computed;
        // The lap that was under way, at each of the three: a token and two guesses, twice at most.
        assert!(again <= 3 * 6, "{again} rows when {leaves} left");
        let mut lost = Chain::new(3, (0..80).collect());
        lost.run_until(100);
        let (known, computed) = (lost.tokens.len(), lost.computed);
        lost.mend(&[leaves], None);
        lost.run_until(known + 1);
        assert!(lost.computed - computed > 80, "a loss costs all rows of a stage");
    }
}

#[test]
fn a_standby_that_came_in_computes_what_it_was_sent_before_it_is_told_anything() {
    let mut chain = Chain::new(3, (0..50).collect());
    chain.run_until(60);
    let before = chain.stations[2].standby.len();
    assert!(before > 50, "{before} rows of 60 went ahead");
    chain.epoch += 1;
    for at in [1, 2] {
        chain.stations[at] = chain.replacement(at);
        let state = chain.stations[at].flow.state();
        assert!(state.have > 50 && !state.drew, "{state:?}");
        assert!(chain.stations[at].flow.settled(), "the last one would draw, though nobody started it");
    }
    let mut first = Flow::new(Kind::First, route(0, 3, 1), 100, ROW_BYTES, RING_BYTES);
    assert_eq!(first.begin_with(10), 0, "rows at a stage that takes tokens");
}

fn message(epoch: u32, lap: u32, from: u32, rows: usize) -> ToStage {
    let carried = Carried::Rows(vec![0; rows * ROW_BYTES].into());
    ToStage { part: PartId([1; 16]), epoch, lap, from, carried }
}

fn flow(kind: Kind, at: usize) -> Flow {
    let mut flow = Flow::new(kind, route(at, 3, 1), 1_000, ROW_BYTES, RING_BYTES);
    assert!(flow.start(0, 0));
    flow
}

fn take(flow: &mut Flow, message: ToStage) -> Result<(u32, u32), Taken> {
    let previous = flow.route().previous;
    match flow.take(previous, message, ROW_BYTES) {
        Taken::Feed { lap, from, .. } => Ok((lap.number, from)),
        other => Err(other),
    }
}

#[test]
fn what_no_honest_part_sends_is_bad() {
    let middle = || flow(Kind::Middle, 1);
    assert_eq!(middle().take(node(0), message(2, 0, 0, 1), ROW_BYTES), Taken::Stale);
    assert_eq!(middle().take(node(2), message(1, 0, 0, 1), ROW_BYTES), Taken::Foreign);
    let odd = ToStage { carried: Carried::Rows(vec![0; ROW_BYTES + 1].into()), ..message(1, 0, 0, 1) };
    let tokens = ToStage { carried: Carried::Tokens(vec![1]), ..message(1, 0, 0, 1) };
    let guesses = GUESSES_MAX + 2;
    for message in
        [odd, tokens, message(1, 0, 0, 0), message(1, 0, 1, 1), message(1, 0, 0, 1_001), message(1, 1, 0, guesses)]
    {
        assert!(matches!(take(&mut middle(), message.clone()), Err(Taken::Bad(_))), "{message:?}");
    }
    let mut flow = middle();
    assert_eq!(take(&mut flow, message(1, 0, 0, 200)), Ok((0, 0)));
    for message in [message(1, 0, 0, 2), message(1, 0, 199, 2), message(1, 1, 201, 2), message(1, 1, 200, guesses)] {
        assert!(matches!(take(&mut flow, message.clone()), Err(Taken::Bad(_))), "{message:?}");
    }
    assert_eq!(take(&mut flow, message(1, 1, 200, GUESSES_MAX + 1)), Ok((1, 200)));
    assert!(matches!(take(&mut flow, message(1, 1, 329, 1)), Err(Taken::Bad(_))), "one more guess than there may be");
    assert!(matches!(take(&mut flow, message(1, 3, 210, 3)), Err(Taken::Bad(_))), "no lap is left out");
    assert!(
        matches!(take(&mut flow, message(1, 2, 200, 3)), Err(Taken::Bad(_))),
        "none begins where the one before did"
    );
    assert_eq!(take(&mut flow, message(1, 2, 210, 3)), Ok((2, 210)));
    for lap in [0, 1] {
        assert!(matches!(take(&mut flow, message(1, lap, 213, 1)), Err(Taken::Bad(_))), "back to lap {lap}");
    }
    assert_eq!(take(&mut flow, message(1, 2, 213, 1)), Ok((2, 213)));
}

#[test]
fn the_first_lap_of_an_epoch_may_have_any_number_and_the_last_number_has_no_next() {
    let mut flow = flow(Kind::Middle, 1);
    assert_eq!(take(&mut flow, message(1, 0, 0, 200)), Ok((0, 0)));
    assert_eq!(take(&mut flow, message(1, u32::MAX, 200, 1)), Ok((u32::MAX, 200)));
    for lap in [0, 1] {
        assert!(matches!(take(&mut flow, message(1, lap, 201, 1)), Err(Taken::Bad(_))));
    }
}

#[test]
fn tokens_of_the_last_stage_come_in_laps_of_their_own_and_few_at_once() {
    let tokens = |lap, count| ToStage { carried: Carried::Tokens(vec![1; count]), ..message(1, lap, 0, 1) };
    for bad in [tokens(0, 1), tokens(1, TOKENS_MAX + 1), tokens(1, 0)] {
        assert!(matches!(take(&mut flow(Kind::First, 0), bad.clone()), Err(Taken::Bad(_))), "{bad:?}");
    }
    assert_eq!(take(&mut flow(Kind::First, 0), tokens(1, 3)), Ok((1, 0)));
    let early = ToStage { from: 7, ..tokens(1, 3) };
    assert_eq!(take(&mut flow(Kind::First, 0), early.clone()), Err(Taken::Early(early)));
}

#[test]
fn the_last_stage_leaves_out_guesses_behind_one_that_missed() {
    let token = |token| TokenOut { token, logprob: None, top: Vec::new() };
    let next = |lap, from, tokens: &[Token]| Next { lap, from, tokens: tokens.to_vec(), by_model: true };
    let mut last = flow(Kind::Last { tokens: 5 }, 2);
    assert_eq!(take(&mut last, message(1, 0, 0, 5)), Ok((0, 0)));
    assert!(!last.settled());
    let judged = last.drew(&[token(9)], next(1, 5, &[9, 10, 11, 12]));
    assert_eq!(judged, Judged { without: true, ..Judged::default() });
    assert!(last.settled() && last.has_next());
    assert_eq!(take(&mut last, message(1, 1, 5, 2)), Ok((1, 5)));
    assert!(matches!(take(&mut last, message(1, 1, 7, 3)), Err(Taken::Bad(_))), "more than it asked for");
    let judged = last.drew(&[token(10), token(20)], next(2, 7, &[20]));
    assert_eq!(judged, Judged { right: 1, right_of_model: 1, missed: true, without: false });
    assert_eq!(take(&mut last, message(1, 1, 7, 2)), Err(Taken::Stale));
    assert!(matches!(take(&mut last, message(1, 3, 7, 1)), Err(Taken::Bad(_))), "a lap that it has not begun");
    assert_eq!(take(&mut last, message(1, 2, 7, 1)), Ok((2, 7)));
}

proptest! {
    #[test]
    fn whatever_is_lost_and_when_the_answer_is_the_same(
        count in 2_usize..5,
        prompt in prop::collection::vec(0_u32..97, 1..150),
        faults in prop::collection::vec(
            (
                prop::collection::vec((0_u8..5, 0_usize..5), 0..400),
                prop::collection::vec(0_usize..5, 0..3),
                prop::option::of(0_usize..5),
            ),
            0..6,
        ),
    ) {
        let mut expected = prompt.clone();
        let mut chain = Chain::new(count, prompt);
        for (acts, lost, leaves) in faults {
            for (what, at) in acts {
                chain.act(what, at % count);
            }
            let lost: Vec<usize> = lost.into_iter().map(|at| at % count).collect();
            chain.mend(&lost, leaves.map(|at| at % count));
        }
        chain.run_until(expected.len() + 30);
        while expected.len() < chain.tokens.len() {
            expected.push(follows(&expected));
        }
        prop_assert_eq!(chain.tokens, expected);
    }
}
