use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use super::{Open, Registry, handler::Handler};
use crate::address;

/// Passes requests for streams to the connection that the caller chose.
pub(crate) struct Behaviour {
    registry: Arc<Registry>,
    requests: VecDeque<(PeerId, ConnectionId, Open)>,
}

impl Behaviour {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, requests: VecDeque::new() }
    }

    /// When the connection is gone by then, `open` is dropped, which the caller sees.
    pub fn open(&mut self, peer: PeerId, connection: ConnectionId, open: Open) {
        self.requests.push_back((peer, connection, open));
    }

    fn handler(&self, peer: PeerId, relayed: bool) -> Result<Handler, ConnectionDenied> {
        let node = address::node_id(&peer).ok_or_else(|| ConnectionDenied::new(NotEd25519))?;
        Ok(Handler::new(node, relayed, self.registry.clone()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the peer's key is not ed25519: no opengrid node")]
struct NotEd25519;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(peer, address::is_relayed(local))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(peer, address::is_relayed(remote))
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.requests.pop_front() {
            Some((peer_id, connection, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event })
            }
            None => Poll::Pending,
        }
    }
}
