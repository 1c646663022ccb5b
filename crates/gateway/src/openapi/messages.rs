//! The bodies of `/v1/messages`, which are Anthropic's.
#![allow(dead_code, reason = "described, not built")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoResponses, ToSchema};

#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "smollm2-135m", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}))]
pub struct MessagesRequest {
    #[schema(minimum = 1, maximum = 131072)]
    max_tokens: i32,
    #[schema(max_items = 4)]
    stop_sequences: Option<Vec<String>>,
    /// The answer as server-sent events.
    stream: Option<bool>,
    #[schema(minimum = 0, maximum = 1)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    #[serde(flatten)]
    prompt: MessagesPrompt,
}

/// What makes the prompt, and so its number of tokens.
#[derive(ToSchema, Deserialize)]
pub struct MessagesPrompt {
    model: String,
    #[schema(min_items = 1, max_items = 16384)]
    messages: Vec<Turn>,
    /// A text or a list of text blocks.
    system: Option<TurnContent>,
    #[schema(max_items = 512)]
    tools: Option<Vec<AnthropicTool>>,
    /// `{"type":"auto" | "any" | "tool" | "none",…}`
    tool_choice: Option<Value>,
}

#[derive(ToSchema, Deserialize)]
pub struct AnthropicTool {
    #[schema(pattern = "^[A-Za-z0-9_.:/-]{1,128}$")]
    name: String,
    description: Option<String>,
    /// JSON schema of the arguments.
    input_schema: BTreeMap<String, Value>,
}

#[derive(ToSchema, Deserialize)]
pub struct Turn {
    role: TurnRole,
    content: TurnContent,
}

/// A text, or blocks of type `text`, `thinking`, `tool_use` or `tool_result`.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum TurnContent {
    Text(String),
    Blocks(Vec<BTreeMap<String, Value>>),
}

#[derive(ToSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TurnRole {
    User,
    Assistant,
}

#[derive(ToSchema, Deserialize)]
pub struct AnthropicMessage {
    id: String,
    /// `message`
    r#type: String,
    /// `assistant`
    role: String,
    model: String,
    /// Blocks of type `thinking`, `text` or `tool_use`.
    content: Vec<BTreeMap<String, Value>>,
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use` or `model_context_window_exceeded`.
    stop_reason: String,
    stop_sequence: Option<String>,
    usage: BTreeMap<String, u64>,
}

#[derive(ToSchema, Deserialize)]
pub struct TokenCount {
    input_tokens: u64,
}

/// Anthropic's error shape.
#[derive(ToSchema, Deserialize)]
pub struct AnthropicError {
    /// `error`
    r#type: String,
    error: AnthropicErrorFields,
    request_id: String,
}

#[derive(ToSchema, Deserialize)]
pub struct AnthropicErrorFields {
    /// E.g. `invalid_request_error`, `authentication_error`, `rate_limit_error`, `overloaded_error`.
    r#type: String,
    message: String,
}

/// The same errors as OpenAI's API has, in Anthropic's shape.
#[derive(IntoResponses)]
pub enum Messaging {
    #[response(status = 400, description = "The body is no JSON, lacks a field, or has one that cannot be used")]
    BadRequest(AnthropicError),
    #[response(status = 401, description = "A key is needed, or the given one is wrong")]
    Unauthorized(AnthropicError),
    #[response(status = 403, description = "The key lacks the scope, or the page is of a foreign origin or host")]
    Forbidden(AnthropicError),
    #[response(status = 404, description = "There is no such model")]
    NotFound(AnthropicError),
    #[response(status = 408, description = "The body came too slowly")]
    Timeout(AnthropicError),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(AnthropicError),
    #[response(status = 415, description = "The content type is not application/json")]
    MediaType(AnthropicError),
    #[response(
        status = 429,
        description = "The limit of requests or tokens per minute is reached",
        headers(("retry-after" = u64, description = "Seconds"), ("retry-after-ms" = u64, description = "Milliseconds"))
    )]
    Limited(AnthropicError),
    #[response(status = 500, description = "Something failed that should not")]
    Internal(AnthropicError),
    #[response(
        status = 503,
        description = "Nobody serves the model now, or this gateway has too much to do",
        headers(("retry-after" = u64, description = "Seconds"))
    )]
    NoCapacity(AnthropicError),
}
