//! The answers' JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    options::{Api, tier_name},
    prepare::Envelope,
};
use crate::text::{answer::Part, tools::CallDelta};

/// `chat.completion`, `chat.completion.chunk` or `text_completion`.
#[derive(Serialize)]
pub struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
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
            service_tier: envelope.tier.map(tier_name),
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
    /// `null` only beside tool calls.
    pub content: Option<&'a str>,
    pub refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reasoning_content: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub tool_calls: Vec<CallOut<'a>>,
}

#[derive(Default, Serialize)]
pub struct DeltaOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[CallOut<'a>; 1]>,
}

/// A tool call, or a fragment of one.
#[derive(Serialize)]
pub struct CallOut<'a> {
    /// Only in fragments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: CalledOut<'a>,
}

#[derive(Serialize)]
pub struct CalledOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

impl<'a> CallOut<'a> {
    pub fn whole(call: &'a CallDelta) -> Self {
        Self { index: None, ..Self::fragment(call) }
    }

    pub fn fragment(call: &'a CallDelta) -> Self {
        let head = call.head.as_ref();
        Self {
            index: Some(call.index),
            id: head.map(|head| head.id.as_str()),
            r#type: head.map(|_| "function"),
            function: CalledOut { name: head.map(|head| head.name.as_str()), arguments: &call.arguments },
        }
    }
}

impl<'a> From<&'a Part> for DeltaOut<'a> {
    fn from(part: &'a Part) -> Self {
        match part {
            Part::Text(text) => Self { content: Some(text), ..Self::default() },
            Part::Reasoning(text) => Self { reasoning_content: Some(text), ..Self::default() },
            Part::Call(call) => Self { tool_calls: Some([CallOut::fragment(call)]), ..Self::default() },
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    Chat { content: Vec<TokenLogprob>, refusal: Option<&'static str> },
    Text(TextLogprobs),
}

/// One token of a chat answer and its alternatives.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    pub token: Alternative,
    pub top_logprobs: Vec<Alternative>,
}

#[derive(Clone, Debug, Serialize)]
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
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
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

    /// Prompt tokens that were not computed again.
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.cached_tokens
    }
}
