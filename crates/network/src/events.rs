//! What the swarm's events mean to the actor.

use std::time::{Duration, Instant};

use libp2p::{
    Multiaddr, PeerId, autonat,
    core::ConnectedPoint,
    dcutr, gossipsub, identify,
    kad::{self, store::RecordStore},
    mdns,
    multiaddr::Protocol,
    ping, relay,
    swarm::{self, ConnectionId, SwarmEvent},
};
use opengrid_protocol::{
    NodeId,
    limits::{ADDRESS_BYTES_MAX, RECORD_BYTES_MAX},
};

use crate::{
    NetworkEvent,
    actor::Actor,
    address,
    behaviour::BehaviourEvent,
    config::{Gossip, Verdict},
    dialing::{self, DialError, Stage},
    discovery::{ADDRESSES_PER_PEER_MAX, Query},
    gossip,
    metrics::GossipFate,
    nat,
    peers::{Arrival, Connection},
};

/// Streams on a relayed connection may finish what they just do.
const RELAYED_GRACE: Duration = Duration::from_secs(1);
const AGENT_CHARS_MAX: usize = 64;
/// Providers of a topic that are dialled after one search.
const RENDEZVOUS_DIALS: usize = 8;
const PROVIDERS_ENOUGH: usize = 32;
const KAD_PROTOCOL: &str = "/opengrid/kad/1";
/// While the DHT is this small, every new member is told anew what we provide.
const SMALL_DHT: usize = 20;

impl Actor {
    pub(crate) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.on_closed(&peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.on_dial_failed(peer_id, Some(connection_id), &error);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                tracing::debug!(%error, "incoming connection failed");
                self.shared.metrics.connections_refused.inc();
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                // A public IPv4 address on an interface: reachable until a probe says otherwise. IPv6 addresses are public
                // behind most home firewalls too, so they wait for a probe that succeeds.
                let is_ipv4 = matches!(address.iter().next(), Some(Protocol::Ip4(_)));
                if is_ipv4 && nat::is_public(&address) {
                    self.swarm.add_external_address(address);
                }
                self.on_addresses_changed();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                self.on_addresses_changed();
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                tracing::debug!(?reason, "listener closed");
                self.nat.listener_closed(listener_id, Instant::now());
                self.on_addresses_changed();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.on_addresses_changed();
            }
            SwarmEvent::NewExternalAddrOfPeer { peer_id, address } => {
                let (address, _) = address::split_peer(address);
                let believed = self.swarm.behaviour().kad.believed([address]);
                self.discovery.book.add(peer_id, believed, Instant::now());
            }
            _ => {}
        }
    }

    fn on_addresses_changed(&mut self) {
        self.refresh_nat();
        self.refresh_addresses();
        self.discovery.nudge(Instant::now());
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some(node) = address::node_id(&peer) else {
            self.swarm.close_connection(id);
            return;
        };
        let remote = endpoint.get_remote_address().clone();
        let heard = Instant::now();
        let connection =
            Connection { id, relayed: endpoint.is_relayed(), remote, dialled: endpoint.is_dialer(), heard };
        tracing::debug!(%peer, relayed = connection.relayed, remote = %connection.remote, "connected");
        let relayed = connection.relayed;
        let arrival = self.shared.peers.write().opened(peer, node, connection);
        match arrival {
            Arrival::FirstConnection => self.tell(NetworkEvent::Connected(node)),
            Arrival::DirectPath => {
                self.shared.metrics.upgrades.inc();
                self.tell(NetworkEvent::Upgraded(node));
                self.closing.push(Instant::now() + RELAYED_GRACE, peer);
            }
            Arrival::Another if relayed => self.closing.push(Instant::now() + RELAYED_GRACE, peer),
            Arrival::Another => self.tell(NetworkEvent::ConnectedAgain(node)),
        }
        self.count_peers();
        for waiter in self.dialing.connected(&peer, id) {
            self.serve(peer, node, waiter);
        }
    }

    fn on_closed(&mut self, peer: &PeerId, connection: ConnectionId) {
        let last = self.shared.peers.write().closed(peer, connection);
        if last && let Some(node) = address::node_id(peer) {
            self.tell(NetworkEvent::Disconnected(node));
        }
        self.count_peers();
    }

    /// Closes a connection that is of no use. Closing one to a silent peer may never end (its window is full), so the
    /// peer leaves the table now.
    pub(crate) fn give_up(&mut self, peer: &PeerId, connection: ConnectionId) {
        tracing::debug!(%peer, "silent: connection closed");
        self.swarm.close_connection(connection);
        self.on_closed(peer, connection);
    }

    pub(crate) fn on_dial_failed(
        &mut self,
        peer: Option<PeerId>,
        connection: Option<ConnectionId>,
        error: &swarm::DialError,
    ) {
        if matches!(error, swarm::DialError::DialPeerConditionFalse(_)) {
            return;
        }
        tracing::debug!(?peer, %error, "dial failed");
        self.shared.metrics.dials_failed.inc();
        let described = dialing::describe(error);
        if let Some(connection) = connection {
            self.dialing.connection_failed(connection, &described);
        }
        let Some(peer) = peer else { return };
        self.forget_failed(&peer, error);
        // A hole punch may fail while a relayed connection serves well.
        if self.shared.peers.read().get(&peer).is_some() {
            return;
        }
        // While the DHT is asked, its answer decides.
        if self.dialing.stage(&peer).is_some_and(|stage| stage != Stage::Lookup) {
            self.search_on(peer, &described);
        }
    }

    fn forget_failed(&mut self, peer: &PeerId, error: &swarm::DialError) {
        match error {
            swarm::DialError::Transport(tried) => {
                for (address, _) in tried {
                    let (address, _) = address::split_peer(address.clone());
                    self.discovery.book.forget(peer, &address);
                }
            }
            swarm::DialError::WrongPeerId { address, .. } | swarm::DialError::LocalPeerId { address } => {
                let (address, _) = address::split_peer(address.clone());
                self.discovery.book.forget(peer, &address);
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, &info);
            }
            BehaviourEvent::Ping(event) => self.on_ping(&event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_gossip(&propagation_source, &message_id, message);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_lan_peers(found),
            BehaviourEvent::AutonatClient(event) => self.on_probe(&event),
            BehaviourEvent::RelayServer(event) => self.on_relay_server(&event),
            BehaviourEvent::RelayClient(event) => tracing::debug!(?event, "relay client"),
            BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result }) => {
                tracing::debug!(peer = %remote_peer_id, ?result, "hole punch");
            }
            BehaviourEvent::Upnp(event) => tracing::debug!(?event, "upnp"),
            _ => {}
        }
    }

    fn on_ping(&mut self, event: &ping::Event) {
        match &event.result {
            Ok(rtt) => self.shared.peers.write().heard(&event.peer, event.connection, *rtt, Instant::now()),
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(%error, "ping failed");
                self.give_up(&event.peer, event.connection);
            }
        }
    }

    fn on_identified(&mut self, peer: PeerId, connection: ConnectionId, info: &identify::Info) {
        let speaks = |wanted: &str| info.protocols.iter().any(|protocol| protocol.as_ref() == wanted);
        let agent: String =
            info.agent_version.chars().filter(|letter| !letter.is_control()).take(AGENT_CHARS_MAX).collect();
        let addresses = {
            let mut peers = self.shared.peers.write();
            let Some(known) = peers.get_mut(&peer) else { return };
            let Some(met) = known.connections.iter().find(|one| one.id == connection) else { return };
            let mut addresses = address::credible(&info.listen_addrs, &met.remote, ADDRESSES_PER_PEER_MAX);
            if met.dialled && !met.relayed {
                let (dialled, _) = address::split_peer(met.remote.clone());
                addresses.retain(|address| *address != dialled);
                addresses.insert(0, dialled);
            }
            known.agent = Some(agent);
            known.relay = speaks(nat::HOP_PROTOCOL);
            if !met.relayed || known.addresses.is_empty() {
                known.addresses.clone_from(&addresses);
            }
            addresses
        };
        if speaks(KAD_PROTOCOL) {
            for address in &addresses {
                self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
            }
        }
        self.discovery.book.add(peer, addresses.into_iter().rev(), Instant::now());
        self.refresh_nat();
    }

    fn on_lan_peers(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let local = *self.swarm.local_peer_id();
        for (peer, address) in found.into_iter().filter(|(peer, _)| *peer != local) {
            let (address, _) = address::split_peer(address);
            self.discovery.book.add(peer, [address.clone()], Instant::now());
            if self.shared.peers.read().len() < self.peers_kept {
                self.dial(peer, vec![address]);
            }
        }
    }

    fn on_probe(&mut self, event: &autonat::v2::client::Event) {
        let reachable = event.result.is_ok();
        tracing::debug!(address = %event.tested_addr, reachable, "reachability probe");
        if !reachable && nat::is_public(&event.tested_addr) {
            self.nat.probe_failed();
            self.swarm.remove_external_address(&event.tested_addr);
            self.refresh_nat();
        }
    }

    fn on_relay_server(&mut self, event: &relay::Event) {
        let metrics = &self.shared.metrics;
        match event {
            relay::Event::ReservationReqAccepted { renewed: false, .. } => {
                metrics.relay_reservations.inc();
            }
            relay::Event::ReservationClosed { .. } | relay::Event::ReservationTimedOut { .. } => {
                metrics.relay_reservations.dec();
            }
            relay::Event::CircuitReqAccepted { .. } => {
                metrics.relay_circuits.inc();
                metrics.relay_circuits_total.inc();
            }
            relay::Event::CircuitClosed { .. } => {
                metrics.relay_circuits.dec();
            }
            relay::Event::ReservationReqDenied { .. } | relay::Event::CircuitReqDenied { .. } => {
                metrics.relay_denied.inc();
            }
            _ => {}
        }
        tracing::debug!(?event, "relay");
    }

    fn on_gossip(&mut self, forwarder: &PeerId, id: &gossipsub::MessageId, message: gossipsub::Message) {
        let (verdict, gossip) = self.judge(forwarder, message);
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, forwarder, acceptance);
        if let Some(gossip) = gossip {
            self.tell(NetworkEvent::Gossip(gossip));
        }
    }

    fn judge(&mut self, forwarder: &PeerId, message: gossipsub::Message) -> (Verdict, Option<Gossip>) {
        let metrics = self.shared.metrics.clone();
        let author = message.source.as_ref().and_then(address::node_id);
        let (Some(from), Some(topic)) = (author, gossip::root_of(&message.topic)) else {
            metrics.count_gossip(GossipFate::Rejected);
            return (Verdict::Reject, None);
        };
        if message.data.len() > RECORD_BYTES_MAX {
            metrics.count_gossip(GossipFate::Rejected);
            return (Verdict::Reject, None);
        }
        let admitted =
            address::node_id(forwarder).is_some_and(|forwarder| self.rates.admit(from, forwarder, Instant::now()));
        if !admitted {
            metrics.count_gossip(GossipFate::RateLimited);
            return (Verdict::Ignore, None);
        }
        let gossip = Gossip { topic, from, bytes: message.data };
        let verdict = (self.validator)(&gossip);
        metrics.count_gossip(match verdict {
            Verdict::Accept => GossipFate::Accepted,
            Verdict::Ignore => GossipFate::Ignored,
            Verdict::Reject => GossipFate::Rejected,
        });
        (verdict, (verdict == Verdict::Accept).then_some(gossip))
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => self.on_dht_grown(),
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_provider_announced(record);
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => self.on_answer(id, result, step.last),
            _ => {}
        }
    }

    fn on_dht_grown(&mut self) {
        let members: usize = self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        if members < SMALL_DHT {
            self.discovery.nudge(Instant::now());
        }
    }

    fn on_provider_announced(&mut self, mut record: kad::ProviderRecord) {
        if !self.discovery.admit_key(&record.key, Instant::now()) {
            return;
        }
        record.addresses.retain(|address| address.len() <= ADDRESS_BYTES_MAX);
        record.addresses.truncate(ADDRESSES_PER_PEER_MAX);
        if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
            tracing::debug!(?error, "provider is not stored");
        }
    }

    fn on_answer(&mut self, id: kad::QueryId, result: kad::QueryResult, last: bool) {
        match result {
            kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) => {
                self.on_providers(id, providers.into_iter().collect());
            }
            kad::QueryResult::GetClosestPeers(result) => self.on_closest(id, result),
            _ => {}
        }
        if last && let Some(Query::Providers { found, reply }) = self.discovery.queries.remove(&id) {
            let _ = reply.send(self.nodes(&found));
        }
    }

    fn nodes<'a>(&self, peers: impl IntoIterator<Item = &'a PeerId>) -> Vec<NodeId> {
        let mut nodes: Vec<_> =
            peers.into_iter().filter_map(address::node_id).filter(|node| *node != self.shared.local).collect();
        nodes.sort();
        nodes
    }

    /// The query knows the providers' addresses only as long as it runs: they go to the address book now.
    fn on_providers(&mut self, id: kad::QueryId, providers: Vec<PeerId>) {
        let now = Instant::now();
        for peer in &providers {
            let addresses = self.addresses_in_queries(peer);
            self.discovery.book.add(*peer, addresses, now);
        }
        let enough = match self.discovery.queries.get_mut(&id) {
            Some(Query::Providers { found, .. }) => {
                found.extend(providers);
                found.len() >= PROVIDERS_ENOUGH
            }
            Some(Query::Rendezvous) => {
                self.dial_some(providers);
                false
            }
            _ => false,
        };
        if enough && let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
            query.finish();
        }
    }

    fn addresses_in_queries(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        use swarm::NetworkBehaviour;
        let connection = ConnectionId::new_unchecked(usize::MAX);
        let dialer = libp2p::core::Endpoint::Dialer;
        let kad = &mut self.swarm.behaviour_mut().kad;
        let known = kad.handle_pending_outbound_connection(connection, Some(*peer), &[], dialer);
        let mut addresses: Vec<_> =
            known.unwrap_or_default().into_iter().map(|address| address::split_peer(address).0).collect();
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        addresses
    }

    fn dial_some(&mut self, providers: Vec<PeerId>) {
        let local = *self.swarm.local_peer_id();
        for peer in providers.into_iter().take(RENDEZVOUS_DIALS) {
            let connected = self.shared.peers.read().get(&peer).is_some();
            if peer != local && !connected {
                let mut addresses = self.discovery.book.get(&peer).to_vec();
                if addresses.is_empty() {
                    addresses = nat::circuits_to(&self.shared.peers.read(), &peer);
                }
                self.dial(peer, addresses);
            }
        }
    }

    fn on_closest(&mut self, id: kad::QueryId, result: kad::GetClosestPeersResult) {
        let Some(Query::Lookup(wanted)) = self.discovery.queries.remove(&id) else { return };
        let peers = match result {
            Ok(found) => found.peers,
            Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
        };
        if let Some(found) = peers.into_iter().find(|found| found.peer_id == wanted) {
            let addresses = found.addrs.into_iter().map(|address| address::split_peer(address).0);
            let believed = self.swarm.behaviour().kad.believed(addresses.take(ADDRESSES_PER_PEER_MAX));
            self.discovery.book.add(wanted, believed, Instant::now());
        }
        if self.dialing.stage(&wanted) == Some(Stage::Lookup) {
            self.search_on(wanted, &DialError::NoAddress);
        }
    }
}
