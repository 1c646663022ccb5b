//! Models' topics: gossip about them, and their announcement in the DHT.

use std::time::Instant;

use libp2p::gossipsub;
use opengrid_protocol::ModelRoot;

use super::Actor;
use crate::{
    FollowError, PublishError,
    discovery::{self, Query, dht_key},
    gossip,
};

/// Neighbours wanted on each topic before the DHT is not asked any more.
const NEIGHBOURS_WANTED: usize = 6;

impl Actor {
    pub(super) fn subscribe(&mut self, root: ModelRoot) -> Result<(), FollowError> {
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

    pub(super) fn publish(&mut self, root: ModelRoot, bytes: Vec<u8>) -> Result<(), PublishError> {
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

    pub(super) fn provide(&mut self, root: ModelRoot) -> Result<(), FollowError> {
        if self.discovery.provided.len() >= discovery::PROVIDED_MAX && !self.discovery.provided.contains(&root) {
            return Err(FollowError::TooMany(discovery::PROVIDED_MAX));
        }
        self.discovery.provided.insert(root);
        self.announce(root);
        Ok(())
    }

    pub(super) fn announce(&mut self, root: ModelRoot) {
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(dht_key(root)) {
            tracing::warn!(%root, %error, "cannot be announced in the DHT");
        }
    }

    pub(super) fn search_topics(&mut self, now: Instant) {
        let gossip = &self.swarm.behaviour().gossip;
        let neighbours = |root: ModelRoot| {
            let topic = gossip::topic(root).hash();
            gossip.all_peers().filter(|(_, topics)| topics.contains(&&topic)).count()
        };
        let due = self.discovery.due_topics(now, |root| neighbours(root) < NEIGHBOURS_WANTED);
        for root in due {
            let id = self.swarm.behaviour_mut().kad.get_providers(dht_key(root));
            self.discovery.ask(id, Query::Rendezvous);
        }
    }
}
