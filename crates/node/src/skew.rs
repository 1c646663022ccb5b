//! Notices when this machine's clock disagrees with its peers': signed records would be refused on either side.

use std::collections::{BTreeMap, BTreeSet};

use opengrid_protocol::{NodeId, limits::CLOCK_SKEW_MS_MAX, signed::RecordError};
use parking_lot::Mutex;

const PEERS_MAX: usize = 64;
/// Peers of which one warning was given; after these many nobody needs another.
const WARNED_MAX: usize = 256;
/// A century: no honest clock is further off, and sums of it do not overflow.
const OFFSET_MS_MAX: i64 = 100 * 365 * 24 * 3_600 * 1_000;

/// Their clock minus ours, whatever they claim.
pub fn offset_ms(their_ms: u64, our_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(their_ms).saturating_sub(signed(our_ms)).clamp(-OFFSET_MS_MAX, OFFSET_MS_MAX)
}

#[derive(Default)]
pub struct Skew {
    /// Peers' clocks minus ours, in milliseconds.
    offsets_ms: Mutex<BTreeMap<NodeId, i64>>,
    warned: Mutex<BTreeSet<NodeId>>,
    refused: std::sync::atomic::AtomicU64,
}

impl Skew {
    pub fn observe(&self, node: NodeId, offset_ms: i64) {
        let mut offsets = self.offsets_ms.lock();
        if offsets.len() < PEERS_MAX || offsets.contains_key(&node) {
            offsets.insert(node, offset_ms);
        }
        drop(offsets);
        if offset_ms.unsigned_abs() > CLOCK_SKEW_MS_MAX / 2 && self.warns_first(node) {
            let seconds = offset_ms / 1_000;
            tracing::warn!(peer = %node.short(), seconds, "the peer's clock differs from ours; check this machine's time service");
        }
    }

    /// Whether this is the peer's first warning: it is asked every few seconds.
    fn warns_first(&self, node: NodeId) -> bool {
        let mut warned = self.warned.lock();
        warned.len() < WARNED_MAX && warned.insert(node)
    }

    pub fn forget(&self, node: NodeId) {
        self.offsets_ms.lock().remove(&node);
    }

    /// A record was refused for its times.
    pub fn refused(&self, error: &RecordError) {
        if self.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "a peer's record was refused: one of the two clocks is wrong; run `opengrid doctor`");
        }
    }

    pub fn refused_count(&self) -> u64 {
        self.refused.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The median of the peers' clocks minus ours: with most peers right, a large value means that ours is wrong.
    pub fn median_ms(&self) -> Option<i64> {
        let mut offsets: Vec<i64> = self.offsets_ms.lock().values().copied().collect();
        offsets.sort_unstable();
        offsets.get(offsets.len() / 2).copied()
    }

    /// One sentence for status and doctor if our clock is probably wrong.
    pub fn complaint(&self) -> Option<String> {
        let median_ms = self.median_ms()?;
        (median_ms.unsigned_abs() > CLOCK_SKEW_MS_MAX / 2).then(|| {
            format!(
                "this machine's clock is {} s off its peers': set it (timedatectl set-ntp true)",
                -median_ms / 1_000
            )
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_peer_is_not_our_fault_but_a_majority_is() {
        let skew = Skew::default();
        skew.observe(NodeId([1; 32]), 500_000);
        skew.observe(NodeId([2; 32]), 3);
        skew.observe(NodeId([3; 32]), -4);
        assert_eq!(skew.complaint(), None);
        skew.observe(NodeId([2; 32]), 400_000);
        assert!(skew.complaint().is_some_and(|text| text.contains("-400 s")));
        skew.forget(NodeId([1; 32]));
        skew.forget(NodeId([2; 32]));
        assert_eq!(skew.median_ms(), Some(-4));
    }

    #[test]
    fn no_claim_overflows() {
        assert_eq!(offset_ms(5_000, 7_000), -2_000);
        assert_eq!(offset_ms(u64::MAX, 1), OFFSET_MS_MAX);
        assert_eq!(offset_ms(1 << 63, 1_800_000_000_000), OFFSET_MS_MAX);
        assert_eq!(offset_ms(0, u64::MAX), -OFFSET_MS_MAX);
        let skew = Skew::default();
        skew.observe(NodeId([1; 32]), offset_ms(0, u64::MAX));
        assert!(skew.complaint().is_some());
    }

    #[test]
    fn a_peer_is_warned_of_once_however_often_it_comes_back() {
        let skew = Skew::default();
        assert!(skew.warns_first(NodeId([1; 32])));
        skew.forget(NodeId([1; 32]));
        assert!(!skew.warns_first(NodeId([1; 32])));
        assert!(skew.warns_first(NodeId([2; 32])));
    }
}
