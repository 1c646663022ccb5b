//! Arithmetic whose bits are the same everywhere and whose loops compile to vector instructions.

use opengrid_protocol::session::Token;

const LANES: usize = 16;

/// A logit that is a number: NaN becomes minus infinity, infinity the largest number, -0 becomes 0 (so that the order
/// of bits is the order of values).
#[inline(always)]
pub(crate) fn clean(logit: f32) -> f32 {
    let number = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let finite = if number > f32::MAX { f32::MAX } else { number };
    finite + 0.0
}

/// [`clean`]s all logits in place; the id of the largest, the lowest among equals, 0 if there are none.
pub(crate) fn clean_and_find_best(logits: &mut [f32]) -> Token {
    logits.iter_mut().for_each(|logit| *logit = clean(*logit));
    let largest = largest(logits);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as Token
}

/// The largest of cleaned logits, minus infinity if there are none.
pub(crate) fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// The sum of exp(scale · (logit - largest)) over all logits (cleaned here), `largest` being finite. Lane i adds up
/// every 16th term from the i-th on; then the lanes are added in order, then what remains.
pub(crate) fn sum_exp(logits: &[f32], largest: f32, scale: f64) -> f64 {
    let term = |logit: f32| exp_nonpositive((f64::from(clean(logit)) - f64::from(largest)) * scale);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += term(chunk[lane]);
        }
    }
    lanes.iter().copied().chain(rest.iter().map(|logit| term(*logit))).fold(0.0, |sum, term| sum + term)
}

/// exp(x) for x <= 0 to about 1e-15, 0 below -708. Cody-Waite reduction by powers of two, then Taylor to the 13th
/// power on |r| <= ln(2)/2; branch-free.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f64) -> f64 {
    const LOWEST: f64 = -708.0;
    /// 1.5 · 2^52: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let bounded = if x > LOWEST { x } else { LOWEST };
    let shifted = bounded * std::f64::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (bounded - power * LN_2_HIGH) - power * LN_2_LOW;
    let mut sum = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        sum = sum * r + coefficient;
    }
    let two_to_power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    if x > LOWEST { sum * two_to_power } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn broken_logits_become_ordered_numbers() {
        let mut logits = [f32::NAN, f32::INFINITY, -0.0, f32::NEG_INFINITY, f32::MAX];
        assert_eq!(clean_and_find_best(&mut logits), 1);
        assert_eq!(logits.map(f32::to_bits), [0xff80_0000, 0x7f7f_ffff, 0, 0xff80_0000, 0x7f7f_ffff]);
        assert_eq!(clean_and_find_best(&mut []), 0);
        assert_eq!(clean_and_find_best(&mut [f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn exp_has_its_corner_values() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(-1e300), 0.0);
        assert_eq!(exp_nonpositive(-708.0), 0.0);
    }

    proptest! {
        #[test]
        fn exp_agrees_with_libm(x in -707.9f64..0.0) {
            let (ours, reference) = (exp_nonpositive(x), libm::exp(x));
            prop_assert!((ours / reference - 1.0).abs() < 2e-15, "{} {}", ours, reference);
        }

        #[test]
        fn lanes_change_only_the_last_bits(logits in prop::collection::vec(-50f32..50.0, 1..200)) {
            let top = largest(&logits);
            prop_assert_eq!(top, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let plain: f64 = logits.iter().map(|logit| libm::exp((f64::from(*logit) - f64::from(top)) * 0.7)).sum();
            prop_assert!((sum_exp(&logits, top, 0.7) / plain - 1.0).abs() < 1e-13);
        }
    }
}
