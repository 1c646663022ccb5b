//! The bodies of `/v1/responses`, as far as they are not the chat's.
#![allow(dead_code, reason = "described, not built")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::generation::{Function, JsonSchema, ServiceTier};

#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "smollm2-135m", "input": "What is a lighthouse?"}))]
pub struct ResponsesRequest {
    #[schema(minimum = 1, maximum = 131072)]
    max_output_tokens: Option<i32>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i32>,
    /// The answer as server-sent events.
    stream: Option<bool>,
    service_tier: Option<ServiceTier>,
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
    #[serde(flatten)]
    prompt: ResponsesPrompt,
}

/// What makes the prompt, and so its number of tokens.
#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "smollm2-135m", "input": "What is a lighthouse?"}))]
pub struct ResponsesPrompt {
    model: String,
    input: Conversation,
    /// The system message.
    instructions: Option<String>,
    #[schema(max_items = 512)]
    tools: Option<Vec<FlatTool>>,
    /// `none`, `auto`, `required`, or `{"type":"function","name":…}`.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<TextOptions>,
}

/// A function, not wrapped as chat completions wrap it.
#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FlatTool {
    Function(Function),
}

#[derive(ToSchema, Deserialize)]
pub struct TextOptions {
    format: Option<TextFormat>,
}

/// As chat completions' `response_format`, with the schema's fields beside `type`.
#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TextFormat {
    Text,
    JsonObject,
    JsonSchema(JsonSchema),
}

/// A text from the user, or the whole conversation as items: nothing is stored here.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum Conversation {
    Text(String),
    Items(Vec<BTreeMap<String, Value>>),
}

/// The fields that have a meaning here; OpenAI's others are there with the values that fit.
#[derive(ToSchema, Deserialize)]
pub struct ResponseObject {
    id: String,
    /// `response`
    object: String,
    /// Unix seconds.
    created_at: u64,
    /// `completed`, or `incomplete` when the maximum was reached.
    status: String,
    model: String,
    /// Items of type `reasoning`, `message` or `function_call`.
    output: Vec<BTreeMap<String, Value>>,
    usage: Option<BTreeMap<String, Value>>,
}

#[derive(ToSchema, Deserialize)]
pub struct InputTokens {
    /// `response.input_tokens`
    object: String,
    input_tokens: u64,
}
