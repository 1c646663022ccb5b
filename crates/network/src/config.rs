//! What a network is started with, and why a start fails.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

use opengrid_protocol::{ModelRoot, NodeId};

/// A node's address; without the id whoever answers there is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    pub node: Option<NodeId>,
    /// A multiaddress, e.g. `/ip4/203.0.113.7/tcp/4470`; a trailing `/p2p/…` must agree with `node`.
    pub address: String,
}

/// A message on a model's topic, its author's signature checked already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gossip {
    pub topic: ModelRoot,
    /// The author, who signed it; not the neighbour that forwarded it.
    pub from: NodeId,
    pub bytes: Vec<u8>,
}

/// What becomes of a [`Gossip`] message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered to us and forwarded.
    Accept,
    /// Dropped; the forwarder is not blamed (stale, unknown).
    Ignore,
    /// Dropped; the forwarder loses score (malformed, forged).
    Reject,
}

/// Pure and quick: it runs in the network's only task.
pub type GossipValidator = Arc<dyn Fn(&Gossip) -> Verdict + Send + Sync>;

/// Who answers DHT queries of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KademliaMode {
    /// Server when publicly reachable, or when no public peer was ever met (loopback, LAN); client behind a NAT.
    #[default]
    Auto,
    Server,
}

/// Bounds of one network. All are counts unless the name says bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: u32,
    pub connections_incoming: u32,
    pub connections_per_peer: u32,
    pub connections_pending: u32,
    /// Connections are kept although idle while there are at most so many peers; above, idle ones close after a minute.
    pub peers_kept: usize,
    /// Streams that one connection's remote may have open towards us.
    pub streams_per_connection: usize,
    /// Accepted streams of one protocol that wait to be taken by [`IncomingStreams`](crate::IncomingStreams).
    pub streams_waiting: usize,
    /// No new connections while the process resides in more memory than this.
    pub memory_bytes: usize,
    /// Nodes to which we relay (each may be dialled through us).
    pub relay_reservations: usize,
    pub relay_circuits: usize,
    pub relay_circuits_per_peer: usize,
    /// Bytes that one relayed circuit may carry in each direction.
    pub relay_circuit_bytes: u64,
    pub relay_circuit_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_incoming: 384,
            connections_per_peer: 8,
            connections_pending: 128,
            peers_kept: 128,
            streams_per_connection: 64,
            streams_waiting: 128,
            memory_bytes: 2 << 30,
            relay_reservations: 128,
            relay_circuits: 128,
            relay_circuits_per_peer: 16,
            relay_circuit_bytes: 4 << 30,
            relay_circuit_seconds: 4 * 3_600,
        }
    }
}

#[derive(Clone)]
pub struct NetworkConfig {
    /// Ed25519 seed: the node's identity.
    pub secret: [u8; 32],
    /// TCP and QUIC (UDP) listen on the same number; 0 takes a free one.
    pub p2p_port: u16,
    pub listen_ips: Vec<IpAddr>,
    /// Dialled at start and again whenever they are not connected.
    pub bootstrap: Vec<PeerAddress>,
    pub mdns: bool,
    pub upnp: bool,
    /// Relay for others while this node is publicly reachable.
    pub relay_server: bool,
    /// Private grid: only nodes with the same key understand each other (libp2p pre-shared key; TCP only).
    pub grid_key: Option<[u8; 32]>,
    /// JSON file of known good addresses, rewritten every minute.
    pub peer_cache: Option<PathBuf>,
    /// Name and version told to peers, e.g. `opengrid/0.1.0`.
    pub agent: String,
    pub limits: Limits,
    pub kademlia: KademliaMode,
    pub gossip_validator: GossipValidator,
}

impl NetworkConfig {
    /// The usual settings: every interface, any port, discovery on the LAN, UPnP and relaying on, no bootstrap.
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            p2p_port: 0,
            listen_ips: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
            bootstrap: Vec::new(),
            mdns: true,
            upnp: true,
            relay_server: true,
            grid_key: None,
            peer_cache: None,
            agent: concat!("opengrid/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
            kademlia: KademliaMode::Auto,
            gossip_validator: Arc::new(|_| Verdict::Accept),
        }
    }
}

/// Why a network does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("port {port} is taken on {ip}: another node runs there; choose another with --p2p-port")]
    PortTaken { ip: IpAddr, port: u16 },
    #[error("cannot listen on {ip} port {port}: {why}")]
    Listen { ip: IpAddr, port: u16, why: String },
    #[error("no address to listen on: give at least one listen ip that this machine has")]
    NothingToListenOn,
    #[error("the address `{address}` is no multiaddress: it looks like /ip4/203.0.113.7/tcp/4470")]
    BadAddress { address: String },
    #[error("cannot set the network up: {0}")]
    Setup(String),
}
