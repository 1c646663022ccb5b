//! How a peer is reached: at its known addresses, over common relays, where the DHT says.

use std::time::Instant;

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        self,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use opengrid_protocol::NodeId;

use super::Actor;
use crate::{
    address,
    config::PeerAddress,
    dialing::{self, DialError, DialReply, Stage, Waiter},
    discovery::{self, Bootstrap, Query},
    nat,
    streams::Open,
};

impl Actor {
    pub(super) fn dial_bootstrap(&mut self, now: Instant) {
        let peers = self.shared.peers.read();
        let dialled = |address: &Multiaddr| {
            peers.iter().any(|(_, peer)| {
                peer.connections.iter().any(|known| address::split_peer(known.remote.clone()).0 == *address)
            })
        };
        let connected = |node: &Bootstrap| match node.peer {
            Some(peer) => peers.get(&peer).is_some(),
            None => node.addresses.iter().any(dialled),
        };
        let due = self.discovery.due_bootstrap(now, connected);
        drop(peers);
        for index in due {
            let node = &self.discovery.bootstrap[index];
            let (peer, addresses) = (node.peer, node.addresses.clone());
            match peer {
                Some(peer) => self.dial(peer, addresses),
                None => addresses.into_iter().for_each(|address| {
                    if let Err(error) = self.swarm.dial(address) {
                        tracing::debug!(%error, "bootstrap address is not dialled");
                    }
                }),
            }
        }
    }

    /// Dials unless connected or dialling already. Our table decides what is connected: libp2p still counts
    /// connections that do not finish closing.
    pub(crate) fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if self.shared.peers.read().get(&peer).is_some() {
            return;
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::NotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(options) {
            Ok(()) | Err(swarm::DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                tracing::debug!(%peer, %error, "not dialled");
                self.on_dial_failed(Some(peer), None, &error);
            }
        }
    }

    pub(super) fn dial_addresses(&mut self, given: Vec<PeerAddress>, remember: bool, reply: DialReply) {
        let mut by_peer: Vec<(Option<PeerId>, Vec<Multiaddr>)> = Vec::new();
        for one in given.iter().take(discovery::ADDRESSES_PER_PEER_MAX) {
            let Ok((peer, address)) = address::parse(one) else {
                let _ = reply.send(Err(DialError::BadAddress(one.address.chars().take(256).collect())));
                return;
            };
            if remember {
                self.discovery.add_bootstrap(peer, address.clone(), Instant::now());
            }
            match by_peer.iter_mut().find(|(known, _)| *known == peer && peer.is_some()) {
                Some((_, addresses)) => addresses.push(address),
                None => by_peer.push((peer, vec![address])),
            }
        }
        // Several nodes at once would need a race; an invite holds one, so the first decides.
        let Some((peer, addresses)) = by_peer.into_iter().next() else {
            let _ = reply.send(Err(DialError::NoAddress));
            return;
        };
        match peer.and_then(|peer| address::node_id(&peer).map(|node| (peer, node))) {
            Some((peer, node)) => {
                self.discovery.book.add(peer, addresses, Instant::now());
                self.want(node, Waiter::Connected(reply));
            }
            None => self.dial_unknown(addresses, reply),
        }
    }

    fn dial_unknown(&mut self, addresses: Vec<Multiaddr>, reply: DialReply) {
        let Some(address) = addresses.into_iter().next() else { return };
        let options = DialOpts::unknown_peer_id().address(address).build();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => self.dialing.wait_connection(connection, reply),
            Err(error) => drop(reply.send(Err(dialing::describe(&error)))),
        }
    }

    /// Serves a waiter at once when connected, else begins the search for the node.
    pub(super) fn want(&mut self, node: NodeId, waiter: Waiter) {
        let Some(peer) = address::peer_id(node).filter(|_| node != self.shared.local) else {
            waiter.fail(DialError::Unreachable("that is this node itself".to_owned()));
            return;
        };
        if self.shared.peers.read().get(&peer).is_some() {
            self.serve(peer, node, waiter);
        } else if self.dialing.wait(peer, waiter) {
            let mut addresses = self.discovery.book.get(&peer).to_vec();
            if addresses.is_empty() {
                addresses = nat::circuits_to(&self.shared.peers.read(), &peer);
            }
            self.dial(peer, addresses);
        }
    }

    pub(crate) fn serve(&mut self, peer: PeerId, node: NodeId, waiter: Waiter) {
        match waiter {
            Waiter::Connected(reply) => drop(reply.send(Ok(node))),
            Waiter::Stream(open) => self.open(peer, open),
        }
    }

    fn open(&mut self, peer: PeerId, open: Open) {
        let connection = self.shared.peers.read().get(&peer).and_then(crate::peers::Peer::best_connection);
        match connection {
            Some(connection) => self.swarm.behaviour_mut().streams.open(peer, connection, open),
            None => Waiter::Stream(open).fail(DialError::NoAddress),
        }
    }

    /// The next way to a peer that somebody waits for.
    pub(crate) fn search_on(&mut self, peer: PeerId, error: &DialError) {
        match self.dialing.advance(&peer) {
            Some(Stage::Lookup) => {
                let id = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
                self.discovery.ask(id, Query::Lookup(peer));
                let circuits = nat::circuits_to(&self.shared.peers.read(), &peer);
                if !circuits.is_empty() {
                    self.dial(peer, circuits);
                }
            }
            Some(_) => {
                let addresses = self.discovery.book.get(&peer).to_vec();
                self.dial(peer, addresses);
            }
            None => self.dialing.fail(&peer, error),
        }
    }
}
