//! Which layers a node takes that asks what the grid needs: those with the least throughput (as Petals' servers join:
//! Borzunov et al. 2023), on cuts that others have, so that chains can be joined.

use opengrid_protocol::Layers;

/// A stage that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub layers: Layers,
    /// Rows per second, in thousandths.
    pub millirows_per_s: u64,
}

/// The range that a node should take which has room for `room` layers of a model of `layer_count`; `None` without room.
///
/// A gap comes first: the longest part of the first gap that fits, from its beginning (or up to its end, where it fits in
/// whole). Without gaps: of the ranges that are held and fit, the one whose layers have the least throughput, so that one
/// more of it helps the most; where none fits, as many layers as fit from the least served one on.
pub fn join(layer_count: u32, held: &[Held], room: u32) -> Option<Layers> {
    if room == 0 || layer_count == 0 {
        return None;
    }
    let served = throughput(layer_count, held);
    if let Some(from) = served.iter().position(|rows| *rows == 0) {
        let from = from as u32;
        let gap = served[from as usize..].iter().take_while(|rows| **rows == 0).count() as u32;
        return Layers::new(from, from + piece(gap, room)).ok();
    }
    let least = |layers: Layers| (layers.from()..layers.to()).map(|layer| served[layer as usize]).min().unwrap_or(0);
    let fitting =
        held.iter().map(|held| held.layers).filter(|layers| layers.count() <= room && layers.to() <= layer_count);
    // The weakest; of equals the longest, which makes the shortest chains.
    if let Some(weakest) = fitting.min_by_key(|layers| (least(*layers), std::cmp::Reverse(layers.count()), *layers)) {
        return Some(weakest);
    }
    let weakest = (0..layer_count).min_by_key(|layer| served[*layer as usize])?;
    Layers::new(weakest, layer_count.min(weakest + room)).ok()
}

/// By layer: rows per second, in thousandths, of all that hold it.
fn throughput(layer_count: u32, held: &[Held]) -> Vec<u64> {
    let mut served = vec![0_u64; layer_count as usize];
    for stage in held {
        for layer in stage.layers.from()..stage.layers.to().min(layer_count) {
            // Whoever is there serves something.
            served[layer as usize] = served[layer as usize].saturating_add(stage.millirows_per_s.max(1));
        }
    }
    served
}

/// Of a gap too long for one node, equal pieces: the last one is not left a crumb.
fn piece(gap: u32, room: u32) -> u32 {
    gap.div_ceil(gap.div_ceil(room))
}

/// Whether a node should leave its range for another: only where the least served layer would be served better by more than
/// `hysteresis_percent`, so that nodes that look at the same moment at the same grid do not all move to and fro.
pub fn should_move(layer_count: u32, others: &[Held], mine: Held, better: Layers, hysteresis_percent: u64) -> bool {
    let least_with = |layers: Layers| {
        let all: Vec<Held> = others.iter().copied().chain([Held { layers, ..mine }]).collect();
        throughput(layer_count, &all).into_iter().min().unwrap_or(0)
    };
    let (now, then) = (least_with(mine.layers), least_with(better));
    u128::from(then) * 100 > u128::from(now) * u128::from(100 + hysteresis_percent)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::coverage;

    fn held(layers: &str, rows: u64) -> Held {
        Held { layers: layers.parse().unwrap(), millirows_per_s: rows }
    }

    fn layers(text: &str) -> Option<Layers> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn gaps_come_first_then_the_weakest_range() {
        assert_eq!(join(30, &[], 12), layers("0..10"));
        assert_eq!(join(30, &[held("0..10", 5)], 12), layers("10..20"));
        assert_eq!(join(30, &[held("0..10", 5), held("20..30", 5)], 12), layers("10..20"));
        let whole = [held("0..10", 9), held("10..20", 3), held("20..30", 6)];
        assert_eq!(join(30, &whole, 12), layers("10..20"));
        assert_eq!(join(30, &whole, 5), layers("10..15"), "nothing that is held fits");
        assert_eq!(join(30, &whole, 0), None);
        assert_eq!(join(30, &[], 40), layers("0..30"));
    }

    #[test]
    fn a_node_moves_only_for_a_real_gain() {
        let others = [held("0..10", 10), held("0..10", 10), held("10..20", 9)];
        let mine = held("0..10", 10);
        assert!(should_move(20, &others, mine, "10..20".parse().unwrap(), 20));
        let even = [held("0..10", 10), held("10..20", 18)];
        assert!(!should_move(20, &even, mine, "10..20".parse().unwrap(), 20));
    }

    proptest! {
        /// Nodes join one after the other, some leave: as soon as the room of those that are there is enough for the gaps,
        /// there is a chain; and nobody moves to and fro.
        #[test]
        fn coverage_is_restored_and_nothing_flaps(
            layer_count in 2_u32..60, rooms in prop::collection::vec(2_u32..40, 2..12), leaves in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut nodes: Vec<(u32, Held)> = Vec::new();
            let take = |nodes: &[(u32, Held)], room: u32| {
                let others: Vec<Held> = nodes.iter().map(|(_, held)| *held).collect();
                Held { layers: join(layer_count, &others, room).unwrap(), millirows_per_s: 1_000 }
            };
            for room in rooms {
                let held = take(&nodes, room);
                nodes.push((room, held));
            }
            for leave in leaves {
                let (room, _) = nodes.swap_remove(leave.index(nodes.len()));
                let held = take(&nodes, room);
                nodes.push((room, held));
            }
            // Each looks in turn whether it should move; the rounds end.
            let mut moves = 0;
            loop {
                let mut moved = false;
                for at in 0..nodes.len() {
                    let others: Vec<Held> =
                        nodes.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, (_, held))| *held).collect();
                    let (room, mine) = nodes[at];
                    let better = join(layer_count, &others, room).unwrap();
                    if should_move(layer_count, &others, mine, better, 20) {
                        nodes[at].1.layers = better;
                        moved = true;
                        moves += 1;
                    }
                }
                prop_assert!(moves <= nodes.len() * 8, "nodes move to and fro");
                if !moved {
                    break;
                }
            }
            let held: Vec<Layers> = nodes.iter().map(|(_, held)| held.layers).collect();
            let smallest = nodes.iter().map(|(room, _)| *room).min().unwrap();
            if smallest as usize * nodes.len() >= 2 * layer_count as usize {
                prop_assert!(coverage(layer_count, &held, 0).gaps.is_empty(), "room enough, and a gap: {held:?}");
            }
        }
    }
}
