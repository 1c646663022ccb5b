//! `{"name": …, "arguments": {…}}`, in either order and with other keys beside.

use super::json::{Read, ValueReader};

/// Most that is held until the function's name is known, in bytes.
pub const HELD_BYTES_MAX: usize = 64 * 1024;

/// What the object has told since it was asked last.
#[derive(Debug, Default)]
pub struct Told {
    /// The function's name; from then on the arguments come as they are read.
    pub name: Option<String>,
    pub arguments: String,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Start,
    KeyOrEnd,
    Key(Text),
    Colon(Field),
    Value(Field, Text),
    /// The arguments, told as they come.
    Arguments(ValueReader),
    CommaOrEnd,
}

/// A value that is needed as a whole.
#[derive(Debug, Default)]
struct Text {
    reader: ValueReader,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    Other,
}

/// Reads the object of one call.
#[derive(Debug, Default)]
pub struct ObjectReader {
    state: State,
    named: bool,
    argued: bool,
    /// Arguments that came before the name.
    early: String,
}

impl ObjectReader {
    /// `known` says whether a function has that name. [`Read::After`] does not happen.
    pub fn push(&mut self, c: char, known: &dyn Fn(&str) -> bool, told: &mut Told) -> Read {
        let next = match (std::mem::take(&mut self.state), c) {
            (State::Key(text), c) => return self.key(c, text),
            (State::Value(field, text), c) => return self.value(c, field, text, known, told),
            (State::Arguments(reader), c) => return self.arguments(c, reader, told),
            (same, c) if c.is_ascii_whitespace() => same,
            (State::Start, '{') | (State::CommaOrEnd, ',') => State::KeyOrEnd,
            (State::KeyOrEnd, '"') => return self.key(c, Text::default()),
            (State::KeyOrEnd | State::CommaOrEnd, '}') => return self.end(told),
            (State::Colon(field), ':') => State::Value(field, Text::default()),
            _ => return Read::Bad,
        };
        self.state = next;
        Read::More
    }

    /// The text breaks off here: what was read of the arguments and not told.
    pub fn pending(&self) -> &str {
        match &self.state {
            State::Arguments(reader) => reader.pending(),
            _ => "",
        }
    }

    fn key(&mut self, c: char, mut key: Text) -> Read {
        let read = key.reader.push(c, &mut key.text);
        self.state = match read {
            Read::Last => State::Colon(match key.text.as_str() {
                "\"name\"" => Field::Name,
                "\"arguments\"" | "\"parameters\"" => Field::Arguments,
                "\"type\"" | "\"id\"" => Field::Other,
                _ if self.named => Field::Other,
                // Some other object: the sooner that is clear the sooner the client sees it.
                _ => return Read::Bad,
            }),
            Read::More if key.text.len() <= HELD_BYTES_MAX => State::Key(key),
            _ => return Read::Bad,
        };
        Read::More
    }

    fn value(&mut self, c: char, field: Field, mut value: Text, known: &dyn Fn(&str) -> bool, told: &mut Told) -> Read {
        let begins = value.text.trim_ascii().is_empty();
        if field == Field::Arguments && self.named && !self.argued && begins && c == '{' {
            self.argued = true;
            return self.arguments(c, ValueReader::default(), told);
        }
        let read = value.reader.push(c, &mut value.text);
        match read {
            Read::Bad => return Read::Bad,
            Read::More => {
                if value.text.len() > HELD_BYTES_MAX {
                    return Read::Bad;
                }
                self.state = State::Value(field, value);
                return Read::More;
            }
            Read::Last | Read::After => {}
        }
        let taken = match field {
            Field::Name => self.take_name(&value.text, known, told),
            Field::Arguments => self.take_arguments(value.text.trim_ascii(), told),
            Field::Other => true,
        };
        self.state = State::CommaOrEnd;
        match (taken, read) {
            (false, _) => Read::Bad,
            (true, Read::After) => self.push(c, known, told),
            (true, _) => Read::More,
        }
    }

    fn arguments(&mut self, c: char, mut reader: ValueReader, told: &mut Told) -> Read {
        let read = reader.push(c, &mut told.arguments);
        self.state = match read {
            Read::Last => State::CommaOrEnd,
            _ => State::Arguments(reader),
        };
        if read == Read::Bad { Read::Bad } else { Read::More }
    }

    fn take_name(&mut self, text: &str, known: &dyn Fn(&str) -> bool, told: &mut Told) -> bool {
        let Ok(name) = serde_json::from_str::<String>(text) else { return false };
        if self.named || !known(&name) {
            return false;
        }
        self.named = true;
        told.name = Some(name);
        told.arguments.push_str(&std::mem::take(&mut self.early));
        true
    }

    /// Arguments that were not told as they came: before the name, as JSON in a string, or none.
    fn take_arguments(&mut self, text: &str, told: &mut Told) -> bool {
        let arguments = match text.chars().next() {
            _ if self.argued => return false,
            Some('{') => text.to_owned(),
            Some('"') => match serde_json::from_str::<String>(text) {
                Ok(inner) if is_object(&inner) => inner,
                _ => return false,
            },
            _ if text == "null" => "{}".to_owned(),
            _ => return false,
        };
        self.argued = true;
        if self.named {
            told.arguments.push_str(&arguments);
        } else {
            self.early = arguments;
        }
        true
    }

    fn end(&mut self, told: &mut Told) -> Read {
        if !self.named {
            return Read::Bad;
        }
        if !self.argued {
            told.arguments.push_str("{}");
        }
        Read::Last
    }
}

fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}
