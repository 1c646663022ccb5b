//! What a model lacks: layers that nobody holds, and how often the others are held.

use opengrid_protocol::Layers;
use serde::Serialize;

use crate::flow::Network;

/// How the layers of a model are held. Whole models count for every layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// By layer: how many nodes hold it.
    pub holders: Vec<u32>,
    /// Ranges without a volunteer, each `FROM..TO`.
    #[serde(serialize_with = "as_texts")]
    pub gaps: Vec<Layers>,
    /// The most chains of stages that share no stage. 0 without a gap is possible: `0..6` and `4..10` cover 10 layers, but
    /// chains join only where slices end.
    pub chains: u32,
}

fn as_texts<S: serde::Serializer>(layers: &[Layers], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(layers.iter().map(ToString::to_string))
}

/// `held`: the layers of each stage; `whole`: how many nodes have all.
pub fn coverage(layer_count: u32, held: &[Layers], whole: u32) -> Coverage {
    let mut holders = vec![whole; layer_count as usize];
    for layer in held.iter().flat_map(|layers| layers.from()..layers.to().min(layer_count)) {
        holders[layer as usize] += 1;
    }
    let mut gaps: Vec<Layers> = Vec::new();
    for layer in (0..layer_count).filter(|&layer| holders[layer as usize] == 0) {
        let begins = gaps.last().filter(|gap| gap.to() == layer).map(|gap| gap.from());
        if begins.is_some() {
            gaps.pop();
        }
        gaps.extend(Layers::new(begins.unwrap_or(layer), layer + 1).ok());
    }
    let mut network = Network::new(layer_count, held.iter().map(|&layers| (layers, 1)));
    // At most as many as stages.
    let chains = u32::try_from(network.saturate()).unwrap_or(u32::MAX);
    Coverage { holders, gaps, chains }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layers(text: &str) -> Layers {
        text.parse().unwrap()
    }

    #[test]
    fn gaps_holders_and_chains_are_counted() {
        let held = [layers("0..10"), layers("0..10"), layers("12..30")];
        let lacking = coverage(30, &held, 0);
        assert_eq!(lacking.gaps, [layers("10..12")]);
        assert_eq!((lacking.holders[0], lacking.holders[11], lacking.holders[29], lacking.chains), (2, 0, 1, 0));
        let whole = coverage(30, &held, 1);
        assert!(whole.gaps.is_empty());
        let held = ["0..10", "10..30", "0..15", "15..30", "10..12"].map(layers);
        assert_eq!(coverage(30, &held, 0).chains, 2);
    }

    /// Takes every subset of chains.
    fn most_chains(layer_count: u32, reached: u32, left: &[Layers]) -> u32 {
        let end = reached == layer_count;
        let reached = if end { 0 } else { reached };
        let longer = |at: usize| {
            let mut left = left.to_vec();
            let layers = left.swap_remove(at);
            most_chains(layer_count, layers.to(), &left)
        };
        let fitting = (0..left.len()).filter(|&at| left[at].from() == reached);
        fitting.map(longer).max().unwrap_or(0) + u32::from(end)
    }

    proptest! {
        #[test]
        fn no_more_chains_can_be_made(ranges in prop::collection::vec((0_u32..5, 1_u32..5), 0..8)) {
            let held: Vec<Layers> =
                ranges.iter().map(|&(from, count)| Layers::new(from, (from + count).min(5)).unwrap()).collect();
            prop_assert_eq!(coverage(5, &held, 0).chains, most_chains(5, 0, &held));
        }
    }

    #[test]
    fn a_short_chain_in_the_way_of_two_is_not_taken() {
        let held = ["0..1", "0..3", "1..3", "3..4", "1..4"].map(layers);
        assert_eq!(coverage(4, &held, 0).chains, 2);
    }

    #[test]
    fn layers_beyond_the_model_count_for_nothing() {
        assert_eq!(coverage(4, &[layers("0..9")], 0).holders, [1; 4]);
        assert_eq!(coverage(4, &[layers("0..9")], 0).chains, 0);
    }
}
