//! What a part of a session does with what it is told: which input it takes, what it sends and when, and how far it is.
//! Pure: the shell around it is [`part`](super::part).

use std::ops::Range;

use bytes::Bytes;
use opengrid_protocol::{
    NodeId,
    limits::ROWS_BYTES_MAX,
    pipeline::{Carried, PartState, Route, ToStage},
    session::Token,
};

use super::ring::Ring;

/// Rows of a token and its guesses: they are never sent in two pieces, so that the next lap begins behind the start of
/// the last piece.
const LAP_ROWS_MAX: usize = 17;

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
        from: u32,
        carried: Carried,
    },
    /// Of another epoch: dropped.
    Stale,
    /// It continues what the gateway has not fed yet: to be tried again after the next order.
    Early(ToStage),
    /// Not from the neighbour.
    Foreign,
    /// No honest neighbour sends this.
    Bad(&'static str),
}

#[derive(Debug)]
pub struct Flow {
    kind: Kind,
    route: Route,
    /// Started in this epoch.
    running: bool,
    /// It was told to start and to keep so much, and sends, but takes nothing until the engine has given what was fed before:
    /// that would be mistaken for what comes anew.
    starting: Option<u32>,
    positions_max: u32,
    /// Positions `0..fed` went into the engine.
    fed: u32,
    /// Where the last piece of input began.
    last_from: Option<u32>,
    /// Positions `0..made` came out of it.
    made: u32,
    /// The part behind has what lies before; nothing below is sent in this epoch.
    floor: u32,
    sent: u32,
    ring: Ring,
    /// At the last stage: what it wants fed next.
    drawn: Option<(u32, Vec<Token>)>,
}

impl Flow {
    /// `row_bytes` of what goes out; `ring_bytes` are kept at most.
    pub fn new(kind: Kind, route: Route, positions_max: u32, row_bytes: usize, ring_bytes: usize) -> Self {
        Self {
            kind,
            route,
            running: false,
            starting: None,
            positions_max,
            fed: 0,
            last_from: None,
            made: 0,
            floor: 0,
            sent: 0,
            ring: Ring::new(row_bytes, ring_bytes),
            drawn: None,
        }
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Takes and sends nothing more in this epoch.
    pub fn stop(&mut self) {
        self.running = false;
        self.starting = None;
    }

    /// Whether it was told to start and waits for the engine.
    pub fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Whether input of other parts is taken now.
    pub fn takes(&self) -> bool {
        self.running
    }

    /// Whether what was made may leave.
    pub fn sends(&self) -> bool {
        self.running || self.starting.is_some()
    }

    /// The part begins with rows of positions `0..count`, which go into the engine now; how many of those that are there.
    /// The last stage would draw from all rows that it knows, before it is started.
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
            self.starting = None;
        }
        newer
    }

    /// Nothing that the engine still computes will change the part's state: what the last stage has whole, it draws from.
    pub fn settled(&self) -> bool {
        match self.kind {
            Kind::Last { .. } => self.fed < self.expected_end(),
            _ => true,
        }
    }

    /// At the last stage: once positions `0..` this are fed, it draws.
    fn expected_end(&self) -> u32 {
        match (&self.drawn, self.kind) {
            (Some((from, _)), _) => from + 1,
            (None, Kind::Last { tokens }) => tokens,
            (None, _) => u32::MAX,
        }
    }

    pub fn state(&self) -> PartState {
        let kept_from = self.ring.kept().start;
        PartState { have: self.have(), kept_from, sent: self.sent.max(self.floor), drew: self.drawn.is_some() }
    }

    fn have(&self) -> u32 {
        self.drawn.as_ref().map_or(self.fed, |(from, _)| self.fed.min(*from))
    }

    /// Takes an order to start. False where it makes no sense.
    pub fn start(&mut self, keep: u32, send_from: u32) -> bool {
        let sound = !self.running && self.starting.is_none() && keep <= self.have();
        if sound {
            self.starting = Some(keep);
            self.ring.truncate(keep);
            self.floor = send_from;
            self.sent = send_from;
            self.try_start();
        }
        sound
    }

    fn try_start(&mut self) {
        let Some(keep) = self.starting else { return };
        let is_last = matches!(self.kind, Kind::Last { .. });
        if !is_last && keep < self.fed && self.made < self.fed {
            return;
        }
        self.starting = None;
        self.running = true;
        self.fed = keep;
        self.last_from = None;
        self.made = self.made.min(keep);
    }

    /// Tokens from the gateway to the first stage.
    pub fn feed(&mut self, from: u32, count: usize) -> bool {
        let sound = self.kind == Kind::First && self.running && from == self.fed && self.fits(from, count);
        if sound {
            self.fed_now(from, count);
        }
        sound
    }

    fn fits(&self, from: u32, count: usize) -> bool {
        from as usize + count <= self.positions_max as usize + LAP_ROWS_MAX
    }

    fn fed_now(&mut self, from: u32, count: usize) {
        self.last_from = Some(from);
        self.fed = from + count as u32;
        self.made = self.made.min(from);
    }

    /// A message of `sender`, when the part runs. `in_row_bytes` is the length of a row that comes in.
    pub fn take(&mut self, sender: NodeId, message: ToStage, in_row_bytes: usize) -> Taken {
        if message.epoch != self.route.epoch {
            return Taken::Stale;
        }
        if sender != self.route.previous {
            return Taken::Foreign;
        }
        let from = message.from;
        let count = match (&message.carried, self.kind) {
            (Carried::Tokens(tokens), Kind::First) if tokens.len() <= LAP_ROWS_MAX => tokens.len(),
            (Carried::Rows(rows), Kind::Middle | Kind::Last { .. }) if rows.len().is_multiple_of(in_row_bytes) => {
                rows.len() / in_row_bytes
            }
            _ => return Taken::Bad("of another kind or width than the stage takes"),
        };
        if count == 0 || !self.fits(from, count) {
            return Taken::Bad("no rows, or beyond the session's end");
        }
        if self.kind == Kind::First && from > self.fed {
            return Taken::Early(message);
        }
        let in_order = match self.kind {
            Kind::Last { .. } => from == self.have() && from + count as u32 <= self.lap_end(),
            _ => from <= self.fed && self.last_from.is_none_or(|last| from > last) && from >= self.floor_of_input(),
        };
        if !in_order {
            return Taken::Bad("out of order");
        }
        self.fed_now(from, count);
        Taken::Feed { from, carried: message.carried }
    }

    /// What was taken from `from` on cannot be used after all.
    pub fn refuse(&mut self, from: u32) {
        self.fed = self.fed.min(from);
    }

    /// At the last stage nothing comes beyond what it asked for.
    fn lap_end(&self) -> u32 {
        match (&self.drawn, self.kind) {
            (Some((from, tokens)), _) => from + tokens.len() as u32,
            (None, Kind::Last { tokens }) => tokens,
            (None, _) => u32::MAX,
        }
    }

    /// What was kept at the start of the epoch is true and never taken back.
    fn floor_of_input(&self) -> u32 {
        if self.last_from.is_none() { self.fed } else { 0 }
    }

    /// Rows came out of the engine.
    pub fn made(&mut self, from: u32, rows: &[u8]) {
        let count = (rows.len() / self.ring.row_bytes()) as u32;
        // What comes anew after the start is not kept now.
        let keep = self.starting.unwrap_or(u32::MAX);
        let kept = count.min(keep.saturating_sub(from)) as usize * self.ring.row_bytes();
        if kept > 0 {
            self.ring.push(from, &rows[..kept]);
        }
        self.made = from + count;
        if from < self.sent {
            self.sent = from.max(self.floor);
        }
        self.try_start();
    }

    /// The last stage drew, and wants `tokens` fed from `from` on.
    pub fn drew(&mut self, from: u32, tokens: Vec<Token>) {
        self.drawn = Some((from, tokens));
        // What lies behind was a guess that did not come true.
        self.fed = self.fed.min(from);
    }

    /// What the last stage wants fed next.
    pub fn wanted(&self) -> Option<(u32, Vec<Token>)> {
        self.drawn.clone()
    }

    /// Whether [`Flow::next_rows`] has something.
    pub fn has_next(&self) -> bool {
        self.sends() && self.ring.kept().contains(&self.sent.max(self.floor))
    }

    /// Rows to send now; they count as sent.
    pub fn next_rows(&mut self) -> Option<(u32, Bytes)> {
        if !self.has_next() {
            return None;
        }
        let end = self.ring.kept().end;
        let from = self.sent.max(self.floor);
        let most = (ROWS_BYTES_MAX / self.ring.row_bytes()).max(1);
        let waiting = (end - from) as usize;
        let count = if waiting > most && waiting - most < LAP_ROWS_MAX {
            most.saturating_sub(LAP_ROWS_MAX).max(1)
        } else {
            waiting.min(most)
        };
        let rows = self.ring.rows(from..from + count as u32)?;
        self.sent = from + count as u32;
        Some((from, rows))
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
