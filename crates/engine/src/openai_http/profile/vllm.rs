//! vLLM's `/v1/completions` with `return_token_ids` (since 0.10.2).
//!
//! Source: `vllm/entrypoints/openai/completion/{protocol,serving}.py` and `vllm/sampling_params.py` of vLLM 0.32.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{LOGIT_BIAS_MAX, Segment, bias_by_id, common_sampling, unfit_for_completions, with};
use crate::GenerateRequest;

const PENALTY_MAX: f32 = 2.0;
const TEMPERATURE_MAX: f32 = 2.0;

pub fn unfit(request: &GenerateRequest) -> Option<&'static str> {
    let sampling = &request.sampling;
    let penalties = [sampling.presence_penalty, sampling.frequency_penalty];
    if penalties.iter().any(|penalty| penalty.abs() > PENALTY_MAX) {
        return Some("takes no penalty beyond 2");
    }
    if sampling.temperature > TEMPERATURE_MAX {
        return Some("takes no temperature above 2");
    }
    unfit_for_completions(request)
}

pub fn body(segment: &Segment<'_>) -> Value {
    let mut body = with(
        common_sampling(segment),
        json!({
            "return_token_ids": true,
            "return_tokens_as_token_ids": true,
            "skip_special_tokens": false,
            // Cached prefixes are met by the same client alone.
            "cache_salt": segment.cache_salt(),
            "logit_bias": bias_by_id(bias(segment)),
        }),
    );
    if let Some(top) = segment.request.top_logprobs {
        body = with(body, json!({ "logprobs": top }));
    }
    if segment.stream {
        body = with(body, json!({ "stream_options": { "include_usage": true } }));
    }
    body
}

/// The caller's, and what the answer so far adds to it: vLLM takes that for prompt, which its penalties do not see. A token
/// of it that comes again meets the presence penalty twice.
fn bias(segment: &Segment<'_>) -> BTreeMap<u32, f32> {
    let sampling = &segment.request.sampling;
    let mut bias: BTreeMap<u32, f32> = BTreeMap::new();
    for (token, more) in &sampling.logit_bias {
        *bias.entry(*token).or_default() += more;
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        segment.answered().iter().for_each(|token| *counts.entry(*token).or_default() += 1.0);
        for (token, count) in counts {
            *bias.entry(token).or_default() -= sampling.presence_penalty + sampling.frequency_penalty * count;
        }
    }
    bias.values_mut().for_each(|bias| *bias = bias.clamp(-LOGIT_BIAS_MAX, LOGIT_BIAS_MAX));
    bias
}
