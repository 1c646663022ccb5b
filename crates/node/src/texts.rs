//! The text sides in use: at most a handful of tokenizer processes, started on first use.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use opengrid_models::{
    ModelEntry,
    catalogue::TemplateSource,
    download::FetchError,
    gguf::file::{GgufFileError, read_info},
    store::StoreError,
};
use opengrid_protocol::ModelRoot;
use tokio::{sync::Mutex, task::JoinHandle};

use crate::{
    handle::GridError,
    node::Node,
    text::{Headers, NodeText},
};

/// Tokenizer processes at once; the least recently started goes first.
const TEXTS_MAX: usize = 8;

/// How long a request waits for the vocabulary from peers and the start of the process, together.
const START_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

type Cell = Arc<Mutex<Slot>>;
type Fetching = Option<JoinHandle<Result<PathBuf, FetchError>>>;

#[derive(Default)]
struct Slot {
    text: Option<Arc<NodeText>>,
    /// Outlives the request that began it: over a slow link a long vocabulary takes longer than a client waits.
    fetching: Fetching,
}

#[derive(Default)]
pub struct Texts {
    cells: parking_lot::Mutex<(HashMap<ModelRoot, Cell>, Vec<ModelRoot>)>,
}

impl Texts {
    pub async fn get(&self, node: &Node, entry: &ModelEntry) -> Result<Arc<NodeText>, GridError> {
        let cell = self.cell(entry.root());
        let busy = || GridError::NoWorker { model: entry.id.clone(), retry_after_s: 2 };
        let mut cell = tokio::time::timeout(START_TIMEOUT, cell.lock()).await.map_err(|_| busy())?;
        if let Some(text) = &cell.text {
            return Ok(text.clone());
        }
        let started = tokio::time::timeout(START_TIMEOUT, start(node, entry, &mut cell.fetching)).await;
        let text = Arc::new(started.map_err(|_| busy())??);
        cell.text = Some(text.clone());
        Ok(text)
    }

    fn cell(&self, root: ModelRoot) -> Cell {
        let mut cells = self.cells.lock();
        let (map, order) = &mut *cells;
        if !map.contains_key(&root) {
            if order.len() >= TEXTS_MAX {
                map.remove(&order.remove(0));
            }
            order.push(root);
        }
        map.entry(root).or_default().clone()
    }

    /// Ends the processes (those in use end with their last request).
    pub async fn shutdown(&self) {
        self.cells.lock().0.clear();
    }
}

async fn vocabulary(node: &Node, entry: &ModelEntry, fetching: &mut Fetching) -> Result<PathBuf, GridError> {
    match node.store.vocabulary_path(entry.root()) {
        Err(StoreError::NotHere(_)) => {}
        found => return found.map_err(|error| GridError::Internal(error.to_string())),
    }
    let fetch = fetching.get_or_insert_with(|| {
        let (fetcher, content) = (node.fetcher.clone(), node.content.clone());
        let (entry, cancel) = (entry.clone(), node.cancel.clone());
        node.tasks.spawn(async move { fetcher.fetch_vocabulary(&entry, content.as_ref(), &cancel).await })
    });
    let fetched = fetch.await;
    *fetching = None;
    fetched.map_err(|error| GridError::Internal(error.to_string()))?.map_err(|error| {
        tracing::warn!(model = entry.id, %error, "no vocabulary");
        GridError::NoWorker { model: entry.id.clone(), retry_after_s: 2 }
    })
}

async fn start(node: &Node, entry: &ModelEntry, fetching: &mut Fetching) -> Result<NodeText, GridError> {
    let internal = |error: &dyn std::fmt::Display| GridError::Internal(error.to_string());
    let path = vocabulary(node, entry, fetching).await?;
    let file = path.clone();
    let mut headers = tokio::task::spawn_blocking(move || read_headers(&file))
        .await
        .map_err(|error| internal(&error))?
        .map_err(|error| internal(&error))?;
    if let TemplateSource::Inline(template) = &entry.template {
        headers.chat_template = Some(template.clone());
    }
    NodeText::start(node.config.program.clone(), path, headers, node.tasks.clone()).await
}

fn read_headers(path: &std::path::Path) -> Result<Headers, GgufFileError> {
    let info = read_info(path)?;
    let trained_context = u32::try_from(info.context_length).unwrap_or(u32::MAX);
    let embedding_width = u32::try_from(info.embedding_length).unwrap_or(u32::MAX);
    Ok(Headers { chat_template: info.chat_template, trained_context, embedding_width })
}
