//! An answer as output items and their events.

use super::{
    events::{Events, OfArguments, OfError, OfItem, OfPart, OfResponse, OfText},
    object::{Constant, Content, Item, ResponseObject, Status},
};
use crate::{
    openai_api::{
        errors::ApiError,
        ids,
        shapes::{TokenLogprob, Usage},
    },
    text::{
        answer::Part,
        tools::{CallDelta, CallHead},
    },
};

/// Collects the items of one answer and writes its events.
pub struct Output {
    constant: Constant,
    events: Events,
    items: Vec<Item>,
    /// The last item may still grow.
    open: bool,
    /// Log-probabilities whose text has not come.
    waiting: Vec<TokenLogprob>,
    status: Status,
    usage: Option<Usage>,
}

impl Output {
    /// `streams`: events are written; else there is only the object at the end.
    pub fn new(constant: Constant, streams: bool) -> Self {
        Self {
            constant,
            events: Events::new(streams),
            items: Vec::new(),
            open: false,
            waiting: Vec::new(),
            status: Status::InProgress,
            usage: None,
        }
    }

    pub fn object(&self) -> ResponseObject<'_> {
        ResponseObject::new(&self.constant, self.status, &self.items, self.usage)
    }

    pub fn start(&mut self, out: &mut Vec<u8>) {
        self.write_response("response.created", out);
        self.write_response("response.in_progress", out);
    }

    /// The answer's next tokens: `logprobs` are of any of the `parts`.
    pub fn push(&mut self, parts: Vec<Part>, logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>) {
        self.waiting.extend(logprobs);
        for part in parts {
            match part {
                Part::Text(text) => self.push_text(&text, out),
                Part::Reasoning(text) => self.push_reasoning(&text, out),
                Part::Call(call) => self.push_call(call, out),
            }
        }
    }

    /// The answer is complete; `cut`: it reached its maximum of tokens. There is at least one message or call.
    pub fn finish(&mut self, cut: bool, usage: Usage, out: &mut Vec<u8>) {
        self.status = if cut { Status::Incomplete } else { Status::Completed };
        self.usage = Some(usage);
        if !self.items.iter().any(|item| !matches!(item, Item::Reasoning { .. })) {
            self.open_message(out);
        }
        self.close_item(self.status, out);
        self.write_response(if cut { "response.incomplete" } else { "response.completed" }, out);
    }

    pub fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.status = Status::Failed;
        if let (true, Some(item)) = (self.open, self.items.last_mut()) {
            item.set_status(Status::Incomplete);
        }
        let fields = OfError { code: error.code, message: &error.message, param: error.param.as_deref() };
        self.events.write("error", &fields, out);
        let response = ResponseObject::new(&self.constant, self.status, &self.items, None).with_error(error);
        self.events.write("response.failed", &OfResponse { response }, out);
    }

    fn write_response(&mut self, name: &'static str, out: &mut Vec<u8>) {
        let response = ResponseObject::new(&self.constant, self.status, &self.items, self.usage);
        self.events.write(name, &OfResponse { response }, out);
    }

    fn push_text(&mut self, delta: &str, out: &mut Vec<u8>) {
        if !matches!((self.open, self.items.last()), (true, Some(Item::Message { .. }))) {
            self.open_message(out);
        }
        let output_index = self.items.len() - 1;
        let Some(Item::Message { id, content, .. }) = self.items.last_mut() else { return };
        let Some(Content::OutputText { text, logprobs, .. }) = content.last_mut() else { return };
        text.push_str(delta);
        let fields = OfText {
            item_id: id,
            output_index,
            content_index: 0,
            delta: Some(delta),
            text: None,
            logprobs: Some(&self.waiting),
        };
        self.events.write("response.output_text.delta", &fields, out);
        logprobs.append(&mut self.waiting);
    }

    fn push_reasoning(&mut self, delta: &str, out: &mut Vec<u8>) {
        if !matches!((self.open, self.items.last()), (true, Some(Item::Reasoning { .. }))) {
            let item =
                Item::Reasoning { id: ids::fresh("rs_"), status: Status::InProgress, summary: [], content: Vec::new() };
            self.open_item(item, Some(Content::ReasoningText { text: String::new() }), out);
        }
        let output_index = self.items.len() - 1;
        let Some(Item::Reasoning { id, content, .. }) = self.items.last_mut() else { return };
        let Some(Content::ReasoningText { text }) = content.last_mut() else { return };
        text.push_str(delta);
        let fields =
            OfText { item_id: id, output_index, content_index: 0, delta: Some(delta), text: None, logprobs: None };
        self.events.write("response.reasoning_text.delta", &fields, out);
    }

    fn push_call(&mut self, call: CallDelta, out: &mut Vec<u8>) {
        if let Some(CallHead { id: call_id, name }) = call.head {
            let (id, status) = (ids::fresh("fc_"), Status::InProgress);
            self.open_item(Item::FunctionCall { id, status, call_id, name, arguments: String::new() }, None, out);
        }
        let output_index = self.items.len().saturating_sub(1);
        let Some(Item::FunctionCall { id, arguments, .. }) = self.items.last_mut() else { return };
        if call.arguments.is_empty() {
            return;
        }
        arguments.push_str(&call.arguments);
        let fields =
            OfArguments { item_id: id, output_index, delta: Some(&call.arguments), name: None, arguments: None };
        self.events.write("response.function_call_arguments.delta", &fields, out);
    }

    fn open_message(&mut self, out: &mut Vec<u8>) {
        let (id, status) = (ids::fresh("msg_"), Status::InProgress);
        let item = Item::Message { id, status, role: "assistant", content: Vec::new() };
        let part = Content::OutputText { text: String::new(), annotations: [], logprobs: Vec::new() };
        self.open_item(item, Some(part), out);
    }

    fn open_item(&mut self, mut item: Item, part: Option<Content>, out: &mut Vec<u8>) {
        self.close_item(Status::Completed, out);
        let output_index = self.items.len();
        self.events.write("response.output_item.added", &OfItem { output_index, item: &item }, out);
        if let Some(part) = part {
            let fields = OfPart { item_id: item.id(), output_index, content_index: 0, part: &part };
            self.events.write("response.content_part.added", &fields, out);
            item.add_part(part);
        }
        self.items.push(item);
        self.open = true;
    }

    /// Ends the last item, if it is open.
    fn close_item(&mut self, status: Status, out: &mut Vec<u8>) {
        let output_index = self.items.len().saturating_sub(1);
        let (true, Some(item)) = (std::mem::take(&mut self.open), self.items.last_mut()) else { return };
        // Tokens without text of their own, such as those that close the answer.
        if let Item::Message { content, .. } = item
            && let Some(Content::OutputText { logprobs, .. }) = content.last_mut()
        {
            logprobs.append(&mut self.waiting);
        }
        item.set_status(status);
        match &*item {
            Item::FunctionCall { id, name, arguments, .. } => {
                let fields = OfArguments {
                    item_id: id,
                    output_index,
                    delta: None,
                    name: Some(name),
                    arguments: Some(arguments),
                };
                self.events.write("response.function_call_arguments.done", &fields, out);
            }
            Item::Message { id, content, .. } | Item::Reasoning { id, content, .. } => {
                for (content_index, part) in content.iter().enumerate() {
                    let (name, text, logprobs) = match part {
                        Content::OutputText { text, logprobs, .. } => {
                            ("response.output_text.done", text, Some(logprobs.as_slice()))
                        }
                        Content::ReasoningText { text } => ("response.reasoning_text.done", text, None),
                    };
                    let text = Some(text.as_str());
                    let fields = OfText { item_id: id, output_index, content_index, delta: None, text, logprobs };
                    self.events.write(name, &fields, out);
                    let fields = OfPart { item_id: id, output_index, content_index, part };
                    self.events.write("response.content_part.done", &fields, out);
                }
            }
        }
        self.events.write("response.output_item.done", &OfItem { output_index, item }, out);
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;
