//! Sessions take the shortest lap there is: compared with every chain.
#![allow(clippy::unwrap_used)]

use opengrid_protocol::Layers;
use opengrid_scheduler::{Delays, Offer, route, route::OFFERS_MAX};
use proptest::prelude::*;

fn offer(node: u32, from: u32, to: u32, visit_us: u64) -> Offer<u32> {
    Offer { node, layers: Layers::new(from, to).unwrap(), visit_us, join_us: 0 }
}

fn length(path: &[usize], offers: &[Offer<u32>], delays: &impl Delays<u32>) -> u64 {
    let stages: u64 = path.iter().map(|&at| offers[at].visit_us + offers[at].join_us).sum();
    let neighbours = path.iter().zip(path.iter().cycle().skip(1)).filter(|_| path.len() > 1);
    stages + neighbours.map(|(&a, &b)| delays.one_way_us(offers[a].node, offers[b].node)).sum::<u64>()
}

/// The first of every chain there is, by length, stages and offers.
fn first_of_all(offers: &[Offer<u32>], end: u32, delays: &impl Delays<u32>) -> Option<Vec<usize>> {
    fn walk(path: &mut Vec<usize>, offers: &[Offer<u32>], end: u32, found: &mut Vec<Vec<usize>>) {
        let reached = path.last().map_or(0, |&at| offers[at].layers.to());
        if reached == end {
            found.push(path.clone());
            return;
        }
        for at in 0..offers.len() {
            if offers[at].layers.from() == reached {
                path.push(at);
                walk(path, offers, end, found);
                path.pop();
            }
        }
    }
    let mut found = Vec::new();
    walk(&mut Vec::new(), offers, end, &mut found);
    found.into_iter().min_by_key(|path| (length(path, offers, delays), path.len(), path.clone()))
}

#[test]
fn near_nodes_beat_fast_ones_far_away_and_what_has_the_session_stays() {
    let delays = |from: u32, to: u32| match (from, to) {
        (from, to) if from == to => 0,
        (from, to) if from.max(to) >= 10 => 50_000,
        _ => 1_000,
    };
    let mut offers = vec![offer(1, 0, 5, 9_000), offer(10, 5, 9, 1_000), offer(2, 5, 9, 8_000)];
    assert_eq!(route(&offers, 9, &delays).unwrap(), [0, 2]);
    offers[2].join_us = 200_000;
    assert_eq!(route(&offers, 9, &delays).unwrap(), [0, 1]);
    assert_eq!(route(&offers[..1], 9, &delays), None);
}

#[test]
fn a_lost_stage_is_replaced_by_one_or_several_and_the_living_stay() {
    let living = |node, from, to| offer(node, from, to, 1_000);
    let fresh = |node, from, to, join_us| Offer { join_us, ..living(node, from, to) };
    let delays = |from: u32, to: u32| if from == to { 0 } else { 10 };
    // Stage 10..20 of 0..10, 10..20, 20..30 is lost.
    let mut offers = vec![living(1, 0, 10), living(3, 20, 30), fresh(4, 0, 15, 90_000), fresh(5, 15, 30, 90_000)];
    assert_eq!(route(&offers, 30, &delays).unwrap(), [2, 3], "nothing fits the gap");
    offers.extend([fresh(6, 10, 15, 50_000), fresh(7, 15, 20, 50_000)]);
    assert_eq!(route(&offers, 30, &delays).unwrap(), [0, 4, 5, 1], "two offers fill it");
    offers.push(fresh(8, 10, 20, 90_000));
    assert_eq!(route(&offers, 30, &delays).unwrap(), [0, 6, 1]);
}

#[test]
fn a_flood_of_offers_for_some_layers_does_not_hide_the_others() {
    let mut offers: Vec<_> = (0..4_000).map(|at| offer(at, 0, 40, 1)).collect();
    offers.push(offer(9_000, 40, 80, 900_000));
    // These lead nowhere.
    offers.extend((0..4_000).map(|at| offer(at, at % 39 + 1, 41, 1)));
    assert_eq!(route(&offers, 80, &|_, _| 10).unwrap(), [0, 4_000]);
}

#[test]
fn many_offers_are_routed_quickly_and_with_the_best_of_them() {
    let offers: Vec<_> = (0..4_000).map(|at| offer(at, at % 80, at % 80 + 1, 1_000 + u64::from(at))).collect();
    assert_eq!(route(&offers, 80, &|_, _| 10).unwrap(), (0..80).collect::<Vec<_>>());

    // As many pairs as can be, whose laps differ by next to nothing.
    let halves: Vec<_> = (0..OFFERS_MAX as u32).map(|at| offer(at, at % 2 * 40, at % 2 * 40 + 40, 1_000)).collect();
    let noise = |from: u32, to: u32| 10_000 + u64::from((from * 31 + to).wrapping_mul(2_654_435_761) >> 24);
    let begun = std::time::Instant::now();
    assert_eq!(route(&halves, 80, &noise).unwrap().len(), 2);
    assert!(begun.elapsed().as_millis() < 3_000, "{:?}", begun.elapsed());
}

#[test]
fn absurd_times_do_not_overflow() {
    let offers = [offer(1, 0, 5, u64::MAX), offer(2, 5, 9, u64::MAX)];
    assert_eq!(route(&offers, 9, &|_, _| u64::MAX).unwrap(), [0, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn no_chain_is_shorter(
        ranges in prop::collection::vec((0_u32..6, 1_u32..6, 1_u64..50, 0_u64..20), 1..14),
        ways in prop::collection::vec(0_u64..60, 14 * 14),
    ) {
        let offers: Vec<Offer<u32>> = ranges.iter().enumerate().map(|(node, &(from, count, visit_us, join_us))| {
            Offer { join_us, ..offer(node as u32, from, (from + count).min(7), visit_us) }
        }).collect();
        let delays = |from: u32, to: u32| ways[(from * 14 + to) as usize];
        prop_assert_eq!(route(&offers, 7, &delays), first_of_all(&offers, 7, &delays));
    }

    /// Where many laps are equally long, the choice is still one.
    #[test]
    fn ties_fall_to_fewer_stages_and_then_to_earlier_offers(
        ranges in prop::collection::vec((0_u32..4, 1_u32..4), 1..12), way in 0_u64..2,
    ) {
        let offers: Vec<Offer<u32>> = ranges.iter().enumerate().map(|(node, &(from, count))| {
            let to = (from + count).min(4);
            offer(node as u32, from, to, u64::from(to - from))
        }).collect();
        let delays = |_: u32, _: u32| way;
        prop_assert_eq!(route(&offers, 4, &delays), first_of_all(&offers, 4, &delays));
    }
}
