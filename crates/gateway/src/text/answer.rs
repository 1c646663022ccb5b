//! One answer's way from tokens to the text and log-probabilities that a client gets.

use std::collections::VecDeque;

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::TokenOut;

use super::{detokenize::Utf8Stream, stop::StopMatcher};

/// Turns the tokens of one answer into text deltas, up to the first stop string.
pub struct AnswerText {
    utf8: Utf8Stream,
    stop: StopMatcher,
    /// Tokens whose text is not given out yet, where log-probabilities are asked for.
    waiting: Option<VecDeque<Placed>>,
    decoded: Position,
    emitted_bytes: usize,
    stopped: bool,
}

/// A place in the decoded text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    bytes: usize,
    chars: usize,
}

/// A token and where its text lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub token: TokenOut,
    /// Characters of the answer before it.
    pub offset_chars: usize,
    start_bytes: usize,
    end_bytes: usize,
}

/// Text that may be shown, and the tokens that it came from (only where log-probabilities are asked for).
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    pub text: String,
    pub tokens: Vec<Placed>,
    /// A stop string was found: the answer ends here.
    pub stopped: bool,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

impl AnswerText {
    pub fn new(stops: Vec<String>, logprobs: bool) -> Self {
        Self {
            utf8: Utf8Stream::default(),
            stop: StopMatcher::new(stops),
            waiting: logprobs.then(VecDeque::new),
            decoded: Position::default(),
            emitted_bytes: 0,
            stopped: false,
        }
    }

    /// Takes tokens up to the one that completes a stop string.
    pub fn push(&mut self, model: &dyn TextModel, tokens: Vec<TokenOut>) -> Delta {
        let mut delta = Delta::default();
        let mut decoded = String::new();
        for token in tokens {
            if self.stopped {
                break;
            }
            decoded.clear();
            self.utf8.push(model.piece(token.token), &mut decoded);
            self.place(token, &decoded);
            self.stopped = self.stop.push(&decoded, &mut delta.text);
        }
        delta.stopped = self.stopped;
        self.release(&mut delta);
        delta
    }

    /// The answer is complete: gives out what was held back.
    pub fn finish(&mut self) -> Delta {
        let mut delta = Delta::default();
        if !self.stopped {
            let mut decoded = String::new();
            self.utf8.finish(&mut decoded);
            self.advance(&decoded);
            self.stopped = self.stop.push(&decoded, &mut delta.text);
            if !self.stopped {
                self.stop.finish(&mut delta.text);
            }
        }
        delta.stopped = self.stopped;
        self.release(&mut delta);
        if let (Some(waiting), false) = (&mut self.waiting, delta.stopped) {
            delta.tokens.extend(waiting.drain(..));
        }
        delta
    }

    fn place(&mut self, token: TokenOut, decoded: &str) {
        let start = self.decoded;
        self.advance(decoded);
        // A token whose last character is incomplete ends with that character, which is at least one byte.
        let end_bytes = self.decoded.bytes + usize::from(self.utf8.holds_back());
        if let Some(waiting) = &mut self.waiting {
            waiting.push_back(Placed { token, offset_chars: start.chars, start_bytes: start.bytes, end_bytes });
        }
    }

    fn advance(&mut self, decoded: &str) {
        self.decoded.bytes += decoded.len();
        self.decoded.chars += decoded.chars().count();
    }

    /// Moves the tokens of the text given out from `waiting` to `delta`.
    fn release(&mut self, delta: &mut Delta) {
        self.emitted_bytes += delta.text.len();
        let Some(waiting) = &mut self.waiting else { return };
        while let Some(first) = waiting.front() {
            let shown = if self.stopped {
                first.start_bytes < self.emitted_bytes
            } else {
                first.end_bytes <= self.emitted_bytes
            };
            if !shown {
                break;
            }
            delta.tokens.extend(waiting.pop_front());
        }
    }
}
