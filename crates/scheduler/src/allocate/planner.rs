//! Puts the parts together: groups, fronts, exchange, and what is left over.

use super::{
    exchange::exchanged,
    fronts::Combined,
    groups::groups,
    instance::{Instance, Member, SET_MAX, counts},
    long_chain::long_chain,
    packing::{Effort, Packing, packings},
    score::score,
};

/// Measured: `docs/adr/0016-placement.md`.
pub const EFFORT: Effort = Effort { labels: 512, labels_left: 128, pool: 512, plans: 64, exchanges: 20_000 };
/// Numbers of chains that are tried to the end.
const TOTALS: usize = 3;

/// Nodes with their numbers of layers, in the chain's order.
pub struct Chain {
    pub stages: Vec<(usize, u32)>,
    pub lap_us: u64,
}

/// Members by ascending `layer_us`, as everywhere below.
pub struct Planner<'a> {
    pub layers: u32,
    pub members: Vec<Member>,
    pub way_us: &'a dyn Fn(usize, usize) -> u64,
    pub alpha_permille: u32,
    pub effort: Effort,
}

/// A group of nodes and the cheapest way found for 1, 2, 3, ... chains.
struct Group {
    nodes: Vec<usize>,
    instance: Instance,
    packings: Vec<Packing>,
}

impl Planner<'_> {
    /// Chains of one node each.
    pub fn wholes(&self, fits: impl Fn(usize) -> bool) -> Vec<Chain> {
        let lap_us = |at: usize| self.members[at].visit_us + self.members[at].layer_us * u64::from(self.layers);
        let mut laps: Vec<(u64, usize)> =
            (0..self.members.len()).filter(|&at| fits(at)).map(|at| (lap_us(at), at)).collect();
        laps.sort_unstable();
        let sums = laps.iter().scan(0, |sum_us, (lap_us, _)| {
            *sum_us += lap_us;
            Some(*sum_us)
        });
        let best = sums.enumerate().max_by_key(|&(at, sum_us)| score(at + 1, sum_us, self.alpha_permille));
        laps.truncate(best.map_or(0, |(at, _)| at + 1));
        laps.into_iter().map(|(lap_us, at)| Chain { stages: vec![(at, self.layers)], lap_us }).collect()
    }

    /// Chains of several nodes; `Err` with the number of layers that fit where there is none.
    pub fn splits(&self) -> Result<Vec<Chain>, u32> {
        let mut chains = Vec::new();
        let mut idle: Vec<usize> = (0..self.members.len()).filter(|&at| self.members[at].middle > 0).collect();
        loop {
            let laps_us = chains.iter().map(|chain: &Chain| chain.lap_us).sum();
            let more = self.more_chains(&idle, chains.len(), laps_us);
            idle.retain(|node| more.iter().all(|chain| chain.stages.iter().all(|(used, _)| used != node)));
            let is_last = more.is_empty() || idle.len() <= SET_MAX;
            chains.extend(more);
            if is_last {
                break;
            }
        }
        if chains.is_empty() {
            let stages = long_chain(self.layers, &self.members, self.way_us)?;
            chains.extend(self.chain(&stages));
        }
        Ok(chains)
    }

    /// Chains of `nodes` that make more of a plan with `chains` chains already; none where that cannot be.
    fn more_chains(&self, nodes: &[usize], chains: usize, laps_us: u64) -> Vec<Chain> {
        let groups: Vec<Group> =
            groups(nodes.to_vec(), SET_MAX, self.way_us).into_iter().map(|nodes| self.group(nodes)).collect();
        let front =
            |group: &Group| [0].into_iter().chain(group.packings.iter().map(|packing| packing.laps_us)).collect();
        let combined = Combined::new(&groups.iter().map(front).collect::<Vec<_>>());
        let value = |more: usize, more_us: u64| score(chains + more, laps_us + more_us, self.alpha_permille);
        let mut totals: Vec<usize> = (1..combined.front.len()).collect();
        totals.sort_by_key(|&total| (-value(total, combined.front[total]), total));
        let tried = totals.into_iter().take(TOTALS).map(|total| {
            let exchanged = groups.iter().zip(combined.shares(total)).filter_map(|(group, share)| {
                let packing = group.packings.get(share.checked_sub(1)?)?;
                Some((group, exchanged(&group.instance, packing.clone(), self.effort.exchanges)))
            });
            let packings: Vec<(&Group, Packing)> = exchanged.collect();
            let more_us = packings.iter().map(|(_, packing)| packing.laps_us).sum();
            (value(total, more_us), packings)
        });
        let best = tried.max_by_key(|(value, _)| *value);
        let best = best.filter(|(value, _)| chains == 0 || *value > score(chains, laps_us, self.alpha_permille));
        let Some((_, packings)) = best else { return Vec::new() };
        let chains = packings.iter().flat_map(|(group, packing)| {
            packing.chains.iter().map(|chain| chain.stages.iter().map(|&stage| group.nodes[stage]).collect::<Vec<_>>())
        });
        chains.filter_map(|stages| self.chain(&stages)).collect()
    }

    fn group(&self, nodes: Vec<usize>) -> Group {
        let members = nodes.iter().map(|&node| self.members[node]).collect();
        let instance = Instance::new(self.layers, members, |from, to| (self.way_us)(nodes[from], nodes[to]));
        let packings = packings(&instance, self.effort);
        Group { nodes, instance, packings }
    }

    fn chain(&self, stages: &[usize]) -> Option<Chain> {
        let counts = counts(self.layers, &self.members, stages)?;
        let next = stages.iter().cycle().skip(1);
        let hops_us: u64 = stages.iter().zip(next).map(|(&from, &to)| (self.way_us)(from, to)).sum();
        let stage_us = |(&at, count): (&usize, &u32)| {
            let Member { visit_us, layer_us, .. } = self.members[at];
            visit_us + layer_us * u64::from(*count)
        };
        let compute_us: u64 = stages.iter().zip(&counts).map(stage_us).sum();
        Some(Chain { stages: stages.iter().copied().zip(counts).collect(), lap_us: hops_us + compute_us })
    }
}
