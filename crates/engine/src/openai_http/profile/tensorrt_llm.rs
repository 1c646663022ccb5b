//! TensorRT-LLM's `trtllm-serve`: `/v1/completions` with `detokenize: false`, which returns `token_ids` in place of text.
//! Its log-probabilities name alternatives by text, which no id can be told from: they are not offered.
//!
//! Source: `tensorrt_llm/serve/{openai_protocol,postprocess_handlers}.py` of TensorRT-LLM 1.x. Unknown fields are refused
//! there, so only what is needed is sent.

use serde_json::{Value, json};

use super::{Segment, bias_by_id, common_sampling, unfit_for_completions, with};
use crate::GenerateRequest;

pub fn unfit(request: &GenerateRequest) -> Option<&'static str> {
    if request.top_logprobs.is_some() {
        return Some("names the alternatives of logprobs by text, not by id");
    }
    unfit_for_completions(request)
}

pub fn body(segment: &Segment<'_>) -> Value {
    let sampling = &segment.request.sampling;
    let mut body = with(common_sampling(segment), json!({ "detokenize": false, "add_special_tokens": false }));
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        // Its penalties count all but so many tokens of the prompt.
        body = with(body, json!({ "prompt_ignore_length": segment.request.prompt_tokens }));
    }
    if !sampling.logit_bias.is_empty() {
        body = with(body, json!({ "logit_bias": bias_by_id(sampling.logit_bias.iter().copied()) }));
    }
    if segment.stream {
        body = with(body, json!({ "stream_options": { "include_usage": true } }));
    }
    body
}
