//! Disjoint chains: for each number of them the cheapest found, by dynamic programming over the nodes in use, with a beam.

use super::{
    chains::{Chain, chains, least_distinct},
    instance::{Instance, each},
};

/// How much is tried. More is slower and better.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Half chains of each length, over all first nodes.
    pub labels: usize,
    /// The same where chains are looked for among the nodes that are left.
    pub labels_left: usize,
    /// Chains that every plan is tried with.
    pub pool: usize,
    /// Plans of each number of chains.
    pub plans: usize,
    /// Laps measured by the exchange of nodes between chains, for one number of chains.
    pub exchanges: usize,
}

/// Disjoint chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    pub laps_us: u64,
    pub set: u64,
    pub chains: Vec<Chain>,
}

/// A plan without its chains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Plan {
    laps_us: u64,
    /// Nodes in use, and how many layers they would hold.
    set: u64,
    room: u32,
    /// The plan with one chain less in the level before, and that chain in the pool.
    before: usize,
    chain: usize,
}

/// Entry `k` is the cheapest way found to make `k + 1` chains.
pub fn packings(instance: &Instance, effort: Effort) -> Vec<Packing> {
    let mut pool = chains(instance, instance.everybody(), effort.labels);
    pool.truncate(effort.pool);
    let mut levels = vec![vec![Plan { laps_us: 0, set: 0, room: 0, before: 0, chain: 0 }]];
    while let Some(level) = levels.last() {
        // The pool's chains share the best nodes: plans need others, too.
        let missing = level.iter().filter(|plan| pool.iter().all(|chain| chain.set & plan.set != 0)).take(2);
        for left in missing.map(|plan| instance.everybody() & !plan.set).collect::<Vec<_>>() {
            let more = chains(instance, left, effort.labels_left);
            pool.extend(more.into_iter().take(effort.pool / 8));
        }
        let next = longer(instance, level, &pool, effort.plans);
        if next.is_empty() {
            break;
        }
        levels.push(next);
    }
    (1..levels.len()).filter_map(|count| cheapest(&levels[..=count], &pool)).collect()
}

/// Every plan with every chain that is disjoint from it: the best of each set of nodes. One half of the beam is for cheap
/// plans, the other for those that leave the most room for further chains.
fn longer(instance: &Instance, level: &[Plan], pool: &[Chain], width: usize) -> Vec<Plan> {
    let room = |set: u64| each(set).map(|member| instance.members[member].middle).sum::<u32>();
    let rooms: Vec<u32> = pool.iter().map(|chain| room(chain.set)).collect();
    let mut plans = Vec::new();
    for (before, plan) in level.iter().enumerate() {
        let disjoint = pool.iter().zip(&rooms).enumerate().filter(|(_, (added, _))| added.set & plan.set == 0);
        plans.extend(disjoint.map(|(chain, (added, added_room))| Plan {
            laps_us: plan.laps_us + added.lap_us,
            set: plan.set | added.set,
            room: plan.room + added_room,
            before,
            chain,
        }));
    }
    let roomy: Vec<(u32, Plan)> = plans.iter().map(|plan| (plan.room, *plan)).collect();
    let mut best = least_distinct(plans, width - width / 2, |plan| plan.set);
    let roomy = least_distinct(roomy, width, |(_, plan)| plan.set);
    for (_, plan) in roomy {
        if best.len() < width && best.iter().all(|other| other.set != plan.set) {
            best.push(plan);
        }
    }
    best
}

fn cheapest(levels: &[Vec<Plan>], pool: &[Chain]) -> Option<Packing> {
    let mut plan = levels.last()?.iter().min_by_key(|plan| (plan.laps_us, plan.set))?;
    let mut packing = Packing { laps_us: plan.laps_us, set: plan.set, chains: Vec::new() };
    for level in levels[..levels.len() - 1].iter().rev() {
        packing.chains.push(pool[plan.chain].clone());
        plan = &level[plan.before];
    }
    packing.chains.sort_unstable();
    Some(packing)
}
