//! Many peers at once: chunks in parallel, each proven before it counts.
//!
//! One task decides; requests are futures that it polls. A peer that lies is dropped and reported, one that fails too
//! often is dropped, one that is busy is left alone for a moment. When only slow peers hold the last chunks, idle ones
//! are asked for the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use opengrid_protocol::{ModelRoot, NodeId};
use tokio::time::{Instant, sleep, timeout};

use super::{FetchConfig, Meter, PeerError, PeerSource, Phase, SharedPartial, SourceError};
use crate::chunk_tree::Tree;

const PROVIDERS_MAX: usize = 64;
/// Failures in a row before a peer is dropped.
const FAILURES_MAX: u32 = 3;
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(300);
/// "Busy" in a row before a peer is dropped (about half a minute).
const BUSY_MAX: u32 = 100;
/// After this long a chunk that is still on its way is asked of another, idle peer too.
const DUPLICATE_AFTER: Duration = Duration::from_secs(5);
/// Each chunk is asked of at most so many peers at once.
const COPIES_MAX: usize = 2;
/// Chunks that wait, of which one is looked for that a free peer may have.
const LOOKED_AT_MAX: usize = 64;
/// Rounds of looking for providers again when all are gone.
const SEARCHES_MAX: u32 = 3;

fn unavailable(why: impl Into<String>) -> SourceError {
    SourceError::Unavailable(why.into())
}

pub(super) async fn fetch(
    config: &FetchConfig,
    source: &dyn PeerSource,
    root: ModelRoot,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), SourceError> {
    let size = partial.with(|partial| Ok(partial.size())).await?;
    let known = partial.with(|partial| Ok(partial.tree().cloned())).await?;
    let (tree, providers) = match known {
        Some(tree) => (tree, providers(config, source, root).await),
        None => find_tree(config, source, root, size).await.map_err(unavailable)?,
    };
    if providers.is_empty() {
        return Err(unavailable("no peer has it"));
    }
    let taken = tree.clone();
    let missing: VecDeque<u32> = partial
        .with(move |partial| {
            if partial.tree().is_none() {
                partial.use_tree(taken)?;
            }
            Ok(partial.missing_chunks().collect())
        })
        .await?;
    meter.phase_from(Phase::Downloading, partial.with(|partial| Ok(partial.done_bytes())).await?);
    let swarm = Swarm { config, source, tree, queue: missing, peers: BTreeMap::new(), flights: Vec::new() };
    swarm.run(providers, partial, meter).await
}

async fn providers(config: &FetchConfig, source: &dyn PeerSource, root: ModelRoot) -> Vec<NodeId> {
    let mut found = timeout(config.chunk_time_max, source.providers(root)).await.unwrap_or_default();
    found.truncate(PROVIDERS_MAX);
    found
}

/// The proven tree of a file, and the providers that did not lie about it.
pub(super) async fn find_tree(
    config: &FetchConfig,
    source: &dyn PeerSource,
    root: ModelRoot,
    size: u64,
) -> Result<(Tree, Vec<NodeId>), String> {
    let mut candidates = providers(config, source, root).await;
    let mut why = "no peer has it".to_owned();
    let mut at = 0;
    while let Some(node) = candidates.get(at).copied() {
        match timeout(config.chunk_time_max, source.manifest(node, root)).await {
            Ok(Ok(manifest)) => match Tree::verify(manifest, root, size) {
                Ok(tree) => return Ok((tree, candidates)),
                Err(error) => {
                    source.misbehaved(node, &error.to_string());
                    why = format!("{} lied: {error}", node.short());
                    candidates.remove(at);
                }
            },
            Ok(Err(PeerError::NotHere)) => drop(candidates.remove(at)),
            Ok(Err(error)) => {
                why = format!("{}: {error}", node.short());
                at += 1;
            }
            Err(_) => {
                why = format!("{} did not answer in time", node.short());
                candidates.remove(at);
            }
        }
    }
    Err(why)
}

/// One chunk, within the time that a chunk may take.
pub(super) async fn timed_chunk(
    config: &FetchConfig,
    source: &dyn PeerSource,
    node: NodeId,
    root: ModelRoot,
    index: u32,
) -> Result<Vec<u8>, PeerError> {
    let late = || PeerError::Unreachable("it took too long".to_owned());
    timeout(config.chunk_time_max, source.chunk(node, root, index)).await.unwrap_or_else(|_| Err(late()))
}

#[derive(Default)]
struct Peer {
    in_flight: usize,
    failures: u32,
    busy: u32,
    rests_until: Option<Instant>,
    delivered: u64,
    /// Chunks that it does not have: it holds a part of the file.
    lacks: BTreeSet<u32>,
}

struct Flight {
    index: u32,
    node: NodeId,
    since: Instant,
}

struct Landed {
    index: u32,
    node: NodeId,
    result: Result<Vec<u8>, PeerError>,
}

struct Swarm<'a> {
    config: &'a FetchConfig,
    source: &'a dyn PeerSource,
    tree: Tree,
    queue: VecDeque<u32>,
    /// Live ones only.
    peers: BTreeMap<NodeId, Peer>,
    flights: Vec<Flight>,
}

impl<'a> Swarm<'a> {
    async fn run(mut self, first: Vec<NodeId>, partial: &SharedPartial, meter: &Meter) -> Result<(), SourceError> {
        let mut requests: FuturesUnordered<BoxFuture<'a, Landed>> = FuturesUnordered::new();
        let mut dropped = Vec::new();
        let mut searches = 0;
        self.peers.extend(first.into_iter().map(|node| (node, Peer::default())));
        loop {
            while let Some((node, index)) = self.next_request() {
                requests.push(self.request(node, index));
            }
            if self.queue.is_empty() && self.flights.is_empty() {
                return Ok(());
            }
            if self.peers.is_empty() && requests.is_empty() {
                searches += 1;
                self.search(searches, &dropped).await?;
                continue;
            }
            tokio::select! {
                Some(landed) = requests.next(), if !requests.is_empty() => {
                    let node = landed.node;
                    self.land(landed, partial, meter).await?;
                    if !self.peers.contains_key(&node) {
                        dropped.push(node);
                    }
                }
                () = sleep(BUSY_PAUSE) => {}
            }
        }
    }

    /// All peers are gone: somebody else may have come.
    async fn search(&mut self, round: u32, dropped: &[NodeId]) -> Result<(), SourceError> {
        let gone = || unavailable(format!("the peers that had it are gone, {} chunks are missing", self.queue.len()));
        if round > SEARCHES_MAX {
            return Err(gone());
        }
        let mut found = providers(self.config, self.source, self.tree.root()).await;
        found.retain(|node| !dropped.contains(node));
        if found.is_empty() {
            return Err(gone());
        }
        self.peers.extend(found.into_iter().map(|node| (node, Peer::default())));
        Ok(())
    }

    fn next_request(&mut self) -> Option<(NodeId, u32)> {
        if self.flights.len() >= self.config.chunks_in_all.max(1) {
            return None;
        }
        let now = Instant::now();
        let free = |peer: &Peer| {
            let limit = if peer.failures + peer.busy > 0 { 1 } else { self.config.chunks_per_peer.max(1) };
            peer.in_flight < limit && peer.rests_until.is_none_or(|until| until <= now)
        };
        let candidates =
            |index: u32| self.peers.iter().filter(move |(_, peer)| free(peer) && !peer.lacks.contains(&index));
        let best = |index: u32| {
            let rank = |peer: &Peer| (peer.in_flight, peer.failures, u64::MAX - peer.delivered);
            candidates(index).min_by_key(|(_, peer)| rank(peer)).map(|(node, _)| *node)
        };
        if !self.queue.is_empty() {
            let looked_at = self.queue.iter().take(LOOKED_AT_MAX);
            let (at, node) = looked_at.enumerate().find_map(|(at, index)| Some((at, best(*index)?)))?;
            return Some((node, self.queue.remove(at)?));
        }
        let late = |flight: &&Flight| {
            let copies = self.flights.iter().filter(|other| other.index == flight.index).count();
            now.duration_since(flight.since) > DUPLICATE_AFTER && copies < COPIES_MAX
        };
        let flight = self.flights.iter().find(late)?;
        let (node, _) = candidates(flight.index).find(|(node, peer)| peer.in_flight == 0 && **node != flight.node)?;
        Some((*node, flight.index))
    }

    fn request(&mut self, node: NodeId, index: u32) -> BoxFuture<'a, Landed> {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.in_flight += 1;
        }
        self.flights.push(Flight { index, node, since: Instant::now() });
        let (config, source, root) = (self.config, self.source, self.tree.root());
        Box::pin(async move { Landed { index, node, result: timed_chunk(config, source, node, root, index).await } })
    }

    async fn land(&mut self, landed: Landed, partial: &SharedPartial, meter: &Meter) -> Result<(), SourceError> {
        let Landed { index, node, result } = landed;
        let Some(at) = self.flights.iter().position(|flight| flight.index == index && flight.node == node) else {
            // A copy of this chunk came first and the flight was struck off then.
            return Ok(());
        };
        self.flights.swap_remove(at);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
        }
        let checked = result.map(|bytes| self.tree.verify_chunk(index, &bytes).map(|()| bytes));
        match checked {
            Ok(Ok(bytes)) => {
                self.delivered(node, index);
                let write = move |partial: &mut crate::store::Partial| {
                    partial.write_chunk(index, &bytes).map(|()| partial.done_bytes())
                };
                meter.done(partial.with(write).await?);
            }
            Ok(Err(lie)) => {
                if self.peers.remove(&node).is_some() {
                    self.source.misbehaved(node, &lie.to_string());
                }
                self.requeue(index);
            }
            Err(error) => {
                self.failed(node, index, &error);
                self.requeue(index);
            }
        }
        Ok(())
    }

    fn delivered(&mut self, node: NodeId, index: u32) {
        if let Some(peer) = self.peers.get_mut(&node) {
            (peer.failures, peer.busy, peer.rests_until) = (0, 0, None);
            peer.delivered += 1;
        }
        let copies: Vec<NodeId> =
            self.flights.iter().filter(|flight| flight.index == index).map(|flight| flight.node).collect();
        self.flights.retain(|flight| flight.index != index);
        for copy in copies {
            if let Some(peer) = self.peers.get_mut(&copy) {
                peer.in_flight = peer.in_flight.saturating_sub(1);
            }
        }
    }

    fn failed(&mut self, node: NodeId, index: u32, error: &PeerError) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match error {
            PeerError::Busy => peer.busy += 1,
            PeerError::NotHere => {
                peer.lacks.insert(index);
                if self.queue.iter().all(|index| peer.lacks.contains(index)) {
                    self.peers.remove(&node);
                }
                return;
            }
            _ => peer.failures += 1,
        }
        peer.rests_until = Some(Instant::now() + BUSY_PAUSE);
        if peer.failures >= FAILURES_MAX || peer.busy >= BUSY_MAX {
            tracing::debug!(%node, %error, "a peer is left out of this download");
            self.peers.remove(&node);
        }
    }

    /// Back to the queue, unless a copy is still on its way.
    fn requeue(&mut self, index: u32) {
        if !self.flights.iter().any(|flight| flight.index == index) {
            self.queue.push_front(index);
        }
    }
}
