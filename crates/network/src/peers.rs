//! The table of connected peers.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use opengrid_protocol::NodeId;

use crate::address;

/// A connected peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerInfo {
    pub node: NodeId,
    /// Its name and version, once it told them.
    pub agent: Option<String>,
    /// At least one connection is direct.
    pub connected_direct: bool,
    /// At least one connection goes over a relay.
    pub relayed: bool,
    /// Round trip of the latest ping.
    pub rtt: Option<Duration>,
    /// Where it can be dialled, as far as known.
    pub addresses: Vec<String>,
    /// When the first of the present connections was made.
    pub since: SystemTime,
}

/// One connection to a peer.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub id: ConnectionId,
    pub relayed: bool,
    /// The peer's address; the address that we dialled, or from which it came.
    pub remote: Multiaddr,
    pub dialled: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub node: NodeId,
    pub agent: Option<String>,
    pub rtt: Option<Duration>,
    pub addresses: Vec<Multiaddr>,
    /// It relays for others.
    pub relay: bool,
    pub connections: Vec<Connection>,
    since: SystemTime,
}

impl Peer {
    pub fn has_direct(&self) -> bool {
        self.connections.iter().any(|connection| !connection.relayed)
    }

    pub fn has_relayed(&self) -> bool {
        self.connections.iter().any(|connection| connection.relayed)
    }

    /// The oldest direct connection (young ones may be short AutoNAT probes), else the youngest relayed one.
    pub fn best_connection(&self) -> Option<ConnectionId> {
        let direct = self.connections.iter().find(|connection| !connection.relayed);
        direct.or(self.connections.last()).map(|connection| connection.id)
    }

    fn info(&self) -> PeerInfo {
        PeerInfo {
            node: self.node,
            agent: self.agent.clone(),
            connected_direct: self.has_direct(),
            relayed: self.has_relayed(),
            rtt: self.rtt,
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            since: self.since,
        }
    }
}

/// What a new connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    FirstConnection,
    /// The first direct connection beside relayed ones.
    DirectPath,
    Another,
}

/// Bounded by the connection limits.
#[derive(Default)]
pub(crate) struct PeerTable {
    peers: HashMap<PeerId, Peer>,
}

impl PeerTable {
    pub fn get(&self, peer: &PeerId) -> Option<&Peer> {
        self.peers.get(peer)
    }

    pub fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(peer)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.peers.iter()
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn opened(&mut self, peer: PeerId, node: NodeId, connection: Connection) -> Arrival {
        let relayed = connection.relayed;
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            node,
            agent: None,
            rtt: None,
            addresses: Vec::new(),
            relay: false,
            connections: Vec::new(),
            since: SystemTime::now(),
        });
        let arrival = match (entry.connections.is_empty(), entry.has_direct()) {
            (true, _) => Arrival::FirstConnection,
            (false, false) if !relayed => Arrival::DirectPath,
            _ => Arrival::Another,
        };
        entry.connections.push(connection);
        arrival
    }

    /// Whether that was the peer's last connection; then the peer leaves the table.
    pub fn closed(&mut self, peer: &PeerId, connection: ConnectionId) -> bool {
        let Some(entry) = self.peers.get_mut(peer) else { return false };
        entry.connections.retain(|known| known.id != connection);
        let last = entry.connections.is_empty();
        if last {
            self.peers.remove(peer);
        }
        last
    }

    pub fn infos(&self) -> Vec<PeerInfo> {
        let mut infos: Vec<_> = self.peers.values().map(Peer::info).collect();
        infos.sort_by_key(|info| info.node);
        infos
    }

    /// Peers with a direct path, and peers with relayed ones only.
    pub fn count_by_path(&self) -> (usize, usize) {
        let direct = self.peers.values().filter(|peer| peer.has_direct()).count();
        (direct, self.peers.len() - direct)
    }

    /// Peers with a direct connection to or from a public address.
    pub fn met_public(&self) -> bool {
        let public = |connection: &Connection| {
            !connection.relayed && address::reach(&connection.remote) == Some(address::Reach::Public)
        };
        self.peers.values().any(|peer| peer.connections.iter().any(public))
    }
}

/// Relayed connections that end soon because a direct path is there.
#[derive(Default)]
pub(crate) struct Closing {
    due: Vec<(Instant, PeerId)>,
}

impl Closing {
    pub fn push(&mut self, at: Instant, peer: PeerId) {
        if !self.due.iter().any(|(_, known)| *known == peer) {
            self.due.push((at, peer));
        }
    }

    pub fn take_due(&mut self, now: Instant) -> Vec<PeerId> {
        let (due, later) = self.due.drain(..).partition(|(at, _)| *at <= now);
        self.due = later;
        due.into_iter().map(|(_, peer)| peer).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn connection(id: usize, relayed: bool) -> Connection {
        let remote = "/ip4/198.51.100.7/tcp/1".parse().unwrap();
        Connection { id: ConnectionId::new_unchecked(id), relayed, remote, dialled: true }
    }

    #[test]
    fn a_peer_stays_until_its_last_connection_and_prefers_the_direct_one() {
        let mut table = PeerTable::default();
        let (peer, node) = (PeerId::random(), NodeId([1; 32]));
        assert_eq!(table.opened(peer, node, connection(1, true)), Arrival::FirstConnection);
        assert_eq!(table.get(&peer).unwrap().best_connection(), Some(ConnectionId::new_unchecked(1)));
        assert_eq!(table.count_by_path(), (0, 1));
        assert_eq!(table.opened(peer, node, connection(2, false)), Arrival::DirectPath);
        assert_eq!(table.opened(peer, node, connection(3, false)), Arrival::Another);
        assert_eq!(table.get(&peer).unwrap().best_connection(), Some(ConnectionId::new_unchecked(2)));
        assert!(!table.closed(&peer, ConnectionId::new_unchecked(1)));
        assert!(!table.closed(&peer, ConnectionId::new_unchecked(2)));
        assert!(table.closed(&peer, ConnectionId::new_unchecked(3)));
        assert_eq!(table.len(), 0);
    }
}
