//! What each part of a chain keeps and sends again when the chain is put together anew. Pure.

use opengrid_protocol::pipeline::PartState;

/// What one part is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// It gets positions from here on anew.
    pub keep: u32,
    /// It sends positions from here on.
    pub send_from: u32,
}

/// What the whole chain is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    pub parts: Vec<Restart>,
    /// The gateway feeds the first part tokens from here on, up to the last known one.
    pub feed_from: u32,
}

/// From the last part to the first: each keeps what it has of the positions that are `true_until`; if the part before no
/// longer has what lies behind that, it must compute it again, and so keeps no more itself.
///
/// Rows at positions below `true_until` belong to tokens that are known; what a stage has beyond may be a guess that
/// did not come true. A last part that drew knows itself which are.
pub fn plan(states: &[PartState], true_until: u32) -> Recovery {
    let keep = |state: &PartState| if state.drew { state.have } else { state.have.min(true_until) };
    let mut keeps: Vec<u32> = states.iter().map(keep).collect();
    for at in (1..states.len()).rev() {
        let (behind, state) = (keeps[at], states[at - 1]);
        if state.kept_from > behind {
            keeps[at - 1] = keeps[at - 1].min(behind);
        }
    }
    let parts = (0..states.len())
        .map(|at| Restart { keep: keeps[at], send_from: keeps.get(at + 1).copied().unwrap_or(0) })
        .collect();
    Recovery { parts, feed_from: keeps.first().copied().unwrap_or(0) }
}

/// The part behind a gap, in a chain whose parts all live but which stands still: the first that lacks what the one
/// before it sent; where none does, the first that did not send on what it has.
pub fn stalled(states: &[PartState], fed_to_first: u32) -> Option<usize> {
    let mut came = fed_to_first;
    for (at, state) in states.iter().enumerate() {
        if state.have < came {
            return Some(at);
        }
        let is_last = at + 1 == states.len();
        if !is_last && state.sent < state.have {
            return Some(at);
        }
        came = state.sent;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(have: u32, kept_from: u32) -> PartState {
        PartState { have, kept_from, sent: have, drew: false }
    }

    fn restart(keep: u32, send_from: u32) -> Restart {
        Restart { keep, send_from }
    }

    #[test]
    fn only_the_lost_stage_computes_again_where_its_input_is_kept() {
        let middle = plan(&[state(600, 0), state(0, 0), state(600, 0)], 600);
        assert_eq!(middle.parts, [restart(600, 0), restart(0, 600), restart(600, 0)]);
        assert_eq!(middle.feed_from, 600);
        let first = plan(&[state(0, 0), state(600, 0), state(600, 0)], 600);
        assert_eq!(first.parts, [restart(0, 600), restart(600, 600), restart(600, 0)]);
        assert_eq!(first.feed_from, 0);
    }

    #[test]
    fn what_is_not_kept_is_computed_from_tokens() {
        let recovery = plan(&[state(600, 200), state(0, 0), state(600, 0)], 600);
        assert_eq!(recovery.parts, [restart(0, 0), restart(0, 600), restart(600, 0)]);
        assert_eq!(recovery.feed_from, 0);
    }

    #[test]
    fn the_part_behind_a_gap_is_found() {
        let sent = |have, sent| PartState { have, kept_from: 0, sent, drew: true };
        assert_eq!(stalled(&[sent(9, 9), sent(9, 9), sent(9, 0)], 9), None);
        assert_eq!(stalled(&[sent(9, 9), sent(8, 8), sent(8, 0)], 9), Some(1), "a broken link before it");
        assert_eq!(stalled(&[sent(9, 8), sent(8, 8), sent(8, 0)], 9), Some(0), "it does not compute");
        assert_eq!(stalled(&[sent(8, 8), sent(8, 8), sent(8, 0)], 9), Some(0));
    }

    proptest! {
        /// Follows the plan over rows that carry their position: every part has an unbroken row of true ones at the end.
        #[test]
        fn every_part_gets_all_it_lacks(
            parts in prop::collection::vec((0_u32..50, 0_u32..50, any::<bool>()), 1..7), end in 0_u32..50,
        ) {
            let states: Vec<PartState> = parts.into_iter().map(|(have, kept, lost)| {
                if lost { state(0, 0) } else { state(have, kept.min(have)) }
            }).collect();
            let recovery = plan(&states, end);
            // What comes to a part: from where, and always up to the end.
            let mut comes_from = recovery.feed_from;
            for (at, (state, told)) in states.iter().zip(&recovery.parts).enumerate() {
                prop_assert!(told.keep <= state.have.min(end), "it is told to keep what it has not");
                prop_assert_eq!(comes_from, told.keep, "a gap, or more than it lacks");
                // It holds what its ring reaches back to, and all that it computes anew.
                let is_last = at + 1 == states.len();
                prop_assert!(is_last || told.send_from >= state.kept_from.min(told.keep));
                comes_from = told.send_from;
            }
        }
    }
}
