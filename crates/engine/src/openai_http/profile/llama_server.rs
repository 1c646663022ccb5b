//! llama.cpp's llama-server by its native `/completion`: the only of its endpoints that returns token ids.
//!
//! Source: `tools/server/README.md` and `server-schema.cpp` of llama.cpp as vendored by llama-cpp-python 0.3.36.

use opengrid_protocol::session::{Token, TokenOut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Chunk, End, Segment};
use crate::GenerateRequest;

/// 2^32 - 1 stands for a random seed.
const SEED_MAX: u64 = u32::MAX as u64 - 1;

pub fn unfit(request: &GenerateRequest) -> Option<&'static str> {
    let sampling = &request.sampling;
    let counted = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
    // Its penalties look at the last tokens of prompt and answer, ours at the answer.
    counted.then_some("counts the prompt in presence and frequency penalties")
}

pub fn body(segment: &Segment<'_>) -> Value {
    let sampling = &segment.request.sampling;
    json!({
        "prompt": segment.tokens,
        "n_predict": segment.tokens_max,
        "stream": segment.stream,
        "return_tokens": true,
        // Without a bound the last event repeats the prompt as text.
        "response_fields": ["tokens", "stop", "stop_type", "tokens_predicted", "timings"],
        "id_slot": segment.slot,
        "cache_prompt": segment.own_cache,
        "seed": segment.seed() % (SEED_MAX + 1),
        // Our sampler's order; what is not named is off, whatever the server's defaults are.
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "logit_bias": sampling.logit_bias,
        // 0 alternatives would switch the token's own probability off, too.
        "n_probs": segment.request.top_logprobs.map_or(0, |n| n.max(1)),
        "post_sampling_probs": false,
        "stop": [],
        // An end token that nobody asked for is taken as a token, and the answer goes on in a new segment.
        "ignore_eos": false,
    })
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    tokens: Vec<Token>,
    #[serde(default)]
    content: String,
    tokens_predicted: Option<u32>,
    #[serde(default)]
    stop: bool,
    stop_type: Option<String>,
    #[serde(default)]
    completion_probabilities: Vec<Probability>,
    timings: Option<Timings>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Probability {
    id: Token,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<Alternative>,
}

#[derive(Deserialize)]
struct Alternative {
    id: Token,
    logprob: f32,
}

#[derive(Deserialize)]
struct Timings {
    cache_n: Option<u32>,
    prompt_n: Option<u32>,
    prompt_ms: Option<f64>,
}

pub fn read(data: &[u8]) -> Result<Chunk, &'static str> {
    let event: Event = serde_json::from_slice(data).map_err(|_| "an event is not what llama-server sends")?;
    if event.error.is_some() {
        return Err("llama-server reports an error");
    }
    let end = match (event.stop, event.stop_type.as_deref()) {
        (false, _) => None,
        (true, Some("eos" | "word")) => Some(End::Stop(None)),
        (true, Some("limit")) => Some(End::Length),
        (true, _) => return Err("an unknown stop_type"),
    };
    let timings = event.timings.as_ref();
    Ok(Chunk {
        tokens: placed(&event.tokens, &event.completion_probabilities),
        generated: Some(event.tokens_predicted.ok_or("tokens_predicted is missing: llama-server is too old")?),
        text: event.content.into_bytes(),
        end,
        cached_tokens: timings.and_then(|timings| timings.cache_n),
        prefill: timings.and_then(|timings| Some((timings.prompt_n?, timings.prompt_ms?))),
    })
}

/// Probabilities by id, in order: of a token within a character there are none.
fn placed(tokens: &[Token], probabilities: &[Probability]) -> Vec<TokenOut> {
    let mut left = probabilities.iter().peekable();
    let out = |token: &Token| match left.next_if(|probability| probability.id == *token) {
        Some(found) => TokenOut {
            token: *token,
            logprob: Some(found.logprob),
            top: found.top_logprobs.iter().map(|alternative| (alternative.id, alternative.logprob)).collect(),
        },
        None => TokenOut { token: *token, logprob: None, top: Vec::new() },
    };
    tokens.iter().map(out).collect()
}
