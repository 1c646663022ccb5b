use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    InboundUpgrade, OutboundUpgrade, Stream, StreamProtocol,
    core::UpgradeInfo,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use opengrid_protocol::NodeId;
use tokio::sync::Semaphore;

use super::{Open, OpenError, PeerStream, Registry};

/// Streams that may be in negotiation on one connection.
const OPENING_MAX: usize = 256;

/// One connection's streams.
pub(crate) struct Handler {
    peer: NodeId,
    relayed: bool,
    registry: Arc<Registry>,
    slots: Arc<Semaphore>,
    queue: VecDeque<Open>,
}

impl Handler {
    pub fn new(peer: NodeId, relayed: bool, registry: Arc<Registry>) -> Self {
        let slots = Arc::new(Semaphore::new(registry.streams_per_connection));
        Self { peer, relayed, registry, slots, queue: VecDeque::new() }
    }

    fn incoming(&self, stream: Stream, protocol: &StreamProtocol) {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            self.registry.metrics.streams_refused.inc();
            return;
        };
        let stream = PeerStream::new(stream, self.relayed, &self.registry.metrics, Some(slot));
        self.registry.deliver(self.peer, protocol, stream);
    }

    fn outgoing(&self, stream: Stream, open: Open) {
        self.registry.metrics.streams_opened.inc();
        // The caller may have given up meanwhile; dropping the stream resets it.
        let _ = open.reply.send(Ok(PeerStream::new(stream, self.relayed, &self.registry.metrics, None)));
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade(self.registry.protocols()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.registry.keeps_idle()
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, Open, Infallible>> {
        while let Some(open) = self.queue.pop_front() {
            if open.reply.is_closed() {
                continue;
            }
            let protocol = SubstreamProtocol::new(Upgrade(vec![open.protocol.clone()]), open);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, open: Open) {
        if self.queue.len() < OPENING_MAX {
            self.queue.push_back(open);
        } else {
            let _ = open.reply.send(Err(OpenError::Busy));
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Upgrade, Upgrade, (), Open>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, name), .. }) => {
                self.incoming(stream, &name);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info }) => {
                self.outgoing(stream, info);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, info }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported(info.protocol.to_string()),
                    StreamUpgradeError::Io(_) => OpenError::Broken,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.reply.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Negotiates one of the named protocols and hands the bare stream over.
pub(crate) struct Upgrade(Vec<StreamProtocol>);

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}

impl OutboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}
