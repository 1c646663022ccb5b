//! From layers of a model to a running stage: fetch the chunks that they need, cut, load, announce.

use std::{path::PathBuf, sync::Arc};

use opengrid_engine::{EmbeddedConfig, EmbeddedStage, StageSlice, TableFile};
use opengrid_models::{
    ModelEntry,
    download::FetchError,
    store::{StoreError, StoredSlice},
};
use opengrid_protocol::{Layers, Share};

use super::{
    FETCH_PAUSE_MAX, FETCH_PAUSE_MIN,
    draft::{self, Chosen},
    embedded, needs, plan, progress, read_info, wait_for_a_peer,
};
use crate::{node::Node, serving::Unit};

/// What cannot be had now may come with the next peer; what else fails stays failed.
pub async fn load_patiently(node: &Arc<Node>, entry: &ModelEntry, layers: Layers, chosen: Chosen) {
    let share = Share { model: entry.root(), layers: Some(layers) };
    let mut pause = FETCH_PAUSE_MIN;
    let fetched = loop {
        match fetch(node, entry, layers).await {
            Ok(fetched) => break fetched,
            Err(error) => {
                let why = error.to_string();
                if matches!(error, FetchError::Store(StoreError::Slice { .. })) {
                    return node.serving.failed(share, &entry.id, why);
                }
                tracing::warn!(model = entry.id, %layers, why, "not fetched; trying again soon");
                node.serving.failed(share, &entry.id, format!("{why}; trying again in {} s", pause.as_secs()));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FETCH_PAUSE_MAX);
            }
        }
    };
    if fetched.slice.plan.is_first() && fetched.slice.plan.is_last() {
        let why = format!("these are all its layers: serve it whole with --serve {}", entry.id);
        return node.serving.failed(share, &entry.id, why);
    }
    // One at a time: loading takes all cores.
    let _loading = node.loading.lock().await;
    if let Err(why) = load(node, entry, share, fetched, chosen).await {
        tracing::error!(model = entry.id, %layers, why, "not served");
        node.serving.failed(share, &entry.id, why);
    }
}

/// What a stage is made of.
struct Fetched {
    slice: StoredSlice,
    draft: Option<PathBuf>,
}

async fn fetch(node: &Arc<Node>, entry: &ModelEntry, layers: Layers) -> Result<Fetched, FetchError> {
    let share = Share { model: entry.root(), layers: Some(layers) };
    if !node.store.contains(entry.root()) {
        wait_for_a_peer(node).await;
    }
    let progress = progress(node, share, &entry.id);
    let slice = node.fetcher.fetch_slice(entry, layers, Some(node.content.as_ref()), &progress, &node.cancel).await?;
    let draft = draft::fetch(node, share, &slice).await?;
    Ok(Fetched { slice, draft })
}

async fn load(
    node: &Arc<Node>,
    entry: &ModelEntry,
    share: Share,
    Fetched { slice, draft }: Fetched,
    chosen: Chosen,
) -> Result<(), String> {
    node.serving.preparing(share, &entry.id, "loading".into());
    let info = read_info(slice.path.clone()).await?;
    let weight_bytes = slice.plan.weight_bytes();
    let plan = plan(node, weight_bytes, &info).await?;
    let draft = draft::beside(node, &slice, (&needs(weight_bytes, &info), &plan), draft, chosen).await?;
    let table = slice.tokens.map(|(path, table)| TableFile {
        path,
        offset: table.offset,
        kind: table.kind,
        width: table.width,
        rows: table.rows,
        row_bytes: table.row_bytes,
        scale: table.scale,
    });
    let stage = StageSlice { layers: slice.plan.layers, layer_count: slice.plan.layer_count, weight_bytes, table };
    let config = EmbeddedConfig { stage: Some(stage), draft, ..embedded(node, entry, slice.path, &plan) };
    let stage = EmbeddedStage::start(config).await.map_err(|error| error.to_string())?;
    node.serving.ready(share, &entry.id, Unit::Stage(stage));
    // Whoever else wants a slice of the model can get these chunks here.
    if let Err(error) = node.network.provide(entry.root()).await {
        tracing::warn!(model = entry.id, %error, "not announced in the DHT");
    }
    tracing::info!(model = entry.id, layers = %slice.plan.layers, "serving a stage");
    Ok(())
}
