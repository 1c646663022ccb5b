//! Options with values of several types.

use super::read::{deserialize_any, read_seq};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use std::fmt;

const STOPS_READ_MAX: usize = 64;
const LOGIT_BIAS_MAX: usize = opengrid_protocol::limits::LOGIT_BIAS_MAX;

/// `stop`: one text or several.
#[derive(Clone, Debug)]
pub struct OneOrMore(pub Vec<String>);

/// Chat has a flag, completions a count.
#[derive(Clone, Debug)]
pub enum LogprobsIn {
    Flag(bool),
    Count(i64),
}

/// Token ids (JSON keys are texts) and what is added to their logits.
#[derive(Clone, Debug)]
pub struct LogitBias(pub Vec<(u32, f64)>);

deserialize_any!(OneOrMore, "a string or an array of strings", {
    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
        Ok(OneOrMore(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OneOrMore, A::Error> {
        read_seq(seq, STOPS_READ_MAX).map(OneOrMore)
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
