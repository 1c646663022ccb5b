//! Layers to nodes: which machines hold which layers of a model, so that the grid has as many chains as it can without
//! making each of them slow.
//!
//! The aim is that of Parallax's first phase ("Parallax: Efficient LLM Inference Service over Decentralized Environment",
//! 2025): the most `k^alpha / (compute + stages / k * round trip)` for `k` whole chains. Its divisor is an average over
//! the chains; with nodes and delays that differ it is the mean lap, what a token takes through a chain and straight
//! back to its first node: `k^alpha / (sum of laps / k)`. A stage costs `visit_us + layers * layer_us`, so that few long
//! stages beat many short ones, and each of its hops half a measured round trip.
//!
//! A model that fits one node is not split. Otherwise:
//!
//! 1. nodes are grouped by delay into at most 64 (`groups`);
//! 2. in each group single chains are built by dynamic programming with a beam (`chains`), and disjoint ones of them put
//!    together by another (`packing`): the cheapest way found to have 1, 2, 3, ... chains;
//! 3. the groups' numbers of chains are added up so that the sum of laps is least (`fronts`), for each total;
//! 4. of the best totals, nodes are exchanged between chains while that helps (`exchange`), and the best stays;
//! 5. nodes left over in different groups are tried together in the same way.
//!
//! Within a chain the fastest nodes are filled first, which no other distribution beats for a fixed chain.
//!
//! Figures, measured against exhaustive search, stand in `docs/adr/0016-placement.md`.

mod chains;
mod exchange;
mod fronts;
mod groups;
mod instance;
mod long_chain;
mod packing;
mod planner;
mod score;
#[cfg(test)]
mod tests;

use opengrid_protocol::{Layers, limits::LAYERS_MAX};

use self::{instance::Member, planner::Planner};

/// Most machines of one call.
pub const MACHINES_MAX: usize = 4_096;
/// Longer times count as this, a quarter of an hour: so no sum overflows.
const TIME_US_MAX: u64 = 1_000_000_000;
const ALPHA_PERMILLE_MAX: u32 = 10_000;

/// What a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSize {
    pub layers: u32,
    /// Of one layer with its share of the KV cache; of layers that differ, the largest.
    pub layer_bytes: u64,
    /// Besides, where the first layer is: the token table, if it is kept in memory.
    pub first_bytes: u64,
    /// Besides, where the last layer is: the head.
    pub last_bytes: u64,
}

/// A machine that would hold a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<N> {
    pub node: N,
    /// For weights and KV cache.
    pub memory_bytes: u64,
    /// A token's time in one layer, and what a visit costs whatever its layers.
    pub layer_us: u64,
    pub visit_us: u64,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Thousandths of alpha: how much more chains are worth against shorter laps. At most 10,000.
    pub alpha_permille: u32,
    /// Of nodes whose round trip nobody measured.
    pub unknown_rtt_us: u64,
}

impl Default for Aim {
    fn default() -> Self {
        Self { alpha_permille: 1_000, unknown_rtt_us: 50_000 }
    }
}

/// Who holds what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<N> {
    /// The shortest lap first; at least one.
    pub chains: Vec<PlannedChain<N>>,
    /// Machines without a part, by node.
    pub idle: Vec<N>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChain<N> {
    /// From the first layer to the last.
    pub stages: Vec<(N, Layers)>,
    /// What a token takes, without queues.
    pub lap_us: u64,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    #[error("a model has 1 to {LAYERS_MAX} layers, not {0}")]
    Layers(u32),
    #[error("layers of 0 bytes: the model's size is missing")]
    NoSize,
    #[error("{0} machines are too many: leave out all but {MACHINES_MAX}")]
    TooMany(usize),
    #[error("a machine is listed twice")]
    Twice,
    #[error("{fit} of {layers} layers fit the machines together: more memory is needed")]
    TooLittleMemory { fit: u32, layers: u32 },
}

/// The plan with the best value found, equal for equal machines in any order. `rtt_us` is asked for both directions; the
/// longer one counts.
///
/// # Errors
/// No layers, too many of something, the same node twice, or too little memory for one chain. A chain is found wherever
/// one is possible.
pub fn allocate<N: Ord + Clone>(
    model: ModelSize,
    machines: &[Machine<N>],
    aim: Aim,
    rtt_us: impl Fn(&N, &N) -> Option<u64>,
) -> Result<Plan<N>, AllocateError> {
    allocate_with(model, machines, aim, rtt_us, planner::EFFORT)
}

fn allocate_with<N: Ord + Clone>(
    model: ModelSize,
    machines: &[Machine<N>],
    aim: Aim,
    rtt_us: impl Fn(&N, &N) -> Option<u64>,
    effort: packing::Effort,
) -> Result<Plan<N>, AllocateError> {
    let machines = checked(model, machines)?;
    let members = machines.iter().map(|machine| member(model, machine)).collect();
    let way_us = |from: usize, to: usize| {
        let (from, to) = (&machines[from].node, &machines[to].node);
        let rtt_us = if from == to { Some(0) } else { rtt_us(from, to).max(rtt_us(to, from)) };
        rtt_us.unwrap_or(aim.unknown_rtt_us).min(TIME_US_MAX) / 2
    };
    let alpha_permille = aim.alpha_permille.min(ALPHA_PERMILLE_MAX);
    let planner = Planner { layers: model.layers, members, way_us: &way_us, alpha_permille, effort };
    let chains = match machines.iter().any(|machine| whole_fits(model, machine)) {
        true => planner.wholes(|at| whole_fits(model, machines[at])),
        false => planner.splits().map_err(|fit| AllocateError::TooLittleMemory { fit, layers: model.layers })?,
    };
    Ok(plan(&machines, chains))
}

/// The machines by speed, the fastest first.
fn checked<N: Ord>(model: ModelSize, machines: &[Machine<N>]) -> Result<Vec<&Machine<N>>, AllocateError> {
    Layers::new(0, model.layers).map_err(|_| AllocateError::Layers(model.layers))?;
    if model.layer_bytes == 0 {
        return Err(AllocateError::NoSize);
    }
    if machines.len() > MACHINES_MAX {
        return Err(AllocateError::TooMany(machines.len()));
    }
    let mut sorted: Vec<&Machine<N>> = machines.iter().collect();
    sorted.sort_by_key(|machine| &machine.node);
    if sorted.windows(2).any(|pair| pair[0].node == pair[1].node) {
        return Err(AllocateError::Twice);
    }
    sorted.sort_by_key(|machine| machine.layer_us.min(TIME_US_MAX));
    Ok(sorted)
}

fn fitting<N>(model: ModelSize, machine: &Machine<N>, besides_bytes: u64) -> u32 {
    let count = machine.memory_bytes.saturating_sub(besides_bytes) / model.layer_bytes;
    u32::try_from(count).unwrap_or(u32::MAX).min(model.layers)
}

fn whole_fits<N>(model: ModelSize, machine: &Machine<N>) -> bool {
    fitting(model, machine, model.first_bytes.saturating_add(model.last_bytes)) == model.layers
}

fn member<N>(model: ModelSize, machine: &Machine<N>) -> Member {
    // Whoever has a part of a chain lacks another.
    let part = |besides_bytes| fitting(model, machine, besides_bytes).min(model.layers.saturating_sub(1));
    Member {
        first: part(model.first_bytes),
        middle: part(0),
        last: part(model.last_bytes),
        visit_us: machine.visit_us.min(TIME_US_MAX),
        layer_us: machine.layer_us.min(TIME_US_MAX),
    }
}

fn plan<N: Ord + Clone>(machines: &[&Machine<N>], chains: Vec<planner::Chain>) -> Plan<N> {
    let mut used = vec![false; machines.len()];
    let mut planned: Vec<PlannedChain<N>> = Vec::with_capacity(chains.len());
    for chain in chains {
        let (mut from, mut stages) = (0, Vec::with_capacity(chain.stages.len()));
        for (at, count) in chain.stages {
            used[at] = true;
            // Never empty: each has a layer at least, and all together those of the model.
            stages.extend(Layers::new(from, from + count).ok().map(|layers| (machines[at].node.clone(), layers)));
            from += count;
        }
        planned.push(PlannedChain { stages, lap_us: chain.lap_us });
    }
    planned.sort_by(|a, b| (a.lap_us, &a.stages).cmp(&(b.lap_us, &b.stages)));
    let mut idle: Vec<N> =
        machines.iter().zip(used).filter(|(_, used)| !used).map(|(machine, _)| machine.node.clone()).collect();
    idle.sort();
    Plan { chains: planned, idle }
}
