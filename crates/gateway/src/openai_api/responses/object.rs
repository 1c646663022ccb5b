//! The response object and its items.

use serde::Serialize;

use super::echo::Echo;
use crate::openai_api::{
    errors::ApiError,
    shapes::{TokenLogprob, Usage},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// What does not change while the answer runs.
pub struct Constant {
    pub id: String,
    /// Unix seconds.
    pub created_at: u64,
    pub model: String,
    pub service_tier: &'static str,
    pub echo: Echo,
}

#[derive(Serialize)]
pub struct ResponseObject<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: Status,
    background: bool,
    error: Option<ErrorOut<'a>>,
    incomplete_details: Option<IncompleteDetails>,
    model: &'a str,
    output: &'a [Item],
    usage: Option<UsageOut>,
    service_tier: &'static str,
    store: bool,
    truncation: &'static str,
    previous_response_id: (),
    max_tool_calls: (),
    reasoning: Reasoning,
    #[serde(flatten)]
    echo: &'a Echo,
}

#[derive(Default, Serialize)]
struct Reasoning {
    effort: (),
    summary: (),
}

#[derive(Serialize)]
struct IncompleteDetails {
    reason: &'static str,
}

#[derive(Serialize)]
struct ErrorOut<'a> {
    code: &'static str,
    message: &'a str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    Reasoning { id: String, status: Status, summary: [(); 0], content: Vec<Content> },
    Message { id: String, status: Status, role: &'static str, content: Vec<Content> },
    FunctionCall { id: String, status: Status, call_id: String, name: String, arguments: String },
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    ReasoningText { text: String },
    OutputText { text: String, annotations: [(); 0], logprobs: Vec<TokenLogprob> },
}

#[derive(Serialize)]
struct UsageOut {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl<'a> ResponseObject<'a> {
    pub fn new(constant: &'a Constant, status: Status, output: &'a [Item], usage: Option<Usage>) -> Self {
        Self {
            id: &constant.id,
            object: "response",
            created_at: constant.created_at,
            status,
            background: false,
            error: None,
            incomplete_details: (status == Status::Incomplete).then_some(IncompleteDetails { reason: MAX_TOKENS }),
            model: &constant.model,
            output,
            usage: usage.map(UsageOut::from),
            service_tier: constant.service_tier,
            store: false,
            truncation: "disabled",
            previous_response_id: (),
            max_tool_calls: (),
            reasoning: Reasoning::default(),
            echo: &constant.echo,
        }
    }

    pub fn with_error(self, error: &'a ApiError) -> Self {
        let code = if error.status.as_u16() == 429 { "rate_limit_exceeded" } else { "server_error" };
        Self { error: Some(ErrorOut { code, message: &error.message }), ..self }
    }
}

/// The only way in which an answer is incomplete here: its maximum or the end of the context.
const MAX_TOKENS: &str = "max_output_tokens";

impl From<Usage> for UsageOut {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens(), cache_write_tokens: 0 },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        }
    }
}

impl Item {
    pub fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. } => id,
        }
    }

    pub fn set_status(&mut self, new: Status) {
        match self {
            Self::Reasoning { status, .. } | Self::Message { status, .. } | Self::FunctionCall { status, .. } => {
                *status = new;
            }
        }
    }

    /// Calls have no parts.
    pub fn add_part(&mut self, part: Content) {
        if let Self::Reasoning { content, .. } | Self::Message { content, .. } = self {
            content.push(part);
        }
    }
}
