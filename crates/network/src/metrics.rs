//! Counters of the network, `opengrid_network_…` in OpenMetrics text.

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Path {
    Direct,
    Relayed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Direction {
    In,
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    path: Path,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PathLabel {
    pub path: Path,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum GossipFate {
    Accepted,
    Ignored,
    Rejected,
    RateLimited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FateLabel {
    pub fate: GossipFate,
}

pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    pub peers: Family<PathLabel, Gauge>,
    pub streams_opened: Counter,
    pub streams_accepted: Counter,
    pub streams_refused: Counter,
    stream_bytes: Family<Way, Counter>,
    pub gossip: Family<FateLabel, Counter>,
    pub gossip_published: Counter,
    pub events_dropped: Counter,
    pub punished: Counter,
    pub dials_failed: Counter,
    pub connections_refused: Counter,
    pub upgrades: Counter,
    pub relay_reservations: Gauge,
    pub relay_circuits: Gauge,
    pub relay_circuits_total: Counter,
    pub relay_denied: Counter,
}

impl Metrics {
    /// `registry` has the prefix already and may hold the transport's counters.
    pub fn new(mut registry: Registry) -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            peers: Family::default(),
            streams_opened: Counter::default(),
            streams_accepted: Counter::default(),
            streams_refused: Counter::default(),
            stream_bytes: Family::default(),
            gossip: Family::default(),
            gossip_published: Counter::default(),
            events_dropped: Counter::default(),
            punished: Counter::default(),
            dials_failed: Counter::default(),
            connections_refused: Counter::default(),
            upgrades: Counter::default(),
            relay_reservations: Gauge::default(),
            relay_circuits: Gauge::default(),
            relay_circuits_total: Counter::default(),
            relay_denied: Counter::default(),
        };
        metrics.register(&mut registry);
        *metrics.registry.lock() = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("peers", "Connected peers by path", self.peers.clone());
        registry.register("streams_opened", "Streams that this node opened", self.streams_opened.clone());
        registry.register("streams_accepted", "Streams accepted from peers", self.streams_accepted.clone());
        registry.register("streams_refused", "Incoming streams reset at a limit", self.streams_refused.clone());
        registry.register_with_unit(
            "stream",
            "Payload of raw streams (sessions, model chunks) by path and direction",
            Unit::Bytes,
            self.stream_bytes.clone(),
        );
        registry.register("gossip", "Gossip messages received, by what became of them", self.gossip.clone());
        registry.register("gossip_published", "Gossip messages sent", self.gossip_published.clone());
        registry.register("events_dropped", "Events that the node took too slowly", self.events_dropped.clone());
        registry.register("punished", "Peers disconnected and refused for a while", self.punished.clone());
        registry.register("dials_failed", "Outgoing connections that failed", self.dials_failed.clone());
        registry.register(
            "connections_refused",
            "Incoming connections that failed or were over a limit",
            self.connections_refused.clone(),
        );
        registry.register("upgrades", "Relayed connections replaced by direct ones", self.upgrades.clone());
        registry.register("relay_reservations", "Nodes reachable through this relay", self.relay_reservations.clone());
        registry.register("relay_circuits", "Circuits open on this relay", self.relay_circuits.clone());
        registry.register("relay_circuits_opened", "Circuits opened on this relay", self.relay_circuits_total.clone());
        registry.register("relay_denied", "Reservations and circuits denied", self.relay_denied.clone());
    }

    pub fn stream_bytes(&self, relayed: bool) -> StreamBytes {
        let path = if relayed { Path::Relayed } else { Path::Direct };
        let counter = |direction| self.stream_bytes.get_or_create_owned(&Way { path, direction });
        StreamBytes { received: counter(Direction::In), sent: counter(Direction::Out) }
    }

    pub fn count_gossip(&self, fate: GossipFate) {
        self.gossip.get_or_create(&FateLabel { fate }).inc();
    }

    pub fn set_peers(&self, direct: usize, relayed: usize) {
        self.peers.get_or_create(&PathLabel { path: Path::Direct }).set(direct as i64);
        self.peers.get_or_create(&PathLabel { path: Path::Relayed }).set(relayed as i64);
    }

    /// OpenMetrics text without the closing `# EOF`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode_registry(&mut out, &self.registry.lock());
        out
    }
}

/// The byte counters of one stream's path.
pub(crate) struct StreamBytes {
    received: Counter,
    sent: Counter,
}

impl StreamBytes {
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    pub fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }
}
