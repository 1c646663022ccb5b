//! A running node: what [`start`](crate::start) built, what the gateway asks of it, and its end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use opengrid_models::{Catalogue, Fetcher, ModelEntry, Store};
use opengrid_network::{Network, PeerInfo};
use opengrid_protocol::{ModelRoot, NodeId, SessionId, limits::COMPLETION_TOKENS_MAX};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    beacons::Beacons,
    clock,
    config::NodeConfig,
    content::GridContent,
    handle::{
        Answer, EmbedJob, Embeddings, GridError, GridHandle, Job, ModelRow, NodeIdText, PeerModel, PeerRow, PullEvent,
        Status, TextModel,
    },
    identity::HomeLock,
    metrics::Metrics,
    pipeline::hub::Hub,
    placement::Placement,
    pull::{self, PULLS_MAX, Pull},
    runtime::Runtime,
    serving::{Serving, class_text},
    session::{
        answer::AnswerTask,
        embed::{self, EmbedTask},
    },
    skew::Skew,
    text::NodeText,
    texts::Texts,
};

/// Events of one answer that wait for a slow reader.
const ANSWER_EVENTS_MAX: usize = 1_024;
/// Answers at once, as many as a gateway has connections; more are refused.
const ANSWERS_MAX: usize = 16_384;
/// Sessions at once into which one list of texts is cut.
const EMBED_SESSIONS_AT_ONCE: usize = 8;
const RETRY_AFTER_S: u32 = 2;
/// Room for an answer that makes a worker's context large enough for a request without `max_tokens`.
const ROOM_TOKENS: u32 = 1_024;

pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) network: Network,
    pub(crate) catalogue: Catalogue,
    pub(crate) store: Store,
    pub(crate) fetcher: Fetcher,
    pub(crate) content: Arc<GridContent>,
    pub(crate) serving: Arc<Serving>,
    pub(crate) placement: Arc<Placement>,
    pub(crate) beacons: Arc<Beacons>,
    pub(crate) skew: Arc<Skew>,
    pub(crate) texts: Texts,
    pub(crate) metrics: Metrics,
    pub(crate) hub: Arc<Hub>,
    pub(crate) token: String,
    pub(crate) role: watch::Sender<String>,
    pub(crate) started: Instant,
    pub(crate) answers: Arc<AtomicU64>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) shutdown_requested: CancellationToken,
    /// Held while a model loads.
    pub(crate) loading: tokio::sync::Mutex<()>,
    pub(crate) lock: Mutex<Option<HomeLock>>,
    /// Places of downloads that the owner asked for.
    pub(crate) pulls: Arc<Semaphore>,
}

impl Node {
    /// The bearer token of what changes this node's state; also in `runtime.json`.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn local(&self) -> NodeId {
        self.network.local()
    }

    /// Done when somebody asked the node to end (`POST /grid/v1/shutdown`).
    pub async fn shutdown_requested(&self) {
        self.shutdown_requested.cancelled().await;
    }

    /// What this node can be joined by.
    pub fn invite(&self) -> String {
        crate::invites::own_invite(&self.network, self.config.network.grid_key.is_some())
    }

    /// The live state of everything this node serves.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Takes no new sessions, lets the running ones end within the grace time, then stops everything.
    pub async fn shutdown(&self) {
        self.serving.drain();
        let deadline = tokio::time::Instant::now() + self.config.grace;
        while (self.serving.sessions() > 0 || self.answers.load(Ordering::Relaxed) > 0)
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.abort().await;
    }

    /// Stops everything at once: running sessions die, others continue them.
    pub async fn abort(&self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.serving.shutdown().await;
        self.texts.shutdown().await;
        self.network.shutdown().await;
        Runtime::remove(&self.config.home);
        self.lock.lock().take();
    }

    pub(crate) fn entry(&self, model: &str) -> Result<&ModelEntry, GridError> {
        self.catalogue.get(model).ok_or_else(|| GridError::UnknownModel(model.to_owned()))
    }

    fn nobody(model: &str) -> GridError {
        GridError::NoWorker { model: model.to_owned(), retry_after_s: RETRY_AFTER_S }
    }

    /// One more answer, while the value lives.
    fn count_answer(&self, model: &str) -> Result<AnswerCount, GridError> {
        if self.answers.fetch_add(1, Ordering::Relaxed) >= ANSWERS_MAX as u64 {
            self.answers.fetch_sub(1, Ordering::Relaxed);
            return Err(Self::nobody(model));
        }
        Ok(AnswerCount(self.answers.clone()))
    }

    /// How many tokens the answer may have, and that prompt and answer fit a live worker.
    fn completion_limit(&self, model: ModelRoot, job: &Job) -> Result<u32, GridError> {
        let contexts = self.placement.contexts(model);
        let limit = contexts.last().copied().ok_or_else(|| Self::nobody(&job.model))?;
        let prompt = u32::try_from(job.prompt.len()).unwrap_or(u32::MAX);
        let needed = prompt.saturating_add(job.completion_tokens_max.unwrap_or(1));
        if needed > limit {
            return Err(GridError::ContextOverflow { limit, needed });
        }
        // Without a wish: what most workers can hold, so that any of them can take (or take over) the answer.
        let roomy = contexts.into_iter().find(|context| *context >= prompt.saturating_add(ROOM_TOKENS));
        let room = roomy.unwrap_or(limit) - prompt;
        Ok(job.completion_tokens_max.unwrap_or(room).min(COMPLETION_TOKENS_MAX))
    }
}

impl Node {
    fn model_row(&self, entry: &ModelEntry) -> ModelRow {
        let contexts = self.placement.contexts(entry.root());
        ModelRow {
            id: entry.id.clone(),
            root: entry.root(),
            size_bytes: entry.file.size,
            licence: entry.licence.clone(),
            class: format!("{:?}", entry.class).to_lowercase(),
            task: entry.task,
            workers: contexts.len(),
            local: self.store.contains(entry.root()),
            context_tokens: contexts.first().copied().unwrap_or(0),
            coverage: self.placement.coverage(entry.root()),
            created: entry.created,
        }
    }
}

/// Counts running answers.
struct AnswerCount(Arc<AtomicU64>);

impl Drop for AnswerCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl GridHandle for Node {
    fn status(&self) -> Status {
        let mut state = self.serving.summary();
        if let Some(complaint) = self.skew.complaint() {
            state = format!("{state}; {complaint}");
        }
        let (parts_kept_bytes, parts) = self.hub.kept();
        Status {
            peer_id: NodeIdText(self.local()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            role: self.role.borrow().clone(),
            models: self.serving.rows(),
            peers: self.network.peers().len(),
            state,
            api: format!("http://{}", self.config.api),
            p2p_addresses: self.network.listen_addresses(),
            nat: format!("{:?}", self.network.nat()).to_lowercase(),
            invite: self.invite(),
            sessions_running: self.serving.sessions(),
            tokens_generated: self.serving.tokens_generated(),
            pipelines: self.placement.running.rows(),
            parts,
            parts_kept_bytes,
        }
    }

    fn peers(&self) -> Vec<PeerRow> {
        let mut models: HashMap<NodeId, Vec<PeerModel>> = HashMap::new();
        for (node, beacon) in self.placement.directory.lock().live(clock::monotonic_ms()) {
            models.entry(node).or_default().push(PeerModel {
                id: beacon.model_id.clone(),
                layers: beacon.stage.as_ref().map(|stage| stage.layers.to_string()),
                class: class_text(beacon.class),
                slots: beacon.slots,
                slots_busy: beacon.slots_busy,
                queued: beacon.queued,
                decode_tokens_per_s: beacon.decode_millitokens_per_s as f32 / 1_000.0,
                draining: beacon.draining,
            });
        }
        models.remove(&self.local());
        let mut rows: Vec<PeerRow> = Vec::new();
        for peer in self.network.peers() {
            let served = models.remove(&peer.node).unwrap_or_default();
            rows.push(connected_row(peer, served));
        }
        rows.extend(models.into_iter().map(|(node, served)| distant_row(node, served)));
        for (node, fault) in self.placement.refused() {
            if !rows.iter().any(|row| row.peer_id.0 == node) {
                rows.push(distant_row(node, Vec::new()));
            }
            if let Some(row) = rows.iter_mut().find(|row| row.peer_id.0 == node) {
                row.refused = Some(fault.to_string());
            }
        }
        rows.sort_by_key(|row| row.peer_id.0);
        rows
    }

    fn models(&self) -> Vec<ModelRow> {
        self.catalogue.models().map(|entry| self.model_row(entry)).collect()
    }

    async fn text(&self, model: &str) -> Result<Arc<dyn TextModel>, GridError> {
        let entry = self.entry(model)?;
        let text: Arc<NodeText> = self.texts.get(self, entry).await?;
        Ok(text)
    }

    async fn generate(&self, job: Job) -> Result<Answer, GridError> {
        let model = self.entry(&job.model)?.root();
        let completion_tokens_max = self.completion_limit(model, &job)?;
        let count = self.count_answer(&job.model)?;
        let session = SessionId(rand::random());
        let (sender, events) = mpsc::channel(ANSWER_EVENTS_MAX);
        let (accepted, first) = oneshot::channel();
        let task = AnswerTask {
            placement: self.placement.clone(),
            session,
            model,
            job,
            completion_tokens_max,
            events: sender,
            accepted: Some(accepted),
        };
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let _count = count;
            cancel.run_until_cancelled(task.run()).await
        });
        // If the caller gives up here, `events` is dropped with this future and the task ends.
        let worker = first.await.map_err(|_| GridError::Internal("the node is shutting down".into()))??;
        Ok(Answer { session, worker, events })
    }

    async fn embed(&self, job: EmbedJob) -> Result<Embeddings, GridError> {
        let model = self.entry(&job.model)?.root();
        let limit = self.placement.contexts(model).last().copied().ok_or_else(|| Self::nobody(&job.model))?;
        let longest = u32::try_from(job.texts.iter().map(Vec::len).max().unwrap_or(0)).unwrap_or(u32::MAX);
        if longest > limit {
            return Err(GridError::ContextOverflow { limit, needed: longest });
        }
        let _count = self.count_answer(&job.model)?;
        let task = |texts| {
            let (placement, model_id) = (self.placement.clone(), job.model.clone());
            EmbedTask { placement, model, model_id, texts, width: job.width as usize }.run()
        };
        let parts = stream::iter(embed::sessions_of(job.texts)).map(task).buffered(EMBED_SESSIONS_AT_ONCE);
        let stopped = || GridError::Internal("the node is shutting down".into());
        let parts: Vec<_> = self.cancel.run_until_cancelled(parts.try_collect()).await.ok_or_else(stopped)??;
        let mut embeddings = Embeddings { vectors: Vec::new(), workers: Vec::new() };
        for (worker, vectors) in parts {
            embeddings.vectors.extend(vectors);
            if !embeddings.workers.contains(&worker) {
                embeddings.workers.push(worker);
            }
        }
        Ok(embeddings)
    }

    async fn join(&self, invite: &str) -> Result<(), String> {
        crate::invites::join(&self.network, invite, self.config.network.grid_key.is_some()).await
    }

    fn pull(&self, model: &str) -> Result<mpsc::Receiver<PullEvent>, GridError> {
        let entry = self.catalogue.get(model).ok_or_else(|| GridError::UnknownModel(model.to_owned()))?;
        let too_many = |_| GridError::Overloaded(format!("{PULLS_MAX} downloads run already: wait for one to end"));
        let pull = Pull {
            fetcher: self.fetcher.clone(),
            content: self.content.clone(),
            network: self.network.clone(),
            entry: entry.clone(),
            permit: self.pulls.clone().try_acquire_owned().map_err(too_many)?,
        };
        let (events, receiver) = mpsc::channel(pull::EVENTS_MAX);
        self.tasks.spawn(pull.run(events, self.cancel.clone()));
        Ok(receiver)
    }

    fn request_shutdown(&self) {
        self.shutdown_requested.cancel();
    }

    fn metrics(&self) -> String {
        self.metrics.text(self)
    }
}

fn connected_row(peer: PeerInfo, models: Vec<PeerModel>) -> PeerRow {
    let path = if peer.connected_direct { "direct" } else { "relayed" };
    let version = peer.agent.as_deref().map(|agent| agent.trim_start_matches("opengrid/").to_owned());
    PeerRow {
        peer_id: NodeIdText(peer.node),
        version,
        connected: true,
        path: path.into(),
        addresses: peer.addresses,
        rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0),
        models,
        refused: None,
    }
}

fn distant_row(node: NodeId, models: Vec<PeerModel>) -> PeerRow {
    PeerRow {
        peer_id: NodeIdText(node),
        version: None,
        connected: false,
        path: "none".into(),
        addresses: Vec::new(),
        rtt_ms: None,
        models,
        refused: None,
    }
}
