//! Log-probabilities as the API reports them: of the model itself, before temperature, penalties and truncation.

use opengrid_protocol::session::Token;

use crate::{
    numeric::{clean, sum_exp},
    ranking::{best_of, token_of},
};

/// Stands for everything less probable, minus infinity included, so that every value is finite.
pub const LOGPROB_MIN: f32 = -9_999.0;

/// The natural logarithm of `token`'s probability, and the `top_n` most probable tokens with theirs, best first, lower
/// id first among equals. `logits` are raw, one per token of the vocabulary; a token outside it has [`LOGPROB_MIN`].
pub fn logprobs(logits: &[f32], token: Token, top_n: u8) -> (f32, Vec<(Token, f32)>) {
    let best = best_of(logits, usize::from(top_n).max(1));
    let logit = |token: Token| logits.get(token as usize).copied().map_or(f32::NEG_INFINITY, clean);
    let largest = best.first().map_or(f32::NEG_INFINITY, |ranked| logit(token_of(*ranked)));
    if largest == f32::NEG_INFINITY {
        return (LOGPROB_MIN, best.iter().take(top_n.into()).map(|r| (token_of(*r), LOGPROB_MIN)).collect());
    }
    let log_sum = libm::log(sum_exp(logits, largest, 1.0));
    let logprob = |token: Token| {
        let value = (f64::from(logit(token)) - f64::from(largest)) - log_sum;
        (value as f32).max(LOGPROB_MIN)
    };
    let top = best.iter().take(top_n.into()).map(|ranked| token_of(*ranked)).map(|token| (token, logprob(token)));
    (logprob(token), top.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        let (chosen, top) = logprobs(&[0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.0], 3, 3);
        assert_eq!(chosen, -(4f32.ln()));
        assert_eq!(top, [(0, chosen), (1, chosen), (3, chosen)]);
        assert_eq!(logprobs(&[5.0], 0, 1), (0.0, vec![(0, 0.0)]));
    }

    #[test]
    fn broken_input_stays_finite() {
        assert_eq!(logprobs(&[], 7, 5), (LOGPROB_MIN, vec![]));
        assert_eq!(logprobs(&[f32::NAN], 0, 1), (LOGPROB_MIN, vec![(0, LOGPROB_MIN)]));
        assert_eq!(logprobs(&[1.0, f32::NAN], 1, 0), (LOGPROB_MIN, vec![]));
        assert_eq!(logprobs(&[f32::INFINITY, 3e38, 0.0], 2, 1), (LOGPROB_MIN, vec![(0, 0.0)]));
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one(logits in prop::collection::vec(-20f32..20.0, 1..20)) {
            let (_, top) = logprobs(&logits, 0, 20);
            prop_assert_eq!(top.len(), logits.len());
            let sum: f64 = top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
            prop_assert!(top.is_sorted_by(|a, b| a.1 >= b.1));
            prop_assert_eq!(logprobs(&logits, top[0].0, 0).0, top[0].1);
        }
    }
}
