//! The request as it came: every field that means something here, with its type and a bound on its size. Unknown
//! fields are ignored; `null` is the same as absent.
//!
//! `/v1/responses` and `/v1/messages` build the same [`GenerationRequest`] from their own bodies.

mod messages;
mod options;
mod prompt;
mod read;
mod tools;

use serde::Deserialize;

#[allow(unused_imports, reason = "whoever builds a request needs its parts")]
pub(crate) use self::{
    messages::{CALLS_MAX, CalledIn, ContentIn, MessageIn, Part, ToolCallIn},
    options::{LogitBias, LogprobsIn, OneOrMore},
    prompt::{PromptIn, PromptItem},
    read::{Bounded, BoundedJson, Shape, deserialize_any, read_seq},
    tools::{
        AllowedToolIn, AllowedToolsIn, FunctionIn, JsonSchemaIn, NamedIn, ResponseFormat, TOOLS_MAX, ToolChoiceIn,
        ToolChoiceObject, ToolIn, ToolList, Tools, WithSchema,
    },
};

pub const MESSAGES_MAX: usize = 16_384;

/// Body of `/v1/chat/completions` and `/v1/completions`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GenerationRequest {
    pub model: String,
    pub messages: Option<Bounded<MessageIn, MESSAGES_MAX>>,
    pub prompt: Option<PromptIn>,

    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    /// The maximum is an upper bound: the answer may end earlier, with its context. Chat refuses what cannot fit.
    #[serde(skip)]
    pub fit_context: bool,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub stop: Option<OneOrMore>,
    pub ignore_eos: Option<bool>,
    pub echo: Option<bool>,
    pub logprobs: Option<LogprobsIn>,
    pub top_logprobs: Option<i64>,
    pub prompt_cache_key: Option<String>,

    pub seed: Option<serde_json::Number>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: Option<f64>,
    pub repeat_last_n: Option<i64>,
    pub logit_bias: Option<LogitBias>,

    #[serde(default)]
    pub tools: Tools,
    pub tool_choice: Option<ToolChoiceIn>,
    pub parallel_tool_calls: Option<bool>,
    pub response_format: Option<ResponseFormat>,
    /// Further variables of the chat template, such as `enable_thinking`.
    pub chat_template_kwargs: Option<BoundedJson>,
    pub service_tier: Option<String>,

    #[serde(default)]
    pub functions: Shape,
    #[serde(default)]
    pub function_call: Shape,
    #[serde(default)]
    pub audio: Shape,
    #[serde(default)]
    pub web_search_options: Shape,
    /// What follows the text to generate.
    pub suffix: Option<String>,
    pub modalities: Option<Bounded<String, 8>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}
