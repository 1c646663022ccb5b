//! One answer's way from tokens to the text and log-probabilities that a client gets.

use std::collections::{HashSet, VecDeque};

use opengrid_node::handle::TextModel;
use opengrid_protocol::session::{Token, TokenOut};
use rand::{RngExt, distr::Alphanumeric};

use super::{
    detokenize::Utf8Stream,
    reasoning::{ReasoningSplit, Thinking},
    stop::StopMatcher,
    tools::{
        CallDelta,
        calls::{CallParser, Fragment, Notation},
    },
};

/// What to look for in an answer.
#[derive(Clone, Default)]
pub struct Reading {
    pub thinking: Thinking,
    pub calls: Option<Calling>,
    /// Control tokens that count as text here, though they print nothing.
    pub marks: Vec<(Token, &'static str)>,
}

/// Which calls an answer may have.
#[derive(Clone)]
pub struct Calling {
    pub notation: &'static Notation,
    /// Of the functions.
    pub names: HashSet<String>,
    /// The first call ends the answer.
    pub one: bool,
    /// Ids of nine characters.
    pub short_ids: bool,
}

/// Turns the tokens of one answer into text deltas, up to the first stop string.
pub struct AnswerText {
    utf8: Utf8Stream,
    stop: StopMatcher,
    /// Tokens whose text is not given out yet, where log-probabilities are asked for.
    waiting: Option<VecDeque<Placed>>,
    decoded: Position,
    emitted_bytes: usize,
    stopped: bool,
    marks: Vec<(Token, &'static str)>,
    reasoning: ReasoningSplit,
    calls: Option<CallParser>,
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

/// What may be shown, and the tokens that it came from (only where log-probabilities are asked for).
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    /// In the order of the answer. Neighbours of one kind (and one call) are joined.
    pub parts: Vec<Part>,
    pub tokens: Vec<Placed>,
    /// A stop string was found: the answer ends here.
    pub stopped: bool,
}

/// A fragment of the answer; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    Call(CallDelta),
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tokens.is_empty()
    }

    pub fn push(&mut self, part: Part) {
        match (self.parts.last_mut(), part) {
            (Some(Part::Text(last)), Part::Text(more)) | (Some(Part::Reasoning(last)), Part::Reasoning(more)) => {
                last.push_str(&more);
            }
            (Some(Part::Call(last)), Part::Call(more)) if more.head.is_none() && more.index == last.index => {
                last.arguments.push_str(&more.arguments);
            }
            (_, Part::Text(text) | Part::Reasoning(text)) if text.is_empty() => {}
            (_, part) => self.parts.push(part),
        }
    }
}

impl AnswerText {
    pub fn new(stops: Vec<String>, logprobs: bool, reading: Reading) -> Self {
        Self {
            utf8: Utf8Stream::default(),
            stop: StopMatcher::new(stops),
            waiting: logprobs.then(VecDeque::new),
            decoded: Position::default(),
            emitted_bytes: 0,
            stopped: false,
            marks: reading.marks,
            reasoning: ReasoningSplit::new(reading.thinking),
            calls: reading.calls.map(parser),
        }
    }

    /// Takes tokens up to the one that completes a stop string.
    pub fn push(&mut self, model: &dyn TextModel, tokens: Vec<TokenOut>) -> Delta {
        let mut delta = Delta::default();
        let (mut decoded, mut text) = (String::new(), String::new());
        for token in tokens {
            if self.stopped {
                break;
            }
            decoded.clear();
            self.utf8.push(self.piece(model, token.token), &mut decoded);
            self.place(token, &decoded);
            self.stopped = self.stop.push(&decoded, &mut text);
        }
        self.release(text, self.stopped, &mut delta);
        delta
    }

    /// The answer is complete: gives out what was held back.
    pub fn finish(&mut self) -> Delta {
        let (mut delta, mut text) = (Delta::default(), String::new());
        if !self.stopped {
            let mut decoded = String::new();
            self.utf8.finish(&mut decoded);
            self.advance(&decoded);
            self.stopped = self.stop.push(&decoded, &mut text);
            if !self.stopped {
                self.stop.finish(&mut text);
            }
        }
        self.release(text, true, &mut delta);
        if let (Some(waiting), false) = (&mut self.waiting, delta.stopped) {
            delta.tokens.extend(waiting.drain(..));
        }
        delta
    }

    /// The stop string that ended the answer.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop.found()
    }

    /// Whether a whole tool call has been given out.
    pub fn called(&self) -> bool {
        self.calls.as_ref().is_some_and(CallParser::called)
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

    /// A token's bytes, or those of the mark that it is.
    fn piece<'a>(&self, model: &'a dyn TextModel, token: Token) -> &'a [u8] {
        let mark = self.marks.iter().find(|(mark, _)| *mark == token);
        mark.map_or_else(|| model.piece(token), |(_, text)| text.as_bytes())
    }

    /// Gives out `text` and its tokens.
    fn release(&mut self, text: String, last: bool, delta: &mut Delta) {
        self.emitted_bytes += text.len();
        self.tell_apart(&text, last, delta);
        delta.stopped = self.stopped;
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

    /// Thoughts, text and calls.
    fn tell_apart(&mut self, text: &str, last: bool, delta: &mut Delta) {
        let (mut thoughts, mut answer) = (String::new(), String::new());
        self.reasoning.push(text, &mut thoughts, &mut answer);
        if last {
            self.reasoning.finish(&mut thoughts, &mut answer);
        }
        delta.push(Part::Reasoning(thoughts));
        let Some(calls) = &mut self.calls else { return delta.push(Part::Text(answer)) };
        let mut fragments = Vec::new();
        calls.push(&answer, &mut fragments);
        if last {
            calls.finish(&mut fragments);
        }
        self.stopped |= calls.complete();
        fragments.into_iter().for_each(|fragment| match fragment {
            Fragment::Text(text) => delta.push(Part::Text(text)),
            Fragment::Call(call) => delta.push(Part::Call(call)),
        });
    }
}

fn parser(calling: Calling) -> CallParser {
    let new_id = move || {
        let (prefix, length) = if calling.short_ids { ("", 9) } else { ("call_", 24) };
        let random = rand::rng().sample_iter(Alphanumeric).take(length).map(char::from);
        prefix.chars().chain(random).collect()
    };
    CallParser::new(calling.notation, calling.names, calling.one, Box::new(new_id))
}
