//! Semantic events (<https://platform.openai.com/docs/api-reference/responses-streaming>).

use serde::Serialize;

use super::object::{Content, Item, ResponseObject};
use crate::openai_api::{shapes::TokenLogprob, sse};

/// Numbers events and writes them.
pub struct Events {
    /// Else nothing is written.
    streams: bool,
    next: u64,
}

#[derive(Serialize)]
struct Event<'a, T> {
    r#type: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    fields: &'a T,
}

#[derive(Serialize)]
pub struct OfResponse<'a> {
    pub response: ResponseObject<'a>,
}

#[derive(Serialize)]
pub struct OfItem<'a> {
    pub output_index: usize,
    pub item: &'a Item,
}

#[derive(Serialize)]
pub struct OfPart<'a> {
    pub item_id: &'a str,
    pub output_index: usize,
    pub content_index: usize,
    pub part: &'a Content,
}

/// A fragment, or all of it: of an item's only part.
#[derive(Serialize)]
pub struct OfText<'a> {
    pub item_id: &'a str,
    pub output_index: usize,
    pub content_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'a str>,
    /// Only of text that is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<&'a [TokenLogprob]>,
}

/// A fragment, or all of it: of a call's arguments.
#[derive(Serialize)]
pub struct OfArguments<'a> {
    pub item_id: &'a str,
    pub output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
}

#[derive(Serialize)]
pub struct OfError<'a> {
    pub code: &'a str,
    pub message: &'a str,
    pub param: Option<&'a str>,
}

impl Events {
    pub fn new(streams: bool) -> Self {
        Self { streams, next: 0 }
    }

    pub fn write(&mut self, r#type: &'static str, fields: &impl Serialize, out: &mut Vec<u8>) {
        if self.streams {
            let event = Event { r#type, sequence_number: self.next, fields };
            self.next += 1;
            sse::write_named(out, r#type, &event);
        }
    }
}
