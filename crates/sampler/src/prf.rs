//! The pseudo-random function behind the draw: seed, choice, step and token id to a number in (0, 1).

use opengrid_protocol::session::Token;

const DOMAIN: &[u8] = b"opengrid/sampler/1";
/// 2^64 divided by the golden ratio, odd: spreads neighbouring token ids (SplitMix64, Steele et al. 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 128 bits that are unpredictable without the seed; the same for all tokens of one step.
#[derive(Clone, Copy)]
pub(crate) struct StepKey {
    k0: u64,
    k1: u64,
}

impl StepKey {
    /// The first 16 bytes of BLAKE3(domain ‖ seed ‖ choice ‖ step), integers little-endian.
    pub(crate) fn new(seed: u64, choice: u32, step: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN).update(&seed.to_le_bytes());
        hasher.update(&choice.to_le_bytes()).update(&step.to_le_bytes());
        let hash = hasher.finalize();
        let word =
            |at: usize| hash.as_bytes()[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Self { k0: word(0), k1: word(8) }
    }

    /// 1 - u, exactly: an odd multiple of 2^-53 below 1. Near u = 1, where the winners are, this is the precise form.
    #[inline(always)]
    pub(crate) fn one_minus_u(self, token: Token) -> f64 {
        const ONE: u64 = 0x3ff0_0000_0000_0000;
        const HALF_ULP: f64 = 1.0 / (1u64 << 53) as f64;
        let complement = !self.hash(token) >> 12;
        f64::from_bits(ONE | complement) - (1.0 - HALF_ULP)
    }

    /// Two keyed rounds of SplitMix64's finaliser.
    #[inline(always)]
    fn hash(self, token: Token) -> u64 {
        let spread = (u64::from(token) + 1).wrapping_mul(GOLDEN);
        finalise(finalise(spread.wrapping_add(self.k0)) ^ self.k1)
    }
}

#[inline(always)]
fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u_lies_strictly_between_0_and_1_and_is_exact() {
        let key = StepKey::new(1, 2, 3);
        for token in 0..100_000 {
            let rest = key.one_minus_u(token);
            let u = ((key.hash(token) >> 11) | 1) as f64 / (1u64 << 53) as f64;
            assert!(rest > 0.0 && rest < 1.0);
            assert_eq!((1.0 - rest).to_bits(), u.to_bits());
        }
    }

    #[test]
    fn every_input_changes_the_key() {
        let keys = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1 << 32, 0, 0)];
        let hashes: std::collections::BTreeSet<u64> =
            keys.iter().map(|&(seed, choice, step)| StepKey::new(seed, choice, step).hash(0)).collect();
        assert_eq!(hashes.len(), keys.len());
    }

    /// Mean and variance of `u`, and correlation between neighbouring ids and steps, within 5 sigma.
    #[test]
    fn u_is_uniform_and_uncorrelated() {
        let n = 200_000;
        let (here, next) = (StepKey::new(9, 0, 7), StepKey::new(9, 0, 8));
        let centred = |key: StepKey, token: u32| key.one_minus_u(token) - 0.5;
        let mean_of = |f: &dyn Fn(u32) -> f64| (0..n).map(f).sum::<f64>() / f64::from(n);
        let sigma = |variance: f64| (variance / f64::from(n)).sqrt();
        assert!(mean_of(&|t| centred(here, t)).abs() < 5.0 * sigma(1.0 / 12.0));
        assert!((mean_of(&|t| centred(here, t).powi(2)) - 1.0 / 12.0).abs() < 5.0 * sigma(1.0 / 180.0));
        assert!(mean_of(&|t| centred(here, t) * centred(here, t + 1)).abs() < 5.0 * sigma(1.0 / 144.0));
        assert!(mean_of(&|t| centred(here, t) * centred(next, t)).abs() < 5.0 * sigma(1.0 / 144.0));
    }
}
