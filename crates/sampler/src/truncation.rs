//! Top-k, top-p and min-p: which tokens may be drawn at all.

use opengrid_protocol::{Sampling, session::Token};

use crate::numeric::{clean, exp_nonpositive, largest, sum_exp};

const BLOCK: usize = 64;
/// How many tokens top-p looks at first, and by what it looks at more each time that they do not hold enough mass.
const TOP_P_FIRST: usize = 64;
const TOP_P_GROWTH: usize = 8;

/// A logit and its token in one integer whose order is: larger logit first, then lower id.
type Ranked = u64;

fn rank(logit: f32, token: Token) -> Ranked {
    let bits = logit.to_bits();
    let ordered = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(ordered) << 32 | u64::from(!token)
}

pub(crate) fn token_of(ranked: Ranked) -> Token {
    !(ranked as u32)
}

fn logit_of(ranked: Ranked) -> f32 {
    let ordered = (ranked >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 {
        ordered & !(1 << 31)
    } else {
        !ordered
    })
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
        *maxima
            .select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a))
            .1
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

/// The tokens that top-k, then top-p (of the mass that top-k left), then min-p keep; `None` if that is all of them.
/// At least one token survives. `best_logit` is the largest of `logits`, and finite.
pub(crate) fn survivors(
    sampling: &Sampling,
    logits: &[f32],
    best_logit: f32,
    inverse_temperature: f64,
) -> Option<Vec<Token>> {
    let top_k = sampling.top_k as usize;
    let limited_k = top_k > 0 && top_k < logits.len();
    let limited_p = sampling.top_p < 1.0;
    let limited_min_p = sampling.min_p > 0.0;
    let weight = |ranked: Ranked| {
        exp_nonpositive((f64::from(logit_of(ranked)) - f64::from(best_logit)) * inverse_temperature)
    };
    let mut kept = if limited_k {
        let mut kept = best_of(logits, top_k);
        if limited_p {
            let total = kept.iter().fold(0.0, |sum, ranked| sum + weight(*ranked));
            kept.truncate(nucleus(&kept, sampling.top_p, total, weight).unwrap_or(kept.len()));
        }
        kept
    } else if limited_p {
        whole_nucleus(
            logits,
            sampling.top_p,
            sum_exp(logits, best_logit, inverse_temperature),
            weight,
        )
    } else if limited_min_p {
        let floor = min_p_floor(sampling, best_logit, inverse_temperature);
        let tokens = logits
            .iter()
            .zip(0..)
            .filter(|(logit, _)| f64::from(**logit) * inverse_temperature >= floor);
        return Some(tokens.map(|(_, token)| token).collect());
    } else {
        return None;
    };
    if limited_min_p {
        let floor = min_p_floor(sampling, best_logit, inverse_temperature);
        kept.retain(|ranked| f64::from(logit_of(*ranked)) * inverse_temperature >= floor);
    }
    Some(kept.into_iter().map(token_of).collect())
}

/// The scaled logit below which min-p drops a token; never above that of the best one.
fn min_p_floor(sampling: &Sampling, best_logit: f32, inverse_temperature: f64) -> f64 {
    let best = f64::from(best_logit) * inverse_temperature;
    best + libm::log(f64::from(sampling.min_p.min(1.0)))
}

/// How many of the best make up the smallest set with a mass of at least `top_p` of `total`; `None` if all of
/// `best_first` hold less.
fn nucleus(
    best_first: &[Ranked],
    top_p: f32,
    total: f64,
    weight: impl Fn(Ranked) -> f64,
) -> Option<usize> {
    let enough = f64::from(top_p) * total;
    let mut mass = 0.0;
    let last = best_first.iter().position(|ranked| {
        mass += weight(*ranked);
        mass >= enough
    });
    last.map(|index| index + 1)
}

/// [`nucleus`] of the whole vocabulary, sorting no more of it than needed.
fn whole_nucleus(
    logits: &[f32],
    top_p: f32,
    total: f64,
    weight: impl Fn(Ranked) -> f64,
) -> Vec<Ranked> {
    let mut looked_at = TOP_P_FIRST;
    loop {
        let mut kept = best_of(logits, looked_at);
        match nucleus(&kept, top_p, total, &weight) {
            Some(count) => {
                kept.truncate(count);
                return kept;
            }
            None if looked_at >= logits.len() => return kept,
            None => looked_at *= TOP_P_GROWTH,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(logits: &[f32]) -> Vec<Token> {
        let mut tokens: Vec<Token> = (0..logits.len() as Token).collect();
        tokens.sort_by(|a, b| {
            logits[*b as usize]
                .partial_cmp(&logits[*a as usize])
                .unwrap()
                .then(a.cmp(b))
        });
        tokens
    }

    fn with(top_k: u32, top_p: f32, min_p: f32) -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k,
            top_p,
            min_p,
            ..Sampling::greedy()
        }
    }

    fn kept(sampling: &Sampling, logits: &[f32], inverse_temperature: f64) -> Option<Vec<Token>> {
        survivors(sampling, logits, largest(logits), inverse_temperature)
    }

    /// Coarse values, so that ties are common.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1..700)
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_stable_sort(logits in logits(), count in 0usize..800) {
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

        #[test]
        fn top_p_keeps_the_smallest_sufficient_set(logits in logits(), top_p in 0f32..0.999, scale in 0.1f64..4.0) {
            let kept = kept(&with(0, top_p, 0.0), &logits, scale).unwrap();
            prop_assert_eq!(&kept, &sorted(&logits)[..kept.len()]);
            let top = f64::from(largest(&logits));
            let weight = |token: &Token| libm::exp((f64::from(logits[*token as usize]) - top) * scale);
            let mass = |tokens: &[Token]| tokens.iter().map(weight).sum::<f64>();
            let all = mass(&sorted(&logits));
            prop_assert!(mass(&kept) >= f64::from(top_p) * all * (1.0 - 1e-12));
            prop_assert!(kept.len() == 1 || mass(&kept[..kept.len() - 1]) < f64::from(top_p) * all * (1.0 + 1e-12));
        }

        #[test]
        fn min_p_compares_with_the_best(logits in logits(), min_p in 0.001f32..=1.0, scale in 0.1f64..4.0) {
            let mut kept = kept(&with(0, 1.0, min_p), &logits, scale).unwrap();
            kept.sort_unstable();
            let top = f64::from(largest(&logits));
            for (logit, token) in logits.iter().zip(0..) {
                let ratio = libm::exp((f64::from(*logit) - top) * scale);
                if (ratio / f64::from(min_p) - 1.0).abs() > 1e-9 {
                    prop_assert_eq!(kept.binary_search(&token).is_ok(), ratio > f64::from(min_p));
                }
            }
        }

        #[test]
        fn combined_limits_keep_at_least_one(
            logits in logits(), top_k: u32, top_p in 0f32..=1.0, min_p in 0f32..=1.0, scale in 0.01f64..100.0,
        ) {
            if let Some(kept) = kept(&with(top_k, top_p, min_p), &logits, scale) {
                prop_assert!(!kept.is_empty());
                prop_assert!(kept.contains(&sorted(&logits)[0]));
            }
        }
    }

    #[test]
    fn values_that_switch_a_limit_off_keep_all() {
        assert_eq!(kept(&with(0, 1.0, 0.0), &[1.0, 2.0], 1.0), None);
        assert_eq!(kept(&with(2, 1.0, 0.0), &[1.0, 2.0], 1.0), None);
        assert_eq!(kept(&with(0, f32::NAN, f32::NAN), &[1.0, 2.0], 1.0), None);
        assert_eq!(
            kept(&with(1, 1.0, 0.0), &[1.0, 2.0, 2.0], 1.0),
            Some(vec![1])
        );
    }
}
