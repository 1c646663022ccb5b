//! Prompts of `/v1/completions`.

use super::read::{deserialize_any, read_seq};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use std::fmt;

const PROMPT_ITEMS_MAX: usize = opengrid_protocol::limits::PROMPT_TOKENS_MAX;

/// `prompt`: a text, a list of token ids, or a list of such prompts.
#[derive(Clone, Debug)]
pub enum PromptIn {
    Text(String),
    List(Vec<PromptItem>),
}

#[derive(Clone, Debug)]
pub enum PromptItem {
    Token(u32),
    Text(String),
    Tokens(Vec<u32>),
}

deserialize_any!(PromptIn, "a string, an array of token ids, or an array of such prompts", {
    fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptIn, E> {
        Ok(PromptIn::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<PromptIn, A::Error> {
        read_seq(seq, PROMPT_ITEMS_MAX).map(PromptIn::List)
    }
});

deserialize_any!(PromptItem, "a token id, a string or an array of token ids", {
    fn visit_u64<E: de::Error>(self, token: u64) -> Result<PromptItem, E> {
        let out_of_range = |_| E::invalid_value(de::Unexpected::Unsigned(token), &"a token id");
        token.try_into().map(PromptItem::Token).map_err(out_of_range)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptItem, E> {
        Ok(PromptItem::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<PromptItem, A::Error> {
        read_seq(seq, PROMPT_ITEMS_MAX).map(PromptItem::Tokens)
    }
});
