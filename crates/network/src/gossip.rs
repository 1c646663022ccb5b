//! Gossipsub: topics, message ids, scoring, and the rate of each author.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    gossipsub::{
        self, CallbackSubscriptionFilter, ConfigBuilder, IdentTopic, IdentityTransform, MaxCountSubscriptionFilter,
        Message, MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams,
        ValidationMode,
    },
    identity::Keypair,
};
use opengrid_protocol::{ModelRoot, NodeId, limits::RECORD_BYTES_MAX};

use crate::config::StartError;

const TOPIC_PREFIX: &str = "opengrid/1/model/";
/// Author, signature and topic around a record.
const ENVELOPE_BYTES: usize = 1024;
const TOPICS_PER_PEER_MAX: usize = 1_024;
const SUBSCRIPTIONS_PER_REQUEST_MAX: usize = 128;
/// Topics that this node may subscribe to.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 512;

/// Messages that one author may send: a burst, and a rate. A node announces at most
/// [`MODELS_PER_NODE_MAX`](opengrid_protocol::limits::MODELS_PER_NODE_MAX) models every few seconds.
const AUTHOR_BURST: f64 = 96.0;
const AUTHOR_RATE_PER_S: f64 = 32.0;
/// Authors new to us that one neighbour may bring: a burst, and a rate. Whoever speaks for itself needs no leave.
const NEWCOMER_BURST: f64 = 64.0;
const NEWCOMER_RATE_PER_S: f64 = 8.0;
/// Then a neighbour must spend another newcomer on it: at most some 550 authors live by one neighbour's word.
const INTRODUCTION_LIFE: Duration = Duration::from_secs(60);
const AUTHORS_MAX: usize = 16_384;
const FORWARDERS_MAX: usize = 4_096;
/// A full table is searched for idle entries no more often.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

type TopicFilter = MaxCountSubscriptionFilter<CallbackSubscriptionFilter<fn(&TopicHash) -> bool>>;
pub(crate) type Behaviour = gossipsub::Behaviour<IdentityTransform, TopicFilter>;

pub(crate) fn topic(root: ModelRoot) -> IdentTopic {
    IdentTopic::new(format!("{TOPIC_PREFIX}{root}"))
}

pub(crate) fn root_of(topic: &TopicHash) -> Option<ModelRoot> {
    topic.as_str().strip_prefix(TOPIC_PREFIX)?.parse().ok()
}

pub(crate) fn build(key: &Keypair) -> Result<Behaviour, StartError> {
    let setup = |error: &dyn std::fmt::Display| StartError::Setup(error.to_string());
    let config = ConfigBuilder::default()
        .heartbeat_interval(Duration::from_millis(500))
        .heartbeat_initial_delay(Duration::from_millis(200))
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(content_id)
        .max_transmit_size(RECORD_BYTES_MAX + ENVELOPE_BYTES)
        .flood_publish(true)
        .prune_backoff(Duration::from_secs(10))
        .unsubscribe_backoff(Duration::from_secs(2))
        .duplicate_cache_time(Duration::from_secs(60))
        .history_length(10)
        .build()
        .map_err(|error| setup(&error))?;
    let filter: TopicFilter = MaxCountSubscriptionFilter {
        filter: CallbackSubscriptionFilter(|topic: &TopicHash| root_of(topic).is_some()),
        max_subscribed_topics: TOPICS_PER_PEER_MAX,
        max_subscriptions_per_request: SUBSCRIPTIONS_PER_REQUEST_MAX,
    };
    let signing = MessageAuthenticity::Signed(key.clone());
    let mut behaviour =
        Behaviour::new_with_subscription_filter(signing, config, filter).map_err(|error| setup(&error))?;
    behaviour.with_peer_score(peer_scores(), thresholds()).map_err(|error| setup(&error))?;
    Ok(behaviour)
}

/// By content and topic: the same record is the same message whoever forwards it. Records are signed, so no two
/// authors have the same.
fn content_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.topic.as_str().as_bytes());
    hasher.update(&message.data);
    MessageId::from(hasher.finalize().as_bytes().to_vec())
}

fn peer_scores() -> PeerScoreParams {
    PeerScoreParams {
        // Many nodes on one machine or behind one NAT are normal here.
        ip_colocation_factor_weight: 0.0,
        // A slow machine that computes for us is no attacker.
        slow_peer_weight: 0.0,
        ..PeerScoreParams::default()
    }
}

fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: -20.0,
        publish_threshold: -40.0,
        graylist_threshold: -80.0,
        ..Default::default()
    }
}

/// Invalid messages cost score; quiet peers are fine, since a topic may have a single author.
pub(crate) fn topic_scores() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_cap: 50.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -1.0,
        invalid_message_deliveries_decay: 0.9,
        ..TopicScoreParams::default()
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(burst: f64, now: Instant) -> Self {
        Self { tokens: burst, at: now }
    }

    fn take(&mut self, burst: f64, rate_per_s: f64, now: Instant) -> bool {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * rate_per_s;
        self.tokens = (self.tokens + refill).min(burst);
        self.at = now;
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    fn is_idle(&self, burst: f64, rate_per_s: f64, now: Instant) -> bool {
        now.saturating_duration_since(self.at).as_secs_f64() >= burst / rate_per_s
    }
}

struct Author {
    bucket: Bucket,
    introduced: Instant,
}

/// A token bucket per author, and one per neighbour for the authors that it introduces: keys cost nothing, so an
/// author of whom only one neighbour speaks counts as that neighbour's word. Bounded tables, full of the busiest.
#[derive(Default)]
pub(crate) struct AuthorRates {
    authors: HashMap<NodeId, Author>,
    forwarders: HashMap<NodeId, Bucket>,
    swept: Option<Instant>,
}

impl AuthorRates {
    pub fn admit(&mut self, author: NodeId, forwarder: NodeId, now: Instant) -> bool {
        if !self.is_introduced(&author, now) && !self.introduce(author, forwarder, now) {
            return false;
        }
        self.authors.get_mut(&author).is_some_and(|known| known.bucket.take(AUTHOR_BURST, AUTHOR_RATE_PER_S, now))
    }

    fn is_introduced(&self, author: &NodeId, now: Instant) -> bool {
        let fresh = |known: &Author| now.saturating_duration_since(known.introduced) < INTRODUCTION_LIFE;
        self.authors.get(author).is_some_and(fresh)
    }

    fn introduce(&mut self, author: NodeId, forwarder: NodeId, now: Instant) -> bool {
        let in_person = author == forwarder;
        if !in_person && !self.may_introduce(forwarder, now) {
            return false;
        }
        if self.authors.len() >= AUTHORS_MAX && !self.authors.contains_key(&author) {
            self.sweep(now);
            if self.authors.len() >= AUTHORS_MAX && !(in_person && self.drop_one()) {
                return false;
            }
        }
        let new = Author { bucket: Bucket::full(AUTHOR_BURST, now), introduced: now };
        self.authors.entry(author).or_insert(new).introduced = now;
        true
    }

    fn may_introduce(&mut self, forwarder: NodeId, now: Instant) -> bool {
        if self.forwarders.len() >= FORWARDERS_MAX && !self.forwarders.contains_key(&forwarder) {
            self.sweep(now);
            if self.forwarders.len() >= FORWARDERS_MAX {
                return false;
            }
        }
        let bucket = self.forwarders.entry(forwarder).or_insert(Bucket::full(NEWCOMER_BURST, now));
        bucket.take(NEWCOMER_BURST, NEWCOMER_RATE_PER_S, now)
    }

    fn drop_one(&mut self) -> bool {
        let any = self.authors.keys().next().copied();
        any.is_some_and(|any| self.authors.remove(&any).is_some())
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_PAUSE) {
            return;
        }
        self.swept = Some(now);
        self.authors.retain(|_, known| !known.bucket.is_idle(AUTHOR_BURST, AUTHOR_RATE_PER_S, now));
        self.forwarders.retain(|_, bucket| !bucket.is_idle(NEWCOMER_BURST, NEWCOMER_RATE_PER_S, now));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_models_and_nothing_else() {
        let root = ModelRoot([0xc4; 32]);
        assert_eq!(root_of(&topic(root).hash()), Some(root));
        assert_eq!(root_of(&IdentTopic::new("opengrid/1/model/zz").hash()), None);
        assert_eq!(root_of(&IdentTopic::new("other").hash()), None);
    }

    fn node(kind: u8, number: u32) -> NodeId {
        let mut id = [kind; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        NodeId(id)
    }

    #[test]
    fn an_author_is_held_to_its_rate_and_the_tables_to_their_size() {
        let mut rates = AuthorRates::default();
        let start = Instant::now();
        let speak = |rates: &mut AuthorRates, id: NodeId, now| rates.admit(id, id, now);
        let admitted = (0..1_000).filter(|_| speak(&mut rates, node(1, 0), start)).count();
        assert_eq!(admitted, AUTHOR_BURST as usize);
        assert!(speak(&mut rates, node(2, 0), start), "others are not disturbed");
        assert!(speak(&mut rates, node(1, 0), start + Duration::from_secs(1)));
        for number in 0..2 * AUTHORS_MAX as u32 {
            let now = start + Duration::from_secs(2);
            assert!(speak(&mut rates, node(9, number), now), "who speaks for itself always finds room");
            rates.admit(node(8, number), node(7, number), now);
        }
        assert!(rates.authors.len() <= AUTHORS_MAX && rates.forwarders.len() <= FORWARDERS_MAX);
        let later = start + Duration::from_secs(60);
        assert!(rates.admit(node(3, 0), node(4, 0), later), "idle authors make room");
    }

    #[test]
    fn one_neighbour_introduces_few_invented_authors_and_silences_nobody() {
        let mut rates = AuthorRates::default();
        let start = Instant::now();
        let (crook, honest) = (node(1, 0), node(2, 0));
        // 20,000 authors in 20 seconds, and as many again of the same ones.
        let at = |number: u32| start + Duration::from_millis(u64::from(number));
        let flood = |rates: &mut AuthorRates| {
            let admitted = |number: &u32| rates.admit(node(9, *number), crook, at(*number));
            (0..20_000).filter(admitted).count()
        };
        let admitted = flood(&mut rates);
        assert!((220..=230).contains(&admitted), "{admitted}");
        let now = at(20_000);
        assert!(rates.admit(node(5, 0), node(5, 0), now), "a newcomer that speaks for itself");
        assert!(rates.admit(node(6, 0), honest, now), "a far newcomer by way of another neighbour");
        assert!(rates.admit(crook, crook, now), "the crook's own words are not counted as newcomers");
    }

    #[test]
    fn invented_authors_do_not_pile_up_over_time() {
        let mut rates = AuthorRates::default();
        let start = Instant::now();
        let crook = node(1, 0);
        let mut heard: HashMap<u32, u64> = HashMap::new();
        for second in 0..600_u64 {
            let now = start + Duration::from_secs(second);
            for number in 0..2_000 {
                if rates.admit(node(9, number), crook, now) {
                    heard.insert(number, second);
                }
            }
        }
        let live = heard.values().filter(|second| **second >= 592).count();
        assert!((64..=600).contains(&live), "{live}");
    }
}
