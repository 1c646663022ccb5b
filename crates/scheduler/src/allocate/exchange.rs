//! Local search: nodes change places, chains and hands as long as the laps get shorter.

use super::{
    chains::Chain,
    instance::{Instance, bit, each},
    packing::Packing,
};

struct Exchange<'a> {
    instance: &'a Instance,
    chains: Vec<Chain>,
    idle: u64,
    /// Laps that may still be measured.
    left: usize,
}

/// `packing` with shorter laps, if there are, after at most `measured` laps were measured.
pub fn exchanged(instance: &Instance, packing: Packing, measured: usize) -> Packing {
    let idle = instance.everybody() & !packing.set;
    let mut exchange = Exchange { instance, chains: packing.chains, idle, left: measured };
    while exchange.improve() {}
    let mut chains = exchange.chains;
    chains.sort_unstable();
    Packing {
        laps_us: chains.iter().map(|chain| chain.lap_us).sum(),
        set: chains.iter().map(|chain| chain.set).sum(),
        chains,
    }
}

impl Exchange<'_> {
    /// Whether something got better, with some of the budget left to go on.
    fn improve(&mut self) -> bool {
        let mut better = false;
        for at in 0..self.chains.len() {
            better |= self.reorder(at) | self.drop_one(at) | self.take_idle(at);
        }
        for at in 0..self.chains.len() {
            for other in (0..self.chains.len()).filter(|&other| other != at) {
                better |= self.hand_over(at, other) | (at < other && self.swap(at, other));
            }
        }
        better && self.left > 0
    }

    fn measure(&mut self, stages: Vec<usize>) -> Option<Chain> {
        self.left = self.left.checked_sub(1)?;
        let lap_us = self.instance.lap_us(&stages)?;
        let set = stages.iter().copied().map(bit).sum();
        (stages.len() > 1).then_some(Chain { lap_us, set, stages })
    }

    /// `stages` in the place of chain `at` if the lap gets shorter.
    fn try_one(&mut self, at: usize, stages: Vec<usize>) -> bool {
        let Some(chain) = self.measure(stages) else { return false };
        let better = chain.lap_us < self.chains[at].lap_us;
        if better {
            self.idle = (self.idle | self.chains[at].set) & !chain.set;
            self.chains[at] = chain;
        }
        better
    }

    fn try_two(&mut self, (at, stages): (usize, Vec<usize>), (other, others): (usize, Vec<usize>)) -> bool {
        let Some(chain) = self.measure(stages) else { return false };
        let laps_us = self.chains[at].lap_us + self.chains[other].lap_us;
        if chain.lap_us >= laps_us {
            return false;
        }
        let Some(second) = self.measure(others) else { return false };
        let better = chain.lap_us + second.lap_us < laps_us;
        if better {
            self.chains[at] = chain;
            self.chains[other] = second;
        }
        better
    }

    /// A part of the chain the other way round, or one node elsewhere.
    fn reorder(&mut self, at: usize) -> bool {
        let mut better = false;
        let count = self.chains[at].stages.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            let mut stages = self.chains[at].stages.clone();
            if from < to {
                stages[from..=to].reverse();
                better |= self.try_one(at, stages.clone());
                stages.clone_from(&self.chains[at].stages);
            }
            let moved = stages.remove(from);
            stages.insert(to, moved);
            better |= from != to && self.try_one(at, stages);
        }
        better
    }

    fn drop_one(&mut self, at: usize) -> bool {
        let without = |stages: &[usize], place: usize| [&stages[..place], &stages[place + 1..]].concat();
        (0..self.chains[at].stages.len()).any(|place| {
            let stages = without(&self.chains[at].stages, place);
            self.try_one(at, stages)
        })
    }

    /// An idle node between two of the chain, or in the place of one.
    fn take_idle(&mut self, at: usize) -> bool {
        let mut better = false;
        for idle in each(self.idle) {
            for place in 0..=self.chains[at].stages.len() {
                let mut stages = self.chains[at].stages.clone();
                stages.insert(place, idle);
                let mut taken = self.try_one(at, stages.clone());
                if !taken && place + 1 < stages.len() {
                    stages.remove(place + 1);
                    taken = self.try_one(at, stages);
                }
                if taken {
                    better = true;
                    break;
                }
            }
        }
        better
    }

    /// A node of `at` goes to `other`.
    fn hand_over(&mut self, at: usize, other: usize) -> bool {
        for place in 0..self.chains[at].stages.len() {
            let mut fewer = self.chains[at].stages.clone();
            let handed = fewer.remove(place);
            if self.instance.lap_us(&fewer).is_none() {
                continue;
            }
            for new_place in 0..=self.chains[other].stages.len() {
                let mut more = self.chains[other].stages.clone();
                more.insert(new_place, handed);
                if self.try_two((at, fewer.clone()), (other, more)) {
                    return true;
                }
            }
        }
        false
    }

    fn swap(&mut self, at: usize, other: usize) -> bool {
        let mut better = false;
        for place in 0..self.chains[at].stages.len() {
            for other_place in 0..self.chains[other].stages.len() {
                let (mut stages, mut others) = (self.chains[at].stages.clone(), self.chains[other].stages.clone());
                std::mem::swap(&mut stages[place], &mut others[other_place]);
                if self.try_two((at, stages), (other, others)) {
                    better = true;
                    break;
                }
            }
        }
        better
    }
}
