//! Top-k, top-p and min-p: which tokens may be drawn at all.

use std::cmp::Ordering;

use opengrid_protocol::{Sampling, session::Token};

use crate::{
    numeric::{exp_nonpositive, sum_exp},
    ranking::{best_of, rank, token_of},
};

/// Top-p sorts so many tokens; if they do not hold enough mass it goes by buckets.
const SORTED_FIRST: usize = 256;
const BLOCK: usize = 64;
const BUCKETS: usize = 512;
const LAST_BUCKET: f64 = (BUCKETS - 1) as f64;
const BUCKETS_PER_NAT: f64 = 16.0;

/// The tokens that top-k, then top-p (of the mass that top-k left), then min-p keep, in no particular order; `None` if
/// that is all of them. At least one token survives. `best_logit` is the largest of `logits`, and finite.
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
    let vocabulary = Vocabulary { logits, best_logit, inverse_temperature };
    let mut kept = match (limited_k, limited_p, limited_min_p) {
        (true, true, _) => vocabulary.nucleus_of_best(top_k, sampling.top_p),
        (true, false, _) => vocabulary.best(top_k),
        (false, true, _) => vocabulary.nucleus(sampling.top_p),
        (false, false, true) => return Some(vocabulary.within_min_p(0..logits.len() as Token, sampling.min_p)),
        (false, false, false) => return None,
    };
    if limited_min_p {
        kept = vocabulary.within_min_p(kept.into_iter(), sampling.min_p);
    }
    Some(kept)
}

/// Cleaned logits, of which `best_logit` is the largest, and finite.
#[derive(Clone, Copy)]
struct Vocabulary<'a> {
    logits: &'a [f32],
    best_logit: f32,
    inverse_temperature: f64,
}

impl Vocabulary<'_> {
    /// How far a token's scaled logit lies below the best one's; at most 0.
    #[inline(always)]
    fn below_best(self, logit: f32) -> f64 {
        (f64::from(logit) - f64::from(self.best_logit)) * self.inverse_temperature
    }

    /// The token's probability in units of the best one's.
    fn weight(self, token: Token) -> f64 {
        exp_nonpositive(self.below_best(self.logits[token as usize]))
    }

    fn best(self, count: usize) -> Vec<Token> {
        best_of(self.logits, count).into_iter().map(token_of).collect()
    }

    fn within_min_p(self, tokens: impl Iterator<Item = Token>, min_p: f32) -> Vec<Token> {
        let floor = libm::log(f64::from(min_p.min(1.0)));
        tokens.filter(|token| self.below_best(self.logits[*token as usize]) >= floor).collect()
    }

    fn nucleus_of_best(self, count: usize, top_p: f32) -> Vec<Token> {
        let mut kept = self.best(count);
        let total = kept.iter().fold(0.0, |sum, token| sum + self.weight(*token));
        let enough = self.first_with_mass(&kept, f64::from(top_p) * total);
        kept.truncate(enough.unwrap_or(kept.len()));
        kept
    }

    /// The smallest set of the best with a mass of at least `top_p`.
    fn nucleus(self, top_p: f32) -> Vec<Token> {
        let total = sum_exp(self.logits, self.best_logit, self.inverse_temperature);
        let enough = f64::from(top_p) * total;
        let mut kept = self.best(SORTED_FIRST);
        match self.first_with_mass(&kept, enough) {
            Some(count) => {
                kept.truncate(count);
                kept
            }
            None => self.nucleus_by_buckets(enough),
        }
    }

    /// How many of `best_first` hold the mass `enough`; `None` if all of them hold less.
    fn first_with_mass(self, best_first: &[Token], enough: f64) -> Option<usize> {
        let mut mass = 0.0;
        let last = best_first.iter().position(|token| {
            mass += self.weight(*token);
            mass >= enough
        });
        last.map(|index| index + 1)
    }

    /// The mass of each bucket, its tokens added in the order of their ids; and the bucket of each token. The loops
    /// over a block without the sums compile to vector instructions.
    fn masses_of_buckets(self) -> ([f64; BUCKETS], Vec<u16>) {
        let (mut masses, mut buckets) = ([0.0; BUCKETS], Vec::with_capacity(self.logits.len()));
        for block in self.logits.chunks(BLOCK) {
            let (mut weights, mut bucket_of) = ([0.0; BLOCK], [0; BLOCK]);
            for ((logit, weight), place) in block.iter().zip(&mut weights).zip(&mut bucket_of) {
                let below = self.below_best(*logit);
                *weight = exp_nonpositive(below);
                *place = bucket(below);
            }
            for (weight, place) in weights.iter().zip(&bucket_of[..block.len()]) {
                masses[usize::from(*place)] += weight;
            }
            buckets.extend_from_slice(&bucket_of[..block.len()]);
        }
        (masses, buckets)
    }

    /// A nucleus too large to sort: whole buckets of similar tokens while they are needed whole, then the best of the
    /// next bucket.
    fn nucleus_by_buckets(self, enough: f64) -> Vec<Token> {
        let (masses, buckets) = self.masses_of_buckets();
        let (mut mass, mut last) = (0.0, 0);
        while last < BUCKETS - 1 && mass + masses[last] < enough {
            mass += masses[last];
            last += 1;
        }
        let (mut kept, mut partly) = (vec![], vec![]);
        for ((logit, bucket), token) in self.logits.iter().zip(buckets).zip(0..) {
            match usize::from(bucket).cmp(&last) {
                Ordering::Less => kept.push(token),
                Ordering::Equal => partly.push(rank(*logit, token)),
                Ordering::Greater => {}
            }
        }
        partly.sort_unstable_by(|a, b| b.cmp(a));
        let partly: Vec<Token> = partly.into_iter().map(token_of).collect();
        let count = self.first_with_mass(&partly, enough - mass).unwrap_or(partly.len());
        kept.extend_from_slice(&partly[..count]);
        kept
    }
}

/// Lower logits never have a lower bucket. The last bucket takes all that is left.
#[inline(always)]
fn bucket(below_best: f64) -> u16 {
    ((-below_best * BUCKETS_PER_NAT).min(LAST_BUCKET)) as i32 as u16
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        numeric::largest,
        ranking::tests::{coarse_logits, sorted},
    };

    fn with(top_k: u32, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature: 1.0, top_k, top_p, min_p, ..Sampling::greedy() }
    }

    fn kept(sampling: &Sampling, logits: &[f32], inverse_temperature: f64) -> Option<Vec<Token>> {
        survivors(sampling, logits, largest(logits), inverse_temperature)
    }

    fn is_smallest_nucleus(logits: &[f32], top_p: f32, scale: f64, mut kept: Vec<Token>) -> Result<(), TestCaseError> {
        let mut expected = sorted(logits);
        let top = f64::from(largest(logits));
        let weight = |token: &Token| libm::exp((f64::from(logits[*token as usize]) - top) * scale);
        let mass = |tokens: &[Token]| tokens.iter().map(weight).sum::<f64>();
        let enough = f64::from(top_p) * mass(&expected);
        expected.truncate(kept.len());
        prop_assert!(mass(&expected) >= enough * (1.0 - 1e-12));
        prop_assert!(kept.len() == 1 || mass(&expected[..kept.len() - 1]) < enough * (1.0 + 1e-12));
        kept.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(kept, expected);
        Ok(())
    }

    proptest! {
        #[test]
        fn top_p_keeps_the_smallest_sufficient_set(
            logits in coarse_logits(), top_p in 0f32..0.999, scale in 0.01f64..4.0,
        ) {
            let set = kept(&with(0, top_p, 0.0), &logits, scale).unwrap();
            is_smallest_nucleus(&logits, top_p, scale, set)?;
            let vocabulary = Vocabulary { logits: &logits, best_logit: largest(&logits), inverse_temperature: scale };
            let enough = f64::from(top_p) * sum_exp(&logits, largest(&logits), scale);
            is_smallest_nucleus(&logits, top_p, scale, vocabulary.nucleus_by_buckets(enough))?;
        }

        #[test]
        fn top_p_counts_the_mass_that_top_k_left(
            logits in coarse_logits(), top_k in 1u32..100, top_p in 0f32..0.999, scale in 0.01f64..4.0,
        ) {
            prop_assume!((top_k as usize) < logits.len());
            let set = kept(&with(top_k, top_p, 0.0), &logits, scale).unwrap();
            let best = &sorted(&logits)[..top_k as usize];
            let of_best: Vec<f32> = best.iter().map(|token| logits[*token as usize]).collect();
            let places = set.iter().map(|token| best.iter().position(|other| other == token).unwrap() as Token);
            is_smallest_nucleus(&of_best, top_p, scale, places.collect())?;
        }

        #[test]
        fn min_p_compares_with_the_best(logits in coarse_logits(), min_p in 0.001f32..=1.0, scale in 0.1f64..4.0) {
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
            logits in coarse_logits(), top_k: u32, top_p in 0f32..=1.0, min_p in 0f32..=1.0, scale in 0.01f64..100.0,
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
        assert_eq!(kept(&with(1, 1.0, 0.0), &[1.0, 2.0, 2.0], 1.0), Some(vec![1]));
        assert_eq!(kept(&with(0, 0.0, 0.0), &[1.0, 2.0, 2.0], 1.0), Some(vec![1]));
    }
}
