//! The DHT, without the addresses by which its records could send us into our own LAN.

use std::{
    ops::{Deref, DerefMut},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    kad::{self, store::MemoryStore},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

use crate::address;

type Inner = kad::Behaviour<MemoryStore>;

/// libp2p's Kademlia dials whatever a record says of a peer; this one passes such addresses through
/// [`address::from_dht`].
pub(crate) struct Kademlia {
    inner: Inner,
    met_public: bool,
}

impl Kademlia {
    pub fn new(inner: Inner) -> Self {
        Self { inner, met_public: false }
    }

    /// Tells whether a public peer is connected. Once is enough: from then on the records are the world's.
    pub fn meet(&mut self, public: bool) {
        self.met_public |= public;
    }

    /// Of the addresses that a record claims, those that may be tried.
    pub fn believed(&self, claimed: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
        claimed.into_iter().filter(|address| address::from_dht(address, self.met_public)).collect()
    }

    /// Where the peer was met, or what it told us itself.
    fn is_in_table(&mut self, peer: &PeerId, address: &Multiaddr) -> bool {
        let Some(bucket) = self.inner.kbucket(*peer) else { return false };
        bucket
            .iter()
            .any(|entry| entry.node.key.preimage() == peer && entry.node.value.iter().any(|known| known == address))
    }
}

impl Deref for Kademlia {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Kademlia {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl NetworkBehaviour for Kademlia {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let known = self.inner.handle_pending_outbound_connection(id, peer, addresses, role)?;
        let met_public = self.met_public;
        let may = |address: &Multiaddr| {
            address::from_dht(address, met_public) || peer.is_some_and(|peer| self.is_in_table(&peer, address))
        };
        Ok(known.into_iter().filter(may).collect())
    }

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn kademlia() -> Kademlia {
        let local = PeerId::random();
        Kademlia::new(Inner::new(local, MemoryStore::new(local)))
    }

    fn dialled(kad: &mut Kademlia, peer: PeerId) -> Vec<Multiaddr> {
        let id = ConnectionId::new_unchecked(1);
        kad.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer).unwrap()
    }

    #[test]
    fn records_send_nobody_into_its_own_lan_once_a_public_peer_was_met() {
        let mut kad = kademlia();
        let router: Multiaddr = "/ip4/192.168.1.1/tcp/80".parse().unwrap();
        let public: Multiaddr = "/ip4/198.51.100.7/tcp/4470".parse().unwrap();
        let claimed = || [router.clone(), public.clone()];
        assert_eq!(kad.believed(claimed()), claimed(), "a grid on a LAN has such addresses only");
        kad.meet(true);
        kad.meet(false);
        assert_eq!(kad.believed(claimed()), [public]);
    }

    #[test]
    fn lan_peers_that_were_met_stay_reachable() {
        let mut kad = kademlia();
        let (peer, address) = (PeerId::random(), "/ip4/192.168.1.9/tcp/4470".parse::<Multiaddr>().unwrap());
        kad.add_address(&peer, address.clone());
        kad.meet(true);
        let [found] = &dialled(&mut kad, peer)[..] else { panic!("one address") };
        assert_eq!(address::split_peer(found.clone()).0, address);
    }
}
