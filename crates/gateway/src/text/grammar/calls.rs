//! Answers that are tool calls, or may be.

use super::{ControlToken, JsonAnswer, TEXT, literal, quoted, schema, start};
use crate::text::tools::{Tool, dialect::Dialect};

/// Most calls that a grammar lets follow each other.
const CALLS_MAX: usize = 16;

/// How much of the answer is laid down.
#[derive(Clone, Copy)]
pub enum Force<'a> {
    /// Calls and nothing else.
    Calls,
    /// Calls, or JSON.
    CallsOr(JsonAnswer<'a>),
    /// Any text, but what begins like a call is one.
    IfCalled,
}

#[derive(Clone, Copy)]
pub struct CallGrammar<'a> {
    pub tools: &'a [Tool],
    pub dialect: Dialect,
    pub force: Force<'a>,
    /// More than one call, where the dialect can.
    pub parallel: bool,
    /// Arguments follow the tools' schemas; else they are any object.
    pub schemas: bool,
    /// The answer begins with thoughts.
    pub after_thoughts: bool,
    pub control: ControlToken<'a>,
}

impl CallGrammar<'_> {
    pub fn text(&self) -> String {
        let start = start(self.after_thoughts, self.control);
        match self.force {
            Force::Calls => format!("{start}answer: {}\n{}", self.all(""), self.each("")),
            Force::CallsOr(json) => {
                format!("{start}answer: {}\n    | {}\n{}", self.all(""), json.value(), self.each(""))
            }
            Force::IfCalled => self.if_called(),
        }
    }

    fn literal(&self, text: &str) -> String {
        let marks: Vec<&'static str> = self.dialect.notation().marks().collect();
        literal(text, &marks, self.control)
    }

    /// All calls, without the `opener` that stands before them.
    fn all(&self, opener: &str) -> String {
        let shape = self.dialect.shape();
        let begin = self.literal(shape.begin.strip_prefix(opener).unwrap_or(shape.begin));
        let separator = self.literal(shape.separator);
        let parallel = self.parallel && shape.parallel;
        let more = if parallel { format!("({separator} call){{0,{}}}", CALLS_MAX - 1) } else { String::new() };
        format!("{begin} call {more} {}", self.literal(shape.end)).trim().to_owned()
    }

    /// The rule `call`, without the `opener` that stands before each.
    fn each(&self, opener: &str) -> String {
        let [before, between, after] = self.dialect.shape().call;
        let before = before.strip_prefix(opener).unwrap_or(before);
        let one = |tool: &Tool| {
            let of_tool = self.schemas.then(|| schema::rule(&tool.parameters, tool.strict));
            let arguments = of_tool.unwrap_or_else(|| "object".to_owned());
            let head = self.literal(&format!("{before}{}{between}", tool.name));
            format!("{head} {arguments} {}", self.literal(after)).trim().to_owned()
        };
        let alternatives: Vec<String> = self.tools.iter().map(one).collect();
        let any = schema::rule(&serde_json::json!({ "type": "object" }), false);
        let object = if self.schemas { String::new() } else { format!("object: {any}\n") };
        format!("call: {}\n{object}", alternatives.join("\n    | "))
    }

    fn if_called(&self) -> String {
        let shape = self.dialect.shape();
        let openers = self.dialect.notation().openers;
        let begins_with = |text: &str| openers.iter().copied().find(|opener| text.starts_with(opener));
        match (begins_with(shape.begin), begins_with(shape.call[0])) {
            // The opener stands before a list of calls.
            (Some(opener), _) => self.after_opener(opener, &self.all(opener), &self.each(""), 1),
            (None, Some(opener)) => {
                let times = if self.parallel && shape.parallel { CALLS_MAX } else { 1 };
                self.after_opener(opener, "call", &self.each(opener), times)
            }
            (None, None) => {
                let plain = "PLAIN: /([ \\n\\t\\r]*[^ \\n\\t\\r{](.|\\n)*)?/\n";
                format!("start: PLAIN | {}\n{plain}{}", self.all(""), self.each(""))
            }
        }
    }

    /// Text, and up to `times` an opener with `calls` behind it.
    fn after_opener(&self, opener: &str, calls: &str, rules: &str, times: usize) -> String {
        let start = format!("start: (head {calls}){{0,{times}}} TEXT\n{TEXT}");
        match (self.control)(opener) {
            Some(token) => format!("{start}head: TEXT <[{token}]>\n{rules}"),
            None => format!("{start}head[lazy]: TEXT {}\n{rules}", quoted(opener)),
        }
    }
}
