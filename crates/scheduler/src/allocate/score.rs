//! Compares plans: `k^alpha / (mean lap)` as a logarithm in fixed point, so that no floating point decides.

/// Bits behind the point.
const FRACTION_BITS: u32 = 32;

/// The logarithm to base 2 of `k^alpha / (sum / k)`, with 32 bits behind the point; larger is better. A sum of 0 counts
/// as 1, and `chains` must not be 0.
pub fn score(chains: usize, laps_us: u64, alpha_permille: u32) -> i128 {
    let exponent = i128::from(alpha_permille) + 1_000;
    exponent * i128::from(log2(chains as u64)) / 1_000 - i128::from(log2(laps_us))
}

/// By squaring the mantissa: each time it reaches 2 there is one more bit.
fn log2(number: u64) -> u64 {
    let number = number.max(1);
    let whole = number.ilog2();
    // 1 <= mantissa < 2 with 63 bits behind the point.
    let mut mantissa = number << (63 - whole);
    let mut fraction = 0u64;
    for _ in 0..FRACTION_BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let bit = (square >> 64) as u64;
        mantissa = (square >> bit) as u64;
        fraction = fraction << 1 | bit;
    }
    u64::from(whole) << FRACTION_BITS | fraction
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn logarithms_are_those_of_floating_point(number in 1_u64..1 << 50) {
            let ours = log2(number) as f64 / 2f64.powi(32);
            prop_assert!((ours - (number as f64).log2()).abs() < 1e-8, "{number}: {ours}");
        }

        #[test]
        fn scores_order_as_the_objective_does(
            (k, laps) in (1_usize..50, 1_u64..1 << 40), (other_k, other_laps) in (1_usize..50, 1_u64..1 << 40), alpha in 0_u32..3_000,
        ) {
            let exact = |k: usize, laps: u64| (k as f64).powf(f64::from(alpha) / 1e3 + 1.0) / laps as f64;
            let (a, b) = (exact(k, laps), exact(other_k, other_laps));
            prop_assume!((a / b - 1.0).abs() > 1e-6);
            prop_assert_eq!(a > b, score(k, laps, alpha) > score(other_k, other_laps, alpha));
        }
    }
}
