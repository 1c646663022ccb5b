//! Chooses workers for answers: the pure [`routing`](crate::routing) over the live [`directory`](crate::directory),
//! with what this gateway knows itself (open sessions, delays, cached prefixes).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use opengrid_network::Network;
use opengrid_protocol::{
    ModelRoot, NodeId,
    beacon::{Class, Features},
    session::Token,
};
use parking_lot::Mutex;

use crate::{
    clock,
    directory::Directory,
    routing::{self, Affinity, Candidate},
    running::RunningChains,
    session::{Fault, FaultSink, links::Links},
};

pub struct Placement {
    pub links: Arc<Links>,
    pub directory: Mutex<Directory>,
    network: Network,
    affinity: Mutex<Affinity>,
    /// Worker by `prompt_cache_key`.
    keyed: Mutex<HashMap<String, NodeId>>,
    open: Arc<Mutex<HashMap<NodeId, u32>>>,
    /// Nodes that did not answer just now, for all answers alike.
    suspects: Mutex<HashMap<NodeId, Suspicion>>,
    /// Nodes that cheated.
    banned: Mutex<HashMap<NodeId, Ban>>,
    faults: FaultSink,
    pub counters: Counters,
    pub running: RunningChains,
}

#[derive(Default)]
pub struct Counters {
    pub failovers: AtomicU64,
    pub busy_refusals: AtomicU64,
    /// Rows that parts of chains compute again, because the chain was put together anew.
    pub rows_again: AtomicU64,
}

/// What a worker must be able to do for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Of context, in tokens.
    pub tokens: u32,
    pub features: Features,
}

impl Needs {
    fn are_met_by(self, candidate: &Candidate) -> bool {
        candidate.context_tokens >= self.tokens && candidate.features.contains(self.features)
    }
}

/// A session counted at a worker; uncounted on drop.
pub struct Lease {
    pub worker: NodeId,
    pub class: Class,
    /// How long the worker may take to show progress, by what it says of its speed.
    pub progress_within: Duration,
    /// The same once tokens flow.
    pub token_within: Duration,
    open: Arc<Mutex<HashMap<NodeId, u32>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&self.worker) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.worker);
            }
        }
    }
}

/// A worker that runs a session shows progress within four times its prefill estimate for each session that runs there,
/// between these bounds.
const PROGRESS_MIN: Duration = Duration::from_secs(8);
const PROGRESS_MAX: Duration = Duration::from_secs(300);
/// Silence in mid-answer that no load explains: the time of so many tokens of a lone stream, and at least this long.
const TOKENS_OF_SILENCE: u64 = 64;
const TOKEN_SILENCE_MIN: Duration = Duration::from_millis(2_500);
/// How long a worker that did not answer comes last.
const SUSPICION: Duration = Duration::from_secs(5);
struct Ban {
    until: Instant,
    fault: Fault,
}

struct Suspicion {
    until: Instant,
    /// It was heard since.
    spoke: bool,
}

/// As long as the network refuses a punished node.
const BAN: Duration = Duration::from_secs(300);
const BANNED_MAX: usize = 10_000;
const REFUSED_SHOWN_MAX: usize = 256;
/// Affinity keys remembered.
const KEYED_MAX: usize = 10_000;

impl Placement {
    pub fn new(network: Network, links: Links, faults: FaultSink) -> Self {
        Self {
            links: Arc::new(links),
            directory: Mutex::default(),
            network,
            affinity: Mutex::default(),
            keyed: Mutex::default(),
            open: Arc::default(),
            suspects: Mutex::default(),
            banned: Mutex::default(),
            faults,
            counters: Counters::default(),
            running: RunningChains::default(),
        }
    }

    /// Chooses among the live workers that can do what is `needed`, those of `class` first (a continuation stays exact).
    pub fn choose(
        &self,
        model: ModelRoot,
        tokens: &[Token],
        needed: Needs,
        class: Option<Class>,
        affinity_key: Option<&str>,
        avoid: impl Fn(NodeId) -> bool,
    ) -> Option<Lease> {
        let mut candidates = self.candidates(model, tokens, affinity_key);
        candidates.retain(|candidate| !avoid(candidate.node) && needed.are_met_by(candidate));
        let wanted = class.unwrap_or(Class::Approximate);
        let is_same = |candidate: &Candidate| candidate.class == wanted;
        if matches!(class, Some(Class::Exact(_))) && candidates.iter().any(is_same) {
            candidates.retain(is_same);
        }
        // A suspicion is no reason for another text.
        self.prefer_unsuspected(&mut candidates);
        let chosen = routing::choose(&candidates, tokens.len() as u32, rand::random())?;
        let Candidate { node, class, slots, slots_busy, prefill_millitokens_per_s, decode_millitokens_per_s, .. } =
            candidates[chosen];
        let prefill_ms = tokens.len() as u64 * 1_000_000 / u64::from(prefill_millitokens_per_s.max(1));
        let progress_within = PROGRESS_MIN
            .max(Duration::from_millis(prefill_ms * 4 * (1 + u64::from(slots_busy.min(slots.into())))))
            .min(PROGRESS_MAX);
        let token_ms = TOKENS_OF_SILENCE * 1_000_000 / u64::from(decode_millitokens_per_s.max(1));
        let token_within = TOKEN_SILENCE_MIN.max(Duration::from_millis(token_ms)).min(PROGRESS_MAX);
        if let Some(key) = affinity_key {
            self.remember_key(key, node);
        }
        *self.open.lock().entry(node).or_insert(0) += 1;
        Some(Lease { worker: node, class, progress_within, token_within, open: self.open.clone() })
    }

    fn prefer_unsuspected(&self, candidates: &mut Vec<Candidate>) {
        let now = Instant::now();
        let mut suspects = self.suspects.lock();
        suspects.retain(|_, suspicion| suspicion.until > now);
        if candidates.iter().any(|candidate| !suspects.contains_key(&candidate.node)) {
            candidates.retain(|candidate| !suspects.contains_key(&candidate.node));
        }
    }

    /// The node did not answer: others first, for a while.
    pub fn suspect(&self, node: NodeId) {
        self.suspects.lock().insert(node, Suspicion { until: Instant::now() + SUSPICION, spoke: false });
    }

    /// A beacon of the node came.
    pub fn node_spoke(&self, node: NodeId) {
        if let Some(suspicion) = self.suspects.lock().get_mut(&node) {
            suspicion.spoke = true;
        }
    }

    /// The node cheated: nobody's worker, until the ban of its connections ends too.
    pub fn ban(&self, node: NodeId, fault: Fault) {
        let now = Instant::now();
        let mut banned = self.banned.lock();
        banned.retain(|_, ban| ban.until > now);
        if banned.len() < BANNED_MAX {
            banned.insert(node, Ban { until: now + BAN, fault });
        }
    }

    /// Who is refused now and why, [`REFUSED_SHOWN_MAX`] at most.
    pub fn refused(&self) -> Vec<(NodeId, Fault)> {
        let now = Instant::now();
        let banned = self.banned.lock();
        let refused = banned.iter().filter(|(_, ban)| ban.until > now).map(|(node, ban)| (*node, ban.fault));
        refused.take(REFUSED_SHOWN_MAX).collect()
    }

    /// It did not answer a moment ago: it comes after all others.
    pub fn is_suspected(&self, node: NodeId) -> bool {
        self.suspects.lock().get(&node).is_some_and(|suspicion| suspicion.until > Instant::now())
    }

    /// It did not answer a moment ago, and was not heard since.
    pub fn is_silent(&self, node: NodeId) -> bool {
        let is_silent = |suspicion: &Suspicion| suspicion.until > Instant::now() && !suspicion.spoke;
        self.suspects.lock().get(&node).is_some_and(is_silent)
    }

    /// One-way delays from this node to its peers, in microseconds.
    pub fn own_ways(&self) -> HashMap<NodeId, u64> {
        let half = |rtt: Duration| rtt.as_micros() as u64 / 2;
        let peers = self.network.peers().into_iter().filter_map(|peer| Some((peer.node, half(peer.rtt?))));
        peers.chain([(self.network.local(), 0)]).collect()
    }

    pub fn is_banned(&self, node: NodeId) -> bool {
        self.banned.lock().get(&node).is_some_and(|ban| ban.until > Instant::now())
    }

    fn candidates(&self, model: ModelRoot, tokens: &[Token], affinity_key: Option<&str>) -> Vec<Candidate> {
        let keyed = affinity_key.and_then(|key| self.keyed.lock().get(key).copied());
        let rtts: HashMap<NodeId, Duration> =
            self.network.peers().into_iter().filter_map(|peer| Some((peer.node, peer.rtt?))).collect();
        let open = self.open.lock().clone();
        let affinity = self.affinity.lock();
        let local = self.network.local();
        self.directory
            .lock()
            .workers(model, clock::monotonic_ms())
            .filter(|(node, beacon)| !beacon.draining && !self.is_banned(*node))
            .map(|(node, beacon)| Candidate {
                node,
                class: beacon.class,
                features: beacon.features,
                context_tokens: beacon.context_tokens,
                slots: beacon.slots,
                slots_busy: u32::from(beacon.slots_busy).max(open.get(&node).copied().unwrap_or(0)),
                queued: u32::from(beacon.queued),
                decode_millitokens_per_s: beacon.decode_millitokens_per_s,
                prefill_millitokens_per_s: beacon.prefill_millitokens_per_s,
                rtt: if node == local { Some(Duration::ZERO) } else { rtts.get(&node).copied() },
                cached_tokens: affinity.cached_tokens(node, tokens),
                keyed: keyed == Some(node),
            })
            .collect()
    }

    fn remember_key(&self, key: &str, node: NodeId) {
        let mut keyed = self.keyed.lock();
        if keyed.len() >= KEYED_MAX {
            keyed.clear();
        }
        keyed.insert(key.to_owned(), node);
    }

    /// Whether a live worker of the model has these features.
    pub fn can(&self, model: ModelRoot, features: Features) -> bool {
        let directory = self.directory.lock();
        directory.holders(model, clock::monotonic_ms()).any(|(_, beacon)| beacon.features.contains(features))
    }

    /// The contexts of the live workers of a model, smallest first; the stages of it count as one worker if they make a
    /// chain.
    pub fn contexts(&self, model: ModelRoot) -> Vec<u32> {
        let directory = self.directory.lock();
        let live = directory.workers(model, clock::monotonic_ms());
        let mut contexts: Vec<u32> = live
            .filter(|(node, beacon)| !beacon.draining && !self.is_banned(*node))
            .map(|(_, beacon)| beacon.context_tokens)
            .collect();
        drop(directory);
        contexts.extend(self.chain_context(model));
        contexts.sort_unstable();
        contexts
    }

    /// An answer ended at `node`: its cache holds these tokens now.
    pub fn remember(&self, node: NodeId, tokens: &[Token]) {
        self.affinity.lock().remember(node, tokens);
    }

    pub fn failed_over(&self, busy: bool) {
        let counter = if busy { &self.counters.busy_refusals } else { &self.counters.failovers };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn report(&self, worker: NodeId, fault: Fault) {
        (self.faults)(worker, fault);
    }

    /// A node connected: it answers again.
    pub fn node_came(&self, node: NodeId) {
        self.suspects.lock().remove(&node);
    }

    /// A node's connection closed.
    pub fn node_left(&self, node: NodeId) {
        self.directory.lock().forget_node(node);
        self.affinity.lock().forget(node);
        self.links.close(node);
    }
}
