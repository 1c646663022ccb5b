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

/// A part and its engine: what was fed and not computed, and the cache of the last stage.
struct Station {
    flow: Flow,
    waiting: VecDeque<(u32, Vec<Token>)>,
    cache: Vec<Token>,
    inbox: VecDeque<(NodeId, ToStage)>,
    early: Option<ToStage>,
    feed: Option<ToStage>,
    ahead: Ahead,
    /// What a standby for this station keeps, and its id.
    standby: Vec<Token>,
    standby_id: u8,
}

struct Chain {
    stations: Vec<Station>,
    epoch: u32,
    tokens: Vec<Token>,
    true_until: u32,
    /// Guesses are right or wrong in turn.
    laps: usize,
}

impl Chain {
    fn new(count: usize, prompt: Vec<Token>) -> Self {
        let true_until = prompt.len() as u32;
        let mut chain = Self { stations: Vec::new(), epoch: 1, tokens: prompt, true_until, laps: 0 };
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
            waiting: VecDeque::new(),
            cache: Vec::new(),
            inbox: VecDeque::new(),
            early: None,
            feed: None,
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
            station.waiting.push_back((0, rows[..begins].to_vec()));
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
    fn mend(&mut self, lost: &[usize]) {
        self.epoch += 1;
        let count = self.stations.len();
        for at in 0..count {
            if lost.contains(&at) {
                self.stations[at] = self.replacement(at);
                // Whose sender is lost, too, begins anew with another.
                if let Some(behind) = self.stations.get_mut(at + 1).filter(|_| !lost.contains(&(at + 1))) {
                    behind.standby.clear();
                    behind.standby_id = behind.standby_id.wrapping_add(1);
                }
            } else {
                assert!(self.stations[at].flow.rewire(route(at, count, self.epoch)));
                (self.stations[at].early, self.stations[at].feed) = (None, None);
                self.compute_until(at, Flow::settled);
            }
        }
        self.start();
    }

    fn start(&mut self) {
        let states: Vec<PartState> = self.stations.iter().map(|station| station.flow.state()).collect();
        let recovery = recovery::plan(&states, self.true_until);
        let drew = states.last().unwrap().drew;
        for (at, told) in recovery.parts.iter().enumerate() {
            assert!(self.stations[at].flow.start(told.keep, told.send_from));
            while self.stations[at].flow.is_starting() {
                self.compute(at);
                self.send(at);
            }
        }
        let end = self.tokens.len() as u32 - u32::from(drew);
        if recovery.feed_from < end {
            let fed = self.tokens[recovery.feed_from as usize..end as usize].to_vec();
            let first = &mut self.stations[0];
            assert!(first.flow.feed(recovery.feed_from, fed.len()));
            first.waiting.push_back((recovery.feed_from, fed));
        }
        if drew {
            let (from, tokens) = self.stations.last().unwrap().flow.wanted().unwrap();
            self.want(from, tokens);
        }
    }

    fn compute_until(&mut self, at: usize, done: impl Fn(&Flow) -> bool) {
        while !done(&self.stations[at].flow) {
            assert!(!self.stations[at].waiting.is_empty(), "nothing to wait for: {:?}", self.stations[at].flow);
            self.compute(at);
        }
    }

    fn want(&mut self, from: u32, tokens: Vec<Token>) {
        let head = self.stations.last_mut().unwrap();
        if head.flow.takes() {
            let part = head.flow.route().next.part;
            head.feed = Some(ToStage { part, epoch: self.epoch, from, carried: Carried::Tokens(tokens) });
        }
    }

    /// The engine of a part computes one piece of what waits.
    fn compute(&mut self, at: usize) {
        let count = self.stations.len();
        let station = &mut self.stations[at];
        if at + 1 < count && !station.flow.has_room() {
            return;
        }
        let Some((from, mut tokens)) = station.waiting.pop_front() else { return };
        if tokens.len() > STEP_ROWS {
            let rest = tokens.split_off(STEP_ROWS);
            station.waiting.push_front((from + STEP_ROWS as u32, rest));
        }
        if at + 1 < count {
            let rows: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            self.stations[at].flow.made(from, &rows);
            return;
        }
        let head = &mut self.stations[at];
        head.cache.truncate(from as usize);
        assert_eq!(head.cache.len(), from as usize, "a gap at the last stage");
        head.cache.extend(tokens);
        let known = self.tokens.len();
        if head.cache.len() < known {
            return;
        }
        assert_eq!(head.cache[..known], self.tokens[..], "rows of other tokens than were drawn");
        // The last token's row is there: one token is drawn, and each guess that came true gives another.
        let before = known as u32;
        let mut length = known;
        loop {
            let next = follows(&self.tokens[..length]);
            self.tokens.push(next);
            length += 1;
            if head.cache.get(length - 1) != Some(&next) {
                break;
            }
        }
        self.true_until = before;
        self.laps += 1;
        let from = self.tokens.len() as u32 - 1;
        let mut feed = vec![self.tokens[from as usize]];
        // A guess that comes true, and one that does not, in some laps.
        if self.laps.is_multiple_of(2) {
            feed.push(follows(&self.tokens));
        }
        if self.laps.is_multiple_of(3) {
            feed.push(1_000);
        }
        head.flow.drew(from, feed.clone());
        self.want(from, feed);
    }

    /// A part sends what it may to the next one.
    fn send(&mut self, at: usize) {
        let station = &mut self.stations[at];
        if !station.flow.sends() {
            return;
        }
        let (sender, epoch, part) = (node(at), station.flow.route().epoch, station.flow.route().next.part);
        let message = station.feed.take().or_else(|| {
            let (from, rows) = station.flow.next_rows()?;
            Some(ToStage { part, epoch, from, carried: Carried::Rows(rows) })
        });
        if let Some(message) = message {
            let next = (at + 1) % self.stations.len();
            self.stations[next].inbox.push_back((sender, message));
        }
    }

    /// A part takes a message.
    fn take(&mut self, at: usize) {
        let station = &mut self.stations[at];
        if !station.flow.takes() {
            return;
        }
        let next = match station.early.take() {
            Some(message) => Some((station.flow.route().previous, message)),
            None => station.inbox.pop_front(),
        };
        let Some((sender, message)) = next else { return };
        match station.flow.take(sender, message, ROW_BYTES) {
            Taken::Feed { from, carried: Carried::Tokens(tokens) } => station.waiting.push_back((from, tokens)),
            Taken::Feed { from, carried: Carried::Rows(rows) } => {
                let rows = rows.as_chunks::<ROW_BYTES>().0.iter().map(|row| u32::from_le_bytes(*row));
                station.waiting.push_back((from, rows.collect()));
            }
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
                (0..4).for_each(|what| self.act(what, at));
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
    assert!(chain.laps < chain.tokens.len() - 3, "guesses came true");
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

#[test]
fn what_no_honest_part_sends_is_bad() {
    let flow = || {
        let mut flow = Flow::new(Kind::Middle, route(1, 3, 1), 100, ROW_BYTES, RING_BYTES);
        assert!(flow.start(0, 0));
        flow
    };
    let message = |epoch, from, bytes: usize| ToStage {
        part: PartId([1; 16]),
        epoch,
        from,
        carried: Carried::Rows(vec![0; bytes].into()),
    };
    assert_eq!(flow().take(node(0), message(2, 0, 4), ROW_BYTES), Taken::Stale);
    assert_eq!(flow().take(node(2), message(1, 0, 4), ROW_BYTES), Taken::Foreign);
    for message in [
        message(1, 0, 5),
        message(1, 0, 0),
        message(1, 1, 4),
        message(1, 0, 4 * 200),
        ToStage { carried: Carried::Tokens(vec![1]), ..message(1, 0, 4) },
    ] {
        assert!(matches!(flow().take(node(0), message.clone(), ROW_BYTES), Taken::Bad(_)), "{message:?}");
    }
    let mut twice = flow();
    assert!(matches!(twice.take(node(0), message(1, 0, 8), ROW_BYTES), Taken::Feed { from: 0, .. }));
    assert!(matches!(twice.take(node(0), message(1, 0, 8), ROW_BYTES), Taken::Bad(_)), "the same again");
    assert!(matches!(twice.take(node(0), message(1, 2, 4), ROW_BYTES), Taken::Feed { from: 2, .. }));
}

proptest! {
    #[test]
    fn whatever_is_lost_and_when_the_answer_is_the_same(
        count in 2_usize..5,
        prompt in prop::collection::vec(0_u32..97, 1..150),
        faults in prop::collection::vec(
            (prop::collection::vec((0_u8..4, 0_usize..5), 0..120), prop::collection::vec(0_usize..5, 0..3)), 0..6,
        ),
    ) {
        let mut expected = prompt.clone();
        let mut chain = Chain::new(count, prompt);
        for (acts, lost) in faults {
            for (what, at) in acts {
                chain.act(what, at % count);
            }
            let lost: Vec<usize> = lost.into_iter().map(|at| at % count).collect();
            chain.mend(&lost);
        }
        chain.run_until(expected.len() + 30);
        while expected.len() < chain.tokens.len() {
            expected.push(follows(&expected));
        }
        prop_assert_eq!(chain.tokens, expected);
    }
}
