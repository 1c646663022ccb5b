//! The one task that owns the swarm: commands in, events out, a slow clock. What events mean is in `events`.

use std::{
    collections::HashMap,
    num::NonZeroU8,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, Swarm, identity, swarm};
use opengrid_protocol::NodeId;
use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    Command, NetworkEvent, Shared,
    address::{self, Rank},
    behaviour::Behaviour,
    config::{GossipValidator, KademliaMode, NetworkConfig, StartError},
    dialing::{Dialing, Waiter},
    discovery::{Backoff, Discovery, Query, dht_key},
    gossip::{self, AuthorRates},
    metrics::Metrics,
    nat::NatState,
    peers::{Closing, PeerTable},
    streams::Registry,
    transport,
};

mod reaching;
mod remembering;
mod topics;

const TICK: Duration = Duration::from_millis(250);
const GOODBYE_MAX: Duration = Duration::from_millis(500);
const PUNISHED_MAX: usize = 4_096;
/// Pings go out every two seconds; a connection on which none was answered for so long is closed.
const SILENCE_MAX: Duration = Duration::from_millis(6_500);
/// A clock that stood still for longer means that this machine slept or was overloaded.
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Actor {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) discovery: Discovery,
    pub(crate) dialing: Dialing,
    pub(crate) closing: Closing,
    pub(crate) nat: NatState,
    pub(crate) rates: AuthorRates,
    pub(crate) validator: GossipValidator,
    pub(crate) peers_kept: usize,
    pub(crate) events: mpsc::Sender<NetworkEvent>,
    commands: mpsc::Receiver<Command>,
    stop: CancellationToken,
    listen: Vec<(std::net::IpAddr, Vec<Multiaddr>)>,
    punished: HashMap<PeerId, Instant>,
    kademlia: KademliaMode,
    cache: Option<PathBuf>,
    cache_saved: Instant,
    /// Peers of the last run.
    cached: Vec<(PeerId, Vec<Multiaddr>)>,
    lonely: Backoff,
    ticked: Instant,
}

impl Actor {
    pub fn new(
        config: NetworkConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<NetworkEvent>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let setup = |error: &dyn std::fmt::Display| StartError::Setup(error.to_string());
        let key = identity::Keypair::ed25519_from_bytes(config.secret).map_err(|error| setup(&error))?;
        let local_peer = key.public().to_peer_id();
        let local = address::node_id(&local_peer).ok_or_else(|| setup(&"the key is not ed25519"))?;
        let mut discovery = discovery_from(&config)?;
        discovery.bootstrap.retain(|node| node.peer != Some(local_peer));
        let port = transport::claim_port(&config.listen_ips, config.p2p_port)?;
        let private = config.grid_key.is_some();
        let listen =
            config.listen_ips.iter().map(|ip| (*ip, transport::listen_addresses(*ip, port, private))).collect();

        let mut registry = MetricsRegistry::with_prefix("opengrid_network");
        let (transport, relay_client) = transport::build(&key, config.grid_key, &mut registry)?;
        let metrics = Arc::new(Metrics::new(registry));
        let streams = Arc::new(Registry::new(metrics.clone(), &config.limits));
        let behaviour = Behaviour::new(&config, &key, relay_client, streams.clone())?;
        let swarm_config = swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60))
            .with_dial_concurrency_factor(NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN))
            .with_max_negotiating_inbound_streams(config.limits.streams_per_connection.max(64));
        let shared = Shared {
            local,
            peers: RwLock::new(PeerTable::default()),
            addresses: RwLock::default(),
            nat: RwLock::default(),
            metrics,
            streams,
        };
        Ok(Self {
            swarm: Swarm::new(transport, behaviour, local_peer, swarm_config),
            shared: Arc::new(shared),
            discovery,
            dialing: Dialing::default(),
            closing: Closing::default(),
            nat: NatState::default(),
            rates: AuthorRates::default(),
            validator: config.gossip_validator,
            peers_kept: config.limits.peers_kept,
            events,
            commands,
            stop,
            listen,
            punished: HashMap::new(),
            kademlia: config.kademlia,
            cache: config.peer_cache,
            cache_saved: Instant::now(),
            cached: Vec::new(),
            lonely: Backoff::new(Instant::now(), Duration::from_secs(1), Duration::from_secs(60)),
            ticked: Instant::now(),
        })
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Opens the listeners and waits until they told their real addresses.
    pub async fn listen(&mut self) -> Result<(), StartError> {
        let mut listening = false;
        let mut failure = StartError::NothingToListenOn;
        for (ip, addresses) in std::mem::take(&mut self.listen) {
            for address in addresses {
                match self.swarm.listen_on(address) {
                    Ok(_) => listening = true,
                    Err(error) => failure = StartError::Listen { ip, port: 0, why: error.to_string() },
                }
            }
        }
        if !listening {
            return Err(failure);
        }
        self.refresh_nat();
        let mut patience = Duration::from_secs(2);
        while let Ok(event) = tokio::time::timeout(patience, self.swarm.select_next_some()).await {
            self.on_swarm_event(event);
            if !self.shared.addresses.read().is_empty() {
                patience = Duration::from_millis(30);
            }
        }
        Ok(())
    }

    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.stop.clone();
        self.load_cache();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
        self.goodbye().await;
    }

    /// Tells peers by closing, so that they need not find out by silence.
    async fn goodbye(mut self) {
        self.save_cache_now();
        self.shared.streams.close();
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                let event = self.swarm.select_next_some().await;
                self.on_swarm_event(event);
            }
        };
        let _ = tokio::time::timeout(GOODBYE_MAX, all_closed).await;
        *self.shared.peers.write() = PeerTable::default();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Dial { addresses, remember, reply } => self.dial_addresses(addresses, remember, reply),
            Command::DialPeer { node, reply } => self.want(node, Waiter::Connected(reply)),
            Command::OpenStream { node, open } => self.want(node, Waiter::Stream(open)),
            Command::Subscribe { root, reply } => drop(reply.send(self.subscribe(root))),
            Command::Unsubscribe(root) => {
                self.swarm.behaviour_mut().gossip.unsubscribe(&gossip::topic(root));
                self.discovery.unfollow(&root);
            }
            Command::Publish { root, bytes, reply } => drop(reply.send(self.publish(root, bytes))),
            Command::Provide { root, reply } => drop(reply.send(self.provide(root))),
            Command::StopProviding(root) => {
                self.discovery.provided.remove(&root);
                self.swarm.behaviour_mut().kad.stop_providing(&dht_key(root));
            }
            Command::Providers { root, reply } => {
                let id = self.swarm.behaviour_mut().kad.get_providers(dht_key(root));
                self.discovery.ask(id, Query::Providers { found: Default::default(), reply });
            }
            Command::Disconnect(node) => {
                if let Some(peer) = address::peer_id(node) {
                    // Not connected any more: that was wanted.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Command::Punish { node, reason, pause } => self.punish(node, &reason, pause),
        }
    }

    fn punish(&mut self, node: NodeId, reason: &str, pause: Duration) {
        let Some(peer) = address::peer_id(node) else { return };
        if self.punished.len() >= PUNISHED_MAX {
            self.pardon(|_| true);
        }
        tracing::warn!(peer = %node, reason, "refused for a while");
        self.shared.metrics.punished.inc();
        self.punished.insert(peer, Instant::now() + pause);
        self.swarm.behaviour_mut().blocked.block_peer(peer);
    }

    fn pardon(&mut self, over: impl Fn(Instant) -> bool) {
        let blocked = &mut self.swarm.behaviour_mut().blocked;
        self.punished.retain(|peer, until| {
            let over = over(*until);
            if over {
                blocked.unblock_peer(*peer);
            }
            !over
        });
    }

    fn on_tick(&mut self, now: Instant) {
        self.drop_silent(now);
        for peer in self.closing.take_due(now) {
            self.close_relayed(&peer);
        }
        self.pardon(|until| until <= now);
        self.dialing.purge();
        self.dial_bootstrap(now);
        self.dial_cached(now);
        self.search_topics(now);
        if self.discovery.due_reprovide(now) {
            for root in self.discovery.provided.clone() {
                self.announce(root);
            }
        }
        self.refresh_nat();
        self.save_cache(now);
    }

    /// libp2p's ping forgives the first failure and then negotiates anew, which takes up to 18 seconds.
    fn drop_silent(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(std::mem::replace(&mut self.ticked, now));
        if pause > PAUSE_MAX {
            self.shared.peers.write().forgive_silence(now);
        }
        let silent = self.shared.peers.read().silent(SILENCE_MAX, now);
        for (peer, connection) in silent {
            self.give_up(&peer, connection);
        }
    }

    fn close_relayed(&mut self, peer: &PeerId) {
        let connections = match self.shared.peers.read().get(peer) {
            Some(known) if known.has_direct() => known.connections.clone(),
            _ => return,
        };
        for connection in connections.iter().filter(|connection| connection.relayed) {
            self.swarm.close_connection(connection.id);
        }
    }

    pub(crate) fn refresh_nat(&mut self) {
        let verdict = {
            let peers = self.shared.peers.read();
            self.nat.refresh(&mut self.swarm, &peers, self.kademlia, Instant::now())
        };
        let before = std::mem::replace(&mut *self.shared.nat.write(), verdict);
        if before != verdict {
            self.refresh_addresses();
        }
    }

    /// Rebuilds the list of our addresses, most useful first.
    pub(crate) fn refresh_addresses(&mut self) {
        let mut ranked: Vec<(Rank, String)> = self
            .swarm
            .external_addresses()
            .chain(self.swarm.listeners())
            .filter_map(|known| {
                let (known, _) = address::split_peer(known.clone());
                Some((Rank::of(&known)?, known.to_string()))
            })
            .collect();
        ranked.sort();
        ranked.dedup();
        let addresses: Vec<String> = ranked.into_iter().map(|(_, text)| text).collect();
        let changed = *self.shared.addresses.read() != addresses;
        if changed {
            *self.shared.addresses.write() = addresses;
            self.tell(NetworkEvent::AddressesChanged);
        }
    }

    /// Idle connections are kept in a small grid only.
    pub(crate) fn count_peers(&mut self) {
        let peers = self.shared.peers.read();
        self.swarm.behaviour_mut().kad.meet(peers.met_public());
        let (direct, relayed) = peers.count_by_path();
        self.shared.metrics.set_peers(direct, relayed);
        self.shared.streams.keep_idle.store(peers.len() <= self.peers_kept, Ordering::Relaxed);
    }

    /// Gossip leaves a quarter of the queue to what must not be lost.
    pub(crate) fn tell(&self, event: NetworkEvent) {
        let crowded = self.events.capacity() < self.events.max_capacity() / 4;
        let droppable = matches!(event, NetworkEvent::Gossip(_));
        if (droppable && crowded) || self.events.try_send(event).is_err() {
            self.shared.metrics.events_dropped.inc();
        }
    }
}

fn discovery_from(config: &NetworkConfig) -> Result<Discovery, StartError> {
    let mut discovery = Discovery::new();
    for given in &config.bootstrap {
        let (peer, address) = address::parse(given)?;
        discovery.add_bootstrap(peer, address, Instant::now());
    }
    Ok(discovery)
}
