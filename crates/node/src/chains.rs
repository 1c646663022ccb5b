//! Chooses chains of stages for sessions: the pure [`opengrid_scheduler::route`] over the live directory.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use opengrid_protocol::{
    Layers, ModelRoot, NodeId,
    beacon::{Beacon, Class, StageBeacon},
    session::Token,
};
use opengrid_scheduler::{Offer, coverage, route};

use crate::{
    clock,
    handle::{CoverageRow, NodeIdText, StageRow},
    placement::{Needs, Placement},
};

/// One way between nodes of which nothing is known, in microseconds.
const ONE_WAY_US_UNKNOWN: u64 = 25_000;
/// Laps over which the cost of beginning at a stage is spread.
const LAPS_ASSUMED: u64 = 64;
/// Of beginning at a stage, besides computing what it lacks.
const JOIN_US: u64 = 200_000;

/// A stage of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStage {
    pub node: NodeId,
    pub layers: Layers,
    pub class: Class,
    /// A token's time here, and a prompt token's, in microseconds.
    pub visit_us: u64,
    pub prefill_us: u64,
}

impl ChainStage {
    fn of(node: NodeId, beacon: &Beacon, stage: &StageBeacon) -> Self {
        let per_row_us = |millirows_per_s: u32| 1_000_000_000 / u64::from(millirows_per_s.max(1));
        let (slots, busy) = (u64::from(beacon.slots.max(1)), u64::from(beacon.slots_busy.min(beacon.slots)));
        Self {
            node,
            layers: stage.layers,
            class: beacon.class,
            // Streams in one batch share the machine.
            visit_us: per_row_us(beacon.decode_millitokens_per_s) * (slots + busy) / slots,
            prefill_us: per_row_us(beacon.prefill_millitokens_per_s),
        }
    }
}

/// What a stage has of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// It takes part.
    Has,
    /// It has rows, not computed yet.
    Prepared,
    Anew,
}

/// What a chain as a whole computes: stages of the same layers and classes continue each other's answers bit for bit.
pub fn class_of(chain: &[ChainStage]) -> Class {
    let mut hash = blake3::Hasher::new_derive_key("opengrid 2026 class of a chain of stages");
    for stage in chain {
        let Class::Exact(class) = stage.class else { return Class::Approximate };
        hash.update(&stage.layers.from().to_le_bytes()).update(&stage.layers.to().to_le_bytes()).update(&class);
    }
    let mut class = [0; 16];
    hash.finalize_xof().fill(&mut class);
    Class::Exact(class)
}

/// How long a chain may take to its first token from `rows` rows, and from token to token, before it counts as stuck.
pub fn patience(chain: &[ChainStage], rows: usize) -> (Duration, Duration) {
    let prefill_us: u64 = chain.iter().map(|stage| stage.prefill_us.saturating_mul(rows as u64)).sum();
    let lap_us: u64 = chain.iter().map(|stage| stage.visit_us + 2 * ONE_WAY_US_UNKNOWN).sum();
    let first = Duration::from_micros(4 * prefill_us) + Duration::from_secs(6);
    let token = (Duration::from_micros(12 * lap_us)).max(Duration::from_millis(1_500));
    (first.min(Duration::from_secs(300)), token.min(Duration::from_secs(60)))
}

impl Placement {
    /// The chain for a session whose tokens are `tokens`; `joins` says what stages have of it. `None` where the live stages
    /// that can take it leave a gap.
    pub fn chain(
        &self,
        model: ModelRoot,
        tokens: &[Token],
        needed: Needs,
        joins: impl Fn(NodeId, Layers) -> Joins,
        avoid: impl Fn(NodeId) -> bool,
    ) -> Option<Vec<ChainStage>> {
        let chain = |out: &dyn Fn(NodeId) -> bool| {
            let (offered, layer_count, delays) = self.offered(model, |node, beacon, stage| {
                let free = beacon.slots_busy < beacon.slots && !beacon.draining;
                !out(node) && can(beacon, needed) && (free || joins(node, stage.layers) == Joins::Has)
            })?;
            shortest(&offered, layer_count, &delays, tokens.len(), &joins)
        };
        chain(&|node| avoid(node) || self.is_suspected(node))
            // Only they are left, and some came back.
            .or_else(|| chain(&|node| avoid(node) || self.is_silent(node)))
    }

    /// Whether the live stages, busy ones as well, make a chain.
    pub fn has_chain(&self, model: ModelRoot, needed: Needs) -> bool {
        let every = self.offered(model, |_, beacon, _| !beacon.draining && can(beacon, needed));
        every.is_some_and(|(offered, layer_count, _)| reaches(&offered, layer_count))
    }

    /// The longest context that a chain of live stages has.
    pub fn chain_context(&self, model: ModelRoot) -> Option<u32> {
        let mut contexts: Vec<u32> = {
            let directory = self.directory.lock();
            let stages = directory.stages(model, clock::monotonic_ms());
            stages.map(|(_, beacon, _)| beacon.context_tokens).collect()
        };
        contexts.sort_unstable();
        contexts.dedup();
        let reaches = |context: u32| {
            let every = self.offered(model, |_, beacon, _| !beacon.draining && beacon.context_tokens >= context);
            every.is_some_and(|(offered, layer_count, _)| reaches(&offered, layer_count))
        };
        contexts.into_iter().rev().find(|context| reaches(*context))
    }

    /// Who holds which layers; `None` where nobody holds a part.
    pub fn coverage(&self, model: ModelRoot) -> Option<CoverageRow> {
        let (offered, layer_count, _) = self.offered(model, |_, beacon, _| !beacon.draining)?;
        let held: Vec<Layers> = offered.iter().map(|stage| stage.layers).collect();
        let mut holders: BTreeMap<Layers, Vec<NodeIdText>> = BTreeMap::new();
        for stage in &offered {
            holders.entry(stage.layers).or_default().push(NodeIdText(stage.node));
        }
        let whole = self.directory.lock().workers(model, clock::monotonic_ms()).count();
        let coverage = coverage(layer_count, &held, u32::try_from(whole).unwrap_or(u32::MAX));
        let stage = |(layers, holders): (Layers, _)| StageRow { layers: layers.to_string(), holders };
        Some(CoverageRow {
            layer_count,
            stages: holders.into_iter().map(stage).collect(),
            gaps: coverage.gaps.iter().map(ToString::to_string).collect(),
            chains: coverage.chains,
        })
    }

    /// The ways from each stage to the next, and from the last to the first, in microseconds.
    pub fn ways(&self, model: ModelRoot, chain: &[ChainStage]) -> Vec<u64> {
        let Some((.., ways)) = self.offered(model, |_, _, _| false) else { return Vec::new() };
        let next = chain.iter().cycle().skip(1);
        chain.iter().zip(next).map(|(stage, next)| ways.one_way_us(stage.node, next.node)).collect()
    }

    fn offered(
        &self,
        model: ModelRoot,
        wanted: impl Fn(NodeId, &Beacon, &StageBeacon) -> bool,
    ) -> Option<(Vec<ChainStage>, u32, Ways)> {
        let mut ways = Ways { measured: HashMap::new(), own: self.own_ways() };
        let directory = self.directory.lock();
        let live = || directory.stages(model, clock::monotonic_ms()).filter(|(node, ..)| !self.is_banned(*node));
        // One may lie about how many layers there are: most agree.
        let mut counts: HashMap<u16, usize> = HashMap::new();
        live().for_each(|(.., stage)| *counts.entry(stage.layer_count).or_insert(0) += 1);
        let (layer_count, _) = counts.into_iter().max_by_key(|(layers, votes)| (*votes, *layers))?;
        let mut offered = Vec::new();
        for (node, beacon, stage) in live().filter(|(.., stage)| stage.layer_count == layer_count) {
            ways.measured.extend(stage.delays.iter().map(|(to, rtt_us)| ((node, *to), u64::from(*rtt_us) / 2)));
            if wanted(node, beacon, stage) {
                offered.push(ChainStage::of(node, beacon, stage));
            }
        }
        Some((offered, layer_count.into(), ways))
    }
}

/// The shortest lap for a session of so many rows.
fn shortest(
    offered: &[ChainStage],
    layer_count: u32,
    delays: &Ways,
    rows: usize,
    joins: &impl Fn(NodeId, Layers) -> Joins,
) -> Option<Vec<ChainStage>> {
    let offers: Vec<Offer<NodeId>> = offered
        .iter()
        .map(|stage| {
            let computes_us = stage.prefill_us * rows as u64;
            Offer {
                node: stage.node,
                layers: stage.layers,
                visit_us: stage.visit_us,
                join_us: match joins(stage.node, stage.layers) {
                    Joins::Has => 0,
                    Joins::Prepared => computes_us / LAPS_ASSUMED,
                    Joins::Anew => (JOIN_US + computes_us) / LAPS_ASSUMED,
                },
            }
        })
        .collect();
    let path = route(&offers, layer_count, &|from, to| delays.one_way_us(from, to))?;
    Some(path.into_iter().map(|at| offered[at]).collect())
}

fn can(beacon: &Beacon, needed: Needs) -> bool {
    beacon.context_tokens >= needed.tokens && beacon.features.contains(needed.features)
}

fn reaches(offered: &[ChainStage], layer_count: u32) -> bool {
    let mut reached = vec![false; layer_count as usize + 1];
    reached[0] = true;
    let mut stages: Vec<Layers> = offered.iter().map(|stage| stage.layers).collect();
    stages.sort_unstable();
    for layers in stages.into_iter().filter(|layers| layers.to() <= layer_count) {
        if reached[layers.from() as usize] {
            reached[layers.to() as usize] = true;
        }
    }
    reached[layer_count as usize]
}

/// One-way delays: what the stages measured themselves, else over this gateway.
struct Ways {
    measured: HashMap<(NodeId, NodeId), u64>,
    own: HashMap<NodeId, u64>,
}

impl Ways {
    fn one_way_us(&self, from: NodeId, to: NodeId) -> u64 {
        if from == to {
            return 0;
        }
        // Where both measured, the longer: a node that calls itself near attracts nobody by that alone.
        let measured = self.measured.get(&(from, to)).max(self.measured.get(&(to, from)));
        let over_us = || Some(self.own.get(&from)? + self.own.get(&to)?);
        measured.copied().or_else(over_us).unwrap_or(ONE_WAY_US_UNKNOWN)
    }
}
