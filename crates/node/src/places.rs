//! Places that a peer may hold at once.

use std::{collections::HashMap, sync::Arc};

use opengrid_protocol::NodeId;
use parking_lot::Mutex;

/// Counts by peer; peers without any take no memory.
#[derive(Clone)]
pub(crate) struct Places {
    held: Arc<Mutex<HashMap<NodeId, usize>>>,
    per_peer: usize,
}

impl Places {
    pub fn new(per_peer: usize) -> Self {
        Self { held: Arc::default(), per_peer }
    }

    /// `None` when the peer holds as many as it may.
    pub fn take(&self, peer: NodeId) -> Option<Place> {
        let mut held = self.held.lock();
        let count = held.get(&peer).copied().unwrap_or(0);
        if count >= self.per_peer {
            return None;
        }
        held.insert(peer, count + 1);
        Some(Place { places: self.clone(), peer })
    }
}

/// Given back on drop.
pub(crate) struct Place {
    places: Places,
    peer: NodeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock();
        if let Some(count) = held.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_places_and_nothing_is_kept_of_those_without() {
        let places = Places::new(2);
        let (one, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let first = places.take(one).unwrap();
        let second = places.take(one).unwrap();
        assert!(places.take(one).is_none());
        let third = places.take(other).unwrap();
        drop(first);
        let again = places.take(one).unwrap();
        drop((second, third, again));
        assert!(places.held.lock().is_empty());
    }
}
