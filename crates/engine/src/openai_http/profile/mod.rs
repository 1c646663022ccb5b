//! What each engine wants to be asked and how it answers. Pure.

mod completions;
mod llama_server;
mod tensorrt_llm;
mod vllm;

use opengrid_protocol::{
    Sampling,
    beacon::Features,
    session::{Token, TokenOut},
};
use serde_json::{Value, json};

use crate::{EngineError, GenerateRequest};

/// Largest bias that vLLM and TensorRT-LLM take; OpenAI's API has the same bound.
const LOGIT_BIAS_MAX: f32 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LlamaServer,
    Vllm,
    TensorRtLlm,
}

/// One request to the engine: an answer, or the rest of one.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub request: &'a GenerateRequest,
    /// The engine's name of the model.
    pub model: &'a str,
    /// Prompt and answer so far.
    pub tokens: &'a [Token],
    /// Tokens to generate at most, at least 1.
    pub tokens_max: u32,
    pub stream: bool,
    pub slot: usize,
    pub own_cache: bool,
}

impl Segment<'_> {
    /// The answer so far.
    fn answered(&self) -> &[Token] {
        self.tokens.get(self.request.prompt_tokens as usize..).unwrap_or_default()
    }

    /// Engines count draws from the start of a request, so that each segment has a seed of its own.
    fn seed(&self) -> u64 {
        let Sampling { seed, choice, .. } = self.request.sampling;
        let mut hasher = blake3::Hasher::new_derive_key("opengrid 2026 external engine seed");
        hasher.update(&seed.to_le_bytes()).update(&choice.to_le_bytes());
        hasher.update(&(self.answered().len() as u64).to_le_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(word)
    }

    /// What names the client to the engine's prefix cache.
    fn cache_salt(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("opengrid 2026 external engine cache");
        hex::encode(hasher.update(&self.request.client).finalize().as_bytes())
    }
}

/// What one chunk brings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    pub tokens: Vec<TokenOut>,
    /// Tokens generated in this segment so far, where the engine says it: some may not have been streamed.
    pub generated: Option<u32>,
    /// Bytes that were generated since the last chunk, where `generated` is said.
    pub text: Vec<u8>,
    pub end: Option<End>,
    /// Tokens of the prompt that were cached, and those that were computed, in how many milliseconds.
    pub cached_tokens: Option<u32>,
    pub prefill: Option<(u32, f64)>,
}

/// Why a segment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the last token, or at this one that was not among the tokens.
    Stop(Option<Token>),
    Length,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vLLM",
            Self::TensorRtLlm => "TensorRT-LLM",
        }
    }

    /// What it does as our own sampler would. None keeps to a grammar of ours, none draws with the grid's sampler.
    pub fn features(self) -> Features {
        let some = Features::GENERATE.with(Features::LOGIT_BIAS);
        match self {
            Self::LlamaServer => some.with(Features::LOGPROBS).with(Features::REPEAT_PENALTY),
            Self::Vllm => some.with(Features::LOGPROBS).with(Features::PENALTIES),
            Self::TensorRtLlm => some.with(Features::PENALTIES),
        }
    }

    /// Where segments are posted.
    pub fn path(self) -> &'static str {
        match self {
            Self::LlamaServer => "/completion",
            Self::Vllm | Self::TensorRtLlm => "/v1/completions",
        }
    }

    /// Slots when neither the engine nor the owner says how many.
    pub fn slots_default(self) -> u16 {
        match self {
            Self::LlamaServer => 1,
            Self::Vllm | Self::TensorRtLlm => 16,
        }
    }

    /// What this kind of engine cannot do as it was asked, in words.
    pub fn check(self, request: &GenerateRequest) -> Result<(), EngineError> {
        if request.grammar.is_some() {
            return Err(EngineError::Invalid(format!("{} keeps to no grammar of ours", self.name())));
        }
        let wrong = match self {
            Self::LlamaServer => llama_server::unfit(request),
            Self::Vllm => vllm::unfit(request),
            Self::TensorRtLlm => tensorrt_llm::unfit(request),
        };
        wrong.map_or(Ok(()), |why| Err(EngineError::Invalid(format!("{} {why}", self.name()))))
    }

    pub fn body(self, segment: &Segment<'_>) -> Value {
        match self {
            Self::LlamaServer => llama_server::body(segment),
            Self::Vllm => vllm::body(segment),
            Self::TensorRtLlm => tensorrt_llm::body(segment),
        }
    }

    /// Reads one event of a stream, or the whole answer to a request without.
    ///
    /// # Errors
    /// What is wrong with it; nothing of its content.
    pub fn read(self, data: &[u8]) -> Result<Chunk, &'static str> {
        match self {
            Self::LlamaServer => llama_server::read(data),
            Self::Vllm | Self::TensorRtLlm => completions::read(data),
        }
    }
}

/// `{"17": 1.5}`.
fn bias_by_id(bias: impl IntoIterator<Item = (Token, f32)>) -> Value {
    bias.into_iter().map(|(token, bias)| (token.to_string(), json!(bias))).collect::<serde_json::Map<_, _>>().into()
}

/// Rules of vLLM and TensorRT-LLM alike.
fn unfit_for_completions(request: &GenerateRequest) -> Option<&'static str> {
    let Sampling { logit_bias, repeat_penalty, repeat_last_n, .. } = &request.sampling;
    let whole = request.tokens.len() as u64 + u64::from(request.completion_tokens_max);
    if logit_bias.iter().any(|(_, bias)| bias.abs() > LOGIT_BIAS_MAX) {
        return Some("takes no logit_bias beyond 100");
    }
    (*repeat_penalty != 1.0 && *repeat_last_n > 0 && u64::from(*repeat_last_n) < whole)
        .then_some("cannot bound the repeat penalty to the last tokens")
}

/// The sampling parameters that vLLM and TensorRT-LLM name alike. Greedy is asked for as the best one token, which every
/// version takes.
fn common_sampling(segment: &Segment<'_>) -> Value {
    let sampling = &segment.request.sampling;
    let greedy = sampling.temperature <= 0.0 || sampling.top_p <= 0.0;
    json!({
        "model": segment.model,
        "prompt": segment.tokens,
        "max_tokens": segment.tokens_max,
        "stream": segment.stream,
        "temperature": if greedy { 1.0 } else { sampling.temperature },
        "top_k": if greedy { 1 } else { sampling.top_k },
        "top_p": if greedy { 1.0 } else { sampling.top_p },
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": if sampling.repeat_last_n == 0 { 1.0 } else { sampling.repeat_penalty },
        // Both take it as a signed number.
        "seed": segment.seed() >> 1,
        "stop_token_ids": segment.request.stop_tokens,
        // Only the stop tokens end an answer, and they are told by their id.
        "ignore_eos": true,
        "include_stop_str_in_output": true,
    })
}

/// Adds fields to an object.
fn with(mut object: Value, fields: Value) -> Value {
    if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields) {
        object.extend(fields);
    }
    object
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
