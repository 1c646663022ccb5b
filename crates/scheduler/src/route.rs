//! The stages of one session: the shortest lap over the offered ones.
//!
//! A lap is what one token costs: each stage's time, and one way between neighbours, back from the last stage to the
//! first as well. Stages are vertices, a stage can follow another where its layers begin at the other's end, so the graph
//! has no cycles and its shortest paths are found in one pass in order of layers (as Petals routes sessions, with the way
//! back added: "Distributed Inference and Fine-tuning of Large Language Models Over The Internet", Borzunov et al. 2023).
//!
//! The way back depends on the first stage, so there is a pass for each of them. Without the way back one pass forwards and
//! one backwards bound every lap from below: stages and first stages whose bound exceeds the best lap so far are left out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use opengrid_protocol::Layers;

/// A stage that takes sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<N> {
    pub node: N,
    pub layers: Layers,
    /// A token's time at this stage under its present load, with all that a visit costs whatever its layers, and what the
    /// caller adds against relays.
    pub visit_us: u64,
    /// What it would cost the session to begin here (computing what the stage has not), spread over a lap; 0 for stages
    /// that have the session already.
    pub join_us: u64,
}

/// One-way delays between nodes, with the time that a row's bytes take.
pub trait Delays<N> {
    fn one_way_us(&self, from: N, to: N) -> u64;
}

impl<N, F: Fn(N, N) -> u64> Delays<N> for F {
    fn one_way_us(&self, from: N, to: N) -> u64 {
        self(from, to)
    }
}

/// Offers that are looked at; of more, the fastest of each range, then the second of each, and so on: however many
/// offers somebody makes of one range, those of the others stay.
pub const OFFERS_MAX: usize = 1_024;
/// Steps of all passes together. Only hundreds of offers whose laps hardly differ need more; then the best lap found so far
/// is the answer.
const STEPS_MAX: usize = 16_000_000;

/// The offers (by index) that a session goes through, from layer 0 to `layer_count`; `None` where they leave a gap. Of laps
/// of the same length the one with fewer stages, then the one whose offers come first.
pub fn route<N: Copy + Eq>(offers: &[Offer<N>], layer_count: u32, delays: &impl Delays<N>) -> Option<Vec<usize>> {
    Graph::new(offers, layer_count, delays).shortest_lap(delays)
}

/// Offers on whole chains.
struct Graph<'a, N> {
    offers: &'a [Offer<N>],
    layer_count: u32,
    /// By the layer at which they begin.
    order: Vec<usize>,
    /// Of each in `order`: where those that can follow stand in it.
    followers: Vec<Range<usize>>,
    /// Of each in `order`: the ways to its followers.
    ways_us: Vec<Vec<u64>>,
}

/// The rest of a lap from a stage on, with it.
#[derive(Clone, Copy)]
struct Tail {
    us: u64,
    stages: usize,
    next: Option<usize>,
}

/// Length, stages, and the offers themselves.
type Lap = (u64, usize, Vec<usize>);

impl<'a, N: Copy + Eq> Graph<'a, N> {
    fn new(offers: &'a [Offer<N>], layer_count: u32, delays: &impl Delays<N>) -> Self {
        let order = on_chains(offers, layer_count);
        let begin = |at: &usize| offers[*at].layers.from();
        let beginning_at =
            |layer: u32| order.partition_point(|at| begin(at) < layer)..order.partition_point(|at| begin(at) <= layer);
        let followers: Vec<_> = order.iter().map(|&at| beginning_at(offers[at].layers.to())).collect();
        let way = |from: usize, to: usize| delays.one_way_us(offers[from].node, offers[to].node);
        let ways = |(&at, next): (&usize, &Range<usize>)| order[next.clone()].iter().map(|&to| way(at, to)).collect();
        let ways_us = order.iter().zip(&followers).map(ways).collect();
        Self { offers, layer_count, order, followers, ways_us }
    }

    fn cost_us(&self, stage: usize) -> u64 {
        let offer = &self.offers[self.order[stage]];
        offer.visit_us.saturating_add(offer.join_us)
    }

    fn is_last(&self, stage: usize) -> bool {
        self.offers[self.order[stage]].layers.to() == self.layer_count
    }

    fn ways(&self, stage: usize) -> impl Iterator<Item = (usize, u64)> {
        self.followers[stage].clone().zip(self.ways_us[stage].iter().copied())
    }

    /// The shortest rest of a lap from each stage, over those that are `kept`; `back_us` is the way from a last stage.
    fn tails(&self, kept: &[bool], back_us: impl Fn(usize) -> u64) -> Vec<Option<Tail>> {
        let mut tails: Vec<Option<Tail>> = vec![None; self.order.len()];
        for stage in (0..self.order.len()).rev().filter(|&stage| kept[stage]) {
            let cost_us = self.cost_us(stage);
            if self.is_last(stage) {
                tails[stage] = Some(Tail { us: cost_us.saturating_add(back_us(stage)), stages: 1, next: None });
                continue;
            }
            let over = |(next, way_us): (usize, u64)| {
                let rest = tails[next]?;
                Some((rest.us.saturating_add(way_us), rest.stages, self.order[next], next))
            };
            let best = self.ways(stage).filter_map(over).min();
            tails[stage] = best.map(|(rest_us, stages, _, next)| Tail {
                us: rest_us.saturating_add(cost_us),
                stages: stages + 1,
                next: Some(next),
            });
        }
        tails
    }

    /// The shortest way to each stage, without it.
    fn heads(&self) -> Vec<u64> {
        let begins = |stage: &usize| self.offers[*stage].layers.from() == 0;
        let mut heads: Vec<u64> = self.order.iter().map(|at| if begins(at) { 0 } else { u64::MAX }).collect();
        for stage in 0..self.order.len() {
            let through_us = heads[stage].saturating_add(self.cost_us(stage));
            for (next, way_us) in self.ways(stage) {
                heads[next] = heads[next].min(through_us.saturating_add(way_us));
            }
        }
        heads
    }

    fn shortest_lap(&self, delays: &impl Delays<N>) -> Option<Vec<usize>> {
        let everyone = vec![true; self.order.len()];
        let open = self.tails(&everyone, |_| 0);
        let mut firsts: Vec<(u64, usize, usize, usize)> = (0..self.order.len())
            .take_while(|&stage| self.offers[self.order[stage]].layers.from() == 0)
            .filter_map(|stage| open[stage].map(|tail| (tail.us, tail.stages, self.order[stage], stage)))
            .collect();
        firsts.sort_unstable();
        let back_us = |last: usize, first: usize| match self.order[last] == self.order[first] {
            true => 0,
            false => delays.one_way_us(self.offers[self.order[last]].node, self.offers[self.order[first]].node),
        };
        let (.., first) = *firsts.first()?;
        let mut best = self.lap(first, &open, |last| back_us(last, first))?;
        let heads = self.heads();
        let bound = |stage: usize| open[stage].map_or(u64::MAX, |tail| tail.us.saturating_add(heads[stage]));
        let kept: Vec<bool> = (0..self.order.len()).map(|stage| bound(stage) <= best.0).collect();
        let lasts: Vec<usize> = (0..kept.len()).filter(|&stage| kept[stage] && self.is_last(stage)).collect();
        let steps: usize = (0..kept.len()).filter(|&stage| kept[stage]).map(|stage| self.followers[stage].len()).sum();
        for (us, stages, at, first) in firsts.into_iter().take(STEPS_MAX / steps.max(1)) {
            let shortest_back_us = lasts.iter().map(|&last| back_us(last, first)).min().unwrap_or(0);
            if (us.saturating_add(shortest_back_us), stages, at) > (best.0, best.1, best.2[0]) {
                continue;
            }
            let tails = self.tails(&kept, |last| back_us(last, first));
            best = self.lap(first, &tails, |_| 0).into_iter().chain([best]).min()?;
        }
        Some(best.2)
    }

    /// The lap that begins at `first` and follows `tails`, which lack the way back.
    fn lap(&self, first: usize, tails: &[Option<Tail>], back_us: impl Fn(usize) -> u64) -> Option<Lap> {
        let tail = tails[first]?;
        let stages: Vec<usize> = std::iter::successors(Some(first), |&stage| tails[stage]?.next).collect();
        let us = tail.us.saturating_add(back_us(*stages.last()?));
        Some((us, tail.stages, stages.into_iter().map(|stage| self.order[stage]).collect()))
    }
}

/// The offers that lie on a whole chain, at most [`OFFERS_MAX`], by the layer at which they begin.
fn on_chains<N>(offers: &[Offer<N>], layer_count: u32) -> Vec<usize> {
    let mut ranges: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
    for (at, offer) in offers.iter().enumerate().filter(|(_, offer)| offer.layers.to() <= layer_count) {
        ranges.entry((offer.layers.from(), offer.layers.to())).or_default().push(at);
    }
    let mut reached = BTreeSet::from([0]);
    for (from, to) in ranges.keys() {
        if reached.contains(from) {
            reached.insert(*to);
        }
    }
    let mut leading_on = BTreeSet::from([layer_count]);
    for (from, to) in ranges.keys().rev() {
        if leading_on.contains(to) {
            leading_on.insert(*from);
        }
    }
    ranges.retain(|(from, to), _| reached.contains(from) && leading_on.contains(to));
    let mut ranked: Vec<(usize, u64, usize)> = Vec::new();
    for same in ranges.values_mut() {
        let cost_us = |at: usize| offers[at].visit_us.saturating_add(offers[at].join_us);
        same.sort_by_key(|&at| (cost_us(at), at));
        let per_layer_us = |at: usize| cost_us(at) / u64::from(offers[at].layers.count());
        ranked.extend(same.iter().enumerate().map(|(rank, &at)| (rank, per_layer_us(at), at)));
    }
    ranked.sort_unstable();
    ranked.truncate(OFFERS_MAX);
    let mut order: Vec<usize> = ranked.into_iter().map(|(.., at)| at).collect();
    order.sort_by_key(|&at| (offers[at].layers.from(), Reverse(offers[at].layers.to()), at));
    order
}
