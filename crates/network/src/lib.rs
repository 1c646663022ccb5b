//! The only user of libp2p: swarm, discovery, NAT traversal, streams and relays.
//!
//! [`Network::start`] makes one task that owns the libp2p swarm (`actor`); everything else is the cloneable handle
//! [`Network`], which sends that task commands and reads the tables that it keeps. Multiaddresses cross this border as
//! text, nodes as [`NodeId`].
//!
//! How nodes meet: bootstrap addresses (invites), the peer cache, mDNS on the LAN and the Kademlia DHT. A node that
//! serves a model [`provide`](Network::provide)s its root; a node that [`subscribe`](Network::subscribe)s to a model's
//! topic looks its providers up by itself and connects to some of them.
//!
//! How they reach each other: directly (TCP, QUIC); from behind a NAT over a public node that relays, where a slot is
//! reserved as soon as such a node is met; then hole punching (DCUtR) moves the connection to a direct path
//! ([`NetworkEvent::Upgraded`]) and the relayed one is closed.
//!
//! Architecture invariant: no libp2p type in this crate's public interface.

mod actor;
mod address;
mod behaviour;
mod config;
mod dialing;
mod discovery;
mod events;
mod gossip;
mod kademlia;
mod metrics;
mod nat;
mod peer_cache;
mod peers;
mod refusal;
mod streams;
mod transport;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use opengrid_protocol::{ModelRoot, NodeId, limits::RECORD_BYTES_MAX};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use crate::{
    address::{address_from_bytes, address_to_bytes},
    config::{Gossip, GossipValidator, KademliaMode, Limits, NetworkConfig, PeerAddress, StartError, Verdict},
    dialing::DialError,
    nat::Nat,
    peers::PeerInfo,
    streams::{AcceptError, IncomingStreams, OpenError, PeerStream},
};
use crate::{metrics::Metrics, peers::PeerTable, streams::Registry};

/// Dialling, DHT look-ups on the way included, takes no longer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const PORTS_PAUSE: Duration = Duration::from_millis(250);
const PROVIDERS_TIMEOUT: Duration = Duration::from_secs(10);
const COMMANDS_MAX: usize = 1_024;
const EVENTS_MAX: usize = 4_096;

/// What happens on the network. When the node takes events too slowly, gossip is dropped first (and counted).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// The first connection to this node.
    Connected(NodeId),
    /// A further direct connection to a node that is connected already: a second path, or the node started anew while
    /// its old connection still looked alive.
    ConnectedAgain(NodeId),
    /// The last connection to this node is gone.
    Disconnected(NodeId),
    /// A direct path to this node appeared beside a relayed one, which is closed a second later.
    Upgraded(NodeId),
    /// An accepted message of another author on a topic to which we are subscribed.
    Gossip(Gossip),
    /// What we can be reached at, or the NAT verdict, changed: see [`Network::listen_addresses`], [`Network::nat`].
    AddressesChanged,
}

/// Why a message is not published.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    #[error("the message has {size} bytes, at most {limit} are allowed")]
    TooLarge { size: usize, limit: usize },
    #[error("the message cannot be signed: {0}")]
    Signing(String),
    #[error("the network is shut down")]
    Closed,
}

/// Why a topic is not subscribed, or a key not provided.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FollowError {
    #[error("this node follows or provides too many models: at most {0}")]
    TooMany(usize),
    #[error("the network is shut down")]
    Closed,
}

/// What the handle and the actor share. Locks are held for moments only, never across an await.
struct Shared {
    local: NodeId,
    peers: RwLock<PeerTable>,
    addresses: RwLock<Vec<String>>,
    nat: RwLock<Nat>,
    metrics: Arc<Metrics>,
    streams: Arc<Registry>,
}

enum Command {
    Dial { addresses: Vec<PeerAddress>, remember: bool, reply: dialing::DialReply },
    DialPeer { node: NodeId, reply: dialing::DialReply },
    OpenStream { node: NodeId, open: streams::Open },
    Subscribe { root: ModelRoot, reply: oneshot::Sender<Result<(), FollowError>> },
    Unsubscribe(ModelRoot),
    Publish { root: ModelRoot, bytes: Vec<u8>, reply: oneshot::Sender<Result<(), PublishError>> },
    Provide { root: ModelRoot, reply: oneshot::Sender<Result<(), FollowError>> },
    StopProviding(ModelRoot),
    Providers { root: ModelRoot, reply: oneshot::Sender<Vec<NodeId>> },
    Disconnect(NodeId),
    Punish { node: NodeId, reason: String, pause: Duration },
}

/// A handle to the network; clones share one swarm. The swarm ends with [`Network::shutdown`] or when the last handle
/// is dropped.
#[derive(Clone)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("local", &self.shared.local).finish_non_exhaustive()
    }
}

impl Network {
    /// Starts to listen and to look for peers; returns when the listening addresses are known.
    ///
    /// # Errors
    /// [`StartError::PortTaken`] and the like, in words for the person who started the node.
    pub async fn start(config: NetworkConfig) -> Result<(Self, mpsc::Receiver<NetworkEvent>), StartError> {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (events, event_receiver) = mpsc::channel(EVENTS_MAX);
        let stop = CancellationToken::new();
        let mut actor = actor::Actor::new(config, receiver, events, stop.clone())?;
        actor.listen().await?;
        let shared = actor.shared();
        let task = tokio::spawn(actor.run());
        Ok((Self { commands, shared, stop, task: Arc::new(Mutex::new(Some(task))) }, event_receiver))
    }

    pub fn local(&self) -> NodeId {
        self.shared.local
    }

    /// Multiaddresses without `/p2p/…` at which this node listens, with the real port. Most useful first: confirmed
    /// public ones, LAN, relayed, loopback.
    pub fn listen_addresses(&self) -> Vec<String> {
        self.shared.addresses.read().clone()
    }

    /// The few of [`Network::listen_addresses`] that an invite needs.
    pub fn invite_addresses(&self) -> Vec<String> {
        address::for_invite(&self.shared.addresses.read())
    }

    /// The connected peers by id. A peer leaves when its last connection closes, a silent one within 8 seconds.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.peers.read().infos()
    }

    /// A TCP port at which a connected peer says that it listens, and does. For [`Network::is_refused`].
    pub async fn accepting_port(&self, node: NodeId, patience: Duration) -> Option<SocketAddr> {
        let found = async {
            loop {
                let ports = self.of_peer(node, |peer| Some(peer.tcp_ports()))?;
                if !ports.is_empty() {
                    return refusal::accepting(ports).await;
                }
                // It says where it listens a moment after it was met.
                sleep(PORTS_PAUSE).await;
            }
        };
        timeout(patience, found).await.ok()?
    }

    /// Whether the host on which a connected peer ran says that the program is gone: nothing listens at its port any more,
    /// or at a TCP port that accepted before. False where nothing is known: behind a NAT or a firewall, on a host that is
    /// gone itself, or over a connection that would have closed. Takes `patience` at most.
    pub async fn is_refused(&self, node: NodeId, tcp: Option<SocketAddr>, patience: Duration) -> bool {
        let Some(udp) = self.of_peer(node, peers::Peer::socket) else { return false };
        timeout(patience, refusal::is_refused(refusal::Ports { udp, tcp })).await.unwrap_or(false)
    }

    fn of_peer<T>(&self, node: NodeId, what: impl FnOnce(&peers::Peer) -> Option<T>) -> Option<T> {
        self.shared.peers.read().get(&address::peer_id(node)?).and_then(what)
    }

    /// Whether a connected peer runs on this very machine, as far as addresses tell.
    pub fn is_on_this_host(&self, node: NodeId) -> bool {
        if node == self.shared.local {
            return true;
        }
        let Some(ip) = self.of_peer(node, peers::Peer::direct_ip) else { return false };
        address::is_of_this_machine(ip, &self.shared.addresses.read())
    }

    pub fn nat(&self) -> Nat {
        *self.shared.nat.read()
    }

    /// Dials the first of the given nodes that answers; several addresses of one node are tried at once.
    ///
    /// # Errors
    /// Why none answered, in words for a person.
    pub async fn dial(&self, addresses: Vec<PeerAddress>) -> Result<NodeId, DialError> {
        self.dial_with(|reply| Command::Dial { addresses, remember: false, reply }).await
    }

    /// As [`Network::dial`], and keeps the nodes connected from now on, as those of [`NetworkConfig::bootstrap`].
    ///
    /// # Errors
    /// Why none answered; the addresses are remembered all the same and tried again.
    pub async fn join(&self, addresses: Vec<PeerAddress>) -> Result<NodeId, DialError> {
        self.dial_with(|reply| Command::Dial { addresses, remember: true, reply }).await
    }

    /// Connects to a node at its known addresses, over common relays or where the DHT says.
    ///
    /// # Errors
    /// [`DialError::NoAddress`], [`DialError::Unreachable`] or [`DialError::Timeout`].
    pub async fn dial_peer(&self, node: NodeId) -> Result<(), DialError> {
        self.dial_with(|reply| Command::DialPeer { node, reply }).await.map(drop)
    }

    async fn dial_with(&self, command: impl FnOnce(dialing::DialReply) -> Command) -> Result<NodeId, DialError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| DialError::Closed)?;
        match timeout(DIAL_TIMEOUT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(DialError::Closed),
            Err(_) => Err(DialError::Timeout),
        }
    }

    /// Opens a raw stream, connecting first where need be. A direct connection is preferred to a relayed one.
    ///
    /// # Errors
    /// After 10 seconds at the latest.
    pub async fn open_stream(&self, node: NodeId, protocol: &'static str) -> Result<PeerStream, OpenError> {
        let protocol = libp2p::StreamProtocol::try_from_owned(protocol.to_owned())
            .map_err(|_| OpenError::Unsupported(protocol.to_owned()))?;
        let (reply, answer) = oneshot::channel();
        let open = streams::Open { protocol, reply };
        self.commands.send(Command::OpenStream { node, open }).await.map_err(|_| OpenError::Closed)?;
        match timeout(OPEN_TIMEOUT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if self.stop.is_cancelled() => Err(OpenError::Closed),
            Ok(Err(_)) => Err(OpenError::Broken),
            Err(_) => Err(OpenError::Timeout),
        }
    }

    /// Takes the streams that peers open for `protocol` from now on. Streams that are not taken quickly enough, or are
    /// too many, are reset (see [`Limits`]).
    ///
    /// # Errors
    /// When somebody else takes them already.
    pub fn accept(&self, protocol: &'static str) -> Result<IncomingStreams, AcceptError> {
        self.shared.streams.accept(protocol)
    }

    /// Takes part in a model's topic, and connects to some of the model's providers.
    ///
    /// # Errors
    /// [`FollowError::TooMany`] or [`FollowError::Closed`].
    pub async fn subscribe(&self, root: ModelRoot) -> Result<(), FollowError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Subscribe { root, reply }).await;
        answer.await.unwrap_or(Err(FollowError::Closed))
    }

    pub async fn unsubscribe(&self, root: ModelRoot) {
        self.command(Command::Unsubscribe(root)).await;
    }

    /// Sends a message, signed, to all who follow the topic; nobody listening is no error. Our own messages do not
    /// come back to us.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`] above [`RECORD_BYTES_MAX`].
    pub async fn publish(&self, root: ModelRoot, bytes: Vec<u8>) -> Result<(), PublishError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(PublishError::TooLarge { size: bytes.len(), limit: RECORD_BYTES_MAX });
        }
        let (reply, answer) = oneshot::channel();
        self.command(Command::Publish { root, bytes, reply }).await;
        answer.await.unwrap_or(Err(PublishError::Closed))
    }

    /// Announces in the DHT that we have this model, until [`Network::stop_providing`].
    ///
    /// # Errors
    /// [`FollowError::TooMany`] or [`FollowError::Closed`].
    pub async fn provide(&self, root: ModelRoot) -> Result<(), FollowError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Provide { root, reply }).await;
        answer.await.unwrap_or(Err(FollowError::Closed))
    }

    pub async fn stop_providing(&self, root: ModelRoot) {
        self.command(Command::StopProviding(root)).await;
    }

    /// Who has a model, ourselves excluded, as the DHT knows within 10 seconds; their addresses are remembered, so
    /// [`Network::dial_peer`] and [`Network::open_stream`] find them.
    pub async fn providers(&self, root: ModelRoot) -> Vec<NodeId> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Providers { root, reply }).await;
        timeout(PROVIDERS_TIMEOUT + Duration::from_secs(1), answer)
            .await
            .map(Result::unwrap_or_default)
            .unwrap_or_default()
    }

    /// Closes all connections to a node; it may come back at once.
    pub async fn disconnect(&self, node: NodeId) {
        self.command(Command::Disconnect(node)).await;
    }

    /// Disconnects a node and refuses it for five minutes.
    pub async fn punish(&self, node: NodeId, reason: &str) {
        self.punish_for(node, reason, Duration::from_secs(300)).await;
    }

    /// As [`Network::punish`], for as long as wanted.
    pub async fn punish_for(&self, node: NodeId, reason: &str, pause: Duration) {
        self.command(Command::Punish { node, reason: reason.to_owned(), pause }).await;
    }

    /// OpenMetrics text, names `opengrid_network_…`, without the `# EOF` line.
    pub fn metrics_text(&self) -> String {
        self.shared.metrics.text()
    }

    /// Closes all connections, saves the peer cache and waits for the end of the task. Idempotent.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // A panic of the task was reported by its own hook.
            let _ = task.await;
        }
    }

    /// After the shutdown there is nobody to answer; callers see that in their reply channel.
    async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }
}
