//! An answer as content blocks and their events.

use super::{
    errors,
    message::{Block, BlockDelta, Event, Input, Message, MessageDelta, Usage},
};
use crate::{
    openai_api::{errors::ApiError, shapes, sse},
    text::{
        answer::Part,
        tools::{CallDelta, CallHead},
    },
};

/// What the answer's shape depends on.
pub struct Shape {
    pub id: String,
    pub model: String,
    pub max_tokens: u64,
    /// Thoughts are shown.
    pub thinks: bool,
    /// Events are written; else there is only the message at the end.
    pub streams: bool,
    /// `request-id` of the answer.
    pub request_id: String,
}

/// Collects the blocks of one answer and writes its events.
pub struct Output {
    shape: Shape,
    /// In a stream what was written is not kept: only the last block is looked at, for its type.
    blocks: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Usage,
}

/// Why an answer ended.
pub struct End<'a> {
    /// Chat's `finish_reason`.
    pub reason: &'static str,
    pub stop_sequence: Option<&'a str>,
}

impl Output {
    pub fn new(shape: Shape, usage: shapes::Usage) -> Self {
        Self { shape, blocks: Vec::new(), stop_reason: None, stop_sequence: None, usage: usage.into() }
    }

    pub fn message(&self) -> Message<'_> {
        Message {
            id: &self.shape.id,
            r#type: "message",
            role: "assistant",
            model: &self.shape.model,
            content: &self.blocks,
            stop_reason: self.stop_reason,
            stop_sequence: self.stop_sequence.as_deref(),
            usage: self.usage,
        }
    }

    pub fn start(&self, out: &mut Vec<u8>) {
        self.write(&Event::MessageStart { message: self.message() }, out);
    }

    pub fn push(&mut self, part: Part, out: &mut Vec<u8>) {
        match part {
            Part::Reasoning(_) if !self.shape.thinks => {}
            Part::Reasoning(delta) => {
                if !matches!(self.blocks.last(), Some(Block::Thinking { .. })) {
                    self.open(Block::Thinking { thinking: String::new(), signature: "" }, out);
                }
                self.write_delta(BlockDelta::Thinking { thinking: &delta }, out);
                if let (false, Some(Block::Thinking { thinking, .. })) = (self.shape.streams, self.blocks.last_mut()) {
                    thinking.push_str(&delta);
                }
            }
            Part::Text(delta) => {
                if !matches!(self.blocks.last(), Some(Block::Text { .. })) {
                    self.open(Block::Text { text: String::new() }, out);
                }
                self.write_delta(BlockDelta::Text { text: &delta }, out);
                if let (false, Some(Block::Text { text })) = (self.shape.streams, self.blocks.last_mut()) {
                    text.push_str(&delta);
                }
            }
            Part::Call(call) => self.push_call(call, out),
        }
    }

    fn push_call(&mut self, call: CallDelta, out: &mut Vec<u8>) {
        if let Some(CallHead { id, name }) = call.head {
            self.open(Block::ToolUse { id, name, input: Input::default() }, out);
        }
        if call.arguments.is_empty() || !matches!(self.blocks.last(), Some(Block::ToolUse { .. })) {
            return;
        }
        self.write_delta(BlockDelta::Input { partial_json: &call.arguments }, out);
        if let (false, Some(Block::ToolUse { input, .. })) = (self.shape.streams, self.blocks.last_mut()) {
            input.0.push_str(&call.arguments);
        }
    }

    pub fn finish(&mut self, end: &End<'_>, usage: shapes::Usage, out: &mut Vec<u8>) {
        self.close(out);
        let stop_reason = match (end.reason, end.stop_sequence) {
            ("length", _) if usage.completion_tokens < self.shape.max_tokens => "model_context_window_exceeded",
            ("length", _) => "max_tokens",
            ("tool_calls", _) => "tool_use",
            (_, Some(_)) => "stop_sequence",
            (_, None) => "end_turn",
        };
        self.usage = usage.into();
        self.stop_reason = Some(stop_reason);
        self.stop_sequence = end.stop_sequence.map(str::to_owned);
        let delta = MessageDelta { stop_reason, stop_sequence: end.stop_sequence };
        self.write(&Event::MessageDelta { delta, usage: self.usage }, out);
        self.write(&Event::MessageStop, out);
    }

    pub fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        if self.shape.streams {
            sse::write_named(out, "error", &errors::body(error, &self.shape.request_id));
        }
    }

    fn open(&mut self, block: Block, out: &mut Vec<u8>) {
        self.close(out);
        self.write(&Event::ContentBlockStart { index: self.blocks.len(), content_block: &block }, out);
        self.blocks.push(block);
    }

    /// Ends the last block, if there is one: all others have ended.
    fn close(&self, out: &mut Vec<u8>) {
        if let Some(index) = self.blocks.len().checked_sub(1) {
            self.write(&Event::ContentBlockStop { index }, out);
        }
    }

    fn write_delta(&self, delta: BlockDelta<'_>, out: &mut Vec<u8>) {
        self.write(&Event::ContentBlockDelta { index: self.blocks.len().saturating_sub(1), delta }, out);
    }

    fn write(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        if self.shape.streams {
            sse::write_named(out, event.name(), event);
        }
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
