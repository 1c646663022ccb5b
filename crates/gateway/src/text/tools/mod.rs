//! Tools: what the model is told of them and how its calls are read from its text.

pub mod adapt;
pub mod calls;
pub mod dialect;

use serde_json::Value;

pub use self::calls::{CallDelta, CallHead};

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
