//! The table of connected peers.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use opengrid_protocol::NodeId;

use crate::address;

/// Of those that a peer claims, so many are tried.
const TCP_PORTS_MAX: usize = 2;

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
    /// The latest answered ping, at first the beginning.
    pub heard: Instant,
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

    /// The direct connection that was heard last (another may belong to a process that is gone), else the youngest
    /// relayed one.
    pub fn best_connection(&self) -> Option<ConnectionId> {
        let direct = self.connections.iter().filter(|connection| !connection.relayed);
        let direct = direct.max_by_key(|connection| connection.heard);
        direct.or(self.connections.last()).map(|connection| connection.id)
    }

    /// The UDP socket of the program behind a direct connection, where that is surely its own: one at which it says that it
    /// listens, no hole in a NAT. A stream may go over another connection than the best one of now.
    pub fn socket(&self) -> Option<SocketAddr> {
        let claims = |socket| self.addresses.iter().any(|claimed| address::udp_socket(claimed) == Some(socket));
        let own = |connection: &Connection| {
            let socket = address::udp_socket(&connection.remote).filter(|socket| claims(*socket))?;
            Some((connection.heard, socket))
        };
        let direct = self.connections.iter().filter(|connection| !connection.relayed);
        direct.filter_map(own).max_by_key(|(heard, _)| *heard).map(|(_, socket)| socket)
    }

    /// The TCP ports that it claims beside the UDP one.
    pub fn tcp_ports(&self) -> Vec<SocketAddr> {
        let Some(udp) = self.socket() else { return Vec::new() };
        let claimed = self.addresses.iter().filter_map(address::tcp_socket);
        claimed.filter(|port| port.ip() == udp.ip()).take(TCP_PORTS_MAX).collect()
    }

    /// Where the best connection comes from, if it is direct.
    pub fn direct_ip(&self) -> Option<IpAddr> {
        let best = self.best_connection()?;
        let connection = self.connections.iter().find(|connection| connection.id == best && !connection.relayed)?;
        address::ip(&connection.remote)
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

    /// A ping was answered.
    pub fn heard(&mut self, peer: &PeerId, connection: ConnectionId, rtt: Duration, now: Instant) {
        let Some(peer) = self.peers.get_mut(peer) else { return };
        peer.rtt = Some(rtt);
        if let Some(known) = peer.connections.iter_mut().find(|known| known.id == connection) {
            known.heard = now;
        }
    }

    /// We ourselves were not running: nobody is to blame for silence before `now`.
    pub fn forgive_silence(&mut self, now: Instant) {
        self.peers.values_mut().flat_map(|peer| &mut peer.connections).for_each(|known| known.heard = now);
    }

    /// Connections without an answered ping for `silence`.
    pub fn silent(&self, silence: Duration, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        let is_silent = |known: &&Connection| now.saturating_duration_since(known.heard) > silence;
        let of_peer = |(id, peer): (&PeerId, &Peer)| {
            peer.connections.iter().filter(is_silent).map(|known| (*id, known.id)).collect::<Vec<_>>()
        };
        self.peers.iter().flat_map(of_peer).collect()
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
        Connection { id: ConnectionId::new_unchecked(id), relayed, remote, dialled: true, heard: Instant::now() }
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
        assert_eq!(table.get(&peer).unwrap().best_connection(), Some(ConnectionId::new_unchecked(3)));
        assert!(!table.closed(&peer, ConnectionId::new_unchecked(1)));
        assert!(!table.closed(&peer, ConnectionId::new_unchecked(2)));
        assert!(table.closed(&peer, ConnectionId::new_unchecked(3)));
        assert_eq!(table.len(), 0);
        assert!(!table.closed(&peer, ConnectionId::new_unchecked(3)), "a second report of the end changes nothing");
    }

    #[test]
    fn the_socket_is_one_at_which_the_peer_says_that_it_listens() {
        let mut table = PeerTable::default();
        let (peer, node) = (PeerId::random(), NodeId([1; 32]));
        let quic = |port: u16| format!("/ip4/198.51.100.7/udp/{port}/quic-v1").parse::<Multiaddr>().unwrap();
        let over = |id, port, relayed| Connection { remote: quic(port), ..connection(id, relayed) };
        table.opened(peer, node, over(1, 4470, false));
        let socket = |table: &PeerTable| table.get(&peer).unwrap().socket().map(|socket| socket.port());
        assert_eq!(socket(&table), None, "a hole in a NAT, as far as is known");
        table.peers.get_mut(&peer).unwrap().addresses = vec![quic(4470), quic(4472)];
        assert_eq!(socket(&table), Some(4470));
        let tcp = ["/ip4/198.51.100.7/tcp/4470", "/ip4/198.51.100.8/tcp/22"].map(|address| address.parse().unwrap());
        table.peers.get_mut(&peer).unwrap().addresses.extend(tcp);
        let ports = table.get(&peer).unwrap().tcp_ports();
        assert_eq!(ports, ["198.51.100.7:4470".parse().unwrap()], "no port of another machine");
        // Heard last, but over TCP, or not at its own port, or over a relay.
        table.opened(peer, node, connection(2, false));
        table.opened(peer, node, over(3, 4471, false));
        table.opened(peer, node, over(4, 4472, true));
        assert_eq!(socket(&table), Some(4470));
    }

    #[test]
    fn silence_is_told_per_connection_and_forgiven_after_a_pause_of_ours() {
        let mut table = PeerTable::default();
        let (peer, node) = (PeerId::random(), NodeId([1; 32]));
        let (first, second) = (connection(1, false), connection(2, false));
        let (quiet, start, limit) = (first.id, first.heard, Duration::from_secs(6));
        let other = second.id;
        table.opened(peer, node, first);
        table.opened(peer, node, second);
        let later = start + Duration::from_secs(7);
        assert!(table.silent(limit, start + Duration::from_secs(5)).is_empty());
        table.heard(&peer, other, Duration::from_millis(3), later);
        assert_eq!(table.silent(limit, later), [(peer, quiet)]);
        assert_eq!(table.get(&peer).unwrap().rtt, Some(Duration::from_millis(3)));
        table.forgive_silence(later);
        assert!(table.silent(limit, later).is_empty());
    }
}
