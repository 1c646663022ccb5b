//! Tool calls in the text of an answer, read as it comes.
//!
//! Pure and incremental: the fragments depend on the text only, not on how it is cut. Text that is no call after all is
//! given back as text; nothing is lost, but the beginning of one more call that the answer's end cuts off before its
//! function is known. From the moment that a call's function is known its arguments are passed on as they come; if
//! they break off or stop to be JSON, the client gets what there was, as with OpenAI.

mod json;
mod object;

use std::collections::HashSet;

use self::{
    json::Read,
    object::{HELD_BYTES_MAX, ObjectReader, Told},
};

/// A fragment of a call, as clients get it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallDelta {
    /// The call's place among the answer's calls.
    pub index: usize,
    /// Only in a call's first fragment.
    pub head: Option<CallHead>,
    /// The next part of the arguments' JSON.
    pub arguments: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallHead {
    pub id: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fragment {
    Text(String),
    Call(CallDelta),
}

/// How a family of models writes its calls.
#[derive(Debug, PartialEq, Eq)]
pub struct Notation {
    /// What a call or a list of calls begins with. All marks are ASCII.
    pub openers: &'static [&'static str],
    /// An object at the beginning of the answer, or right after a call, is a call without any opener.
    pub bare: bool,
    /// After an opener the name may stand before the arguments: `name[ARGS]{…}`, `name[CALL_ID]id[ARGS]{…}`.
    pub named: bool,
    /// What a call or a list of calls ends with, if the model does not forget it.
    pub closer: Option<&'static str>,
}

impl Notation {
    /// Texts that may be control tokens of the model, which have no text of their own otherwise.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        let named: &[&str] = if self.named { &["[ARGS]", "[CALL_ID]"] } else { &[] };
        self.openers.iter().chain(named).copied().chain(self.closer)
    }
}

/// Makes the id of the next call.
pub type NewId = Box<dyn FnMut() -> String + Send>;

/// Reads one answer.
pub struct CallParser {
    notation: &'static Notation,
    /// Functions that may be called; a call of another is text.
    names: HashSet<String>,
    new_id: NewId,
    /// Stop after the first call.
    one: bool,
    state: State,
    /// Complete calls and the one being read.
    calls: usize,
    /// A call has come to its end.
    whole: bool,
    complete: bool,
}

enum State {
    Text(Held),
    Call(Call),
}

/// Between calls.
#[derive(Default)]
struct Held {
    /// White space at the beginning, then what may become a mark.
    text: String,
    /// Nothing but white space has come.
    blank: bool,
    after_call: bool,
}

struct Call {
    /// All of it from the opener on, as long as it may still be text.
    raw: String,
    list: bool,
    place: Place,
    /// The call's function is known, and the client, too.
    told: bool,
}

enum Place {
    /// After the opener, or between the calls of a list.
    Start {
        first: bool,
    },
    Object(ObjectReader),
    Name {
        name: String,
    },
    /// `[ARGS]` or `[CALL_ID]`, up to its `]`.
    Tag {
        name: String,
        tag: String,
    },
    CallId {
        name: String,
    },
    /// `{…}` after a name.
    Arguments(json::ValueReader),
}

impl CallParser {
    pub fn new(notation: &'static Notation, names: HashSet<String>, one: bool, new_id: NewId) -> Self {
        let state = State::Text(Held { blank: true, ..Held::default() });
        Self { notation, names, new_id, one, state, calls: 0, whole: false, complete: false }
    }

    /// Whether a whole call has been given out.
    pub fn called(&self) -> bool {
        self.whole
    }

    /// The only call allowed is complete: the rest of the answer does not matter.
    pub fn complete(&self) -> bool {
        self.complete
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<Fragment>) {
        for c in text.chars() {
            if self.complete {
                return;
            }
            self.take(c, out);
        }
    }

    /// The answer ends here.
    pub fn finish(&mut self, out: &mut Vec<Fragment>) {
        match &self.state {
            State::Text(held) if held.after_call => {}
            State::Call(call) if !call.told && self.whole => {}
            _ => self.flush(out),
        }
    }

    fn flush(&mut self, out: &mut Vec<Fragment>) {
        match &mut self.state {
            State::Text(held) => say(out, &std::mem::take(&mut held.text)),
            // A list that was not closed.
            State::Call(call) if !call.told && call.list && call.raw.trim_matches([' ', '\n', ',']).is_empty() => {}
            State::Call(call) if !call.told => say(out, &std::mem::take(&mut call.raw)),
            State::Call(call) => {
                let pending = match &call.place {
                    Place::Object(object) => object.pending(),
                    Place::Arguments(reader) => reader.pending(),
                    _ => "",
                };
                argue(out, self.calls - 1, pending);
            }
        }
    }

    fn take(&mut self, c: char, out: &mut Vec<Fragment>) {
        match &mut self.state {
            State::Text(held) => {
                if let Some(call) = held.take(c, self.notation, out) {
                    self.state = State::Call(call);
                }
            }
            State::Call(_) => self.take_in_call(c, out),
        }
    }

    fn take_in_call(&mut self, c: char, out: &mut Vec<Fragment>) {
        let State::Call(call) = &mut self.state else { return };
        let mut told = Told::default();
        let names = &self.names;
        let step = call.take(c, self.notation, &|name| names.contains(name), &mut told);
        if !call.told && step != Step::Bad {
            call.raw.push(c);
        }
        if let Some(name) = told.name.take() {
            call.told = true;
            call.raw = String::new();
            let head = CallHead { id: (self.new_id)(), name };
            out.push(Fragment::Call(CallDelta { index: self.calls, head: Some(head), arguments: String::new() }));
            self.calls += 1;
        }
        argue(out, self.calls.saturating_sub(1), &told.arguments);
        match step {
            Step::More if !call.told && call.raw.len() > 2 * HELD_BYTES_MAX => self.give_up(out),
            Step::More => {}
            Step::CallEnded => {
                call.told = false;
                self.whole = true;
                self.complete = self.one;
            }
            Step::AllEnded => {
                self.whole = true;
                self.complete = self.one;
                self.state = State::Text(Held { blank: true, after_call: true, text: String::new() });
            }
            Step::Bad => {
                self.give_up(out);
                self.take(c, out);
            }
        }
    }

    /// It is no call, or not any more: what the client has not got as a call it gets as text.
    fn give_up(&mut self, out: &mut Vec<Fragment>) {
        self.flush(out);
        self.state = State::Text(Held::default());
    }
}

#[derive(PartialEq, Eq)]
enum Step {
    More,
    /// One of a list.
    CallEnded,
    /// The list, or the call where there is none.
    AllEnded,
    /// Not with this character.
    Bad,
}

impl Held {
    /// Gives out what is certainly text; returns the call that begins with `c`.
    fn take(&mut self, c: char, notation: &Notation, out: &mut Vec<Fragment>) -> Option<Call> {
        let begins = |raw: &str, place| Call { raw: raw.to_owned(), list: false, place, told: false };
        if notation.bare && self.blank && self.text.trim_start().is_empty() && c == '{' {
            let mut object = ObjectReader::default();
            object.push(c, &|_| false, &mut Told::default());
            return Some(begins(&(std::mem::take(&mut self.text) + "{"), Place::Object(object)));
        }
        // Llama separates calls by semicolons.
        if notation.bare && self.blank && self.after_call && c == ';' {
            return None;
        }
        self.text.push(c);
        if let Some(opener) = notation.openers.iter().find(|opener| self.text.ends_with(**opener)) {
            // White space before the first call is none of the text, unless it is no call.
            let raw_bytes = if self.blank { self.text.len() } else { opener.len() };
            let raw = self.text.split_off(self.text.len() - raw_bytes);
            say(out, &self.text);
            let list = opener.ends_with('[');
            return Some(Call { list, ..begins(&raw, Place::Start { first: true }) });
        }
        if let Some(closer) = notation.closer
            && self.after_call
            && self.text.trim_start() == closer
        {
            self.text.clear();
            return None;
        }
        self.release(notation, out);
        None
    }

    /// Gives out all but white space at the beginning and what may become a mark.
    fn release(&mut self, notation: &Notation, out: &mut Vec<Fragment>) {
        let closer = notation.closer.filter(|_| self.after_call);
        let marks = notation.openers.iter().copied().chain(closer);
        let beginning = |mark: &str| {
            let longest = (mark.len() - 1).min(self.text.len());
            (1..=longest).rev().find(|n| self.text.as_bytes().ends_with(&mark.as_bytes()[..*n])).unwrap_or(0)
        };
        let kept = marks.map(beginning).max().unwrap_or(0);
        let certain = &self.text[..self.text.len() - kept];
        if self.blank && certain.trim().is_empty() {
            return;
        }
        say(out, certain);
        self.text.drain(..self.text.len() - kept);
        self.blank = false;
        self.after_call = false;
    }
}

impl Call {
    fn take(&mut self, c: char, notation: &Notation, known: &dyn Fn(&str) -> bool, told: &mut Told) -> Step {
        match &mut self.place {
            Place::Start { first } => {
                let first = *first;
                self.start(c, first, notation)
            }
            Place::Object(object) => match object.push(c, known, told) {
                Read::More => Step::More,
                Read::Last => self.end(),
                Read::After | Read::Bad => Step::Bad,
            },
            Place::Arguments(reader) => match reader.push(c, &mut told.arguments) {
                Read::More => Step::More,
                Read::Last => self.end(),
                Read::After | Read::Bad => Step::Bad,
            },
            Place::Name { .. } | Place::Tag { .. } | Place::CallId { .. } => self.named(c, known, told),
        }
    }

    fn start(&mut self, c: char, first: bool, notation: &Notation) -> Step {
        match c {
            c if c.is_ascii_whitespace() => {}
            '{' => {
                let mut object = ObjectReader::default();
                object.push(c, &|_| false, &mut Told::default());
                self.place = Place::Object(object);
            }
            '[' if first && !self.list => self.list = true,
            ',' if !first => {}
            ']' if !first => return Step::AllEnded,
            c if notation.named && first && !self.list && is_name(c) => self.place = Place::Name { name: c.into() },
            _ => return Step::Bad,
        }
        Step::More
    }

    fn end(&mut self) -> Step {
        if !self.list {
            return Step::AllEnded;
        }
        self.place = Place::Start { first: false };
        Step::CallEnded
    }

    fn named(&mut self, c: char, known: &dyn Fn(&str) -> bool, told: &mut Told) -> Step {
        self.place = match (std::mem::replace(&mut self.place, Place::Start { first: false }), c) {
            (Place::Name { mut name }, c) if is_name(c) => {
                name.push(c);
                Place::Name { name }
            }
            (Place::Name { name } | Place::CallId { name }, '[') => Place::Tag { name, tag: "[".into() },
            (Place::CallId { name }, c) if c.is_ascii_alphanumeric() => Place::CallId { name },
            (Place::Tag { name, mut tag }, c) => {
                tag.push(c);
                match tag.as_str() {
                    "[ARGS]" => Place::Name { name },
                    "[CALL_ID]" => Place::CallId { name },
                    tag_so_far if "[ARGS]".starts_with(tag_so_far) || "[CALL_ID]".starts_with(tag_so_far) => {
                        Place::Tag { name, tag }
                    }
                    _ => return Step::Bad,
                }
            }
            (Place::Name { name }, '{') if known(&name) => {
                let mut reader = json::ValueReader::default();
                reader.push(c, &mut told.arguments);
                told.name = Some(name);
                Place::Arguments(reader)
            }
            (Place::Name { name }, c) if c.is_ascii_whitespace() => Place::Name { name },
            _ => return Step::Bad,
        };
        Step::More
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.:/-".contains(c)
}

fn say(out: &mut Vec<Fragment>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Fragment::Text(last)) => last.push_str(text),
        _ => out.push(Fragment::Text(text.to_owned())),
    }
}

fn argue(out: &mut Vec<Fragment>, index: usize, arguments: &str) {
    match out.last_mut() {
        _ if arguments.is_empty() => {}
        Some(Fragment::Call(last)) if last.index == index => last.arguments.push_str(arguments),
        _ => out.push(Fragment::Call(CallDelta { index, head: None, arguments: arguments.to_owned() })),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
