//! Who serves what, from signed, expiring beacons. Pure: time comes in, nothing is sent. Signatures are judged by the
//! wall clock; how long a worker stays listed is counted on a monotonic one, which nobody sets.

use std::collections::{BTreeMap, BTreeSet};

use opengrid_protocol::{
    Layers, ModelRoot, NodeId, Share, Signed,
    beacon::{Beacon, StageBeacon},
    limits::{BEACON_LIFE_MS, MODELS_PER_NODE_MAX},
    signed::RecordError,
};

/// Most (share of a model, node) pairs remembered. Beyond it strangers are dropped, for nodes that were met strangers leave.
const ENTRIES_MAX: usize = 20_000;
/// Nodes that were met and are not forgotten as such: so many that all they may say fits.
const MET_MAX: usize = ENTRIES_MAX / MODELS_PER_NODE_MAX;
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
    workers: BTreeMap<Key, Known>,
    /// What each node in `workers` serves.
    shares: BTreeMap<NodeId, BTreeSet<Share>>,
    /// Nodes that proved over a connection that they exist, and when they last spoke. Others are known by hearsay:
    /// anybody can invent them.
    met: BTreeMap<NodeId, u64>,
}

/// Ordered so that all of one model lie together.
type Key = (ModelRoot, NodeId, Option<Layers>);

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
    /// The node is connected to us.
    pub fn meet(&mut self, node: NodeId, now_ms: u64) {
        if self.met.len() >= MET_MAX && !self.met.contains_key(&node) {
            let longest_silent = self.met.iter().min_by_key(|(_, at)| **at).map(|(node, _)| *node);
            longest_silent.map(|node| self.met.remove(&node));
        }
        self.met.insert(node, now_ms);
    }

    pub fn hear(&mut self, node: NodeId, mut beacon: Beacon, now_ms: u64) -> Heard {
        match self.met.get_mut(&node) {
            Some(at) => *at = now_ms,
            None => beacon.life_ms = beacon.life_ms.min(BEACON_LIFE_MS),
        }
        let key = (beacon.model, node, beacon.stage.as_ref().map(|stage| stage.layers));
        let Some(known) = self.workers.get_mut(&key) else {
            return self.hear_new(key, beacon, now_ms);
        };
        let was_live = known.is_live(now_ms);
        let too_soon = was_live && now_ms < known.heard_ms + BEACON_GAP_MS_MIN;
        if beacon.sequence <= known.beacon.sequence || too_soon {
            return Heard::Ignored;
        }
        *known = Known { beacon, heard_ms: now_ms, gone: false };
        if was_live { Heard::Refreshed } else { Heard::New }
    }

    fn hear_new(&mut self, key: Key, beacon: Beacon, now_ms: u64) -> Heard {
        let node = key.1;
        if !self.make_room_of(node, now_ms) || !self.make_room_for(node) {
            return Heard::Ignored;
        }
        self.workers.insert(key, Known { beacon, heard_ms: now_ms, gone: false });
        self.shares.entry(node).or_default().insert(Share { model: key.0, layers: key.2 });
        Heard::New
    }

    /// Among the node's own entries: a dead one leaves.
    fn make_room_of(&mut self, node: NodeId, now_ms: u64) -> bool {
        let Some(shares) = self.shares.get(&node).filter(|shares| shares.len() >= MODELS_PER_NODE_MAX) else {
            return true;
        };
        let mut keys = shares.iter().map(|share| (share.model, node, share.layers));
        let dead = keys.find(|key| !self.workers.get(key).is_some_and(|known| known.is_live(now_ms)));
        dead.is_some_and(|key| self.remove(key))
    }

    /// In the whole list: the stranger that was heard longest ago leaves for a node that was met.
    fn make_room_for(&mut self, node: NodeId) -> bool {
        if self.workers.len() < ENTRIES_MAX {
            return true;
        }
        if !self.met.contains_key(&node) {
            return false;
        }
        let strangers = self.workers.iter().filter(|((_, id, _), _)| !self.met.contains_key(id));
        let oldest = strangers.min_by_key(|(_, known)| known.heard_ms).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.remove(key))
    }

    fn remove(&mut self, key: Key) -> bool {
        let (model, node, layers) = key;
        if let Some(shares) = self.shares.get_mut(&node) {
            shares.remove(&Share { model, layers });
            if shares.is_empty() {
                self.shares.remove(&node);
            }
        }
        self.workers.remove(&key).is_some()
    }

    /// The node is gone (its connection closed): off every list at once. A newer beacon brings it back.
    pub fn forget_node(&mut self, node: NodeId) {
        for share in self.shares.get(&node).into_iter().flatten() {
            if let Some(known) = self.workers.get_mut(&(share.model, node, share.layers)) {
                known.gone = true;
            }
        }
    }

    /// Live workers of a whole model, in the order of their ids.
    pub fn workers(&self, model: ModelRoot, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon)> {
        self.holders(model, now_ms).filter(|(_, beacon)| beacon.stage.is_none())
    }

    /// Live stages of a model.
    pub fn stages(&self, model: ModelRoot, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon, &StageBeacon)> {
        self.holders(model, now_ms).filter_map(|(node, beacon)| Some((node, beacon, beacon.stage.as_ref()?)))
    }

    /// Live workers of a model or of parts of it; a node that serves several parts comes several times.
    pub fn holders(&self, model: ModelRoot, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon)> {
        self.workers
            .range((model, NodeId([0; 32]), None)..)
            .take_while(move |((other, ..), _)| *other == model)
            .filter(move |(_, known)| known.is_live(now_ms))
            .map(|((_, node, _), known)| (*node, &known.beacon))
    }

    /// Everything live, by node.
    pub fn live(&self, now_ms: u64) -> impl Iterator<Item = (NodeId, &Beacon)> {
        self.workers
            .iter()
            .filter(move |(_, known)| known.is_live(now_ms))
            .map(|((_, node, _), known)| (*node, &known.beacon))
    }

    /// Nodes of whom a beacon came within the last `within_ms`.
    pub fn heard_within(&self, within_ms: u64, now_ms: u64) -> impl Iterator<Item = NodeId> {
        let recent = move |known: &Known| known.is_live(now_ms) && now_ms < known.heard_ms.saturating_add(within_ms);
        self.workers.iter().filter(move |(_, known)| recent(known)).map(|((_, node, _), _)| *node)
    }

    /// Drops what expired long ago.
    pub fn prune(&mut self, now_ms: u64) {
        let is_over = |known: &Known| now_ms >= known.heard_ms + known.beacon.life_ms + TOMBSTONE_MS;
        let over: Vec<_> = self.workers.iter().filter(|(_, known)| is_over(known)).map(|(key, _)| *key).collect();
        for key in over {
            self.remove(key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::beacon::{Class, Features};

    use super::*;

    const MODEL: ModelRoot = ModelRoot([1; 32]);
    const NODE: NodeId = NodeId([2; 32]);

    fn beacon(sequence: u64) -> Beacon {
        Beacon {
            model: MODEL,
            model_id: "m".into(),
            class: Class::Approximate,
            features: Features::EMBEDDED,
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
            stage: None,
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
        assert!(directory.workers.is_empty() && directory.shares.is_empty());
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

    fn invented(number: u32) -> NodeId {
        let mut id = [9; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        NodeId(id)
    }

    #[test]
    fn nodes_that_were_met_find_room_in_a_list_full_of_strangers() {
        let mut directory = Directory::default();
        for number in 0..2 * ENTRIES_MAX as u32 {
            directory.hear(invented(number), beacon(1), 1_000 + u64::from(number));
        }
        assert_eq!(directory.workers.len(), ENTRIES_MAX);
        let now = 50_000;
        assert_eq!(directory.hear(NODE, beacon(1), now), Heard::Ignored);
        directory.meet(NODE, now);
        assert_eq!(directory.hear(NODE, beacon(1), now), Heard::New);
        assert_eq!(directory.workers.len(), ENTRIES_MAX);
        assert!(!directory.shares.contains_key(&invented(0)), "the oldest made room");
        assert!(directory.workers(MODEL, now).any(|(node, _)| node == NODE));
    }

    #[test]
    fn whoever_was_met_is_forgotten_only_for_others_that_were() {
        let mut directory = Directory::default();
        directory.meet(NODE, 0);
        (0..MET_MAX as u32 - 1).for_each(|number| directory.meet(invented(number), 1));
        directory.hear(NODE, beacon(1), 2);
        directory.meet(invented(u32::MAX), 3);
        assert_eq!(directory.met.len(), MET_MAX);
        assert!(directory.met.contains_key(&NODE), "it spoke since");
    }

    #[test]
    fn a_node_has_so_many_models_and_a_dead_one_leaves_for_a_new_one() {
        let mut directory = Directory::default();
        let of = |model: u8| Beacon { model: ModelRoot([model; 32]), ..beacon(1) };
        let heard = (0..100).filter(|model| directory.hear(NODE, of(*model), 0) == Heard::New).count();
        assert_eq!(heard, MODELS_PER_NODE_MAX);
        assert_eq!(directory.hear(NODE, of(200), 8_000), Heard::New);
        assert_eq!(directory.workers.len(), MODELS_PER_NODE_MAX);
    }

    #[test]
    fn strangers_are_believed_for_the_usual_life_only() {
        let mut directory = Directory::default();
        let long = |sequence| Beacon { life_ms: 120_000, ..beacon(sequence) };
        directory.hear(NODE, long(1), 0);
        assert_eq!(directory.workers(MODEL, 8_000).count(), 0);
        directory.meet(NODE, 9_000);
        directory.hear(NODE, long(2), 9_000);
        assert_eq!(directory.workers(MODEL, 128_999).count(), 1);
    }

    #[test]
    fn a_beacon_on_a_foreign_topic_is_refused() {
        let signed = Signed::seal(&beacon(1), &[3; 32]);
        assert_eq!(open_beacon(&signed, Some(ModelRoot([9; 32])), 1), Err(BeaconError::WrongTopic));
        assert_eq!(open_beacon(&signed, Some(MODEL), 1), Ok(beacon(1)));
        assert!(matches!(open_beacon(&signed, None, 1_000_000), Err(BeaconError::Record(RecordError::Expired(_)))));
    }
}
