//! `MODEL@auto`: the layers that the grid lacks most, as many as fit; looked at again from time to time.

use std::{sync::Arc, time::Duration};

use opengrid_host::Plan;
use opengrid_models::{ModelEntry, download::FetchError, slice::Outline};
use opengrid_protocol::{Layers, NodeId, Share};
use opengrid_scheduler::{Held, join, should_move};

use super::{FETCH_PAUSE_MAX, FETCH_PAUSE_MIN, draft::Chosen, load_patiently, plan, progress, stage, wait_for_a_peer};
use crate::{clock, node::Node};

/// How long beacons of others are waited for, and a random part of it besides: nodes that start together look one after
/// the other.
const LISTEN: Duration = Duration::from_millis(1_500);
/// Between two looks at whether other layers need this node more, and a random part of it besides.
const LOOK: Duration = Duration::from_secs(20);
/// How much better the least served layer must be served for a move.
const HYSTERESIS_PERCENT: u64 = 30;
/// How long sessions may take to end before a move.
const MOVE_PATIENCE: Duration = Duration::from_secs(60);

/// Serves what is needed, for as long as the node runs.
pub async fn serve(node: &Arc<Node>, entry: &ModelEntry) {
    let Some((outline, room)) = room(node, entry).await else { return };
    let mut mine: Option<Layers> = None;
    tokio::time::sleep(with_random_part(LISTEN)).await;
    loop {
        let others = held(node, entry, |holder| holder != node.local());
        if let Some(better) = join(outline.layer_count(), &others, room) {
            let better = fitting(node, &outline, better).await;
            match mine {
                None if better.count() == outline.layer_count() => {
                    // It all fits: no part of it is needed.
                    node.serving.forget(Share::whole(entry.root()));
                    return load_patiently(node, entry).await;
                }
                None => mine = Some(take(node, entry, better).await),
                Some(layers) if moves(node, entry, &outline, layers, better) => {
                    node.serving.retire(Share { model: entry.root(), layers: Some(layers) }, MOVE_PATIENCE).await;
                    tracing::info!(model = entry.id, from = %layers, to = %better, "other layers need this node more");
                    mine = Some(take(node, entry, better).await);
                }
                Some(_) => {}
            }
        }
        tokio::time::sleep(with_random_part(LOOK)).await;
    }
}

async fn take(node: &Arc<Node>, entry: &ModelEntry, layers: Layers) -> Layers {
    node.serving.forget(Share::whole(entry.root()));
    stage::load_patiently(node, entry, layers, Chosen::ByNode).await;
    layers
}

fn with_random_part(pause: Duration) -> Duration {
    pause + pause.mul_f64(rand::random::<f64>())
}

/// What each layer takes, and how many layers fit.
async fn room(node: &Arc<Node>, entry: &ModelEntry) -> Option<(Outline, u32)> {
    let share = Share::whole(entry.root());
    let mut pause = FETCH_PAUSE_MIN;
    let outline = loop {
        if !node.store.contains(entry.root()) {
            wait_for_a_peer(node).await;
        }
        let progress = progress(node, share, &entry.id);
        match node.fetcher.fetch_outline(entry, Some(node.content.as_ref()), &progress, &node.cancel).await {
            Ok(outline) => break outline,
            Err(error @ FetchError::Store(_)) => {
                node.serving.failed(share, &entry.id, error.to_string());
                return None;
            }
            Err(error) => {
                node.serving.failed(share, &entry.id, format!("{error}; trying again in {} s", pause.as_secs()));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FETCH_PAUSE_MAX);
            }
        }
    };
    node.serving.preparing(share, &entry.id, "looking for the layers that need this node most of".into());
    let (mut least, mut most) = (0, outline.layer_count());
    while least < most {
        let middle = (least + most).div_ceil(2);
        // The heaviest: the last ones, with the head.
        let layers = Layers::new(outline.layer_count() - middle, outline.layer_count()).ok()?;
        match planned(node, &outline, layers).await {
            Ok(_) => least = middle,
            Err(_) => most = middle - 1,
        }
    }
    if least == 0 {
        let last = Layers::new(outline.layer_count() - 1, outline.layer_count()).ok()?;
        let why = planned(node, &outline, last).await.err().unwrap_or_default();
        node.serving.failed(share, &entry.id, format!("not one layer fits: {why}"));
        return None;
    }
    Some((outline, least))
}

/// The range, or as much of its beginning as fits.
async fn fitting(node: &Arc<Node>, outline: &Outline, layers: Layers) -> Layers {
    let mut fitting = layers;
    while planned(node, outline, fitting).await.is_err() {
        match Layers::new(fitting.from(), fitting.to() - 1) {
            Ok(shorter) => fitting = shorter,
            Err(_) => break,
        }
    }
    fitting
}

async fn planned(node: &Arc<Node>, outline: &Outline, layers: Layers) -> Result<Plan, String> {
    let (count, of) = (u64::from(layers.count()), u64::from(outline.layer_count().max(1)));
    let mut info = outline.info.clone();
    info.kv_bytes_per_token = info.kv_bytes_per_token.saturating_mul(count).div_ceil(of);
    plan(node, outline.weight_bytes(layers), &info).await
}

/// What live nodes serve of the model; whole models count as a stage of all layers.
fn held(node: &Arc<Node>, entry: &ModelEntry, counts: impl Fn(NodeId) -> bool) -> Vec<Held> {
    let directory = node.placement.directory.lock();
    let stages = directory.stages(entry.root(), clock::monotonic_ms());
    stages
        .filter(|(holder, beacon, _)| counts(*holder) && !beacon.draining)
        .map(|(_, beacon, stage)| Held {
            layers: stage.layers,
            millirows_per_s: u64::from(beacon.decode_millitokens_per_s),
        })
        .collect()
}

/// Of nodes with the same layers one moves at a time: the one with the highest id.
fn moves(node: &Arc<Node>, entry: &ModelEntry, outline: &Outline, layers: Layers, better: Layers) -> bool {
    let alike_and_higher = |holder: NodeId| holder > node.local();
    let mine = held(node, entry, |holder| holder == node.local()).into_iter().find(|held| held.layers == layers);
    let higher = held(node, entry, alike_and_higher).into_iter().any(|held| held.layers == layers);
    let others = held(node, entry, |holder| holder != node.local());
    better != layers
        && !higher
        && mine.is_some_and(|mine| should_move(outline.layer_count(), &others, mine, better, HYSTERESIS_PERCENT))
}
