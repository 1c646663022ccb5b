//! The peer cache: what this node knew when it last ran.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::Actor;
use crate::{address, peer_cache};

const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Cached peers that are dialled at start.
const DIALS: usize = 16;

impl Actor {
    /// Without any connection, the peers of the last run are tried again and again.
    pub(super) fn dial_cached(&mut self, now: Instant) {
        if self.cached.is_empty() || self.shared.peers.read().len() > 0 || !self.lonely.due(now) {
            return;
        }
        for (peer, addresses) in self.cached.clone().into_iter().take(DIALS) {
            self.dial(peer, addresses);
        }
    }

    pub(super) fn load_cache(&mut self) {
        let Some(path) = &self.cache else { return };
        let local = *self.swarm.local_peer_id();
        self.cached = peer_cache::load(path).into_iter().filter(|(peer, _)| *peer != local).collect();
        // The book prefers what was added last, the file has the best first.
        for (peer, addresses) in self.cached.iter().rev() {
            self.discovery.book.add(*peer, addresses.iter().rev().cloned(), Instant::now());
        }
    }

    /// Connected peers first, then the others of whom we know.
    fn cacheable(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let peers = self.shared.peers.read();
        let direct = |addresses: &[Multiaddr]| -> Vec<Multiaddr> {
            addresses.iter().filter(|address| !address::is_relayed(address)).cloned().collect()
        };
        let (mut first, rest): (Vec<_>, Vec<_>) =
            self.discovery.book.all().into_iter().partition(|(peer, _)| peers.get(peer).is_some());
        first.extend(rest);
        let forgotten = self.cached.iter().filter(|(peer, _)| self.discovery.book.get(peer).is_empty());
        first.extend(forgotten.cloned());
        first.iter().map(|(peer, addresses)| (*peer, direct(addresses))).filter(|(_, kept)| !kept.is_empty()).collect()
    }

    pub(super) fn save_cache(&mut self, now: Instant) {
        if now.saturating_duration_since(self.cache_saved) >= SAVE_INTERVAL {
            self.cache_saved = now;
            self.save_cache_now();
        }
    }

    /// A few kilobytes, once a minute: not worth a thread. Without any known peer the old file stays.
    pub(super) fn save_cache_now(&self) {
        let peers = self.cacheable();
        let Some(path) = self.cache.as_ref().filter(|_| !peers.is_empty()) else { return };
        if let Err(error) = peer_cache::save(path, &peers) {
            tracing::warn!(path = %path.display(), %error, "the peer cache is not saved");
        }
    }
}
