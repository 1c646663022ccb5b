//! Whether others can reach us, and what we do when not: reserve slots on relays.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    kad,
    multiaddr::Protocol,
    relay,
    swarm::dial_opts::{DialOpts, PeerCondition},
};

use crate::{
    address::{self, Reach},
    behaviour::Behaviour,
    config::KademliaMode,
    peers::{Peer, PeerTable},
};

/// What stands between us and those who want to dial us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nat {
    /// A public address of ours is confirmed.
    Public,
    /// Reached over relays only, or by hole punching.
    Private,
    #[default]
    Unknown,
}

pub(crate) const HOP_PROTOCOL: &str = "/libp2p/circuit/relay/0.2.0/hop";
const RESERVATIONS_MAX: usize = 2;
const RESERVE_AGAIN: Duration = Duration::from_secs(5);
/// Where UDP (or TCP) is blocked, it is seldom opened.
const SECOND_TRANSPORT_AGAIN: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(crate) struct NatState {
    reservations: HashMap<PeerId, ListenerId>,
    refused_until: HashMap<PeerId, Instant>,
    /// Relays that were dialled with their other transport, and when that may be done again.
    doubled_until: HashMap<PeerId, Instant>,
    probes_failed: u32,
    mode: Option<kad::Mode>,
    relaying: bool,
}

impl NatState {
    pub fn probe_failed(&mut self) {
        self.probes_failed = self.probes_failed.saturating_add(1);
    }

    /// Adapts to what is known now: our verdict, the DHT mode, whether we relay, and our reservations.
    pub fn refresh(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        peers: &PeerTable,
        kademlia: KademliaMode,
        now: Instant,
    ) -> Nat {
        let public = swarm.external_addresses().any(is_public);
        let behind = !public && peers.met_public();
        self.set_mode(swarm, kademlia == KademliaMode::Server || !behind);
        self.set_relaying(swarm, public);
        if public {
            self.release(swarm);
        } else if behind {
            self.reserve(swarm, peers, now);
            self.double(swarm, peers, now);
        }
        match (public, behind || self.probes_failed > 0) {
            (true, _) => Nat::Public,
            (false, true) => Nat::Private,
            (false, false) => Nat::Unknown,
        }
    }

    fn set_mode(&mut self, swarm: &mut Swarm<Behaviour>, server: bool) {
        let mode = if server { kad::Mode::Server } else { kad::Mode::Client };
        if self.mode != Some(mode) {
            self.mode = Some(mode);
            swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
    }

    fn set_relaying(&mut self, swarm: &mut Swarm<Behaviour>, relaying: bool) {
        if let Some(relay) = swarm.behaviour_mut().relay_server.as_mut()
            && self.relaying != relaying
        {
            self.relaying = relaying;
            relay.set_status(Some(if relaying { relay::Status::Enable } else { relay::Status::Disable }));
        }
    }

    fn release(&mut self, swarm: &mut Swarm<Behaviour>) {
        for (_, listener) in self.reservations.drain() {
            swarm.remove_listener(listener);
        }
    }

    /// Does not wait for a verdict of AutoNAT: an unneeded reservation is cheap, a late one delays the first answer.
    fn reserve(&mut self, swarm: &mut Swarm<Behaviour>, peers: &PeerTable, now: Instant) {
        self.refused_until.retain(|_, until| *until > now);
        for (relay, address) in relays(peers) {
            if self.reservations.len() >= RESERVATIONS_MAX {
                return;
            }
            if self.reservations.contains_key(&relay) || self.refused_until.contains_key(&relay) {
                continue;
            }
            match swarm.listen_on(address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)) {
                Ok(listener) => drop(self.reservations.insert(relay, listener)),
                Err(error) => {
                    tracing::debug!(%relay, %error, "cannot reserve");
                    self.refused_until.insert(relay, now + RESERVE_AGAIN);
                }
            }
        }
    }

    /// Keeps both a TCP and a QUIC connection to our relays: only so we learn what the NAT makes of both ports, and a
    /// hole can be punched towards a peer that met the relay by the other one.
    fn double(&mut self, swarm: &mut Swarm<Behaviour>, peers: &PeerTable, now: Instant) {
        self.doubled_until.retain(|_, until| *until > now);
        for relay in self.reservations.keys() {
            if self.doubled_until.contains_key(relay) {
                continue;
            }
            let Some(address) = peers.get(relay).and_then(other_transport) else { continue };
            self.doubled_until.insert(*relay, now + SECOND_TRANSPORT_AGAIN);
            let options = DialOpts::peer_id(*relay).condition(PeerCondition::Always).addresses(vec![address]).build();
            if let Err(error) = swarm.dial(options) {
                tracing::debug!(%relay, %error, "no second transport");
            }
        }
    }

    /// A reservation ended: another relay, or this one later.
    pub fn listener_closed(&mut self, listener: ListenerId, now: Instant) {
        let relay = self.reservations.iter().find(|(_, known)| **known == listener).map(|(relay, _)| *relay);
        if let Some(relay) = relay {
            self.reservations.remove(&relay);
            self.refused_until.insert(relay, now + RESERVE_AGAIN);
        }
    }
}

/// The peer's public address of the transport by which we have not dialled it.
fn other_transport(peer: &Peer) -> Option<Multiaddr> {
    let direct = peer.connections.iter().filter(|connection| !connection.relayed && connection.dialled);
    let dialled: Vec<bool> = direct.map(|connection| is_udp(&connection.remote)).collect();
    let missing = match (dialled.contains(&false), dialled.contains(&true)) {
        (true, false) => true,
        (false, true) => false,
        _ => return None,
    };
    peer.addresses.iter().find(|address| is_public(address) && is_udp(address) == missing).cloned()
}

fn is_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}

/// Directly connected public peers that relay, with the address that we know them at; nearest first.
fn relays(peers: &PeerTable) -> Vec<(PeerId, Multiaddr)> {
    let mut found: Vec<_> = peers
        .iter()
        .filter(|(_, peer)| peer.relay)
        .filter_map(|(id, peer)| {
            let direct = |connection: &&crate::peers::Connection| !connection.relayed && connection.dialled;
            let dialled = peer.connections.iter().find(direct).map(|connection| &connection.remote);
            let address = dialled.into_iter().chain(&peer.addresses).find(|address| is_public(address))?;
            let (address, _) = address::split_peer(address.clone());
            peer.has_direct().then_some((peer.rtt.unwrap_or(Duration::from_secs(1)), *id, address))
        })
        .collect();
    found.sort_by_key(|(rtt, id, _)| (*rtt, *id));
    found.into_iter().map(|(_, id, address)| (id, address)).collect()
}

/// Where a peer may be reached through relays that we are connected to.
pub(crate) fn circuits_to(peers: &PeerTable, target: &PeerId) -> Vec<Multiaddr> {
    relays(peers)
        .into_iter()
        .filter(|(relay, _)| relay != target)
        .take(4)
        .map(|(relay, address)| address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit))
        .collect()
}

pub(crate) fn is_public(address: &Multiaddr) -> bool {
    !address::is_relayed(address) && address::reach(address) == Some(Reach::Public)
}
