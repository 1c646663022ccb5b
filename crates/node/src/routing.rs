//! Which worker gets a session: power of two choices (Mitzenmacher 2001) over live beacons, by the estimated time to
//! the end of the answer, with the worker that holds the prompt's prefix always among the compared. Pure: the random
//! number and the time come in; integers only.

use std::{collections::VecDeque, time::Duration};

use opengrid_protocol::{NodeId, beacon::Class, session::Token};

/// Tokens of answer assumed when the estimate is made.
const ANSWER_TOKENS_ASSUMED: u64 = 128;
/// One way to a worker whose delay is not measured yet, in microseconds.
const RTT_US_UNKNOWN: u64 = 50_000;

/// A worker as the gateway sees it at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    pub class: Class,
    pub context_tokens: u32,
    pub slots: u16,
    /// The larger of what its beacon says and what this gateway has open there.
    pub slots_busy: u32,
    pub queued: u32,
    pub decode_millitokens_per_s: u32,
    pub prefill_millitokens_per_s: u32,
    pub rtt: Option<Duration>,
    /// Tokens of this prompt that its cache should hold.
    pub cached_tokens: u32,
}

/// Estimated microseconds until the answer to a prompt of `prompt_tokens` ends at `candidate`.
pub fn estimated_us(candidate: &Candidate, prompt_tokens: u32) -> u64 {
    let per_token_us = |millitokens_per_s: u32| 1_000_000_000 / u64::from(millitokens_per_s.max(1));
    let fresh_tokens = u64::from(prompt_tokens.saturating_sub(candidate.cached_tokens));
    let prefill_us = fresh_tokens * per_token_us(candidate.prefill_millitokens_per_s);
    let decode_us = ANSWER_TOKENS_ASSUMED * per_token_us(candidate.decode_millitokens_per_s);
    let slots = u64::from(candidate.slots.max(1));
    let busy = u64::from(candidate.slots_busy);
    // Streams in one batch share the machine; beyond the slots whole answers wait.
    let shared_us = (prefill_us + decode_us).saturating_mul(slots + busy.min(slots)) / slots;
    let waiting = u64::from(candidate.queued) + busy.saturating_sub(slots);
    let wait_us = if busy >= slots { (waiting + 1) * decode_us / slots } else { 0 };
    let rtt_us = candidate.rtt.map_or(RTT_US_UNKNOWN, |rtt| rtt.as_micros() as u64);
    shared_us.saturating_add(wait_us).saturating_add(rtt_us)
}

/// The position of the chosen candidate, `None` without any. `random` must be uniform.
pub fn choose(candidates: &[Candidate], prompt_tokens: u32, random: u64) -> Option<usize> {
    let count = candidates.len() as u64;
    if count == 0 {
        return None;
    }
    let first = (random % count) as usize;
    let second = ((random >> 32) % count.saturating_sub(1).max(1) + 1 + first as u64) as usize % candidates.len();
    let cached = (0..candidates.len()).max_by_key(|&i| candidates[i].cached_tokens);
    [Some(first), Some(second), cached.filter(|&i| candidates[i].cached_tokens > 0)]
        .into_iter()
        .flatten()
        .min_by_key(|&i| (estimated_us(&candidates[i], prompt_tokens), candidates[i].node))
}

/// Remembers which worker saw which prompt last, so that its KV cache is used again. Hashes never leave the gateway.
#[derive(Debug, Default)]
pub struct Affinity {
    seen: VecDeque<(NodeId, Vec<Token>)>,
}

/// Prompts remembered.
const AFFINITY_ENTRIES_MAX: usize = 256;
/// Tokens remembered of each.
const AFFINITY_TOKENS_MAX: usize = 4_096;
/// A shorter common prefix (the template's head, say) attracts nobody.
const AFFINITY_TOKENS_MIN: usize = 16;

impl Affinity {
    pub fn remember(&mut self, node: NodeId, tokens: &[Token]) {
        let tokens = &tokens[..tokens.len().min(AFFINITY_TOKENS_MAX)];
        self.seen.retain(|(id, known)| *id != node || !tokens.starts_with(known));
        self.seen.push_back((node, tokens.to_vec()));
        if self.seen.len() > AFFINITY_ENTRIES_MAX {
            self.seen.pop_front();
        }
    }

    /// Tokens of `prompt` that `node` probably still holds.
    pub fn cached_tokens(&self, node: NodeId, prompt: &[Token]) -> u32 {
        let common = |known: &[Token]| known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.seen
            .iter()
            .filter(|(id, _)| *id == node)
            .map(|(_, known)| common(known))
            .max()
            .filter(|&tokens| tokens >= AFFINITY_TOKENS_MIN)
            .unwrap_or(0) as u32
    }

    pub fn forget(&mut self, node: NodeId) {
        self.seen.retain(|(id, _)| *id != node);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn candidate(id: u8) -> Candidate {
        Candidate {
            node: NodeId([id; 32]),
            class: Class::Approximate,
            context_tokens: 4096,
            slots: 4,
            slots_busy: 0,
            queued: 0,
            decode_millitokens_per_s: 100_000,
            prefill_millitokens_per_s: 300_000,
            rtt: Some(Duration::from_millis(1)),
            cached_tokens: 0,
        }
    }

    #[test]
    fn nobody_is_chosen_from_nobody_and_the_only_one_always() {
        assert_eq!(choose(&[], 10, 7), None);
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            assert_eq!(choose(&[candidate(1)], 10, random), Some(0));
        }
    }

    #[test]
    fn of_two_the_idle_the_faster_and_the_nearer_win() {
        let busy = Candidate { slots_busy: 4, queued: 2, ..candidate(1) };
        let slow = Candidate { decode_millitokens_per_s: 10_000, ..candidate(1) };
        let far = Candidate { rtt: Some(Duration::from_millis(300)), ..candidate(1) };
        for worse in [busy, slow, far] {
            for random in (0..64u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                assert_eq!(choose(&[worse.clone(), candidate(2)], 10, random), Some(1), "{worse:?}");
            }
        }
    }

    #[test]
    fn load_spreads_over_equals() {
        let workers: Vec<_> = (0..8).map(candidate).collect();
        let mut counts = [0; 8];
        for i in 0..800u64 {
            let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ i.wrapping_mul(0xd134_2543_de82_ef95);
            counts[choose(&workers, 10, random).unwrap()] += 1;
        }
        // Equals are told apart by id, so of a pair the lower wins: the last gets least but is still compared.
        assert!(counts[..7].iter().all(|&count| count > 10), "{counts:?}");
    }

    #[test]
    fn a_held_prefix_attracts_until_its_holder_is_overloaded() {
        let mut workers: Vec<_> = (0..16).map(candidate).collect();
        workers[11].cached_tokens = 900;
        assert!((0..32).all(|random| choose(&workers, 1_000, random) == Some(11)));
        workers[11].slots_busy = 4;
        workers[11].queued = 12;
        assert!((0..32).all(|random| choose(&workers, 1_000, random) != Some(11)));
    }

    #[test]
    fn affinity_remembers_the_longest_prefix_per_node() {
        let mut affinity = Affinity::default();
        let prompt: Vec<Token> = (0..100).collect();
        affinity.remember(NodeId([1; 32]), &prompt[..40]);
        affinity.remember(NodeId([1; 32]), &prompt[..60]);
        affinity.remember(NodeId([2; 32]), &prompt[..10]);
        assert_eq!(affinity.cached_tokens(NodeId([1; 32]), &prompt), 60);
        assert_eq!(affinity.cached_tokens(NodeId([2; 32]), &prompt), 0, "too short to matter");
        affinity.forget(NodeId([1; 32]));
        assert_eq!(affinity.cached_tokens(NodeId([1; 32]), &prompt), 0);
    }
}
