//! The one task that owns the swarm: commands in, events out, a slow clock. What events mean is in `events`.

use std::{
    collections::HashMap,
    num::NonZeroU8,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, gossipsub, identity,
    swarm::{
        self,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use opengrid_protocol::{ModelRoot, NodeId};
use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    Command, FollowError, NetworkEvent, PublishError, Shared, address,
    behaviour::Behaviour,
    config::{GossipValidator, KademliaMode, NetworkConfig, PeerAddress, StartError},
    dialing::{self, DialError, DialReply, Dialing, Stage, Waiter},
    discovery::{self, Backoff, Bootstrap, Discovery, Query, dht_key},
    gossip::{self, AuthorRates},
    metrics::Metrics,
    nat::{self, NatState},
    peer_cache,
    peers::{Closing, PeerTable},
    streams::{Open, Registry},
    transport,
};

const TICK: Duration = Duration::from_millis(250);
const CACHE_SAVE_INTERVAL: Duration = Duration::from_secs(60);
const GOODBYE_MAX: Duration = Duration::from_millis(500);
/// Cached peers that are dialled at start.
const CACHE_DIALS: usize = 16;
/// Neighbours wanted on each topic before the DHT is not asked any more.
const TOPIC_PEERS_WANTED: usize = 6;
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
            Command::Punish { node, reason, pause } => self.punish(node, &reason, pause),
        }
    }

    fn subscribe(&mut self, root: ModelRoot) -> Result<(), FollowError> {
        let full = FollowError::TooMany(gossip::SUBSCRIPTIONS_MAX);
        if self.discovery.follows() >= gossip::SUBSCRIPTIONS_MAX {
            return Err(full);
        }
        let topic = gossip::topic(root);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.subscribe(&topic).map_err(|_| full)?;
        if let Err(error) = gossip.set_topic_params(topic, gossip::topic_scores()) {
            tracing::warn!(%root, %error, "topic is not scored");
        }
        self.discovery.follow(root, Instant::now());
        Ok(())
    }

    fn publish(&mut self, root: ModelRoot, bytes: Vec<u8>) -> Result<(), PublishError> {
        let size = bytes.len();
        match self.swarm.behaviour_mut().gossip.publish(gossip::topic(root), bytes) {
            Ok(_) => {
                self.shared.metrics.gossip_published.inc();
                Ok(())
            }
            Err(gossipsub::PublishError::MessageTooLarge) => Err(PublishError::TooLarge { size, limit: size }),
            Err(gossipsub::PublishError::SigningError(error)) => Err(PublishError::Signing(error.to_string())),
            // Nobody listens, all queues are full, or it was said already: the next message makes up for it.
            Err(error) => {
                tracing::debug!(%root, %error, "not published");
                Ok(())
            }
        }
    }

    fn provide(&mut self, root: ModelRoot) -> Result<(), FollowError> {
        if self.discovery.provided.len() >= discovery::PROVIDED_MAX && !self.discovery.provided.contains(&root) {
            return Err(FollowError::TooMany(discovery::PROVIDED_MAX));
        }
        self.discovery.provided.insert(root);
        self.announce(root);
        Ok(())
    }

    fn announce(&mut self, root: ModelRoot) {
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(dht_key(root)) {
            tracing::warn!(%root, %error, "cannot be announced in the DHT");
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

    /// Without any connection, the peers of the last run are tried again and again.
    fn dial_cached(&mut self, now: Instant) {
        if self.cached.is_empty() || self.shared.peers.read().len() > 0 || !self.lonely.due(now) {
            return;
        }
        for (peer, addresses) in self.cached.clone().into_iter().take(CACHE_DIALS) {
            self.dial(peer, addresses);
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
        let mut ranked: Vec<(u8, String)> = self
            .swarm
            .external_addresses()
            .chain(self.swarm.listeners())
            .filter_map(|known| {
                let (known, _) = address::split_peer(known.clone());
                let rank = match (address::is_relayed(&known), address::reach(&known)?) {
                    (true, _) => 2,
                    (false, address::Reach::Public) => 0,
                    (false, address::Reach::Private) => 1,
                    (false, address::Reach::Loopback) => 3,
                };
                Some((rank, known.to_string()))
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
    pub(crate) fn count_peers(&self) {
        let peers = self.shared.peers.read();
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

    fn search_topics(&mut self, now: Instant) {
        let gossip = &self.swarm.behaviour().gossip;
        let neighbours = |root: ModelRoot| {
            let topic = gossip::topic(root).hash();
            gossip.all_peers().filter(|(_, topics)| topics.contains(&&topic)).count()
        };
        let due = self.discovery.due_topics(now, |root| neighbours(root) < TOPIC_PEERS_WANTED);
        for root in due {
            let id = self.swarm.behaviour_mut().kad.get_providers(dht_key(root));
            self.discovery.ask(id, Query::Rendezvous);
        }
    }

    fn dial_bootstrap(&mut self, now: Instant) {
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

    fn dial_addresses(&mut self, given: Vec<PeerAddress>, remember: bool, reply: DialReply) {
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
    fn want(&mut self, node: NodeId, waiter: Waiter) {
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

    fn load_cache(&mut self) {
        let Some(path) = &self.cache else { return };
        let local = *self.swarm.local_peer_id();
        self.cached = peer_cache::load(path).into_iter().filter(|(peer, _)| *peer != local).collect();
        // The book prefers what was added last, the file has the best first.
        for (peer, addresses) in self.cached.iter().rev() {
            self.discovery.book.add(*peer, addresses.iter().rev().cloned(), Instant::now());
        }
    }

    /// Connected peers first, then the others of whom we know.
    fn cacheable(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let peers = self.shared.peers.read();
        let direct = |addresses: &[Multiaddr]| -> Vec<Multiaddr> {
            addresses.iter().filter(|address| !address::is_relayed(address)).cloned().collect()
        };
        let (mut first, rest): (Vec<_>, Vec<_>) =
            self.discovery.book.all().into_iter().partition(|(peer, _)| peers.get(peer).is_some());
        first.extend(rest);
        let forgotten = self.cached.iter().filter(|(peer, _)| self.discovery.book.get(peer).is_empty());
        first.extend(forgotten.cloned());
        first.iter().map(|(peer, addresses)| (*peer, direct(addresses))).filter(|(_, kept)| !kept.is_empty()).collect()
    }

    fn save_cache(&mut self, now: Instant) {
        if now.saturating_duration_since(self.cache_saved) >= CACHE_SAVE_INTERVAL {
            self.cache_saved = now;
            self.save_cache_now();
        }
    }

    /// A few kilobytes, once a minute: not worth a thread. Without any known peer the old file stays.
    fn save_cache_now(&self) {
        let peers = self.cacheable();
        let Some(path) = self.cache.as_ref().filter(|_| !peers.is_empty()) else { return };
        if let Err(error) = peer_cache::save(path, &peers) {
            tracing::warn!(path = %path.display(), %error, "the peer cache is not saved");
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
