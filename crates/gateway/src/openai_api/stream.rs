//! An answer as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    errors::ApiError,
    generation::{Generation, Step},
    logprobs::logprobs,
    options::{Api, Options},
    shapes::{ChoiceOut, Completion, DeltaOut},
    sse,
};
use crate::text::answer::{Delta, Part};

struct Stream {
    options: Options,
    generation: Generation,
    keep_alive_every: Duration,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Opening,
    Running,
    Ended,
}

/// The answer's body. It is driven by the connection: when the client hangs up, it is dropped and so are the sessions.
pub fn stream(options: Options, generation: Generation, keep_alive_every: Duration) -> Response {
    let stream = Stream { options, generation, keep_alive_every, state: State::Opening };
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    ([(header::CONTENT_TYPE, sse::CONTENT_TYPE)], Body::from_stream(events)).into_response()
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(512);
        match self.state {
            State::Opening => {
                self.state = State::Running;
                self.write_opening(&mut out);
                if !out.is_empty() {
                    return Some(out.into());
                }
            }
            State::Running => {}
            State::Ended => return None,
        }
        match timeout(self.keep_alive_every, self.generation.step()).await {
            Err(_) => return Some(Bytes::from_static(sse::KEEP_ALIVE)),
            Ok(Some(Step::Delta { choice, delta })) => self.write_delta(&mut out, choice, &delta),
            Ok(Some(Step::Finished { choice, delta, reason })) => {
                self.write_delta(&mut out, choice, &delta);
                self.write_finish(&mut out, choice, reason);
            }
            Ok(Some(Step::Failed(error))) => {
                self.state = State::Ended;
                sse::write(&mut out, &ApiError::from(error).to_json());
            }
            Ok(None) => {
                self.state = State::Ended;
                if self.options.include_usage {
                    self.write(&mut out, &[], true);
                }
                out.extend_from_slice(sse::DONE);
            }
        }
        Some(out.into())
    }

    /// Chat: the role. Completions: the echo.
    fn write_opening(&self, out: &mut Vec<u8>) {
        for (index, choice) in self.generation.choices.iter().enumerate() {
            let opening = match (self.options.api, &choice.echo) {
                (Api::Chat, _) => {
                    let delta = DeltaOut { role: Some("assistant"), content: Some(""), ..DeltaOut::default() };
                    ChoiceOut::Delta { index, delta, logprobs: None, finish_reason: None }
                }
                (Api::Text, Some(text)) => ChoiceOut::Text { index, text, logprobs: None, finish_reason: None },
                (Api::Text, None) => continue,
            };
            self.write(out, &[opening], false);
        }
    }

    /// One chunk for each part; log-probabilities go with the first.
    fn write_delta(&self, out: &mut Vec<u8>, index: usize, delta: &Delta) {
        if delta.is_empty() {
            return;
        }
        let echo = self.generation.choices[index].echo.as_deref().unwrap_or_default();
        let mut logprobs = self
            .options
            .top_logprobs
            .map(|_| logprobs(self.options.api, self.generation.text.as_ref(), &delta.tokens, echo.chars().count()));
        let tokens_only = [Part::Text(String::new())];
        let parts = if delta.parts.is_empty() { tokens_only.as_slice() } else { delta.parts.as_slice() };
        for part in parts {
            let logprobs = logprobs.take();
            let choice = match (self.options.api, part) {
                (Api::Chat, part) => ChoiceOut::Delta { index, delta: part.into(), logprobs, finish_reason: None },
                (Api::Text, Part::Text(text)) => ChoiceOut::Text { index, text, logprobs, finish_reason: None },
                (Api::Text, Part::Reasoning(_) | Part::Call(_)) => continue,
            };
            self.write(out, &[choice], false);
        }
    }

    fn write_finish(&self, out: &mut Vec<u8>, index: usize, reason: &'static str) {
        let finish_reason = Some(reason);
        let choice = match self.options.api {
            Api::Chat => ChoiceOut::Delta { index, delta: DeltaOut::default(), logprobs: None, finish_reason },
            Api::Text => ChoiceOut::Text { index, text: "", logprobs: None, finish_reason },
        };
        self.write(out, &[choice], false);
    }

    fn write(&self, out: &mut Vec<u8>, choices: &[ChoiceOut<'_>], usage: bool) {
        let usage = self.options.include_usage.then(|| usage.then(|| self.generation.usage()));
        sse::write(out, &Completion::new(self.options.api, true, &self.generation.envelope, choices, usage));
    }
}
