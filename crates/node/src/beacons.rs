//! Telling and hearing who serves what: beacons by gossip, and directly between nodes that just met.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use opengrid_network::{Gossip, Network, PeerStream, Verdict};
use opengrid_protocol::{
    ModelRoot, NodeId, Signed,
    beacon::Beacon,
    codec,
    limits::{BEACON_DELAYS_MAX, MODELS_PER_NODE_MAX, RECORD_BYTES_MAX},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    directory::{self, BeaconError, Heard},
    placement::Placement,
    serving::Serving,
    session::{
        Fault, FaultSink,
        wire::{read_frame, write_frame},
    },
    skew::{self, Skew},
};

/// A node answers with its clock and its beacons and closes.
pub const BEACONS_PROTOCOL: &str = "/opengrid/beacons/1";
/// Time between two beacons of an unchanged worker while the network is small.
const INTERVAL: Duration = Duration::from_millis(2_000);
/// Time between two beacons of a worker whose load changed, and the share of the present interval that it must be.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_SHARE: u32 = 4;
const INTERVAL_MAX: Duration = Duration::from_secs(120);
/// What the beacons that this node forwards may cost, in bytes per second.
const BUDGET_BYTES_PER_S: u64 = 2_000;
const BEACON_BYTES: u64 = 300;
/// Pause between two rounds of questions to peers without beacons, and how many are asked in a round.
const QUIET_PAUSE: Duration = Duration::from_secs(2);
/// A worker that gossip does not bring is asked before its last beacon ends.
const QUIET_MS: u64 = 4_500;
const QUIET_AT_ONCE: usize = 2;
/// Time for the closing of connections to be seen on both sides.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);
const EXCHANGE_BYTES_MAX: usize = MODELS_PER_NODE_MAX * (RECORD_BYTES_MAX / 4);

#[derive(Debug, Serialize, Deserialize)]
struct Exchange {
    now_ms: u64,
    /// Drawn at start: tells a node that was started anew from one that only has another connection.
    instance: u64,
    /// Encoded [`Signed`] records.
    beacons: Vec<Vec<u8>>,
}

/// Judges gossip before it is forwarded. Author, signature and topic must hold; a wrong clock is no crime.
pub fn judge(gossip: &Gossip) -> Verdict {
    let Ok(signed) = Signed::from_bytes(&gossip.bytes) else {
        return Verdict::Reject;
    };
    // A node speaks for itself only. That alone stops nobody from inventing nodes: the network counts the authors that
    // one neighbour brings, and the directory prefers nodes that were met.
    if signed.signer != gossip.from {
        return Verdict::Reject;
    }
    match directory::open_beacon(&signed, Some(gossip.topic), clock::now_ms()) {
        Ok(_) => Verdict::Accept,
        Err(BeaconError::Record(error)) if clock::is_clock_error(&error) => Verdict::Ignore,
        Err(_) => Verdict::Reject,
    }
}

/// `None` for a good beacon of a model that is not in the catalogue: a peer may have others, we cannot use them.
fn open_wanted(
    signed: &Signed,
    topic: Option<ModelRoot>,
    roots: &HashSet<ModelRoot>,
    now_ms: u64,
) -> Result<Option<Beacon>, BeaconError> {
    let beacon = directory::open_beacon(signed, topic, now_ms)?;
    Ok(roots.contains(&beacon.model).then_some(beacon))
}

/// How long to wait between beacons when `workers` of a model are seen: the whole topic's traffic stays in budget. The
/// life of a beacon stays the same, so in a large network everybody sees a changing sample of the workers, all fresh.
fn interval_for(workers: usize) -> Duration {
    let shared = Duration::from_millis(workers as u64 * BEACON_BYTES * 1_000 / BUDGET_BYTES_PER_S);
    INTERVAL.max(shared).min(INTERVAL_MAX)
}

pub struct Beacons {
    pub network: Network,
    pub secret: [u8; 32],
    pub serving: Arc<Serving>,
    pub placement: Arc<Placement>,
    pub faults: FaultSink,
    pub instance: u64,
    /// Of the connected peers.
    pub instances: Mutex<HashMap<NodeId, u64>>,
    pub skew: Arc<Skew>,
    /// Of the catalogue: others nobody can ask for.
    pub roots: HashSet<ModelRoot>,
}

impl Beacons {
    /// Sends beacons until cancelled; a change of load goes out soon, silence never lasts long.
    pub async fn publish_until(&self, cancel: CancellationToken) {
        let mut changed = self.serving.changes();
        loop {
            let interval = self.publish_all().await;
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(interval) => {}
                _ = changed.changed() => {
                    tokio::select! {
                        () = cancel.cancelled() => break,
                        () = tokio::time::sleep(INTERVAL_MIN.max(interval / INTERVAL_SHARE)) => {}
                    }
                    changed.mark_unchanged();
                }
            }
        }
        // The last words: draining.
        self.publish_all().await;
    }

    /// Returns the time until the next round.
    async fn publish_all(&self) -> Duration {
        let mut interval = INTERVAL;
        self.node_came(self.network.local());
        for (beacon, bytes) in self.signed_beacons(&mut interval) {
            let model = beacon.model;
            self.placement.directory.lock().hear(self.network.local(), beacon, clock::monotonic_ms());
            // Nobody listening yet is no error.
            let _ = self.network.publish(model, bytes).await;
        }
        self.placement.directory.lock().prune(clock::monotonic_ms());
        interval
    }

    fn signed_beacons(&self, interval: &mut Duration) -> Vec<(Beacon, Vec<u8>)> {
        let beacons = self.serving.beacons(clock::now_ms(), &self.delays());
        for beacon in &beacons {
            let workers = self.placement.directory.lock().workers(beacon.model, clock::monotonic_ms()).count();
            *interval = (*interval).max(interval_for(workers));
        }
        let sign = |beacon: Beacon| {
            let bytes = Signed::seal(&beacon, &self.secret).to_bytes();
            (beacon, bytes)
        };
        beacons.into_iter().map(sign).collect()
    }

    /// Round trips to the connected nodes that hold stages, in microseconds, the nearest first.
    fn delays(&self) -> Vec<(NodeId, u32)> {
        let with_stages: HashSet<NodeId> = {
            let directory = self.placement.directory.lock();
            let live = directory.live(clock::monotonic_ms());
            live.filter(|(_, beacon)| beacon.stage.is_some()).map(|(node, _)| node).collect()
        };
        let micros = |rtt: Duration| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        let peers = self.network.peers().into_iter().filter(|peer| with_stages.contains(&peer.node));
        let mut delays: Vec<(NodeId, u32)> = peers.filter_map(|peer| Some((peer.node, micros(peer.rtt?)))).collect();
        delays.sort_by_key(|(node, delay)| (*delay, *node));
        delays.truncate(BEACON_DELAYS_MAX);
        delays
    }

    /// A beacon that came by gossip and was judged already.
    pub fn heard(&self, topic: ModelRoot, bytes: &[u8]) {
        if let Ok(signed) = Signed::from_bytes(bytes) {
            self.take(&signed, Some(topic));
        }
    }

    fn take(&self, signed: &Signed, topic: Option<ModelRoot>) -> Option<Fault> {
        let now_ms = clock::now_ms();
        if signed.signer == self.network.local() {
            return None;
        }
        match open_wanted(signed, topic, &self.roots, now_ms) {
            Ok(None) => None,
            Ok(Some(beacon)) => {
                let model_id = beacon.model_id.clone();
                self.placement.node_spoke(signed.signer);
                if self.placement.directory.lock().hear(signed.signer, beacon, clock::monotonic_ms()) == Heard::New {
                    tracing::info!(worker = %signed.signer.short(), %model_id, "worker joined");
                }
                None
            }
            Err(BeaconError::Record(error)) if clock::is_clock_error(&error) => {
                self.skew.refused(&error);
                None
            }
            Err(_) => Some(Fault::BadRecord),
        }
    }

    /// The node is connected: what it says of itself finds room.
    pub fn node_came(&self, node: NodeId) {
        self.placement.directory.lock().meet(node, clock::monotonic_ms());
    }

    /// Asks a node that was just met what it serves, so that it gets work at once.
    pub async fn ask(&self, node: NodeId) {
        let asked = timeout(EXCHANGE_TIMEOUT, async {
            let mut stream = self.network.open_stream(node, BEACONS_PROTOCOL).await.ok()?;
            let sent_ms = clock::now_ms();
            let bytes = read_frame(&mut stream, EXCHANGE_BYTES_MAX).await.ok()??;
            Some((bytes, sent_ms))
        });
        // No answer: the peer is asked again in its turn.
        let Ok(Some((bytes, sent_ms))) = asked.await else { return };
        let Ok(exchange) = codec::decode::<Exchange>(&bytes, EXCHANGE_BYTES_MAX) else {
            return (self.faults)(node, Fault::Malformed);
        };
        let midway_ms = sent_ms + clock::now_ms().saturating_sub(sent_ms) / 2;
        self.node_came(node);
        self.reconnect_if_restarted(node, exchange.instance).await;
        self.skew.observe(node, skew::offset_ms(exchange.now_ms, midway_ms));
        for bytes in exchange.beacons.iter().take(MODELS_PER_NODE_MAX) {
            let fault = match Signed::from_bytes(bytes) {
                Ok(signed) if signed.signer == node => self.take(&signed, None),
                _ => Some(Fault::BadRecord),
            };
            if let Some(fault) = fault {
                return (self.faults)(node, fault);
            }
        }
    }

    /// Asks the connected peers of whom no beacon came lately, a few at a time, in turn: gossip may not have found its way yet,
    /// and one that serves nothing now may serve something soon.
    pub async fn ask_the_quiet_until(&self, cancel: CancellationToken) {
        let mut turn = 0_usize;
        while cancel.run_until_cancelled(tokio::time::sleep(QUIET_PAUSE)).await.is_some() {
            let quiet = self.quiet_peers();
            for _ in 0..QUIET_AT_ONCE.min(quiet.len()) {
                let peer = quiet[turn % quiet.len()];
                turn = turn.wrapping_add(1);
                cancel.run_until_cancelled(self.ask(peer)).await;
            }
        }
    }

    fn quiet_peers(&self) -> Vec<NodeId> {
        let directory = self.placement.directory.lock();
        let heard: HashSet<NodeId> = directory.heard_within(QUIET_MS, clock::monotonic_ms()).collect();
        drop(directory);
        self.network.peers().into_iter().map(|peer| peer.node).filter(|node| !heard.contains(node)).collect()
    }

    /// A peer that was started anew while its old connection still looked alive knows nothing of our subscriptions
    /// (gossipsub tells them on the first connection only): both begin anew.
    async fn reconnect_if_restarted(&self, node: NodeId, instance: u64) {
        let before = self.instances.lock().insert(node, instance);
        if before.is_some_and(|before| before != instance) {
            tracing::info!(peer = %node.short(), "the peer started anew: connecting anew");
            self.network.disconnect(node).await;
            tokio::time::sleep(RECONNECT_PAUSE).await;
            // The peer dials as well; one of the two succeeds.
            let _ = self.network.dial_peer(node).await;
        }
    }

    /// The node's last connection closed.
    pub fn node_left(&self, node: NodeId) {
        self.instances.lock().remove(&node);
    }

    /// The other side of [`Beacons::ask`].
    pub async fn answer(&self, mut stream: PeerStream) {
        let beacons = self.signed_beacons(&mut INTERVAL.clone()).into_iter().map(|(_, bytes)| bytes).collect();
        let exchange = codec::encode(&Exchange { now_ms: clock::now_ms(), instance: self.instance, beacons });
        let _ = timeout(EXCHANGE_TIMEOUT, async {
            write_frame(&mut stream, &exchange).await.ok()?;
            stream.shutdown().await.ok()
        })
        .await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_with_the_network() {
        assert_eq!(interval_for(1), INTERVAL);
        assert_eq!(interval_for(100), Duration::from_secs(15));
        assert_eq!(interval_for(1_000_000), INTERVAL_MAX);
    }

    fn beacon() -> Beacon {
        Beacon {
            model: ModelRoot([1; 32]),
            model_id: "m".into(),
            class: opengrid_protocol::beacon::Class::Approximate,
            features: opengrid_protocol::beacon::Features::EMBEDDED,
            sequence: 1,
            issued_ms: 1,
            life_ms: 8_000,
            context_tokens: 1,
            slots: 1,
            slots_busy: 0,
            queued: 0,
            decode_millitokens_per_s: 1,
            prefill_millitokens_per_s: 1,
            draining: false,
            stage: None,
        }
    }

    #[test]
    fn models_outside_the_catalogue_are_passed_over() {
        let signed = Signed::seal(&beacon(), &[1; 32]);
        let open = |roots: &HashSet<ModelRoot>| open_wanted(&signed, None, roots, 1);
        assert_eq!(open(&[beacon().model].into()), Ok(Some(beacon())));
        assert_eq!(open(&[ModelRoot([2; 32])].into()), Ok(None));
        assert!(open_wanted(&signed, None, &HashSet::new(), 1_000_000).is_err(), "bad ones are told apart");
    }

    #[test]
    fn nonsense_and_ventriloquism_are_rejected_and_a_wrong_clock_ignored() {
        let beacon = beacon();
        let now = clock::now_ms();
        let old = Signed::seal(&beacon, &[1; 32]);
        let fresh = Signed::seal(&Beacon { issued_ms: now, sequence: now, ..beacon.clone() }, &[1; 32]);
        let verdict = |topic, from, bytes: Vec<u8>| judge(&Gossip { topic, from, bytes });
        let (topic, author) = (beacon.model, fresh.signer);
        assert_eq!(verdict(topic, author, b"nonsense".to_vec()), Verdict::Reject);
        assert_eq!(verdict(topic, author, old.to_bytes()), Verdict::Ignore);
        assert_eq!(verdict(topic, author, fresh.to_bytes()), Verdict::Accept);
        assert_eq!(verdict(ModelRoot([2; 32]), author, fresh.to_bytes()), Verdict::Reject);
        assert_eq!(
            verdict(topic, NodeId([7; 32]), fresh.to_bytes()),
            Verdict::Reject,
            "signed by another than its author"
        );
    }
}
