//! Gumbel-max over a vocabulary, without computing 49,152 double logarithms.
//!
//! With score = logit / T + g and g = -ln(-ln u): since -ln u >= 1 - u, g is at most -ln(1 - u), and the bits of the
//! float 1 - u bound its logarithm from below without computing it. A token whose score cannot reach the best one even
//! with that bound needs no logarithm. Rounding is monotonic, so pruning never changes the result.

use std::f64::consts::LN_2;

use opengrid_protocol::session::Token;

use crate::prf::StepKey;

const BLOCK: usize = 64;
/// Far above every rounding error of `gumbel` and `gumbel_bound` (both below 40), far below what would cost speed.
const MARGIN: f64 = 1e-9;

/// The best token so far: the largest score, the lowest id among equals.
struct Best {
    score: f64,
    token: Token,
}

impl Best {
    fn offer(&mut self, score: f64, token: Token) {
        if score > self.score || (score == self.score && token < self.token) {
            *self = Self { score, token };
        }
    }
}

/// Draws from all tokens. `likely` is where the search starts (the largest logit prunes most); any valid id gives the
/// same result.
pub(crate) fn draw(logits: &[f32], likely: Token, inverse_temperature: f64, key: StepKey) -> Token {
    let mut best = Best { score: score(logits[likely as usize], likely, inverse_temperature, key), token: likely };
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate() {
        draw_block(block, (index * BLOCK) as Token, inverse_temperature, key, &mut best);
    }
    for (offset, logit) in rest.iter().enumerate() {
        let token = (blocks.len() * BLOCK + offset) as Token;
        consider(*logit, token, inverse_temperature, key, &mut best);
    }
    best.token
}

/// Draws from `survivors`, in any order.
pub(crate) fn draw_among(logits: &[f32], survivors: &[Token], inverse_temperature: f64, key: StepKey) -> Token {
    let mut best = Best { score: f64::NEG_INFINITY, token: Token::MAX };
    for &token in survivors {
        consider(logits[token as usize], token, inverse_temperature, key, &mut best);
    }
    best.token
}

/// The loop over the block has no branch, so that it compiles to vector instructions.
#[inline(always)]
fn draw_block(block: &[f32; BLOCK], first: Token, inverse_temperature: f64, key: StepKey, best: &mut Best) {
    let mut bounds = [0.0; BLOCK];
    for (offset, bound) in bounds.iter_mut().enumerate() {
        *bound = f64::from(block[offset]) * inverse_temperature + gumbel_bound(key, first + offset as Token);
    }
    let candidates = bounds.iter().fold(0u32, |count, bound| count + u32::from(*bound >= best.score));
    if candidates == 0 {
        return;
    }
    for offset in 0..BLOCK {
        if bounds[offset] >= best.score {
            let token = first + offset as Token;
            best.offer(score(block[offset], token, inverse_temperature, key), token);
        }
    }
}

fn consider(logit: f32, token: Token, inverse_temperature: f64, key: StepKey, best: &mut Best) {
    if f64::from(logit) * inverse_temperature + gumbel_bound(key, token) >= best.score {
        best.offer(score(logit, token, inverse_temperature, key), token);
    }
}

#[inline(always)]
fn score(logit: f32, token: Token, inverse_temperature: f64, key: StepKey) -> f64 {
    f64::from(logit) * inverse_temperature + gumbel(key, token)
}

pub(crate) fn gumbel(key: StepKey, token: Token) -> f64 {
    -libm::log(-libm::log(1.0 - key.one_minus_u(token)))
}

/// At least [`gumbel`]. A float's exponent and mantissa, read as one fixed-point number, are at most its base-2
/// logarithm (plus the exponent's bias), and at least that less 0.0861.
#[inline(always)]
fn gumbel_bound(key: StepKey, token: Token) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 20) as f64;
    let top_bits = (key.one_minus_u(token).to_bits() >> 32) as i32;
    let log2_at_least = f64::from(top_bits) * UNIT - 1023.0;
    MARGIN - log2_at_least * LN_2
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric;

    /// The definition, token by token.
    fn naive(logits: &[f32], inverse_temperature: f64, key: StepKey) -> Token {
        let scores = logits.iter().zip(0..).map(|(logit, token)| {
            let u = 1.0 - key.one_minus_u(token);
            f64::from(*logit) * inverse_temperature + -libm::log(-libm::log(u))
        });
        let mut best = (f64::NEG_INFINITY, 0);
        for (score, token) in scores.zip(0..) {
            if score > best.0 {
                best = (score, token);
            }
        }
        best.1
    }

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![8 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(0.0), 1 => -1e30f32..1e30]
    }

    #[test]
    fn the_bound_is_never_below_the_value_and_close_to_it_at_the_top() {
        let key = StepKey::new(4, 0, 0);
        for token in 0..300_000 {
            let (value, bound) = (gumbel(key, token), gumbel_bound(key, token));
            assert!(bound >= value + MARGIN / 2.0, "{token}: {bound} < {value}");
            assert!(value < 3.0 || bound - value < 0.1, "{token}: {bound} is far above {value}");
        }
    }

    proptest! {
        #[test]
        fn pruning_is_exact(
            mut logits in prop::collection::vec(logit(), 1..400), seed: u64, step: u32, temperature in 0.01f32..100.0,
        ) {
            let (key, inverse) = (StepKey::new(seed, 0, step), 1.0 / f64::from(temperature));
            let best = numeric::clean_and_find_best(&mut logits);
            prop_assume!(logits[best as usize] > f32::NEG_INFINITY);
            prop_assert_eq!(draw(&logits, best, inverse, key), naive(&logits, inverse, key));
            prop_assert_eq!(draw(&logits, 0, inverse, key), naive(&logits, inverse, key));
            let all: Vec<Token> = (0..logits.len() as Token).rev().collect();
            prop_assert_eq!(draw_among(&logits, &all, inverse, key), naive(&logits, inverse, key));
        }
    }

    #[test]
    fn pruning_is_exact_over_whole_vocabularies() {
        for step in 0..40 {
            let noise = StepKey::new(77, 1, step);
            let spread = [0.0, 1.0, 4.0, 12.0][step as usize % 4];
            let mut logits: Vec<f32> = (0..49_152).map(|token| (gumbel(noise, token) * spread) as f32).collect();
            let best = numeric::clean_and_find_best(&mut logits);
            let key = StepKey::new(5, 0, step);
            assert_eq!(draw(&logits, best, 1.25, key), naive(&logits, 1.25, key), "step {step}");
        }
    }

    #[test]
    fn equal_scores_go_to_the_lowest_id() {
        // At 1e30 the Gumbel term is below the float's resolution, so the scores are equal.
        let logits = [-1e30, 1e30, 1e30, 1e30];
        let key = StepKey::new(0, 0, 0);
        assert_eq!(draw(&logits, 3, 1.0, key), 1);
        assert_eq!(draw_among(&logits, &[3, 2, 1], 1.0, key), 1);
    }
}
