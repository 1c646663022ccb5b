//! The message object and the data of its events (<https://docs.anthropic.com/en/api/messages>).

use serde::Serialize;
use serde_json::{Map, Value};

use crate::openai_api::shapes;

#[derive(Serialize)]
pub struct Message<'a> {
    pub id: &'a str,
    pub r#type: &'static str,
    pub role: &'static str,
    pub model: &'a str,
    pub content: &'a [Block],
    pub stop_reason: Option<&'static str>,
    pub stop_sequence: Option<&'a str>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    Thinking { thinking: String, signature: &'static str },
    Text { text: String },
    ToolUse { id: String, name: String, input: Input },
}

/// Arguments of a call as JSON in a text. As JSON they are an object: the empty one where the answer was cut inside.
#[derive(Clone, Debug, Default)]
pub struct Input(pub String);

impl Serialize for Input {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<Map<String, Value>>(&self.0).unwrap_or_default().serialize(serializer)
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// Without those read from the cache.
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

impl From<shapes::Usage> for Usage {
    fn from(usage: shapes::Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens - usage.cached_tokens(),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens(),
            output_tokens: usage.completion_tokens,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event<'a> {
    MessageStart { message: Message<'a> },
    ContentBlockStart { index: usize, content_block: &'a Block },
    ContentBlockDelta { index: usize, delta: BlockDelta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: MessageDelta<'a>, usage: Usage },
    MessageStop,
}

#[derive(Serialize)]
#[serde(tag = "type")]
pub enum BlockDelta<'a> {
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "input_json_delta")]
    Input { partial_json: &'a str },
}

#[derive(Serialize)]
pub struct MessageDelta<'a> {
    pub stop_reason: &'static str,
    pub stop_sequence: Option<&'a str>,
}

impl Event<'_> {
    /// The `event:` line, which says the same as `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}
