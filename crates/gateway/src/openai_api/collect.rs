//! An answer in one piece.

use axum::{
    Json,
    response::{IntoResponse, Response},
};

use super::{
    errors::ApiError,
    generation::{Generation, Step},
    logprobs::logprobs,
    options::{Api, Options},
    shapes::{CallOut, ChoiceOut, Completion, MessageOut},
};
use crate::text::{
    answer::{Delta, Part, Placed},
    tools::CallDelta,
};

#[derive(Default)]
struct Collected {
    text: String,
    reasoning: String,
    calls: Vec<CallDelta>,
    tokens: Vec<Placed>,
    reason: Option<&'static str>,
}

impl Collected {
    fn add(&mut self, delta: Delta) {
        self.tokens.extend(delta.tokens);
        for part in delta.parts {
            match part {
                Part::Text(text) => self.text.push_str(&text),
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Call(call) => match self.calls.last_mut() {
                    Some(last) if call.head.is_none() => last.arguments.push_str(&call.arguments),
                    _ => self.calls.push(call),
                },
            }
        }
    }

    fn message(&self) -> MessageOut<'_> {
        MessageOut {
            role: "assistant",
            content: (self.calls.is_empty() || !self.text.is_empty()).then_some(&self.text),
            refusal: None,
            reasoning_content: &self.reasoning,
            tool_calls: self.calls.iter().map(CallOut::whole).collect(),
        }
    }
}

/// Waits for all choices.
///
/// # Errors
/// What made one of them fail.
pub async fn collect(options: &Options, mut generation: Generation) -> Result<Response, ApiError> {
    let mut collected: Vec<Collected> = generation.choices.iter().map(|_| Collected::default()).collect();
    while let Some(step) = generation.step().await {
        match step {
            Step::Delta { choice, delta } => collected[choice].add(delta),
            Step::Finished { choice, delta, reason } => {
                collected[choice].add(delta);
                collected[choice].reason = Some(reason);
            }
            Step::Failed(error) => return Err(error.into()),
        }
    }
    let mut echo_chars = Vec::new();
    for (choice, whole) in generation.choices.iter().zip(&mut collected) {
        let echo = choice.echo.as_deref().unwrap_or_default();
        whole.text.insert_str(0, echo);
        echo_chars.push(echo.chars().count());
    }
    let choices: Vec<ChoiceOut> = collected
        .iter()
        .zip(echo_chars)
        .enumerate()
        .map(|(index, (whole, before_chars))| {
            let logprobs = options
                .top_logprobs
                .map(|_| logprobs(options.api, generation.text.as_ref(), &whole.tokens, before_chars));
            let finish_reason = whole.reason;
            match options.api {
                Api::Chat => ChoiceOut::Message { index, message: whole.message(), logprobs, finish_reason },
                Api::Text => ChoiceOut::Text { index, text: &whole.text, logprobs, finish_reason },
            }
        })
        .collect();
    let usage = Some(Some(generation.usage()));
    Ok(Json(Completion::new(options.api, false, &generation.envelope, &choices, usage)).into_response())
}
