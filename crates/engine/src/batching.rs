//! Which tokens go into the next step: continuous batching, chunked prefill, slots and prefix reuse. Pure: no
//! llama.cpp, no clock; the caller executes the plan and reports back.
//!
//! A slot is one sequence of the KV cache. It keeps its tokens after an answer, so that the next request of the same
//! client recomputes only what differs.

use std::collections::VecDeque;

use opengrid_protocol::session::{Tier, Token, Usage};

/// A cached prefix shorter than this is not worth leaving the compact range of slots for, in tokens.
const REUSE_TOKENS_MIN: usize = 32;
/// Later jobs of higher tiers that may go ahead of a waiting one: nobody starves.
const PASSES_MAX: u32 = 8;

/// What to compute for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: u64,
    /// Cells are reused only within one client.
    pub client: [u8; 32],
    /// Prompt and the answer so far; never empty, shorter than the context.
    pub tokens: Vec<Token>,
    /// The answer is full at this many tokens, prompt included.
    pub tokens_max: usize,
    pub tier: Tier,
}

/// A job that got a slot. The caller cuts the slot's KV cells back to `keep` tokens first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub id: u64,
    pub slot: usize,
    pub keep: usize,
}

/// `tokens[from..to]` of a slot, to be computed in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub slot: usize,
    pub from: usize,
    pub to: usize,
    /// The last token's logits are wanted: the slot is ready for its next token.
    pub output: bool,
}

/// Bounds of one step, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Everything together; at least one a slot.
    pub batch: usize,
    /// Prefill while no other slot decodes.
    pub prefill: usize,
    /// Prefill while others decode: bounds how long they stall. So many times as much when so many times more prompts
    /// wait than streams decode: the many wait no less than the few.
    pub prefill_amid_decoding: usize,
}

impl StepLimits {
    /// Room for prefill beside so many decoded tokens, while so many prompts wait.
    pub fn prefill_room(self, decoding: usize, prompts: usize) -> usize {
        let prefill = match prompts.checked_div(decoding) {
            Some(waiting) => (self.prefill_amid_decoding * waiting.max(1)).min(self.prefill),
            None => self.prefill,
        };
        self.batch.saturating_sub(decoding).min(prefill.max(1))
    }
}

/// A slot with rows to prefill.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    pub slot: usize,
    pub pending: usize,
    /// The lowest waits longest.
    pub order: u64,
}

/// Adds to each slot's `take` what it may prefill. Half of the room goes to the longest waiting prompt, so that it
/// always advances; the rest to the shortest ones, so that they do not wait behind it.
pub fn share_prefill(mut prompts: Vec<Prompt>, mut room: usize, take: &mut [usize]) {
    let Some(oldest) = prompts.iter().copied().min_by_key(|prompt| prompt.order) else { return };
    prompts.sort_by_key(|prompt| (prompt.pending, prompt.order));
    let first = std::iter::once((oldest, room.div_ceil(2)));
    for (prompt, most) in first.chain(prompts.into_iter().map(|prompt| (prompt, usize::MAX))) {
        let more = (prompt.pending - take[prompt.slot]).min(most).min(room);
        take[prompt.slot] += more;
        room -= more;
    }
}

#[derive(Debug)]
struct Slot {
    /// KV cells `0..computed` hold `tokens[..computed]`.
    tokens: Vec<Token>,
    computed: usize,
    client: [u8; 32],
    /// Rises with every use; the least recently used idle slot is evicted.
    used: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    id: u64,
    /// Order of admission.
    order: u64,
    tokens_max: usize,
    usage: Usage,
}

impl Slot {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn decodes(&self) -> bool {
        self.running.is_some() && self.pending() == 1
    }

    fn prefills(&self) -> bool {
        self.running.is_some() && self.pending() > 1
    }
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    /// Jobs of higher tiers that came later and went ahead.
    passed: u32,
}

#[derive(Debug)]
pub struct Batcher {
    slots: Vec<Slot>,
    queue: VecDeque<Waiting>,
    clock: u64,
}

impl Batcher {
    pub fn new(slots: usize) -> Self {
        let slot = || Slot { tokens: Vec::new(), computed: 0, client: [0; 32], used: 0, running: None };
        Self { slots: (0..slots).map(|_| slot()).collect(), queue: VecDeque::new(), clock: 0 }
    }

    /// Nothing runs and nothing waits.
    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// Behind all of its tier and above, before the lower ones; but a job that [`PASSES_MAX`] others went ahead of is
    /// passed no more.
    pub fn enqueue(&mut self, job: Job) {
        let passable = |waiting: &Waiting| waiting.job.tier < job.tier && waiting.passed < PASSES_MAX;
        let at = self.queue.iter().rposition(|waiting| !passable(waiting)).map_or(0, |last| last + 1);
        for waiting in self.queue.iter_mut().skip(at) {
            waiting.passed += 1;
        }
        self.queue.insert(at, Waiting { job, passed: 0 });
    }

    /// Ids that wait, first one first.
    pub fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        self.queue.iter().map(|waiting| waiting.job.id)
    }

    /// The tokens of a slot; what a [`Chunk`] points into.
    pub fn tokens(&self, slot: usize) -> &[Token] {
        &self.slots[slot].tokens
    }

    /// Gives waiting jobs their slots, first one first.
    pub fn admit(&mut self) -> Vec<Admission> {
        let mut admissions = Vec::new();
        while let Some(waiting) = self.queue.front() {
            let Some((slot, keep)) = self.choose_slot(&waiting.job) else { break };
            let Some(Waiting { job, .. }) = self.queue.pop_front() else { break };
            admissions.push(Admission { id: job.id, slot, keep });
            self.start(job, slot, keep);
        }
        admissions
    }

    fn start(&mut self, job: Job, index: usize, keep: usize) {
        self.clock += 1;
        let usage = Usage {
            cached_tokens: keep as u32,
            prefilled_tokens: (job.tokens.len() - keep) as u32,
            generated_tokens: 0,
        };
        let running = Running { id: job.id, order: self.clock, tokens_max: job.tokens_max, usage };
        self.slots[index] =
            Slot { tokens: job.tokens, computed: keep, client: job.client, used: self.clock, running: Some(running) };
    }

    /// The idle slot with the longest usable prefix; without one, an idle slot that keeps the running ids
    /// consecutive (llama.cpp batches only runs of ascending ids together), empty before least recently used.
    fn choose_slot(&self, job: &Job) -> Option<(usize, usize)> {
        let idle = || self.slots.iter().enumerate().filter(|(_, slot)| slot.running.is_none());
        let best = idle()
            .map(|(index, slot)| (reusable(slot, job), index))
            .max_by_key(|(keep, index)| (*keep, std::cmp::Reverse(*index)))?;
        if best.0 >= REUSE_TOKENS_MIN {
            return Some((best.1, best.0));
        }
        let (index, slot) =
            idle().min_by_key(|(index, slot)| (self.runs_with(*index), slot.computed > 0, slot.used, *index))?;
        Some((index, reusable(slot, job)))
    }

    /// How many runs of consecutive ids there are when `index` runs too.
    fn runs_with(&self, index: usize) -> usize {
        let runs = |i: usize| i == index || self.slots[i].running.is_some();
        (0..self.slots.len()).filter(|&i| runs(i) && (i == 0 || !runs(i - 1))).count()
    }

    /// The slot's cells could not be cut back as [`Admission::keep`] says and are all gone.
    pub fn cleared(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.computed = 0;
        if let Some(running) = &mut slot.running {
            running.usage.prefilled_tokens += running.usage.cached_tokens;
            running.usage.cached_tokens = 0;
        }
    }

    /// The next step, ascending by slot: one token of every decoding slot, and prefill within the limits.
    pub fn plan(&self, limits: StepLimits) -> Vec<Chunk> {
        let mut take = vec![0_usize; self.slots.len()];
        let mut decoding = 0;
        for (slot, take) in self.slots.iter().zip(&mut take) {
            if slot.decodes() {
                *take = 1;
                decoding += 1;
            }
        }
        let prompts: Vec<Prompt> = (0..self.slots.len())
            .filter(|&slot| self.slots[slot].prefills())
            .map(|slot| Prompt { slot, pending: self.slots[slot].pending(), order: self.order(slot) })
            .collect();
        let room = limits.prefill_room(decoding, prompts.len());
        share_prefill(prompts, room, &mut take);
        let chunks = take.into_iter().enumerate().filter(|(_, take)| *take > 0);
        chunks.map(|(slot, take)| self.chunk(slot, take)).collect()
    }

    fn order(&self, slot: usize) -> u64 {
        self.slots[slot].running.as_ref().map_or(u64::MAX, |running| running.order)
    }

    fn chunk(&self, index: usize, take: usize) -> Chunk {
        let slot = &self.slots[index];
        let to = slot.computed + take;
        Chunk { slot: index, from: slot.computed, to, output: to == slot.tokens.len() }
    }

    /// The step was computed: the cells of `chunks` are in the cache.
    pub fn computed(&mut self, chunks: &[Chunk]) {
        for chunk in chunks {
            self.slots[chunk.slot].computed = chunk.to;
        }
    }

    /// Which job runs in `slot`.
    pub fn running(&self, slot: usize) -> Option<u64> {
        self.slots[slot].running.as_ref().map(|running| running.id)
    }

    /// Appends a generated token; true when the answer is full with it.
    pub fn push(&mut self, slot: usize, token: Token) -> bool {
        let slot = &mut self.slots[slot];
        slot.tokens.push(token);
        let Some(running) = &mut slot.running else { return true };
        running.usage.generated_tokens += 1;
        slot.tokens.len() >= running.tokens_max
    }

    /// Ends the job of `slot`; its computed cells stay for the client's next request.
    pub fn finish(&mut self, slot: usize) -> Usage {
        self.clock += 1;
        let clock = self.clock;
        let slot = &mut self.slots[slot];
        slot.used = clock;
        slot.tokens.truncate(slot.computed);
        slot.running.take().map(|running| running.usage).unwrap_or_default()
    }

    /// Takes a job out of the queue or off its slot (which is returned).
    pub fn cancel(&mut self, id: u64) -> Option<usize> {
        self.queue.retain(|waiting| waiting.job.id != id);
        let slot = (0..self.slots.len()).find(|&slot| self.running(slot) == Some(id))?;
        self.finish(slot);
        Some(slot)
    }
}

/// Cells of `slot` that `job` can keep: the common prefix, less the last token, whose logits are needed.
fn reusable(slot: &Slot, job: &Job) -> usize {
    if slot.client != job.client {
        return 0;
    }
    let cached = slot.tokens[..slot.computed].iter();
    let common = cached.zip(&job.tokens).take_while(|(a, b)| a == b).count();
    common.min(job.tokens.len() - 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "batching_tests.rs"]
mod tests;
