//! The bodies of `/v1/chat/completions` and `/v1/completions`, as `openai_api::types` reads and `openai_api::shapes`
//! writes them. `null` is the same as absent, unknown fields are ignored.
#![allow(dead_code, reason = "described, not built")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "smollm2-135m", "messages": [{"role": "user", "content": "What is a lighthouse?"}]}))]
pub struct ChatRequest {
    /// See `/v1/models`.
    model: String,
    #[schema(min_items = 1, max_items = 16384)]
    messages: Vec<Message>,
    #[schema(minimum = 1, maximum = 131072)]
    max_completion_tokens: Option<i32>,
    /// The older name.
    #[schema(minimum = 1, maximum = 131072)]
    max_tokens: Option<i32>,
    /// Functions that the model may call, where its template knows tools.
    #[schema(max_items = 512)]
    tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or `{"type":"function","function":{"name":…}}`.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<ResponseFormat>,
    logprobs: Option<bool>,
    /// Alternatives to each token; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i32>,
    /// Further variables of the model's chat template.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    #[serde(flatten)]
    sampling: Sampling,
}

#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 16}))]
pub struct CompletionRequest {
    /// See `/v1/models`.
    model: String,
    prompt: Input,
    #[schema(minimum = 1, maximum = 131072, default = 16)]
    max_tokens: Option<i32>,
    /// The prompt comes back in front of the answer.
    echo: Option<bool>,
    /// What follows the answer, where the model has marks for it.
    suffix: Option<String>,
    logprobs: Option<TextLogprobs>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// Alternatives to each token: how many, or whether one.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum TextLogprobs {
    Count(Alternatives),
    Flag(bool),
}

#[derive(ToSchema, Deserialize)]
#[schema(minimum = 0, maximum = 20)]
pub struct Alternatives(i32);

/// A text, a list of token ids, or a list of such inputs.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// What both kinds of requests say about the answer.
#[derive(ToSchema, Deserialize)]
pub struct Sampling {
    /// Answers to each prompt; times the prompts at most 64.
    #[schema(minimum = 1, maximum = 64)]
    n: Option<i32>,
    /// Same seed, prompt and settings: same answer. Without one it is drawn.
    seed: Option<i64>,
    /// 0 always takes the most probable token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// -1 and 0 keep all.
    #[schema(minimum = -1, maximum = 2147483647)]
    top_k: Option<i32>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f64>,
    /// Last tokens that the repeat penalty looks at.
    #[schema(minimum = 0, maximum = 65536)]
    repeat_last_n: Option<i32>,
    /// Token ids and what is added to their logits, -100 to 100 each; at most 300 of them.
    logit_bias: Option<BTreeMap<String, f64>>,
    stop: Option<Stop>,
    /// The answer as server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Requests with the same key prefer the same worker, which may have computed their beginning already.
    /// At most 512 bytes.
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
    service_tier: Option<ServiceTier>,
}

#[derive(ToSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceTier {
    Auto,
    Default,
    Priority,
    Flex,
}

/// Texts that end the answer: one, or up to four, of 4096 bytes each.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(ToSchema, Deserialize)]
pub struct StreamOptions {
    /// A last event before `[DONE]` with the tokens that were used.
    include_usage: Option<bool>,
}

#[derive(ToSchema, Deserialize)]
pub struct Message {
    role: Role,
    /// A text or a list of text parts; only an assistant's may be missing.
    content: Option<Content>,
    name: Option<String>,
    /// Of role `assistant`.
    #[schema(max_items = 256)]
    tool_calls: Option<Vec<ToolCall>>,
    /// Of role `tool`: which call it answers.
    tool_call_id: Option<String>,
}

#[derive(ToSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TextPart {
    Text { text: String },
}

#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Tool {
    Function { function: Function },
}

#[derive(ToSchema, Deserialize)]
pub struct Function {
    #[schema(pattern = "^[A-Za-z0-9_.:/-]{1,128}$")]
    name: String,
    description: Option<String>,
    /// JSON schema of the arguments.
    parameters: Option<BTreeMap<String, Value>>,
    strict: Option<bool>,
}

#[derive(ToSchema, Deserialize)]
pub struct ToolCall {
    id: String,
    r#type: String,
    function: Called,
}

#[derive(ToSchema, Deserialize)]
pub struct Called {
    name: String,
    /// JSON in a text, as the model wrote it.
    arguments: String,
}

/// What the answer must be; held to by a grammar while the tokens are drawn.
#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(ToSchema, Deserialize)]
pub struct JsonSchema {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    name: Option<String>,
    schema: BTreeMap<String, Value>,
    strict: Option<bool>,
}

#[derive(ToSchema, Deserialize)]
pub struct ChatCompletion {
    id: String,
    /// `chat.completion`; events of a stream are `chat.completion.chunk`s with a `delta` for the `message`.
    object: String,
    /// Unix seconds.
    created: u64,
    model: String,
    /// Names the exact weights.
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(ToSchema, Deserialize)]
pub struct ChatChoice {
    index: u32,
    message: Answer,
    logprobs: Option<BTreeMap<String, Value>>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: String,
}

#[derive(ToSchema, Deserialize)]
pub struct Answer {
    role: String,
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(ToSchema, Deserialize)]
pub struct Completion {
    id: String,
    /// `text_completion`
    object: String,
    /// Unix seconds.
    created: u64,
    model: String,
    /// Names the exact weights.
    system_fingerprint: String,
    choices: Vec<TextChoice>,
    usage: Usage,
}

#[derive(ToSchema, Deserialize)]
pub struct TextChoice {
    index: u32,
    text: String,
    logprobs: Option<BTreeMap<String, Value>>,
    /// `stop` or `length`.
    finish_reason: String,
}

#[derive(ToSchema, Deserialize)]
pub struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(ToSchema, Deserialize)]
pub struct PromptDetails {
    /// Tokens that the worker had computed before.
    cached_tokens: u64,
}
