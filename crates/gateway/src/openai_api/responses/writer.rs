//! Hands an answer to [`Output`].

use tokio::sync::OwnedSemaphorePermit;

use super::{
    echo::Echo,
    object::{Constant, ResponseObject},
    output::Output,
};
use crate::{
    body::kibibytes,
    openai_api::{
        errors::ApiError,
        generation::Generation,
        ids,
        logprobs::token_logprobs,
        options::{Options, tier_name},
        sse,
        stream::AnswerWriter,
    },
    text::answer::Delta,
};

pub struct Writer {
    output: Output,
    logprobs: bool,
    cut: bool,
    /// Of the memory that bodies share: what is said again in the answer.
    _room: OwnedSemaphorePermit,
}

impl Writer {
    /// `room` is what the request's body took.
    pub fn new(options: &Options, generation: &Generation, echo: Echo, mut room: OwnedSemaphorePermit) -> Self {
        let kept = usize::try_from(kibibytes(echo.bytes())).unwrap_or(usize::MAX);
        let room = room.split(kept).unwrap_or(room);
        let envelope = &generation.envelope;
        let constant = Constant {
            id: ids::fresh("resp_"),
            created_at: envelope.created,
            model: envelope.model.clone(),
            service_tier: tier_name(options.tier.unwrap_or_default()),
            echo,
        };
        let output = Output::new(constant, options.stream);
        Self { output, logprobs: options.top_logprobs.is_some(), cut: false, _room: room }
    }

    pub fn object(&self) -> ResponseObject<'_> {
        self.output.object()
    }
}

impl AnswerWriter for Writer {
    const KEEP_ALIVE: &'static [u8] = sse::KEEP_ALIVE;

    fn open(&mut self, _: &Generation, out: &mut Vec<u8>) {
        self.output.start(out);
    }

    fn delta(&mut self, generation: &Generation, _: usize, delta: Delta, out: &mut Vec<u8>) {
        let logprobs = if self.logprobs { token_logprobs(generation.text.as_ref(), &delta.tokens) } else { Vec::new() };
        self.output.push(delta.parts, logprobs, out);
    }

    fn finish(&mut self, _: &Generation, _: usize, reason: &'static str, _: &mut Vec<u8>) {
        self.cut = reason == "length";
    }

    fn fail(&mut self, error: ApiError, out: &mut Vec<u8>) {
        self.output.fail(&error, out);
    }

    fn close(&mut self, generation: &Generation, out: &mut Vec<u8>) {
        self.output.finish(self.cut, generation.usage(), out);
    }
}
