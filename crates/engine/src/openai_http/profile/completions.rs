//! Chunks of `/v1/completions` as vLLM and TensorRT-LLM send them: `token_ids` in each choice.

use std::collections::BTreeMap;

use opengrid_protocol::session::{Token, TokenOut};
use serde::Deserialize;
use serde_json::Value;

use super::{Chunk, End};

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<Token>>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
    /// A token id, or a stop string.
    stop_reason: Option<Value>,
}

#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    token_logprobs: Vec<Option<f32>>,
    #[serde(default)]
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

pub fn read(data: &[u8]) -> Result<Chunk, &'static str> {
    let event: Event = serde_json::from_slice(data).map_err(|_| "an event is no completion chunk")?;
    if event.error.is_some() {
        return Err("the engine reports an error");
    }
    let cached_tokens = event.usage.and_then(|usage| usage.prompt_tokens_details?.cached_tokens);
    let mut choices = event.choices.into_iter();
    let (Some(choice), None) = (choices.next(), choices.next()) else {
        // The last one has usage only.
        return Ok(Chunk { cached_tokens, ..Chunk::default() });
    };
    let end = match choice.finish_reason.as_deref() {
        None => None,
        Some("stop") => Some(End::Stop(choice.stop_reason.as_ref().and_then(id))),
        Some("length") => Some(End::Length),
        Some(_) => return Err("the engine gave the answer up"),
    };
    let ids = match (choice.token_ids, &end) {
        (Some(ids), _) => ids,
        // The end may come by itself.
        (None, Some(_)) => Vec::new(),
        (None, None) => return Err("a chunk has no token_ids: the engine is too old"),
    };
    let logprobs = choice.logprobs.as_ref();
    let tokens = ids.into_iter().enumerate().map(|(index, token)| placed(token, logprobs, index)).collect();
    Ok(Chunk { tokens, end, cached_tokens, ..Chunk::default() })
}

fn id(reason: &Value) -> Option<Token> {
    reason.as_u64().and_then(|id| Token::try_from(id).ok())
}

fn placed(token: Token, logprobs: Option<&Logprobs>, index: usize) -> TokenOut {
    let logprob = logprobs.and_then(|found| *found.token_logprobs.get(index)?);
    let top = logprobs.and_then(|found| found.top_logprobs.get(index)?.as_ref());
    let named = |(name, logprob): (&String, &f32)| Some((name.strip_prefix("token_id:")?.parse().ok()?, *logprob));
    let mut top: Vec<(Token, f32)> = top.into_iter().flatten().filter_map(named).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    TokenOut { token, logprob, top }
}
