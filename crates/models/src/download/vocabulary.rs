//! Only the beginning of a model: what a gateway needs to speak to it.

use std::path::PathBuf;

use opengrid_protocol::NodeId;

use super::{Attempt, FetchConfig, FetchError, PeerError, PeerSource, SourceKind, peers};
use crate::{
    catalogue::ModelEntry,
    chunk_tree::Tree,
    gguf::{Gguf, GgufError},
    store::{Store, StoreError},
};

/// Peers asked for one chunk, over and over, before it is given up.
const TRIES_MAX: usize = 12;

pub(super) async fn fetch(
    store: &Store,
    config: &FetchConfig,
    model: &ModelEntry,
    source: &dyn PeerSource,
) -> Result<PathBuf, FetchError> {
    let (local, root) = (store.clone(), model.root());
    let here = blocking(move || local.vocabulary_path(root)).await;
    match here {
        Err(FetchError::Store(StoreError::NotHere(_))) => {}
        other => return other,
    }
    let unavailable = |why: String| FetchError::NoSource {
        model: model.id.clone(),
        attempts: vec![Attempt { source: SourceKind::Peers, why }],
    };
    let size = model.file.size;
    let (tree, mut providers) = peers::find_tree(config, source, root, size).await.map_err(unavailable)?;
    let mut header = Vec::new();
    for index in 0..tree.chunk_count() {
        header.extend(chunk(config, source, &tree, index, &mut providers).await.map_err(unavailable)?);
        match Gguf::parse(&header, size).map(drop) {
            Err(GgufError::HeaderIncomplete { .. }) => {}
            Err(error) => return Err(unavailable(error.to_string())),
            Ok(()) => {
                let local = store.clone();
                return blocking(move || local.write_vocabulary(root, &header, size)).await;
            }
        }
    }
    Err(unavailable("the file ends within its header".to_owned()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    let worked = tokio::task::spawn_blocking(work).await;
    Ok(worked.map_err(|error| FetchError::Task(error.to_string()))??)
}

/// One proven chunk from whichever provider gives it; liars are reported and left out from then on.
async fn chunk(
    config: &FetchConfig,
    source: &dyn PeerSource,
    tree: &Tree,
    index: u32,
    providers: &mut Vec<NodeId>,
) -> Result<Vec<u8>, String> {
    let mut last = "no peer has it".to_owned();
    for _ in 0..TRIES_MAX {
        let Some(node) = providers.first().copied() else { break };
        match peers::timed_chunk(config, source, node, tree.root(), index).await {
            Ok(bytes) => match tree.verify_chunk(index, &bytes) {
                Ok(()) => return Ok(bytes),
                Err(error) => {
                    last = format!("{} lied: {error}", node.short());
                    source.misbehaved(node, &error.to_string());
                    providers.remove(0);
                }
            },
            Err(PeerError::Busy) => {
                last = PeerError::Busy.to_string();
                providers.rotate_left(1);
                tokio::time::sleep(peers::BUSY_PAUSE).await;
            }
            Err(error) => {
                last = error.to_string();
                providers.remove(0);
            }
        }
    }
    Err(last)
}
