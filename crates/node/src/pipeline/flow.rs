//! What a part of a session does with what it is told: which input it takes, what it sends and when, and how far it is.
//! Pure: the shell around it is [`part`](super::part).

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use opengrid_engine::{Lap, Next};
use opengrid_protocol::{
    NodeId,
    limits::{GUESSES_MAX, ROWS_BYTES_MAX},
    pipeline::{Carried, PartState, Route, ToStage},
    session::{Token, TokenOut},
};

use super::ring::Ring;

/// Tokens in one message to the first stage.
const TOKENS_MAX: usize = 16;

/// Where in the chain a part stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    First,
    Middle,
    /// Opened with so many tokens.
    Last {
        tokens: u32,
    },
}

/// What became of a message from another part.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Feed {
        lap: Lap,
        from: u32,
        carried: Carried,
    },
    /// Of another epoch, or guesses behind one that missed: dropped.
    Stale,
    /// It continues what the gateway has not fed yet: to be tried again after the next order.
    Early(ToStage),
    /// Not from the neighbour.
    Foreign,
    /// No honest neighbour sends this.
    Bad(&'static str),
}

/// What became of the guesses at drawn tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub right: usize,
    /// Those of a draft model among them.
    pub right_of_model: usize,
    pub missed: bool,
    /// A token for which nothing was guessed.
    pub without: bool,
}

#[derive(Debug)]
pub struct Flow {
    kind: Kind,
    route: Route,
    /// Started in this epoch.
    running: bool,
    positions_max: u32,
    /// The latest that was taken in this epoch; at the last stage the one that it draws in.
    lap: u32,
    /// Where that lap began.
    lap_from: u32,
    /// Positions `0..fed` went into the engine.
    fed: u32,
    /// Positions `0..kept` were kept at the start of the epoch, and are never taken back.
    kept: u32,
    /// Rows of tokens that the gateway fed end here.
    known: u32,
    /// Positions `0..made` came out of the engine.
    made: u32,
    /// What comes out of the engine of laps before these holds below these positions. Both rise.
    cuts: VecDeque<(Lap, u32)>,
    /// The part behind has what lies before; nothing below is sent in this epoch.
    floor: u32,
    sent: u32,
    ring: Ring,
    /// At the last stage, once it drew: its last token and the guesses that follow it under way; whether they are a draft
    /// model's.
    ahead: VecDeque<(Token, bool)>,
    /// At the last stage: tokens of the prompt and the answer.
    tokens: u32,
}

impl Flow {
    /// `row_bytes` of what goes out; `ring_bytes` are kept at most.
    pub fn new(kind: Kind, route: Route, positions_max: u32, row_bytes: usize, ring_bytes: usize) -> Self {
        let tokens = if let Kind::Last { tokens } = kind { tokens } else { u32::MAX };
        Self {
            kind,
            route,
            running: false,
            positions_max,
            lap: 0,
            lap_from: 0,
            fed: 0,
            kept: 0,
            known: 0,
            made: 0,
            cuts: VecDeque::new(),
            floor: 0,
            sent: 0,
            ring: Ring::new(row_bytes, ring_bytes),
            ahead: VecDeque::new(),
            tokens,
        }
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Takes and sends nothing more in this epoch.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// Whether it was started: input of other parts is taken, and what was made may leave.
    pub fn runs(&self) -> bool {
        self.running
    }

    /// The part begins with rows of positions `0..count`, which go into the engine now, in no epoch yet; how many of those
    /// that are there. The last stage would draw from all rows that it knows, before it is started.
    pub fn begin_with(&mut self, count: u32) -> u32 {
        let fits = match self.kind {
            Kind::First => 0,
            Kind::Middle => count.min(self.positions_max),
            Kind::Last { tokens } => count.min(self.positions_max).min(tokens.saturating_sub(1)),
        };
        self.fed = fits;
        fits
    }

    /// Positions whose rows are kept.
    pub fn kept(&self) -> Range<u32> {
        self.ring.kept()
    }

    pub fn rows(&self, positions: Range<u32>) -> Option<Bytes> {
        self.ring.rows(positions)
    }

    pub fn row_bytes(&self) -> usize {
        self.ring.row_bytes()
    }

    /// Bytes that are kept to be sent, or sent again.
    pub fn kept_bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Whether the engine may give more: what is not sent yet must not fall out of the ring.
    pub fn has_room(&self) -> bool {
        let unsent = self.ring.kept().end.saturating_sub(self.sent.max(self.floor)) as usize;
        unsent * self.ring.row_bytes() < self.ring.bytes_max() / 2
    }

    /// The chain changed. False where the epoch is not newer.
    pub fn rewire(&mut self, route: Route) -> bool {
        let newer = route.epoch > self.route.epoch;
        if newer {
            self.route = route;
            self.running = false;
        }
        newer
    }

    /// Nothing that the engine still computes will change the part's state: what the last stage has whole, it draws from.
    pub fn settled(&self) -> bool {
        self.fed < self.tokens
    }

    pub fn state(&self) -> PartState {
        let kept_from = self.ring.kept().start;
        PartState { have: self.have(), kept_from, sent: self.sent.max(self.floor), drew: self.drew_any() }
    }

    fn is_last(&self) -> bool {
        matches!(self.kind, Kind::Last { .. })
    }

    fn drew_any(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Nothing was fed to it, and it was not started.
    pub fn is_fresh(&self) -> bool {
        self.fed == 0 && !self.running
    }

    /// Of how many positions it may get cells: the last stage needs the row of the last token.
    pub fn cells_max(&self) -> u32 {
        match self.kind {
            Kind::Last { tokens } => tokens.saturating_sub(1).min(self.positions_max),
            _ => self.positions_max,
        }
    }

    /// It got the cells of positions `0..have`. What those before it sent on is not here: it can send none of it again.
    pub fn took_over(&mut self, have: u32) {
        (self.fed, self.made, self.sent) = (have, have, have);
        self.ring.begin_at(have);
    }

    /// Positions `0..have` were fed to it, and are true at the last stage.
    pub fn have(&self) -> u32 {
        if self.drew_any() { self.fed.min(self.tokens - 1) } else { self.fed }
    }

    /// Takes an order to start. False where it makes no sense.
    pub fn start(&mut self, keep: u32, send_from: u32) -> bool {
        let sound = !self.running && keep <= self.have();
        if sound {
            self.running = true;
            self.kept = keep;
            self.known = keep;
            self.floor = send_from;
            self.sent = send_from;
            if !self.is_last() {
                self.lap = 0;
            }
            self.cut(Lap { epoch: self.route.epoch, number: 0 }, keep);
            if self.is_last() {
                self.sent = self.ahead_end();
            }
        }
        sound
    }

    /// What lies from `from` on comes anew, in this lap.
    fn cut(&mut self, lap: Lap, from: u32) {
        self.fed = self.fed.min(from);
        self.made = self.made.min(from);
        self.sent = self.sent.min(from).max(self.floor);
        self.known = self.known.min(from);
        self.ring.truncate(from);
        while self.cuts.back().is_some_and(|(_, other)| *other >= from) {
            self.cuts.pop_back();
        }
        self.cuts.push_back((lap, from));
    }

    /// Tokens from the gateway to the first stage.
    pub fn feed(&mut self, from: u32, count: usize) -> Option<Lap> {
        let sound =
            self.kind == Kind::First && self.running && self.lap == 0 && from == self.fed && self.fits(from, count);
        sound.then(|| {
            self.fed = from + count as u32;
            self.known = self.fed;
            Lap { epoch: self.route.epoch, number: 0 }
        })
    }

    fn fits(&self, from: u32, count: usize) -> bool {
        from as usize + count <= self.positions_max as usize
    }

    /// A message of `sender`, when the part runs. `in_row_bytes` is the length of a row that comes in.
    pub fn take(&mut self, sender: NodeId, message: ToStage, in_row_bytes: usize) -> Taken {
        if message.epoch != self.route.epoch {
            return Taken::Stale;
        }
        if sender != self.route.previous {
            return Taken::Foreign;
        }
        let (number, from) = (message.lap, message.from);
        let count = match (&message.carried, self.kind) {
            (Carried::Tokens(tokens), Kind::First) if tokens.len() <= TOKENS_MAX && number > 0 => tokens.len(),
            (Carried::Rows(rows), Kind::Middle | Kind::Last { .. }) if rows.len().is_multiple_of(in_row_bytes) => {
                rows.len() / in_row_bytes
            }
            // They come too late: the chain went on without them.
            (Carried::Cells(_), _) => return Taken::Stale,
            _ => return Taken::Bad("of another kind or width than the stage takes"),
        };
        if count == 0 || !self.fits(from, count) {
            return Taken::Bad("no rows, or beyond the session's end");
        }
        // On their way when the last stage drew something else.
        if self.is_last() && number < self.lap {
            return Taken::Stale;
        }
        if self.kind == Kind::First && from > self.fed {
            return Taken::Early(message);
        }
        let lap = Lap { epoch: message.epoch, number };
        let in_order = match number.cmp(&self.lap) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => from == self.fed,
            std::cmp::Ordering::Greater => !self.is_last() && self.may_begin(number, from),
        };
        if !in_order || from + count as u32 > self.end_of_input(lap, from) {
            return Taken::Bad("out of order, or more guesses than a session may have");
        }
        if number > self.lap {
            (self.lap, self.lap_from) = (number, from);
            self.cut(lap, from);
        }
        self.fed = from + count as u32;
        if number == 0 {
            self.known = self.fed;
        }
        Taken::Feed { lap, from, carried: message.carried }
    }

    /// Each lap begins with a token that was drawn behind the one before, and its row comes through every part. So laps of an
    /// epoch follow each other one by one, and there are no more of them than positions.
    fn may_begin(&self, number: u32, from: u32) -> bool {
        let follows = if self.began_laps() {
            self.lap.checked_add(1) == Some(number) && from > self.lap_from
        } else {
            from >= self.kept
        };
        follows && from <= self.fed
    }

    /// A lap was taken in this epoch.
    pub fn began_laps(&self) -> bool {
        self.lap > 0
    }

    /// Where input ends at most. Nothing comes to the last stage beyond what it asked for; what is not out of the engine of
    /// another one is not judged, and so not followed by more guesses than there may be.
    fn end_of_input(&self, lap: Lap, from: u32) -> u32 {
        if self.is_last() {
            return self.ahead_end();
        }
        if lap.is_known() { u32::MAX } else { self.made.max(self.known).min(from) + 1 + GUESSES_MAX as u32 }
    }

    /// What was taken from `from` on cannot be used after all.
    pub fn refuse(&mut self, from: u32) {
        self.fed = self.fed.min(from);
    }

    /// Behind the last guess under way.
    fn ahead_end(&self) -> u32 {
        if self.drew_any() { self.tokens - 1 + self.ahead.len() as u32 } else { self.tokens }
    }

    /// Rows came out of the engine.
    pub fn made(&mut self, lap: Lap, from: u32, rows: &[u8]) {
        while self.cuts.front().is_some_and(|(later, _)| *later <= lap) {
            self.cuts.pop_front();
        }
        // What a later lap took back is not kept.
        let holds_until = self.cuts.front().map_or(u32::MAX, |(_, from)| *from);
        let count = (rows.len() / self.ring.row_bytes()) as u32;
        let kept = count.min(holds_until.saturating_sub(from));
        if kept > 0 {
            self.ring.push(from, &rows[..kept as usize * self.ring.row_bytes()]);
            self.made = from + kept;
        }
    }

    /// The last stage drew `tokens`, and wants `next` fed.
    pub fn drew(&mut self, tokens: &[TokenOut], next: Next) -> Judged {
        let mut judged = Judged::default();
        for token in tokens {
            // In front lies the last token, its guess behind it.
            self.ahead.pop_front();
            match self.ahead.front() {
                Some((guess, of_model)) if *guess == token.token => {
                    judged.right += 1;
                    judged.right_of_model += usize::from(*of_model);
                }
                Some(_) => judged.missed = true,
                None => judged.without = true,
            }
            self.tokens += 1;
        }
        if next.lap != self.lap {
            self.lap = next.lap;
            self.ahead.clear();
            // What lies behind was a guess that did not come true.
            self.fed = self.fed.min(next.from);
            self.sent = self.sent.min(next.from);
        }
        self.ahead.extend(next.tokens.into_iter().map(|token| (token, next.by_model)));
        self.sent = self.sent.max(self.tokens - 1);
        judged
    }

    /// The last stage is to send once more what is under way. False where it has drawn nothing.
    pub fn again(&mut self) -> bool {
        self.sent = self.tokens - 1;
        self.drew_any()
    }

    /// Whether [`Flow::next_message`] has something.
    pub fn has_next(&self) -> bool {
        let ready = if self.is_last() {
            self.drew_any() && self.sent < self.ahead_end()
        } else {
            self.ring.kept().contains(&self.sent.max(self.floor))
        };
        self.running && ready
    }

    /// What to send now; it counts as sent.
    pub fn next_message(&mut self) -> Option<ToStage> {
        if !self.has_next() {
            return None;
        }
        let (part, epoch) = (self.route.next.part, self.route.epoch);
        let (lap, from, carried) = if self.is_last() { self.next_tokens() } else { self.next_rows()? };
        Some(ToStage { part, epoch, lap, from, carried })
    }

    fn next_tokens(&mut self) -> (u32, u32, Carried) {
        let from = self.sent;
        let at = (from + 1 - self.tokens) as usize;
        let tokens: Vec<Token> = self.ahead.range(at..).take(TOKENS_MAX).map(|(token, _)| *token).collect();
        self.sent = from + tokens.len() as u32;
        (self.lap, from, Carried::Tokens(tokens))
    }

    fn next_rows(&mut self) -> Option<(u32, u32, Carried)> {
        let from = self.sent.max(self.floor);
        let most = (ROWS_BYTES_MAX / self.ring.row_bytes()).max(1) as u32;
        // Rows of known tokens go by themselves: their number is not bounded.
        let (lap, end) = if from < self.known { (0, self.known) } else { (self.lap, u32::MAX) };
        let end = end.min(self.ring.kept().end).min(from.saturating_add(most));
        let rows = self.ring.rows(from..end)?;
        self.sent = end;
        Some((lap, from, Carried::Rows(rows)))
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
