//! Grammars for what an answer must be, in llguidance's dialect of Lark
//! (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>).

mod calls;
mod closing;
mod schema;
#[cfg(test)]
mod tests;

use opengrid_protocol::session::Token;
use serde_json::{Value, json};

pub use self::calls::{CallGrammar, Force};
use super::reasoning;

/// Tells the control token that is written as this text, if there is one.
pub type ControlToken<'a> = &'a dyn Fn(&str) -> Option<Token>;

/// What the text of an answer must be.
#[derive(Clone, Copy)]
pub struct JsonAnswer<'a> {
    /// An object; without one the answer is any object.
    pub schema: Option<&'a Value>,
    /// Keywords that cannot be enforced make the grammar invalid; else they are passed over.
    pub strict: bool,
}

impl JsonAnswer<'_> {
    /// A grammar for the answer; `after_thoughts`: for what comes after `</think>`.
    pub fn grammar(self, after_thoughts: bool, control: ControlToken) -> String {
        format!("{}answer: {}\n", start(after_thoughts, control), self.value())
    }

    fn value(self) -> String {
        let any_object = json!({ "type": "object" });
        schema::rule(self.schema.unwrap_or(&any_object), self.strict)
    }
}

/// The first rule: it leads to the rule `answer`.
fn start(after_thoughts: bool, control: ControlToken) -> String {
    if !after_thoughts {
        return "start: answer\n".to_owned();
    }
    let begin = format!("start: thoughts BLANKS answer\nBLANKS: /[ \\n]{{0,4}}/\n{TEXT}");
    match control(reasoning::END) {
        Some(token) => format!("{begin}thoughts: TEXT <[{token}]>\n"),
        None => format!("{begin}thoughts[lazy]: TEXT {}\n", quoted(reasoning::END)),
    }
}

/// Anything.
const TEXT: &str = "TEXT: /(.|\\n)*/\n";

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// `text` as grammar items, where `marks` may be control tokens.
fn literal(text: &str, marks: &[&'static str], control: ControlToken) -> String {
    let found = marks.iter().filter_map(|mark| Some((text.find(mark)?, *mark, control(mark)?)));
    let Some((at, mark, token)) = found.min_by_key(|(at, ..)| *at) else {
        return if text.is_empty() { String::new() } else { quoted(text) };
    };
    let (before, after) = (literal(&text[..at], marks, control), literal(&text[at + mark.len()..], marks, control));
    format!("{before} <[{token}]> {after}").trim().to_owned()
}
