//! Single chains: the best for each set of nodes that the beam meets, by dynamic programming over (first node, set,
//! last node) as for the travelling salesman (Held and Karp 1962). The beam keeps those that cost the least for a layer.

use std::collections::BTreeMap;

use super::instance::{Instance, bit, each};

/// A chain and what a lap through it takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub lap_us: u64,
    pub set: u64,
    pub stages: Vec<usize>,
}

/// Half a chain: from its first node to `last`, who is not its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Label {
    /// 1024ths of a microsecond for a layer if the chain closed here: the beam's order.
    rate: u64,
    set: u64,
    last: usize,
    ways_us: u64,
    visits_us: u64,
    /// With as many layers as fit everywhere.
    full_us: u64,
    room: u32,
    /// The shortest whole lap through nodes of this set that is known.
    closed_us: u64,
    /// Position in the beam before.
    parent: usize,
}

/// A whole chain of which only these are known: lap, set, last node, label before.
type End = (u64, u64, usize, usize);

/// Chains over `allowed`, one for each set, the cheapest first. The beams of all first nodes together keep `labels`
/// labels of each length.
pub fn chains(instance: &Instance, allowed: u64, labels: usize) -> Vec<Chain> {
    let width = (labels / allowed.count_ones().max(1) as usize).max(2);
    let mut best: BTreeMap<u64, Chain> = BTreeMap::new();
    for first in each(allowed).filter(|&first| instance.members[first].first > 0) {
        for chain in (Search { instance, allowed, first, width }).chains() {
            match best.get(&chain.set) {
                Some(known) if *known <= chain => {}
                _ => drop(best.insert(chain.set, chain)),
            }
        }
    }
    let mut chains: Vec<Chain> = best.into_values().collect();
    chains.sort_unstable();
    chains
}

/// All chains that begin at `first`.
struct Search<'a> {
    instance: &'a Instance,
    allowed: u64,
    first: usize,
    width: usize,
}

impl Search<'_> {
    fn chains(&self) -> Vec<Chain> {
        let least_us = self.least_layers_us();
        let mut beams: Vec<Vec<Label>> = vec![vec![self.begin()]];
        let mut found = Vec::new();
        while let Some(beam) = beams.last().filter(|beam| !beam.is_empty()) {
            let (ends, mut longer) = self.step(beam);
            // Nothing that a longer chain of more nodes could gain.
            longer.retain(|label| label.ways_us + label.visits_us + least_us < label.closed_us);
            let ends = least_distinct(ends, 2 * self.width, |&(_, set, ..)| set);
            found.extend(ends.into_iter().map(|end| self.read(&beams, end)));
            beams.push(least_distinct(longer, self.width, |label| (label.set, label.last)));
        }
        found
    }

    fn begin(&self) -> Label {
        let member = self.instance.members[self.first];
        Label {
            rate: 0,
            set: bit(self.first),
            last: self.first,
            ways_us: 0,
            visits_us: member.visit_us,
            full_us: member.visit_us + member.layer_us * u64::from(member.first),
            room: member.first,
            closed_us: u64::MAX,
            parent: 0,
        }
    }

    /// No chain computes its layers in less.
    fn least_layers_us(&self) -> u64 {
        let mut left = self.instance.layers;
        let mut sum_us = 0;
        for member in each(self.allowed).map(|member| self.instance.members[member]) {
            let count = member.first.max(member.middle).max(member.last).min(left);
            left -= count;
            sum_us += member.layer_us * u64::from(count);
        }
        sum_us
    }

    /// One node more: chains that end with it, and longer labels.
    fn step(&self, beam: &[Label]) -> (Vec<End>, Vec<Label>) {
        let instance = self.instance;
        let (mut ends, mut longer) = (Vec::new(), Vec::new());
        for (parent, label) in beam.iter().enumerate() {
            for next in each(self.allowed & !label.set) {
                let member = instance.members[next];
                let set = label.set | bit(next);
                let ways_us = label.ways_us + instance.way_us(label.last, next);
                let lap_ways_us = ways_us + instance.way_us(next, self.first);
                let enough = label.room + member.last >= instance.layers;
                let compute_us = if enough { instance.compute_us(set, self.first, next) } else { None };
                let lap_us = compute_us.map_or(u64::MAX, |compute_us| compute_us + lap_ways_us);
                if lap_us < label.closed_us {
                    ends.push((lap_us, set, next, parent));
                }
                if member.middle > 0 {
                    let room = label.room + member.middle;
                    let visits_us = label.visits_us + member.visit_us;
                    let full_us = label.full_us + member.visit_us + member.layer_us * u64::from(member.middle);
                    let rate = ((full_us + lap_ways_us) << 10) / u64::from(room);
                    let closed_us = label.closed_us.min(lap_us);
                    longer.push(Label { rate, set, last: next, ways_us, visits_us, full_us, room, closed_us, parent });
                }
            }
        }
        (ends, longer)
    }

    fn read(&self, beams: &[Vec<Label>], (lap_us, set, last, parent): End) -> Chain {
        let mut stages = vec![last];
        let mut at = parent;
        for beam in beams.iter().skip(1).rev() {
            stages.push(beam[at].last);
            at = beam[at].parent;
        }
        stages.push(self.first);
        stages.reverse();
        Chain { lap_us, set, stages }
    }
}

/// The least item of each key, at most `count`. Of very many, some keys may be missed that have no small item.
pub fn least_distinct<T: Ord, K: PartialEq>(mut items: Vec<T>, count: usize, key: impl Fn(&T) -> K) -> Vec<T> {
    let sorted = 4 * count;
    if items.len() > sorted {
        items.select_nth_unstable(sorted);
        items.truncate(sorted);
    }
    items.sort_unstable();
    let mut seen = Vec::with_capacity(count);
    items.retain(|item| {
        let key = key(item);
        let new = seen.len() < count && !seen.contains(&key);
        if new {
            seen.push(key);
        }
        new
    });
    items
}
