//! The deterministic, seeded token sampler: the same logits, seed, choice and step give the same token on every
//! machine, so that another worker continues an answer and an auditor re-derives it from one prefill pass. Pure.
//!
//! The draw is Gumbel-max: with `u` a pseudo-random number in (0, 1) per token, `token = argmax(logit / T - ln(-ln u))`
//! has exactly the softmax distribution (Gumbel 1954; Maddison et al. 2014). `u` comes from a pseudo-random function of
//! seed, choice, step and token id ([`prf`]), never from a running generator, so nothing has to be replayed to resume.
//!
//! Order: bias and penalties ([`penalties`]), temperature, top-k, top-p and min-p ([`truncation`]), then the draw over
//! the survivors ([`gumbel`]).
//!
//! What makes the bits equal everywhere: only IEEE 754 additions, multiplications and divisions in a fixed order (rustc
//! neither contracts to FMA nor reassociates, at any `target-cpu`), logarithms from the `libm` crate and an exponential
//! of our own ([`numeric`]). `tests/golden.txt` pins them.

mod gumbel;
mod logprobs;
mod numeric;
mod penalties;
mod prf;
mod ranking;
mod truncation;

use opengrid_protocol::{Sampling, session::Token};

pub use logprobs::{LOGPROB_MIN, logprobs};

/// Draws the tokens of one answer. Its state is a function of the tokens so far alone: a sampler made from a prompt and
/// half an answer goes on exactly as the one that drew that half.
#[derive(Clone)]
pub struct Sampler {
    sampling: Sampling,
    penalties: penalties::Penalties,
}

impl Sampler {
    /// `answer_so_far` is empty at first; after a failover it holds what other workers generated already.
    /// [`Sampling::check`] says which parameters make sense; others do not panic here (a temperature that is not
    /// positive is greedy, a `top_p` or `min_p` that is not a number is off).
    pub fn new(sampling: &Sampling, prompt: &[Token], answer_so_far: &[Token]) -> Self {
        Self { sampling: sampling.clone(), penalties: penalties::Penalties::new(sampling, prompt, answer_so_far) }
    }

    /// Draws the token with index `step` in the answer (the first is 0) and does not [`accept`](Self::accept) it.
    ///
    /// `logits` has one entry per token of the vocabulary, at most 2^32, and is overwritten. Minus infinity and NaN are
    /// never drawn; where nothing else is left, and for an empty vocabulary, the answer is token 0.
    pub fn pick(&mut self, logits: &mut [f32], step: u32) -> Token {
        self.penalties.apply(&self.sampling, logits);
        let best = numeric::clean_and_find_best(logits);
        let best_logit = logits.get(best as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let random = self.sampling.temperature > 0.0;
        if !random || best_logit == f32::NEG_INFINITY {
            return best;
        }
        let inverse_temperature = 1.0 / f64::from(self.sampling.temperature);
        let key = prf::StepKey::new(self.sampling.seed, self.sampling.choice, step);
        match truncation::survivors(&self.sampling, logits, best_logit, inverse_temperature) {
            Some(survivors) => gumbel::draw_among(logits, &survivors, inverse_temperature, key),
            None => gumbel::draw(logits, best, inverse_temperature, key),
        }
    }

    /// Appends `token` to the answer. Every token of the answer is accepted, in order.
    pub fn accept(&mut self, token: Token) {
        self.penalties.accept(token);
    }
}
