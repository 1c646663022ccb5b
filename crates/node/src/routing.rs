//! Which worker gets a session: power of two choices (Mitzenmacher 2001) over live beacons, weighted by the estimated
//! time to the end of the answer; a worker that holds the prompt's prefix is always among the compared, and one that had
//! the last request of the same affinity key stays unless it is slower by half. Pure: the random number
//! and the time come in; integers only.

use std::{collections::VecDeque, time::Duration};

use opengrid_protocol::{
    NodeId,
    beacon::{Class, Features},
    session::Token,
};

/// Tokens of answer assumed when the estimate is made.
const ANSWER_TOKENS_ASSUMED: u64 = 128;
/// One way to a worker whose delay is not measured yet, in microseconds.
const RTT_US_UNKNOWN: u64 = 50_000;

/// A worker as the gateway sees it at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    pub class: Class,
    pub features: Features,
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
    /// Had the last request with this one's affinity key.
    pub keyed: bool,
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
pub fn choose(candidates: &[Candidate], prompt_tokens: u32, random: [u32; 3]) -> Option<usize> {
    let count = candidates.len();
    if count == 0 {
        return None;
    }
    let [first, step, draw] = random;
    let first = first as usize % count;
    let second = (first + 1 + step as usize % (count - 1).max(1)) % count;
    let estimate = |i: usize| estimated_us(&candidates[i], prompt_tokens);
    if let Some(keyed) = candidates.iter().position(|candidate| candidate.keyed)
        && lead_us(estimate(keyed), [first, second].map(estimate).into_iter().fold(u64::MAX, u64::min)) > 0
    {
        return Some(keyed);
    }
    let holder = (0..count).max_by_key(|&i| candidates[i].cached_tokens).filter(|&i| candidates[i].cached_tokens > 0);
    if let Some(holder) = holder {
        return [holder, first, second].into_iter().min_by_key(|&i| estimate(i));
    }
    let (better, other) = if estimate(second) < estimate(first) { (second, first) } else { (first, second) };
    Some(if takes_share(estimate(better), estimate(other), draw) { other } else { better })
}

/// Whether the slower of two gets this session. Estimates are as rough as the speeds they rest on: equals share evenly,
/// one that is slower by half gets nothing, in between the share falls in proportion. Always taking the better would
/// starve a newcomer that measured itself in a busy moment.
fn takes_share(better_us: u64, other_us: u64, draw: u32) -> bool {
    u128::from(draw) * u128::from(better_us.max(1)) < lead_us(other_us, better_us) << 32
}

/// By how much `us` is less than `than` and half of it.
fn lead_us(us: u64, than: u64) -> u128 {
    let than = u128::from(than.max(1));
    (than + than / 2).saturating_sub(u128::from(us))
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
/// A shorter common prefix (the template's head, which all conversations share) attracts nobody.
const AFFINITY_TOKENS_MIN: usize = 48;

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
            features: Features::EMBEDDED,
            context_tokens: 4096,
            slots: 4,
            slots_busy: 0,
            queued: 0,
            decode_millitokens_per_s: 100_000,
            prefill_millitokens_per_s: 300_000,
            rtt: Some(Duration::from_millis(1)),
            cached_tokens: 0,
            keyed: false,
        }
    }

    fn draws(count: u64) -> impl Iterator<Item = [u32; 3]> {
        let mixed = |i: u64| {
            let mixed = (i ^ (i >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
        };
        (0..count).map(move |i| [mixed(3 * i + 1), mixed(3 * i + 2), mixed(3 * i + 3)])
    }

    #[test]
    fn nobody_is_chosen_from_nobody_and_the_only_one_always() {
        assert_eq!(choose(&[], 10, [7; 3]), None);
        for random in [0, 1, u32::MAX, 0x1234_5678] {
            assert_eq!(choose(&[candidate(1)], 10, [random; 3]), Some(0));
        }
    }

    #[test]
    fn of_two_the_idle_the_faster_and_the_nearer_win() {
        let busy = Candidate { slots_busy: 4, queued: 2, ..candidate(1) };
        let slow = Candidate { decode_millitokens_per_s: 10_000, ..candidate(1) };
        let far = Candidate { rtt: Some(Duration::from_millis(900)), ..candidate(1) };
        for worse in [busy, slow, far] {
            for random in draws(64) {
                assert_eq!(choose(&[worse.clone(), candidate(2)], 10, random), Some(1), "{worse:?}");
            }
        }
    }

    /// The times that each of `workers` is chosen in 6,000 draws.
    fn counts(workers: &[Candidate]) -> Vec<u32> {
        let mut counts = vec![0; workers.len()];
        draws(6_000).for_each(|random| counts[choose(workers, 10, random).unwrap()] += 1);
        counts
    }

    #[test]
    fn equals_share_evenly() {
        let counts = counts(&(0..8).map(candidate).collect::<Vec<_>>());
        assert!(counts.iter().all(|count| (600..900).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_slower_gets_less_and_is_not_starved_by_a_rough_measure() {
        let slower = Candidate { decode_millitokens_per_s: 80_000, ..candidate(3) };
        let counts = counts(&[candidate(1), candidate(2), slower]);
        assert!(counts[2] > 600 && counts[2] < counts[0] * 3 / 4 && counts[2] < counts[1] * 3 / 4, "{counts:?}");
    }

    #[test]
    fn a_held_prefix_attracts_until_its_holder_is_overloaded() {
        let mut workers: Vec<_> = (0..16).map(candidate).collect();
        workers[11].cached_tokens = 900;
        assert!(draws(32).all(|random| choose(&workers, 1_000, random) == Some(11)));
        workers[11].slots_busy = 4;
        workers[11].queued = 12;
        assert!(draws(32).all(|random| choose(&workers, 1_000, random) != Some(11)));
    }

    #[test]
    fn a_key_keeps_its_worker_until_another_is_faster_by_half() {
        let mut workers: Vec<_> = (0..16).map(candidate).collect();
        workers[11] = Candidate { keyed: true, decode_millitokens_per_s: 70_000, ..candidate(11) };
        assert!(draws(32).all(|random| choose(&workers, 20, random) == Some(11)));
        workers[11].slots_busy = 2;
        assert!(draws(32).any(|random| choose(&workers, 20, random) != Some(11)));
    }

    #[test]
    fn affinity_remembers_the_longest_prefix_per_node() {
        let mut affinity = Affinity::default();
        let prompt: Vec<Token> = (0..100).collect();
        affinity.remember(NodeId([1; 32]), &prompt[..50]);
        affinity.remember(NodeId([1; 32]), &prompt[..60]);
        affinity.remember(NodeId([2; 32]), &prompt[..40]);
        assert_eq!(affinity.cached_tokens(NodeId([1; 32]), &prompt), 60);
        assert_eq!(affinity.cached_tokens(NodeId([2; 32]), &prompt), 0, "too short to matter");
        affinity.forget(NodeId([1; 32]));
        assert_eq!(affinity.cached_tokens(NodeId([1; 32]), &prompt), 0);
    }
}
