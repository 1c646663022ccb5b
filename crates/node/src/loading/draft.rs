//! A draft model for the last layers: it has the same tokens, is fetched as any model is, and used where there is room.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use opengrid_engine::Draft;
use opengrid_host::{ModelNeeds, Plan};
use opengrid_models::{ModelEntry, catalogue::Task, download::FetchError, gguf, store::StoredSlice};
use opengrid_protocol::Share;

use super::{host_profile, needs, owner_limits, progress, read_info};
use crate::{node::Node, proof};

/// Who said which layers this node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    ByOwner,
    ByNode,
}

/// The owner wants one.
pub fn wanted(node: &Node) -> Option<&ModelEntry> {
    node.config.engine.draft.as_ref().and_then(|id| node.catalogue.get(id))
}

/// What is said where it is of no use.
pub fn unused(node: &Node, why: &str) -> Option<Draft> {
    wanted(node).map(|entry| Draft { name: entry.id.clone(), file: Err(why.to_owned()) })
}

/// Gets the file, or nothing where none is wanted or of use. `share` shows how far that is.
pub async fn fetch(node: &Arc<Node>, share: Share, slice: &StoredSlice) -> Result<Option<PathBuf>, FetchError> {
    let Some(entry) = wanted(node).filter(|_| slice.plan.is_last() && !slice.plan.is_first()) else { return Ok(None) };
    let progress = progress(node, share, &format!("the draft model {}, for {}", entry.id, slice.plan.layers));
    node.fetcher.fetch(entry, Some(node.content.as_ref()), &progress, &node.cancel).await?;
    let (store, root) = (node.store.clone(), entry.root());
    let proven = tokio::task::spawn_blocking(move || proof::prove(&store, root)).await;
    proven.map_err(|error| FetchError::Task(error.to_string()))??;
    if let Err(error) = node.network.provide(entry.root()).await {
        tracing::warn!(model = entry.id, %error, "not announced in the DHT");
    }
    Ok(node.store.path(root))
}

/// The draft model of a stage that is served by `plan`.
///
/// # Errors
/// It cannot guess for these layers at all; for people.
pub async fn beside(
    node: &Arc<Node>,
    slice: &StoredSlice,
    (served, plan): (&ModelNeeds, &Plan),
    file: Option<PathBuf>,
    chosen: Chosen,
) -> Result<Option<Draft>, String> {
    let Some(entry) = wanted(node) else { return Ok(None) };
    if !slice.plan.is_last() {
        let layers = slice.plan.layers;
        return match chosen {
            Chosen::ByNode => Ok(unused(node, "these are not the last layers")),
            Chosen::ByOwner => Err(format!(
                "the draft model {} guesses at the last layers, and {layers} of {} are others: leave out --draft",
                entry.id, slice.plan.layer_count
            )),
        };
    }
    let file = file.ok_or_else(|| format!("the file of {} vanished from the store: pull it again", entry.id))?;
    let info = usable(entry, &slice.path, &file).await?;
    let profile = host_profile(node).await?;
    let room =
        opengrid_host::room_beside(&profile, &owner_limits(node), (served, plan), &needs(info.weight_bytes, &info));
    let file = room.map(|()| file).map_err(|shortage| {
        let missing = shortage.needed_bytes.saturating_sub(shortage.allowed_bytes);
        let mend = "raise memory_mb or memory_percent, or lower slots or context_tokens";
        format!("{missing} bytes of memory are missing beside the layers ({mend})")
    });
    if let Err(why) = &file {
        tracing::warn!(model = entry.id, why, "served without the draft model");
    }
    Ok(Some(Draft { name: entry.id.clone(), file }))
}

async fn usable(entry: &ModelEntry, slice: &Path, file: &Path) -> Result<gguf::ModelInfo, String> {
    let refuse =
        |why: &str| format!("the draft model {} {why}: choose another with --draft, or leave it out", entry.id);
    let info = read_info(file.to_owned()).await?;
    if info.task != Task::Generation {
        return Err(refuse("writes no texts"));
    }
    let (slice, file) = (slice.to_owned(), file.to_owned());
    let same = tokio::task::spawn_blocking(move || gguf::file::same_tokens(&slice, &file)).await;
    match same.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
        true => Ok(info),
        false => Err(refuse("has other tokens than the served model")),
    }
}
