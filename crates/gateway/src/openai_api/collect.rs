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
    shapes::{ChoiceOut, Completion, MessageOut},
};
use crate::text::answer::{Delta, Placed};

#[derive(Default)]
struct Collected {
    text: String,
    tokens: Vec<Placed>,
    reason: Option<&'static str>,
}

impl Collected {
    fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.tokens.extend(delta.tokens);
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
                Api::Chat => {
                    let message = MessageOut { role: "assistant", content: &whole.text, refusal: None };
                    ChoiceOut::Message { index, message, logprobs, finish_reason }
                }
                Api::Text => ChoiceOut::Text { index, text: &whole.text, logprobs, finish_reason },
            }
        })
        .collect();
    let usage = Some(Some(generation.usage()));
    Ok(Json(Completion::new(options.api, false, &generation.envelope, &choices, usage)).into_response())
}
