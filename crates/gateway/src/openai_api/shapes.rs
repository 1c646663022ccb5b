//! The answers' JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{options::Api, prepare::Envelope};

/// `chat.completion`, `chat.completion.chunk` or `text_completion`.
#[derive(Serialize)]
pub struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [ChoiceOut<'a>],
    /// `Some(None)` is `null`: chunks of a stream that ends with its usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl<'a> Completion<'a> {
    pub fn new(
        api: Api,
        chunk: bool,
        envelope: &'a Envelope,
        choices: &'a [ChoiceOut<'a>],
        usage: Option<Option<Usage>>,
    ) -> Self {
        Self {
            id: &envelope.id,
            object: match (api, chunk) {
                (Api::Chat, false) => "chat.completion",
                (Api::Chat, true) => "chat.completion.chunk",
                (Api::Text, _) => "text_completion",
            },
            created: envelope.created,
            model: &envelope.model,
            system_fingerprint: &envelope.fingerprint,
            choices,
            usage,
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum ChoiceOut<'a> {
    Message { index: usize, message: MessageOut<'a>, logprobs: Option<Logprobs>, finish_reason: Option<&'static str> },
    Delta { index: usize, delta: DeltaOut<'a>, logprobs: Option<Logprobs>, finish_reason: Option<&'static str> },
    Text { index: usize, text: &'a str, logprobs: Option<Logprobs>, finish_reason: Option<&'static str> },
}

#[derive(Serialize)]
pub struct MessageOut<'a> {
    pub role: &'static str,
    pub content: &'a str,
    pub refusal: Option<&'static str>,
}

#[derive(Default, Serialize)]
pub struct DeltaOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    Chat { content: Vec<TokenLogprob>, refusal: Option<&'static str> },
    Text(TextLogprobs),
}

/// One token of a chat answer and its alternatives.
#[derive(Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: Alternative,
    pub top_logprobs: Vec<Alternative>,
}

#[derive(Serialize)]
pub struct Alternative {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// The tokens of a text completion, column by column.
#[derive(Default, Serialize)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<f32>,
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    pub text_offset: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

impl Usage {
    pub fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}
