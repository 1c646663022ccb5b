//! Hands an answer to [`Output`].

use super::{
    message::Message,
    output::{End, Output, Shape},
};
use crate::{
    asked::Asked,
    openai_api::{errors::ApiError, generation::Generation, ids, stream::AnswerWriter},
    text::answer::Delta,
};

/// What the answer depends on besides the chat.
pub struct Shown {
    pub thoughts: bool,
    /// As asked for: the context may have room for less.
    pub max_tokens: u64,
}

pub struct Writer {
    output: Output,
    reason: &'static str,
}

impl Writer {
    pub fn new(shown: Shown, streams: bool, generation: &Generation, asked: &Asked) -> Self {
        let shape = Shape {
            id: ids::fresh("msg_"),
            model: generation.envelope.model.clone(),
            max_tokens: shown.max_tokens,
            thinks: shown.thoughts,
            streams,
            request_id: asked.id.to_string(),
        };
        Self { output: Output::new(shape, generation.usage()), reason: "stop" }
    }

    pub fn message(&self) -> Message<'_> {
        self.output.message()
    }
}

impl AnswerWriter for Writer {
    const KEEP_ALIVE: &'static [u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

    fn open(&mut self, _: &Generation, out: &mut Vec<u8>) {
        self.output.start(out);
    }

    fn delta(&mut self, _: &Generation, _: usize, delta: Delta, out: &mut Vec<u8>) {
        for part in delta.parts {
            self.output.push(part, out);
        }
    }

    fn finish(&mut self, _: &Generation, _: usize, reason: &'static str, _: &mut Vec<u8>) {
        self.reason = reason;
    }

    fn fail(&mut self, error: ApiError, out: &mut Vec<u8>) {
        self.output.fail(&error, out);
    }

    fn close(&mut self, generation: &Generation, out: &mut Vec<u8>) {
        let end = End { reason: self.reason, stop_sequence: generation.stop_string(0) };
        self.output.finish(&end, generation.usage(), out);
    }
}
