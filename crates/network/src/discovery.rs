//! Where peers are found: bootstrap nodes and the peer cache, the address book, and what is asked of the DHT.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{self, QueryId},
};
use opengrid_protocol::{ModelRoot, NodeId};
use tokio::sync::oneshot;

const BOOK_PEERS_MAX: usize = 2_048;
pub(crate) const ADDRESSES_PER_PEER_MAX: usize = 16;
const BOOTSTRAP_MAX: usize = 256;
const RETRY_FIRST: Duration = Duration::from_millis(400);
const RETRY_LAST: Duration = Duration::from_secs(30);
const RENDEZVOUS_FIRST: Duration = Duration::from_millis(700);
const RENDEZVOUS_LAST: Duration = Duration::from_secs(60);
const DHT_KEYS_MAX: usize = 4_096;
pub(crate) const PROVIDED_MAX: usize = 512;
const QUERIES_MAX: usize = 256;

/// Addresses by peer, bounded; the peers heard of longest ago are forgotten first.
#[derive(Default)]
pub(crate) struct AddressBook {
    peers: HashMap<PeerId, (Vec<Multiaddr>, Instant)>,
}

impl AddressBook {
    pub fn add(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) {
        if self.peers.len() >= BOOK_PEERS_MAX && !self.peers.contains_key(&peer) {
            let oldest = self.peers.iter().min_by_key(|(_, (_, at))| *at).map(|(peer, _)| *peer);
            oldest.map(|oldest| self.peers.remove(&oldest));
        }
        let (known, at) = self.peers.entry(peer).or_insert_with(|| (Vec::new(), now));
        *at = now;
        for address in addresses {
            known.retain(|old| *old != address);
            known.insert(0, address);
        }
        known.truncate(ADDRESSES_PER_PEER_MAX);
    }

    pub fn get(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers.get(peer).map_or(&[], |(addresses, _)| addresses)
    }

    pub fn forget(&mut self, peer: &PeerId, address: &Multiaddr) {
        if let Some((addresses, _)) = self.peers.get_mut(peer) {
            addresses.retain(|known| known != address);
        }
    }

    /// Everything, freshest first.
    pub fn all(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut peers: Vec<_> = self.peers.iter().filter(|(_, (addresses, _))| !addresses.is_empty()).collect();
        peers.sort_by_key(|(_, (_, at))| std::cmp::Reverse(*at));
        peers.into_iter().map(|(peer, (addresses, _))| (*peer, addresses.clone())).collect()
    }
}

/// Doubling delays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Instant,
    delay: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    pub fn new(now: Instant, first: Duration, last: Duration) -> Self {
        Self { next: now, delay: first, first, last }
    }

    /// Whether it is time; then the next time is set.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.delay;
            self.delay = (self.delay * 2).min(self.last);
        }
        due
    }

    fn reset(&mut self, now: Instant) {
        (self.next, self.delay) = (now + self.first, self.first);
    }
}

/// A node that is dialled until it is connected.
pub(crate) struct Bootstrap {
    pub peer: Option<PeerId>,
    pub addresses: Vec<Multiaddr>,
    backoff: Backoff,
}

/// What an answer of the DHT is for.
pub(crate) enum Query {
    Providers {
        found: HashSet<PeerId>,
        reply: oneshot::Sender<Vec<NodeId>>,
    },
    /// Peers of a topic to which we are subscribed.
    Rendezvous,
    Lookup(PeerId),
}

pub(crate) struct Discovery {
    pub book: AddressBook,
    pub bootstrap: Vec<Bootstrap>,
    pub queries: HashMap<QueryId, Query>,
    /// Keys that we announce in the DHT.
    pub provided: HashSet<ModelRoot>,
    reprovide_at: Option<Instant>,
    topics: HashMap<ModelRoot, Backoff>,
    /// Keys that others announced to us, and when.
    dht_keys: HashMap<kad::RecordKey, Instant>,
}

impl Discovery {
    pub fn new() -> Self {
        Self {
            book: AddressBook::default(),
            bootstrap: Vec::new(),
            queries: HashMap::new(),
            provided: HashSet::new(),
            reprovide_at: None,
            topics: HashMap::new(),
            dht_keys: HashMap::new(),
        }
    }

    /// Remembers a node to be kept connected; addresses of one node are tried together.
    pub fn add_bootstrap(&mut self, peer: Option<PeerId>, address: Multiaddr, now: Instant) {
        let same = |known: &&mut Bootstrap| peer.is_some() && known.peer == peer;
        if let Some(known) = self.bootstrap.iter_mut().find(same) {
            if !known.addresses.contains(&address) && known.addresses.len() < ADDRESSES_PER_PEER_MAX {
                known.addresses.push(address);
            }
            known.backoff.reset(now);
        } else if self.bootstrap.len() < BOOTSTRAP_MAX {
            let backoff = Backoff::new(now, RETRY_FIRST, RETRY_LAST);
            self.bootstrap.push(Bootstrap { peer, addresses: vec![address], backoff });
        }
    }

    /// Bootstrap nodes that are to be dialled now.
    pub fn due_bootstrap(&mut self, now: Instant, connected: impl Fn(&Bootstrap) -> bool) -> Vec<usize> {
        let mut due = Vec::new();
        for (index, node) in self.bootstrap.iter_mut().enumerate() {
            if connected(node) {
                node.backoff.reset(now);
            } else if node.backoff.due(now) {
                due.push(index);
            }
        }
        due
    }

    pub fn follow(&mut self, root: ModelRoot, now: Instant) {
        self.topics.insert(root, Backoff::new(now, RENDEZVOUS_FIRST, RENDEZVOUS_LAST));
    }

    pub fn unfollow(&mut self, root: &ModelRoot) {
        self.topics.remove(root);
    }

    pub fn follows(&self) -> usize {
        self.topics.len()
    }

    /// Topics that want more neighbours and whose next search is due.
    pub fn due_topics(&mut self, now: Instant, wants: impl Fn(ModelRoot) -> bool) -> Vec<ModelRoot> {
        let mut due = Vec::new();
        for (root, backoff) in &mut self.topics {
            if wants(*root) && backoff.due(now) {
                due.push(*root);
            }
        }
        due
    }

    /// The surroundings changed (first peers, a new address of ours): search and announce anew, soon.
    pub fn nudge(&mut self, now: Instant) {
        self.reprovide_at.get_or_insert(now + Duration::from_millis(200));
        self.topics.values_mut().for_each(|backoff| backoff.reset(now));
    }

    pub fn due_reprovide(&mut self, now: Instant) -> bool {
        self.reprovide_at.take_if(|at| *at <= now).is_some()
    }

    pub fn ask(&mut self, id: QueryId, query: Query) {
        if self.queries.len() < QUERIES_MAX {
            self.queries.insert(id, query);
        }
    }

    /// Whether a key announced by another may be stored; bounds what strangers can make us hold.
    pub fn admit_key(&mut self, key: &kad::RecordKey, now: Instant) -> bool {
        if key.as_ref().len() != 32 {
            return false;
        }
        if self.dht_keys.len() >= DHT_KEYS_MAX && !self.dht_keys.contains_key(key) {
            let hour = Duration::from_secs(2 * 3_600);
            self.dht_keys.retain(|_, at| now.saturating_duration_since(*at) < hour);
            if self.dht_keys.len() >= DHT_KEYS_MAX {
                return false;
            }
        }
        self.dht_keys.insert(key.clone(), now);
        true
    }
}

pub(crate) fn dht_key(root: ModelRoot) -> kad::RecordKey {
    kad::RecordKey::new(&root.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::address;

    #[test]
    fn the_address_book_is_bounded_and_prefers_fresh_addresses() {
        let now = Instant::now();
        let mut book = AddressBook::default();
        let peer = PeerId::random();
        let address = |port: u16| -> Multiaddr { format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap() };
        book.add(peer, (0..40).map(address), now);
        assert_eq!(book.get(&peer).len(), ADDRESSES_PER_PEER_MAX);
        assert_eq!(book.get(&peer)[0], address(39));
        for _ in 0..BOOK_PEERS_MAX {
            book.add(PeerId::random(), [address(1)], now + Duration::from_secs(1));
        }
        assert!(book.get(&peer).is_empty(), "the oldest made room");
        assert_eq!(book.all().len(), BOOK_PEERS_MAX);
    }

    #[test]
    fn bootstrap_nodes_are_dialled_with_growing_pauses_until_connected() {
        let start = Instant::now();
        let mut discovery = Discovery::new();
        let peer = address::peer_id(NodeId([1; 32]));
        discovery.add_bootstrap(peer, "/ip4/10.0.0.1/tcp/1".parse().unwrap(), start);
        discovery.add_bootstrap(peer, "/ip4/10.0.0.2/tcp/1".parse().unwrap(), start);
        assert_eq!(discovery.bootstrap.len(), 1);
        let dials = |discovery: &mut Discovery, connected: bool| {
            (0..240)
                .filter(|tick| {
                    let now = start + Duration::from_secs(1) + Duration::from_millis(250) * *tick;
                    !discovery.due_bootstrap(now, |_| connected).is_empty()
                })
                .count()
        };
        let count = dials(&mut discovery, false);
        assert!((5..=9).contains(&count), "{count} dials in a minute");
        assert_eq!(dials(&mut discovery, true), 0);
    }

    #[test]
    fn strangers_cannot_fill_the_key_table() {
        let mut discovery = Discovery::new();
        let now = Instant::now();
        let key = |number: u32| {
            let mut root = [0; 32];
            root[..4].copy_from_slice(&number.to_le_bytes());
            dht_key(ModelRoot(root))
        };
        let admitted = (0..DHT_KEYS_MAX as u32 + 10).filter(|number| discovery.admit_key(&key(*number), now)).count();
        assert_eq!(admitted, DHT_KEYS_MAX);
        assert!(discovery.admit_key(&key(0), now), "known keys are refreshed");
        assert!(!discovery.admit_key(&kad::RecordKey::new(&[1, 2, 3]), now));
    }
}
