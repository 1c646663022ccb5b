//! How the next token is chosen: part of the session's opening message, so that any worker (and any auditor) draws
//! the same token from the same logits.

use serde::{Deserialize, Serialize};

use crate::{codec::DecodeError, limits::LOGIT_BIAS_MAX};

/// Parameters of the seeded sampler. Order of application: bias and penalties, temperature, top-k, top-p, min-p, then
/// Gumbel-max over the survivors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    pub seed: u64,
    /// Which of the `n` answers to one request this is.
    pub choice: u32,
    /// 0 is greedy: the token with the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all; else drops tokens whose probability is below `min_p` times that of the most probable.
    pub min_p: f32,
    /// Subtracted once from tokens that the answer holds already.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the answer.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the last `repeat_last_n` tokens; 1 is off.
    pub repeat_penalty: f32,
    pub repeat_last_n: u32,
    /// Token id and what is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    pub fn greedy() -> Self {
        Self {
            seed: 0,
            choice: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            logit_bias: Vec::new(),
        }
    }

    /// # Errors
    /// The first parameter outside its range.
    pub fn check(&self) -> Result<(), DecodeError> {
        let within = |value: f32, low: f32, high: f32| value.is_finite() && (low..=high).contains(&value);
        let rules = [
            (within(self.temperature, 0.0, 100.0), "temperature must lie in 0..=100"),
            (within(self.top_p, 0.0, 1.0), "top_p must lie in 0..=1"),
            (within(self.min_p, 0.0, 1.0), "min_p must lie in 0..=1"),
            (within(self.presence_penalty, -100.0, 100.0), "presence_penalty must lie in -100..=100"),
            (within(self.frequency_penalty, -100.0, 100.0), "frequency_penalty must lie in -100..=100"),
            (within(self.repeat_penalty, 0.01, 100.0), "repeat_penalty must lie in 0.01..=100"),
            (self.repeat_last_n <= 65_536, "repeat_last_n must be at most 65536"),
            (self.logit_bias.len() <= LOGIT_BIAS_MAX, "too many logit_bias entries"),
            (self.logit_bias.iter().all(|(_, bias)| within(*bias, -1e4, 1e4)), "logit_bias must lie in -10000..=10000"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(DecodeError::Invalid(why)))
    }
}
