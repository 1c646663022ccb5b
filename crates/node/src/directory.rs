//! Who serves what, from signed, expiring beacons. Pure: time comes in, nothing is sent. Signatures are judged by the
//! wall clock; how long a worker stays listed is counted on a monotonic one, which nobody sets.

use std::collections::{BTreeMap, btree_map::Entry};

use opengrid_protocol::{ModelRoot, NodeId, Signed, beacon::Beacon, signed::RecordError};

/// Most (model, node) pairs remembered; beyond it the newcomer is dropped.
const ENTRIES_MAX: usize = 20_000;
/// A node may refresh a beacon this often; faster ones are ignored.
const BEACON_GAP_MS_MIN: u64 = 100;
/// How long the sequence of a gone worker is remembered, so that late gossip does not bring it back.
const TOMBSTONE_MS: u64 = 60_000;

/// What became of a beacon.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A worker that was not in the list.
    New,
    Refreshed,
    /// Old, repeated or too soon: nothing changed.
    Ignored,
}

/// Why a beacon is refused. The sender is at fault, or one of the two clocks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeaconError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a beacon for another model than its topic's")]
    WrongTopic,
}

#[derive(Debug, Default)]
pub struct Directory {
    workers: BTreeMap<(ModelRoot, NodeId), Known>,
}

#[derive(Debug)]
struct Known {
    beacon: Beacon,
    heard_ms: u64,
    /// The worker is gone although its beacon still lives.
    gone: bool,
}

impl Known {
    fn is_live(&self, now_ms: u64) -> bool {
        // Counted from our own clock: a skewed sender neither lives forever nor dies at birth.
        !self.gone && now_ms < self.heard_ms.saturating_add(self.beacon.life_ms)
    }
}

/// Checks a beacon that came on `topic` (or directly, with `None`).
///
/// # Errors
/// See [`BeaconError`].
pub fn open_beacon(signed: &Signed, topic: Option<ModelRoot>, now_ms: u64) -> Result<Beacon, BeaconError> {
    let beacon: Beacon = signed.open(now_ms)?;
    if topic.is_some_and(|topic| topic != beacon.model) {
        return Err(BeaconError::WrongTopic);
    }
    Ok(beacon)
}

impl Directory {
    pub fn hear(&mut self, node: NodeId, beacon: Beacon, now_ms: u64) -> Heard {
        let full = self.workers.len() >= ENTRIES_MAX;
        match self.workers.entry((beacon.model, node)) {
            Entry::Vacant(_) if full => Heard::Ignored,
            Entry::Vacant(entry) => {
                entry.insert(Known { beacon, heard_ms: now_ms, gone: false });
                Heard::New
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                let was_live = known.is_live(now_ms);
                let too_soon = was_live && now_ms < known.heard_ms + BEACON_GAP_MS_MIN;
                if beacon.sequence <= known.beacon.sequence || too_soon {
                    return Heard::Ignored;
                }
                *known = Known { beacon, heard_ms: now_ms, gone: false };
                if was_live { Heard::Refreshed } else { Heard::New }
            }
        }
    }

    /// The node is gone (its connection closed): off every list at once. A newer beacon brings it back.
    pub fn forget_node(&mut self, node: NodeId) {
        self.workers.iter_mut().filter(|((_, id), _)| *id == node).for_each(|(_, known)| known.gone = true);
    }

    /// Live workers of a model, in the order of their ids.
    pub fn workers(&self, model: ModelRoot, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon)> {
        self.workers
            .range((model, NodeId([0; 32]))..=(model, NodeId([255; 32])))
            .filter(move |(_, known)| known.is_live(now_ms))
            .map(|((_, node), known)| (*node, &known.beacon))
    }

    /// Everything live, by node.
    pub fn live(&self, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon)> {
        self.workers
            .iter()
            .filter(move |(_, known)| known.is_live(now_ms))
            .map(|((_, node), known)| (*node, &known.beacon))
    }

    /// Nodes of whom a beacon came within the last `within_ms`.
    pub fn heard_within(&self, within_ms: u64, now_ms: u64) -> impl Iterator<Item = NodeId> {
        let recent = move |known: &Known| known.is_live(now_ms) && now_ms < known.heard_ms.saturating_add(within_ms);
        self.workers.iter().filter(move |(_, known)| recent(known)).map(|((_, node), _)| *node)
    }

    /// Drops what expired long ago.
    pub fn prune(&mut self, now_ms: u64) {
        self.workers.retain(|_, known| now_ms < known.heard_ms + known.beacon.life_ms + TOMBSTONE_MS);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::beacon::Class;

    use super::*;

    const MODEL: ModelRoot = ModelRoot([1; 32]);
    const NODE: NodeId = NodeId([2; 32]);

    fn beacon(sequence: u64) -> Beacon {
        Beacon {
            model: MODEL,
            model_id: "m".into(),
            class: Class::Approximate,
            sequence,
            issued_ms: sequence,
            life_ms: 8_000,
            context_tokens: 4096,
            slots: 4,
            slots_busy: 0,
            queued: 0,
            decode_millitokens_per_s: 100_000,
            prefill_millitokens_per_s: 300_000,
            draining: false,
        }
    }

    #[test]
    fn a_silent_worker_leaves_after_its_beacons_life() {
        let mut directory = Directory::default();
        assert_eq!(directory.hear(NODE, beacon(1), 1_000), Heard::New);
        assert_eq!(directory.workers(MODEL, 8_999).count(), 1);
        assert_eq!(directory.workers(MODEL, 9_000).count(), 0);
        assert_eq!(directory.hear(NODE, beacon(2), 9_500), Heard::New);
        directory.prune(9_500 + 8_000 + TOMBSTONE_MS);
        assert!(directory.workers.is_empty());
    }

    #[test]
    fn late_gossip_does_not_revive_a_gone_node_but_a_newer_beacon_does() {
        let mut directory = Directory::default();
        directory.hear(NODE, beacon(5), 0);
        directory.forget_node(NODE);
        assert_eq!(directory.hear(NODE, beacon(5), 200), Heard::Ignored);
        assert_eq!(directory.workers(MODEL, 200).count(), 0);
        assert_eq!(directory.hear(NODE, beacon(6), 300), Heard::New);
        assert_eq!(directory.workers(MODEL, 300).count(), 1);
    }

    #[test]
    fn replays_and_floods_change_nothing() {
        let mut directory = Directory::default();
        directory.hear(NODE, beacon(5), 1_000);
        assert_eq!(directory.hear(NODE, beacon(4), 2_000), Heard::Ignored);
        assert_eq!(directory.hear(NODE, beacon(6), 1_050), Heard::Ignored);
        assert_eq!(directory.hear(NODE, beacon(6), 1_100), Heard::Refreshed);
    }

    #[test]
    fn a_beacon_on_a_foreign_topic_is_refused() {
        let signed = Signed::seal(&beacon(1), &[3; 32]);
        assert_eq!(open_beacon(&signed, Some(ModelRoot([9; 32])), 1), Err(BeaconError::WrongTopic));
        assert_eq!(open_beacon(&signed, Some(MODEL), 1), Ok(beacon(1)));
        assert!(matches!(open_beacon(&signed, None, 1_000_000), Err(BeaconError::Record(RecordError::Expired(_)))));
    }
}
