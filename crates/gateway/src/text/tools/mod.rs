//! Tools: what the model is told of them and how its calls are read from its text.

use serde_json::Value;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// 1 to [`NAME_CHARS_MAX`] characters of `A-Z a-z 0-9 _ . : / -`.
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments, an object.
    pub parameters: Value,
    /// Calls are held to the schema.
    pub strict: bool,
}

/// OpenAI's limit is 64, Anthropic's 128.
pub const NAME_CHARS_MAX: usize = 128;

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
