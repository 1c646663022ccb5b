//! How many slots of which context fit into memory. Pure.

/// llama.cpp rounds the context of a sequence up to this many tokens.
const CONTEXT_STEP: u64 = 256;
/// Slots are given up before the context of each falls below this.
const CONTEXT_COMFORTABLE: u64 = 4_096;

/// What is asked for, and the two limits.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub slots: u16,
    /// Tokens a slot.
    pub context_tokens: u32,
    /// Tokens that the model was trained to hold.
    pub trained_context: u32,
    pub kv_bytes_per_token: u64,
    pub kv_budget_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    pub slots: u16,
    pub context_tokens: u32,
    pub kv_bytes: u64,
}

/// Bytes of keys and values that `slots` sequences of `context_tokens` take.
pub fn kv_bytes(slots: u64, context_tokens: u64, bytes_per_token: u64) -> u64 {
    let cells = context_tokens.div_ceil(CONTEXT_STEP).saturating_mul(CONTEXT_STEP);
    slots.saturating_mul(cells).saturating_mul(bytes_per_token)
}

/// Shrinks the context to a comfortable one, then the slots to one, then the context to the least, until it fits.
///
/// # Errors
/// How many bytes are missing for one slot of the smallest context.
pub fn fit(wish: Wish) -> Result<Fit, u64> {
    let trained = if wish.trained_context == 0 { u32::MAX } else { wish.trained_context };
    let context = u64::from(wish.context_tokens.min(trained)).max(1);
    let slots = u64::from(wish.slots.max(1));
    let need = |slots, context| kv_bytes(slots, context, wish.kv_bytes_per_token);
    let per_cell = wish.kv_bytes_per_token.max(1);
    let cells = |slots: u64| wish.kv_budget_bytes / per_cell / slots / CONTEXT_STEP * CONTEXT_STEP;

    let comfortable = context.min(CONTEXT_COMFORTABLE);
    let slots = (1..=slots).rev().find(|&slots| need(slots, comfortable) <= wish.kv_budget_bytes).unwrap_or(1);
    let context = context.min(cells(slots));
    if context == 0 {
        return Err(need(1, CONTEXT_STEP).saturating_sub(wish.kv_budget_bytes));
    }
    Ok(Fit { slots: slots as u16, context_tokens: context as u32, kv_bytes: need(slots, context) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(budget: u64) -> Wish {
        Wish {
            slots: 4,
            context_tokens: 8_192,
            trained_context: 8_192,
            kv_bytes_per_token: 1_000,
            kv_budget_bytes: budget,
        }
    }

    #[test]
    fn everything_fits_a_large_budget() {
        let fitted = fit(wish(1 << 40)).unwrap();
        assert_eq!(fitted, Fit { slots: 4, context_tokens: 8_192, kv_bytes: 4 * 8_192 * 1_000 });
    }

    #[test]
    fn the_context_shrinks_first_then_the_slots() {
        let fitted = fit(wish(4 * 4_096 * 1_000 + 300)).unwrap();
        assert_eq!((fitted.slots, fitted.context_tokens), (4, 4_096));
        let fitted = fit(wish(2 * 4_096 * 1_000)).unwrap();
        assert_eq!((fitted.slots, fitted.context_tokens), (2, 4_096));
        let fitted = fit(wish(1_024 * 1_000)).unwrap();
        assert_eq!((fitted.slots, fitted.context_tokens), (1, 1_024));
    }

    #[test]
    fn what_is_missing_is_told() {
        assert_eq!(fit(wish(56_000)), Err(200_000));
    }

    #[test]
    fn the_trained_context_is_the_most() {
        assert_eq!(fit(Wish { trained_context: 100, ..wish(1 << 40) }).unwrap().context_tokens, 100);
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded(slots in 0_u16..64, context in 0_u32..200_000, trained in 0_u32..200_000,
            per_token in 0_u64..1_000_000, budget in 0_u64..1 << 40)
        {
            let wish = Wish { slots, context_tokens: context, trained_context: trained,
                kv_bytes_per_token: per_token, kv_budget_bytes: budget };
            if let Ok(fitted) = fit(wish) {
                prop_assert!(fitted.kv_bytes <= budget);
                prop_assert!(fitted.slots >= 1 && fitted.slots <= slots.max(1));
                prop_assert!(fitted.context_tokens >= 1 && fitted.context_tokens <= context.max(1));
            }
        }
    }
}
