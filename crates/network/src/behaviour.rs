//! All protocols of a node in one libp2p behaviour.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use libp2p::{
    StreamProtocol, allow_block_list, autonat, connection_limits, dcutr, identify,
    identity::Keypair,
    kad::{self, store::MemoryStore, store::MemoryStoreConfig},
    mdns, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    upnp,
};

use crate::{
    config::{Limits, NetworkConfig, StartError},
    gossip,
    kademlia::Kademlia,
    streams::{self, Registry},
};

const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// More than strangers may fill (`discovery::admit_key`), so that our own keys always find room.
const DHT_KEYS_MAX: usize = 8_192;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // The refusing ones come first, so that a refused connection costs nothing more.
    pub blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub limits: connection_limits::Behaviour,
    pub memory: memory_connection_limits::Behaviour,
    pub relay_client: relay::client::Behaviour,
    pub relay_server: Toggle<relay::Behaviour>,
    pub dcutr: dcutr::Behaviour,
    pub autonat_client: autonat::v2::client::Behaviour,
    pub autonat_server: autonat::v2::server::Behaviour,
    pub upnp: Toggle<upnp::tokio::Behaviour>,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    pub identify: identify::Behaviour,
    pub ping: ping::Behaviour,
    pub kad: Kademlia,
    pub gossip: gossip::Behaviour,
    pub streams: streams::Behaviour,
}

impl Behaviour {
    pub fn new(
        config: &NetworkConfig,
        key: &Keypair,
        relay_client: relay::client::Behaviour,
        streams: Arc<Registry>,
    ) -> Result<Self, StartError> {
        let local = key.public().to_peer_id();
        let mdns = match config.mdns.then(|| mdns::tokio::Behaviour::new(mdns_config(), local)).transpose() {
            Ok(mdns) => mdns,
            Err(error) => {
                tracing::warn!(%error, "no discovery on the LAN");
                None
            }
        };
        let autonat = autonat::v2::client::Config::default().with_probe_interval(Duration::from_secs(15));
        Ok(Self {
            blocked: Default::default(),
            limits: connection_limits::Behaviour::new(connection_limits(&config.limits)),
            memory: memory_connection_limits::Behaviour::with_max_bytes(config.limits.memory_bytes),
            relay_client,
            relay_server: config.relay_server.then(|| relay_server(&config.limits, local)).into(),
            dcutr: dcutr::Behaviour::new(local),
            autonat_client: autonat::v2::client::Behaviour::new(rand::make_rng(), autonat),
            autonat_server: autonat::v2::server::Behaviour::default(),
            upnp: config.upnp.then(upnp::tokio::Behaviour::default).into(),
            mdns: mdns.into(),
            identify: identify::Behaviour::new(
                identify::Config::new("opengrid/1".to_owned(), key.public())
                    .with_agent_version(config.agent.clone())
                    .with_push_listen_addr_updates(true)
                    .with_cache_size(0),
            ),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            kad: Kademlia::new(kademlia(local)),
            gossip: gossip::build(key)?,
            streams: streams::Behaviour::new(streams),
        })
    }
}

fn mdns_config() -> mdns::Config {
    mdns::Config { query_interval: Duration::from_secs(60), ..mdns::Config::default() }
}

fn connection_limits(limits: &Limits) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.connections_pending))
        .with_max_pending_outgoing(Some(limits.connections_pending))
        .with_max_established_incoming(Some(limits.connections_incoming))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_established(Some(limits.connections))
}

/// libp2p's defaults (128 KiB, 2 minutes) are too small for answers and model files.
fn relay_server(limits: &Limits, local: libp2p::PeerId) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: limits.relay_reservations,
        max_reservations_per_peer: 4,
        max_circuits: limits.relay_circuits,
        max_circuits_per_peer: limits.relay_circuits_per_peer,
        max_circuit_duration: Duration::from_secs(limits.relay_circuit_seconds.into()),
        max_circuit_bytes: limits.relay_circuit_bytes,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let times = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    // A bucket of that many, refilled by one each interval.
    let relay = config
        .reservation_rate_per_peer(times(16), Duration::from_secs(10))
        .reservation_rate_per_ip(times(64), Duration::from_secs(2))
        .circuit_src_per_peer(times(32), Duration::from_secs(2))
        .circuit_src_per_ip(times(128), Duration::from_millis(500));
    let mut relay = relay::Behaviour::new(local, relay);
    // Only a publicly reachable node relays; `nat` decides.
    relay.set_status(Some(relay::Status::Disable));
    relay
}

fn kademlia(local: libp2p::PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(StreamProtocol::new("/opengrid/kad/1"));
    config
        .set_query_timeout(Duration::from_secs(10))
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_record_ttl(Some(Duration::from_secs(2 * 3_600)))
        .set_provider_publication_interval(Some(Duration::from_secs(1_200)))
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(300)));
    let store = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_provided_keys: DHT_KEYS_MAX,
        ..MemoryStoreConfig::default()
    };
    kad::Behaviour::with_config(local, MemoryStore::with_config(local, store), config)
}
