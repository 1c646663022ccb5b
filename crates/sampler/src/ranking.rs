//! The best logits of a vocabulary, without sorting it.

use opengrid_protocol::session::Token;

use crate::numeric::{clean, largest};

const BLOCK: usize = 64;

/// A logit and its token in one integer whose order is: larger logit first, then lower id.
pub(crate) type Ranked = u64;

pub(crate) fn rank(logit: f32, token: Token) -> Ranked {
    let bits = logit.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!token)
}

pub(crate) fn token_of(ranked: Ranked) -> Token {
    !(ranked as u32)
}

/// The `count` best, best first. NaN counts as minus infinity.
pub(crate) fn best_of(logits: &[f32], count: usize) -> Vec<Ranked> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut ranked = candidates(logits, count);
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked
}

/// A superset of the `count` best. At least `count` logits reach the count-th largest of the blocks' maxima, so what
/// is below that cannot be among the best.
fn candidates(logits: &[f32], count: usize) -> Vec<Ranked> {
    let mut maxima: Vec<f32> = logits.chunks(BLOCK).map(block_maximum).collect();
    let floor = if count <= maxima.len() {
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    let mut found = Vec::with_capacity(count * 2);
    for (logit, token) in logits.iter().zip(0..) {
        let logit = clean(*logit);
        if logit >= floor {
            found.push(rank(logit, token));
        }
    }
    found
}

fn block_maximum(block: &[f32]) -> f32 {
    let mut cleaned = [f32::NEG_INFINITY; BLOCK];
    for (to, from) in cleaned.iter_mut().zip(block) {
        *to = clean(*from);
    }
    largest(&cleaned)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All tokens, larger logits first, then lower ids.
    #[allow(clippy::unwrap_used)]
    pub(crate) fn sorted(logits: &[f32]) -> Vec<Token> {
        let mut tokens: Vec<Token> = (0..logits.len() as Token).collect();
        tokens.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
        tokens
    }

    /// Coarse values, so that ties are common.
    pub(crate) fn coarse_logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1..1_500)
    }

    fn logit_of(ranked: Ranked) -> f32 {
        let ordered = (ranked >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_stable_sort(logits in coarse_logits(), count in 0usize..800) {
            let best: Vec<Token> = best_of(&logits, count).into_iter().map(token_of).collect();
            let mut expected = sorted(&logits);
            expected.truncate(count);
            prop_assert_eq!(best, expected);
        }

        #[test]
        fn ranks_hold_logit_and_token(logit in -1e30f32..1e30, token: u32) {
            prop_assert_eq!(logit_of(rank(logit, token)), logit);
            prop_assert_eq!(token_of(rank(logit, token)), token);
        }
    }
}
