//! Finds workers of models that nobody nearby serves: the DHT names providers, a connection brings their beacons.

use std::{collections::HashSet, sync::Arc, time::Duration};

use opengrid_models::ModelEntry;
use opengrid_protocol::NodeId;

use crate::{clock, node::Node};

/// First pause between two searches; grows to the second while nothing changes.
const PAUSE_MIN: Duration = Duration::from_millis(1_000);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Connections tried for one model in one search.
const DIALS_MAX: usize = 4;
/// With this many live workers known a model needs no search.
const WORKERS_ENOUGH: usize = 2;

pub async fn run(node: Arc<Node>) {
    let mut pause = PAUSE_MIN;
    let mut peers_before = 0;
    loop {
        if node.cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        let peers: HashSet<NodeId> = node.network.peers().iter().map(|peer| peer.node).collect();
        let mut searched = false;
        for entry in node.catalogue.models() {
            searched |= search(&node, entry, &peers).await;
        }
        let news = peers.len() != peers_before;
        peers_before = peers.len();
        pause = if news || !searched { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
    }
}

/// True if it had to search.
async fn search(node: &Arc<Node>, entry: &ModelEntry, connected: &HashSet<NodeId>) -> bool {
    let root = entry.root();
    let known = node.placement.directory.lock().workers(root, clock::monotonic_ms()).count();
    if known >= WORKERS_ENOUGH || connected.is_empty() {
        return false;
    }
    let local = node.local();
    let providers = node.network.providers(root).await;
    let strangers = providers.into_iter().filter(|provider| *provider != local && !connected.contains(provider));
    for provider in strangers.take(DIALS_MAX) {
        // Success shows as a `Connected` event, failure costs nothing.
        let _ = node.network.dial_peer(provider).await;
    }
    true
}
