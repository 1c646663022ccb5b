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
const AUTHORS_MAX: usize = 4_096;

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

/// A token bucket per author; a bounded table, full of the busiest.
#[derive(Default)]
pub(crate) struct AuthorRates {
    buckets: HashMap<NodeId, (f64, Instant)>,
}

impl AuthorRates {
    pub fn admit(&mut self, author: NodeId, now: Instant) -> bool {
        if self.buckets.len() >= AUTHORS_MAX && !self.buckets.contains_key(&author) {
            self.forget_idle(now);
            if self.buckets.len() >= AUTHORS_MAX {
                return false;
            }
        }
        let (tokens, at) = self.buckets.entry(author).or_insert((AUTHOR_BURST, now));
        let refill = now.saturating_duration_since(*at).as_secs_f64() * AUTHOR_RATE_PER_S;
        *tokens = (*tokens + refill).min(AUTHOR_BURST);
        *at = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }

    fn forget_idle(&mut self, now: Instant) {
        let full_again = Duration::from_secs_f64(AUTHOR_BURST / AUTHOR_RATE_PER_S);
        self.buckets.retain(|_, (_, at)| now.saturating_duration_since(*at) < full_again);
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

    #[test]
    fn an_author_is_held_to_its_rate_and_the_table_to_its_size() {
        let mut rates = AuthorRates::default();
        let start = Instant::now();
        let admitted = (0..1_000).filter(|_| rates.admit(NodeId([1; 32]), start)).count();
        assert_eq!(admitted, AUTHOR_BURST as usize);
        assert!(rates.admit(NodeId([2; 32]), start), "others are not disturbed");
        assert!(rates.admit(NodeId([1; 32]), start + Duration::from_secs(1)));
        for number in 0..2 * AUTHORS_MAX as u32 {
            let mut id = [9; 32];
            id[..4].copy_from_slice(&number.to_le_bytes());
            rates.admit(NodeId(id), start + Duration::from_secs(2));
        }
        assert!(rates.buckets.len() <= AUTHORS_MAX);
        assert!(rates.admit(NodeId([3; 32]), start + Duration::from_secs(60)), "idle authors make room");
    }
}
