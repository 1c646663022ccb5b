//! The grammar of an answer: from `response_format`, `tool_choice` and strict tools.

use opengrid_grammar::GrammarError;
use opengrid_protocol::limits::GRAMMAR_BYTES_MAX;

use super::{
    errors::ApiError,
    options::Options,
    tools::{Format, ToolUse},
};
use crate::text::{
    grammar::{CallGrammar, ControlToken, Force, JsonAnswer},
    tools::{Tool, dialect::Dialect},
};

/// What an answer is held to, if to anything.
#[derive(Clone)]
pub struct Constraint {
    format: Format,
    tool_use: Option<ToolUse>,
}

impl Constraint {
    pub fn of(options: &Options) -> Option<Self> {
        let bound =
            options.tool_use.as_ref().is_some_and(|tools| tools.required || tools.tools.iter().any(|t| t.strict));
        (bound || options.format != Format::Text)
            .then(|| Self { format: options.format.clone(), tool_use: options.tool_use.clone() })
    }

    /// Nothing comes before what is demanded: no thoughts either, where the template can do without.
    pub fn is_whole_answer(&self) -> bool {
        self.format != Format::Text || self.tool_use.as_ref().is_some_and(|tools| tools.required)
    }

    /// The grammar's text. `after_thoughts`: the answer begins with thoughts.
    ///
    /// # Errors
    /// 400 with the schema that cannot be enforced and why. Takes milliseconds of computing.
    pub fn grammar(&self, dialect: Dialect, after_thoughts: bool, control: ControlToken) -> Result<String, ApiError> {
        // Ids of control tokens mean nothing without the vocabulary: what is checked has their names.
        let write = |control: ControlToken| match &self.tool_use {
            None => self.json_answer().map_or_else(String::new, |json| json.grammar(after_thoughts, control)),
            Some(tool_use) => self.calls(tool_use, dialect, after_thoughts, control),
        };
        let checked = write(&|_| None);
        check(&checked).map_err(|error| self.blame(&error))?;
        Ok(write(control))
    }

    fn json_answer(&self) -> Option<JsonAnswer<'_>> {
        match &self.format {
            Format::Text => None,
            Format::JsonObject => Some(JsonAnswer { schema: None, strict: false }),
            Format::JsonSchema { schema, strict, .. } => Some(JsonAnswer { schema: Some(schema), strict: *strict }),
        }
    }

    fn calls(&self, tool_use: &ToolUse, dialect: Dialect, after_thoughts: bool, control: ControlToken) -> String {
        let force = match self.json_answer() {
            _ if tool_use.required => Force::Calls,
            Some(json) => Force::CallsOr(json),
            None => Force::IfCalled,
        };
        let (tools, parallel) = (tool_use.tools.as_slice(), tool_use.parallel);
        let with = CallGrammar { tools, dialect, force, parallel, schemas: true, after_thoughts, control };
        let text = with.text();
        // Of many tools at least the names are held to.
        if text.len() > GRAMMAR_BYTES_MAX && !tools.iter().any(|tool| tool.strict) {
            return CallGrammar { schemas: false, ..with }.text();
        }
        text
    }

    /// Which of the schemas it is.
    fn blame(&self, error: &GrammarError) -> ApiError {
        let tools = self.tool_use.iter().flat_map(|tools| &tools.tools);
        let alone = |tool: &&Tool| {
            let grammar = JsonAnswer { schema: Some(&tool.parameters), strict: tool.strict }.grammar(false, &|_| None);
            check(&grammar).is_err()
        };
        let reason = reason(error);
        match (tools.take(TOOLS_BLAMED_MAX).find(alone), &self.format) {
            (Some(tool), _) => {
                let message = format!("the parameters of function `{}` cannot be enforced: {reason}", tool.name);
                ApiError::invalid_value("tools", message)
            }
            (None, Format::JsonSchema { param, .. }) => {
                ApiError::invalid_value(*param, format!("the schema cannot be enforced: {reason}"))
            }
            (None, _) => ApiError::invalid_value("tools", format!("the tools cannot be enforced: {reason}")),
        }
    }
}

/// Tools that are looked at for the one at fault.
const TOOLS_BLAMED_MAX: usize = 32;

fn check(grammar: &str) -> Result<(), GrammarError> {
    opengrid_grammar::check(grammar)
}

/// Without the place in a grammar that the client never saw.
fn reason(error: &GrammarError) -> String {
    let text = error.to_string();
    let parts = ["failed to compile JSON schema: ", "): "];
    let found = parts.iter().find_map(|part| text.split_once(part));
    found.map_or(text.clone(), |(_, reason)| reason.to_owned())
}

/// The grammar of `response_format` alone.
///
/// # Errors
/// As [`Constraint::grammar`].
pub async fn checked(format: &Format) -> Result<Option<String>, ApiError> {
    if *format == Format::Text {
        return Ok(None);
    }
    let constraint = Constraint { format: format.clone(), tool_use: None };
    let checking = tokio::task::spawn_blocking(move || constraint.grammar(Dialect::Taught, false, &|_| None));
    checking.await.map_err(|error| ApiError::internal(&error))?.map(Some)
}
