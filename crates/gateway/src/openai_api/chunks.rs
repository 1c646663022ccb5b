//! The chunks of a streamed chat or text completion.

use super::{
    errors::ApiError,
    generation::Generation,
    logprobs::logprobs,
    options::{Api, Options},
    shapes::{ChoiceOut, Completion, DeltaOut},
    sse,
    stream::AnswerWriter,
};
use crate::text::answer::{Delta, Part};

pub struct Chunks(pub Options);

impl AnswerWriter for Chunks {
    const KEEP_ALIVE: &'static [u8] = sse::KEEP_ALIVE;

    /// Chat: the role. Completions: the echo.
    fn open(&mut self, generation: &Generation, out: &mut Vec<u8>) {
        for (index, choice) in generation.choices.iter().enumerate() {
            let opening = match (self.0.api, &choice.echo) {
                (Api::Chat, _) => {
                    let delta = DeltaOut { role: Some("assistant"), content: Some(""), ..DeltaOut::default() };
                    ChoiceOut::Delta { index, delta, logprobs: None, finish_reason: None }
                }
                (Api::Text, Some(text)) => ChoiceOut::Text { index, text, logprobs: None, finish_reason: None },
                (Api::Text, None) => continue,
            };
            self.write(generation, out, &[opening], false);
        }
    }

    /// One chunk for each part; log-probabilities go with the first.
    fn delta(&mut self, generation: &Generation, index: usize, delta: Delta, out: &mut Vec<u8>) {
        if delta.is_empty() {
            return;
        }
        let echo = generation.choices[index].echo.as_deref().unwrap_or_default();
        let mut logprobs = self
            .0
            .top_logprobs
            .map(|_| logprobs(self.0.api, generation.text.as_ref(), &delta.tokens, echo.chars().count()));
        let tokens_only = [Part::Text(String::new())];
        let parts = if delta.parts.is_empty() { tokens_only.as_slice() } else { delta.parts.as_slice() };
        for part in parts {
            let logprobs = logprobs.take();
            let choice = match (self.0.api, part) {
                (Api::Chat, part) => ChoiceOut::Delta { index, delta: part.into(), logprobs, finish_reason: None },
                (Api::Text, Part::Text(text)) => ChoiceOut::Text { index, text, logprobs, finish_reason: None },
                (Api::Text, Part::Reasoning(_) | Part::Call(_)) => continue,
            };
            self.write(generation, out, &[choice], false);
        }
    }

    fn finish(&mut self, generation: &Generation, index: usize, reason: &'static str, out: &mut Vec<u8>) {
        let finish_reason = Some(reason);
        let choice = match self.0.api {
            Api::Chat => ChoiceOut::Delta { index, delta: DeltaOut::default(), logprobs: None, finish_reason },
            Api::Text => ChoiceOut::Text { index, text: "", logprobs: None, finish_reason },
        };
        self.write(generation, out, &[choice], false);
    }

    fn fail(&mut self, error: ApiError, out: &mut Vec<u8>) {
        sse::write(out, &error.to_json());
    }

    fn close(&mut self, generation: &Generation, out: &mut Vec<u8>) {
        if self.0.include_usage {
            self.write(generation, out, &[], true);
        }
        out.extend_from_slice(sse::DONE);
    }
}

impl Chunks {
    fn write(&self, generation: &Generation, out: &mut Vec<u8>, choices: &[ChoiceOut<'_>], usage: bool) {
        let usage = self.0.include_usage.then(|| usage.then(|| generation.usage()));
        sse::write(out, &Completion::new(self.0.api, true, &generation.envelope, choices, usage));
    }
}
