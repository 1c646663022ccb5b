//! The body of `/v1/messages` as it came.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::openai_api::types::{
    Bounded, BoundedJson, ContentIn, MESSAGES_MAX, Shape, ToolList, WithSchema, deserialize_any, read_seq,
};

const BLOCKS_MAX: usize = 4_096;
const STOPS_READ_MAX: usize = 64;

/// Body of `/v1/messages` and, without what concerns the answer, of `/v1/messages/count_tokens`.
#[derive(Debug, Deserialize)]
pub struct MessagesRequest {
    pub model: String,
    pub messages: Option<Bounded<TurnIn, MESSAGES_MAX>>,
    pub max_tokens: Option<i64>,
    #[serde(default)]
    pub system: ContentIn,
    pub stop_sequences: Option<Bounded<String, STOPS_READ_MAX>>,
    pub stream: Option<bool>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    #[serde(default)]
    pub tools: ToolList<ToolIn>,
    pub tool_choice: Option<ToolChoiceIn>,
    pub thinking: Option<ThinkingIn>,
    pub output_config: Option<OutputConfigIn>,

    /// Not Anthropic's; as in chat.
    pub seed: Option<serde_json::Number>,

    #[serde(default)]
    pub mcp_servers: Shape,
    #[serde(default)]
    pub container: Shape,
}

#[derive(Debug, Deserialize)]
pub struct TurnIn {
    pub role: String,
    pub content: BlocksIn,
}

/// A text, or blocks.
#[derive(Debug)]
pub enum BlocksIn {
    Text(String),
    Blocks(Vec<BlockIn>),
}

/// Which fields a block has depends on its type.
#[derive(Debug, Deserialize)]
pub struct BlockIn {
    pub r#type: String,
    pub text: Option<String>,
    pub thinking: Option<String>,
    pub id: Option<String>,
    pub name: Option<String>,
    pub input: Option<Box<RawValue>>,
    pub tool_use_id: Option<String>,
    /// Of a tool's result.
    #[serde(default)]
    pub content: ContentIn,
}

#[derive(Debug, Deserialize)]
pub struct ToolIn {
    /// `custom`, or one of Anthropic's own tools.
    pub r#type: Option<String>,
    pub name: String,
    pub description: Option<String>,
    pub input_schema: Option<BoundedJson>,
    pub strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct ToolChoiceIn {
    pub r#type: String,
    pub name: Option<String>,
    pub disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct ThinkingIn {
    pub r#type: String,
}

#[derive(Debug, Deserialize)]
pub struct OutputConfigIn {
    pub format: Option<FormatIn>,
}

#[derive(Debug, Deserialize)]
pub struct FormatIn {
    pub r#type: String,
    pub schema: Option<BoundedJson>,
}

impl WithSchema for ToolIn {
    fn schema(&self) -> Option<&BoundedJson> {
        self.input_schema.as_ref()
    }
}

deserialize_any!(BlocksIn, "a string or an array of blocks", {
    fn visit_str<E: de::Error>(self, text: &str) -> Result<BlocksIn, E> {
        Ok(BlocksIn::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<BlocksIn, E> {
        Ok(BlocksIn::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<BlocksIn, A::Error> {
        read_seq(seq, BLOCKS_MAX).map(BlocksIn::Blocks)
    }
});
