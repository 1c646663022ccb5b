//! The request as it came: every field that means something here, with its type and a bound on its size. Unknown
//! fields are ignored; `null` is the same as absent.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

pub const MESSAGES_MAX: usize = 16_384;
const PARTS_MAX: usize = 4_096;
const STOPS_READ_MAX: usize = 64;
const PROMPT_ITEMS_MAX: usize = opengrid_protocol::limits::PROMPT_TOKENS_MAX;
const LOGIT_BIAS_MAX: usize = opengrid_protocol::limits::LOGIT_BIAS_MAX;

/// Body of `/v1/chat/completions` and `/v1/completions`.
#[derive(Debug, Deserialize)]
pub struct GenerationRequest {
    pub model: String,
    pub messages: Option<Bounded<MessageIn, MESSAGES_MAX>>,
    pub prompt: Option<PromptIn>,

    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub stop: Option<OneOrMore>,
    pub ignore_eos: Option<bool>,
    pub echo: Option<bool>,
    pub logprobs: Option<LogprobsIn>,
    pub top_logprobs: Option<i64>,
    pub prompt_cache_key: Option<String>,

    pub seed: Option<serde_json::Number>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: Option<f64>,
    pub repeat_last_n: Option<i64>,
    pub logit_bias: Option<LogitBias>,

    #[serde(default)]
    pub tools: Shape,
    #[serde(default)]
    pub tool_choice: Shape,
    #[serde(default)]
    pub functions: Shape,
    #[serde(default)]
    pub function_call: Shape,
    #[serde(default)]
    pub audio: Shape,
    #[serde(default)]
    pub web_search_options: Shape,
    #[serde(default)]
    pub suffix: Shape,
    pub response_format: Option<ResponseFormat>,
    pub modalities: Option<Bounded<String, 8>>,
}

#[derive(Debug, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct ResponseFormat {
    pub r#type: String,
}

#[derive(Debug, Deserialize)]
pub struct MessageIn {
    pub role: String,
    #[serde(default)]
    pub content: ContentIn,
    pub name: Option<String>,
    #[serde(default)]
    pub tool_calls: Shape,
    #[serde(default)]
    pub function_call: Shape,
}

#[derive(Debug, Default)]
pub enum ContentIn {
    #[default]
    None,
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub struct Part {
    pub r#type: String,
    pub text: Option<String>,
}

/// A list of at most `MAX` entries.
#[derive(Debug)]
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

/// `stop`: one text or several.
#[derive(Debug)]
pub struct OneOrMore(pub Vec<String>);

/// `prompt`: a text, a list of token ids, or a list of such prompts.
#[derive(Debug)]
pub enum PromptIn {
    Text(String),
    List(Vec<PromptItem>),
}

#[derive(Debug)]
pub enum PromptItem {
    Token(u32),
    Text(String),
    Tokens(Vec<u32>),
}

/// Chat has a flag, completions a count.
#[derive(Debug)]
pub enum LogprobsIn {
    Flag(bool),
    Count(i64),
}

/// Token ids (JSON keys are texts) and what is added to their logits.
#[derive(Debug)]
pub struct LogitBias(pub Vec<(u32, f64)>);

/// What kind of value a field has, where only that matters. Its content is not kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Absent,
    Text(String),
    EmptyList,
    Other,
}

fn read_seq<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(mut seq: A, max: usize) -> Result<Vec<T>, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = seq.next_element()? {
        if items.len() >= max {
            return Err(de::Error::custom(format_args!("more than {max} entries")));
        }
        items.push(item);
    }
    Ok(items)
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                read_seq(seq, MAX).map(Bounded)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Implements `Deserialize` through a visitor whose methods are given.
macro_rules! deserialize_any {
    ($type:ty, $expecting:literal, { $($methods:tt)* }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> Visitor<'de> for Reader {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    $($methods)*
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
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

deserialize_any!(OneOrMore, "a string or an array of strings", {
    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
        Ok(OneOrMore(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OneOrMore, A::Error> {
        read_seq(seq, STOPS_READ_MAX).map(OneOrMore)
    }
});

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

deserialize_any!(LogprobsIn, "a boolean (chat) or a number of alternatives (completions)", {
    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<LogprobsIn, E> {
        Ok(LogprobsIn::Flag(flag))
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<LogprobsIn, E> {
        Ok(LogprobsIn::Count(count.try_into().unwrap_or(i64::MAX)))
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> Result<LogprobsIn, E> {
        Ok(LogprobsIn::Count(count))
    }
});

deserialize_any!(LogitBias, "an object from token ids to numbers", {
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, bias)) = map.next_entry::<String, f64>()? {
            if entries.len() >= LOGIT_BIAS_MAX {
                return Err(de::Error::custom(format_args!("more than {LOGIT_BIAS_MAX} entries")));
            }
            let token = key.parse().map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&key), &"a token id"))?;
            entries.push((token, bias));
        }
        Ok(LogitBias(entries))
    }
});

deserialize_any!(Shape, "any value", {
    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Absent)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Shape, E> {
        Ok(Shape::Text(text.chars().take(64).collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut empty = true;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(if empty { Shape::EmptyList } else { Shape::Other })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shape::Other)
    }
});
