//! The body of `/v1/responses` as it came.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::openai_api::types::{
    Bounded, BoundedJson, ContentIn, MESSAGES_MAX, Shape, ToolList, WithSchema, deserialize_any, read_seq,
};

const INCLUDES_MAX: usize = 32;

#[derive(Debug, Deserialize)]
pub struct ResponsesRequest {
    pub model: String,
    pub input: Option<InputIn>,
    pub instructions: Option<String>,
    #[serde(default)]
    pub tools: ToolList<FunctionToolIn>,
    pub tool_choice: Option<BoundedJson>,
    pub parallel_tool_calls: Option<bool>,
    pub text: Option<TextIn>,
    pub max_output_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_logprobs: Option<i64>,
    pub include: Option<Bounded<String, INCLUDES_MAX>>,
    pub stream: Option<bool>,
    pub truncation: Option<String>,
    pub metadata: Option<BoundedJson>,
    pub service_tier: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub safety_identifier: Option<String>,
    pub user: Option<String>,

    /// Not OpenAI's; as in chat.
    pub seed: Option<serde_json::Number>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,

    pub background: Option<bool>,
    #[serde(default)]
    pub previous_response_id: Shape,
    #[serde(default)]
    pub conversation: Shape,
    #[serde(default)]
    pub prompt: Shape,
}

/// A text from the user, or the conversation.
#[derive(Debug)]
pub enum InputIn {
    Text(String),
    Items(Vec<ItemIn>),
}

/// One item of the conversation. Which fields it has depends on its type.
#[derive(Debug, Deserialize)]
pub struct ItemIn {
    /// Messages may leave it out.
    pub r#type: Option<String>,
    pub role: Option<String>,
    #[serde(default)]
    pub content: ContentIn,
    pub call_id: Option<String>,
    pub name: Option<String>,
    pub arguments: Option<String>,
    #[serde(default)]
    pub output: ContentIn,
}

#[derive(Debug, Deserialize)]
pub struct FunctionToolIn {
    pub r#type: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub parameters: Option<BoundedJson>,
    pub strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct TextIn {
    pub format: Option<FormatIn>,
}

#[derive(Debug, Deserialize)]
pub struct FormatIn {
    pub r#type: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub schema: Option<BoundedJson>,
    pub strict: Option<bool>,
}

impl WithSchema for FunctionToolIn {
    fn schema(&self) -> Option<&BoundedJson> {
        self.parameters.as_ref()
    }
}

deserialize_any!(InputIn, "a string or an array of items", {
    fn visit_str<E: de::Error>(self, text: &str) -> Result<InputIn, E> {
        Ok(InputIn::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<InputIn, E> {
        Ok(InputIn::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<InputIn, A::Error> {
        read_seq(seq, MESSAGES_MAX).map(InputIn::Items)
    }
});
