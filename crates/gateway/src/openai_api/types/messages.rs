//! The conversation as it came.

use super::read::{Bounded, Shape, deserialize_any, read_seq};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use std::fmt;

const PARTS_MAX: usize = 4_096;
pub const CALLS_MAX: usize = 256;

#[derive(Clone, Debug, Default, Deserialize)]
pub struct MessageIn {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    #[serde(default)]
    pub content: ContentIn,
    pub name: Option<String>,
    /// What the assistant said no with; stands for its content where there is none.
    pub refusal: Option<String>,
    pub reasoning_content: Option<String>,
    pub tool_calls: Option<Bounded<ToolCallIn, CALLS_MAX>>,
    /// Role `tool`: which call it answers.
    pub tool_call_id: Option<String>,
    #[serde(default)]
    pub function_call: Shape,
}

#[derive(Clone, Debug, Default)]
pub enum ContentIn {
    #[default]
    None,
    Text(String),
    Parts(Vec<Part>),
}

/// `{"type":"text","text":…}` or, from the assistant, `{"type":"refusal","refusal":…}`.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    pub r#type: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

/// A call that the assistant made in an earlier turn.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolCallIn {
    pub id: Option<String>,
    pub r#type: Option<String>,
    pub function: Option<CalledIn>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CalledIn {
    pub name: String,
    /// JSON in a text, as a model wrote it.
    #[serde(default)]
    pub arguments: String,
}

deserialize_any!(ContentIn, "a string or an array of text parts", {
    fn visit_unit<E: de::Error>(self) -> Result<ContentIn, E> {
        Ok(ContentIn::None)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ContentIn, E> {
        Ok(ContentIn::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<ContentIn, E> {
        Ok(ContentIn::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<ContentIn, A::Error> {
        read_seq(seq, PARTS_MAX).map(ContentIn::Parts)
    }
});
