//! JSON as a model writes it, character by character.
//!
//! Read strictly but for three habits of models, which are put right: line ends and tabs inside of strings, `\'`, and
//! Python's `True`, `False` and `None`.

/// Deepest nesting.
const DEPTH_MAX: usize = 64;
/// Longest number, in characters.
const LITERAL_CHARS_MAX: usize = 256;

/// What a character means to the value that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value goes on.
    More,
    /// It was the value's last one.
    Last,
    /// The value was complete before it, which is none of it: numbers have no end of their own.
    After,
    /// No value continues like this.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    List,
    Object,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    String {
        key: bool,
    },
    Escape {
        key: bool,
    },
    Hex {
        key: bool,
        left: u8,
    },
    Literal,
}

/// Reads one JSON value.
#[derive(Debug, Default)]
pub struct ValueReader {
    containers: Vec<Container>,
    state: State,
    /// A number or word that may go on.
    literal: String,
}

impl ValueReader {
    /// Appends to `out` what `c` makes certain of the value. After anything but [`Read::More`] nothing is pushed.
    pub fn push(&mut self, c: char, out: &mut String) -> Read {
        match self.state {
            State::String { key } => self.in_string(c, key, out),
            State::Escape { key } => self.in_escape(c, key, out),
            State::Hex { key, left } => self.in_hex(c, key, left, out),
            State::Literal => self.in_literal(c, out),
            _ => self.between(c, out),
        }
    }

    /// What is read but not given out yet.
    pub fn pending(&self) -> &str {
        &self.literal
    }

    fn between(&mut self, c: char, out: &mut String) -> Read {
        if c.is_ascii_whitespace() {
            out.push(c);
            return Read::More;
        }
        let next = match (self.state, c) {
            (State::Value | State::ValueOrEnd, '"') => State::String { key: false },
            (State::KeyOrEnd | State::Key, '"') => State::String { key: true },
            (State::Value | State::ValueOrEnd, '[') => return self.open(Container::List, c, out),
            (State::Value | State::ValueOrEnd, '{') => return self.open(Container::Object, c, out),
            (State::ValueOrEnd, ']') | (State::KeyOrEnd, '}') => return self.close(c, out),
            (State::CommaOrEnd, ']' | '}') => return self.close(c, out),
            (State::CommaOrEnd, ',') => match self.containers.last() {
                Some(Container::Object) => State::Key,
                _ => State::Value,
            },
            (State::Colon, ':') => State::Value,
            (State::Value | State::ValueOrEnd, c) if c == '-' || c.is_ascii_alphanumeric() => {
                self.literal.push(c);
                self.state = State::Literal;
                return Read::More;
            }
            _ => return Read::Bad,
        };
        out.push(c);
        self.state = next;
        Read::More
    }

    fn open(&mut self, container: Container, c: char, out: &mut String) -> Read {
        if self.containers.len() >= DEPTH_MAX {
            return Read::Bad;
        }
        self.containers.push(container);
        self.state = if container == Container::List { State::ValueOrEnd } else { State::KeyOrEnd };
        out.push(c);
        Read::More
    }

    fn close(&mut self, c: char, out: &mut String) -> Read {
        let closed = if c == ']' { Container::List } else { Container::Object };
        if self.containers.pop() != Some(closed) {
            return Read::Bad;
        }
        out.push(c);
        self.end_of_value()
    }

    fn end_of_value(&mut self) -> Read {
        self.state = State::CommaOrEnd;
        if self.containers.is_empty() { Read::Last } else { Read::More }
    }

    fn in_string(&mut self, c: char, key: bool, out: &mut String) -> Read {
        match c {
            '"' => {
                out.push(c);
                if key {
                    self.state = State::Colon;
                    return Read::More;
                }
                return self.end_of_value();
            }
            '\\' => self.state = State::Escape { key },
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => *out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
        Read::More
    }

    fn in_escape(&mut self, c: char, key: bool, out: &mut String) -> Read {
        self.state = State::String { key };
        match c {
            '\'' => out.push(c),
            'u' => {
                out.push_str("\\u");
                self.state = State::Hex { key, left: 4 };
            }
            '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => out.extend(['\\', c]),
            _ => return Read::Bad,
        }
        Read::More
    }

    fn in_hex(&mut self, c: char, key: bool, left: u8, out: &mut String) -> Read {
        if !c.is_ascii_hexdigit() {
            return Read::Bad;
        }
        out.push(c);
        self.state = if left > 1 { State::Hex { key, left: left - 1 } } else { State::String { key } };
        Read::More
    }

    fn in_literal(&mut self, c: char, out: &mut String) -> Read {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-') {
            if self.literal.len() >= LITERAL_CHARS_MAX {
                return Read::Bad;
            }
            self.literal.push(c);
            return Read::More;
        }
        let literal = match self.literal.as_str() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        if serde_json::from_str::<serde::de::IgnoredAny>(literal).is_err() {
            return Read::Bad;
        }
        out.push_str(literal);
        self.literal.clear();
        match self.end_of_value() {
            Read::Last => Read::After,
            _ => self.between(c, out),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The value's text, how it ended, and characters that were read.
    fn read(text: &str) -> (String, Read, usize) {
        let (mut reader, mut out) = (ValueReader::default(), String::new());
        for (at, c) in text.chars().enumerate() {
            let read = reader.push(c, &mut out);
            if read != Read::More {
                return (out, read, at);
            }
        }
        (out, Read::More, text.chars().count())
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        assert_eq!(read("{\"a\": [1, {}]}, more"), ("{\"a\": [1, {}]}".into(), Read::Last, 13));
        assert_eq!(read("12.5e3}"), ("12.5e3".into(), Read::After, 6));
        assert_eq!(read("\"a\\\"b\" "), ("\"a\\\"b\"".into(), Read::Last, 5));
        assert_eq!(read("{\"a\": tr"), ("{\"a\": ".into(), Read::More, 8));
    }

    #[test]
    fn habits_of_models_become_json() {
        assert_eq!(read("{\"a\": \"x\ny\t\\'\u{1}\"}").0, "{\"a\": \"x\\ny\\t'\\u0001\"}");
        assert_eq!(read("[True, False, None]").0, "[true, false, null]");
    }

    #[test]
    fn what_is_no_json_is_bad_at_once() {
        for bad in [
            "]",
            "{1",
            "{\"a\" 1",
            "[1 2",
            "[1}",
            "{\"a\":1,}",
            "[01]",
            "[1.]",
            "[tru]",
            "\"\\x",
            "\"\\u00g",
            "'a'",
            ",",
        ] {
            assert_eq!(read(bad).1, Read::Bad, "{bad}");
        }
        assert_eq!(read(&"[".repeat(DEPTH_MAX + 1)).1, Read::Bad);
        assert_eq!(read(&"1".repeat(LITERAL_CHARS_MAX + 1)).1, Read::Bad);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_it_is(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let (out, end, _) = read(&(text.clone() + "\n"));
            prop_assert!(matches!(end, Read::Last | Read::After), "{:?}", end);
            prop_assert_eq!(out, text);
        }

        #[test]
        fn what_is_read_to_its_end_is_json(text in "[\\[\\]{}:,\"\\\\ a1tru\n-]{0,40}") {
            let (out, end, _) = read(&text);
            if matches!(end, Read::Last | Read::After) {
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&out).is_ok(), "{:?}", out);
            }
        }
    }
}
