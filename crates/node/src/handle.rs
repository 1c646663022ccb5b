//! What a gateway may ask of a node. Everything else of the node is invisible to it.

use std::sync::Arc;

use async_trait::async_trait;
pub use opengrid_models::catalogue::Task;
use opengrid_models::download::Progress;
use opengrid_protocol::{
    ModelRoot, NodeId, Sampling, SessionId,
    beacon::Features,
    session::{Finish, Tier, Token, TokenOut, Usage},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

pub type SharedGrid = Arc<dyn GridHandle>;

#[async_trait]
pub trait GridHandle: Send + Sync {
    fn status(&self) -> Status;

    /// Connected nodes and nodes known from live beacons, ourselves excluded.
    fn peers(&self) -> Vec<PeerRow>;

    /// Every model of the catalogue; those with `workers > 0` can be answered now.
    fn models(&self) -> Vec<ModelRow>;

    /// Tokenizer, pieces and template of a model, fetched from peers or disk on first use.
    ///
    /// # Errors
    /// [`GridError::UnknownModel`], [`GridError::NoWorker`] (nobody to fetch the vocabulary from) or
    /// [`GridError::Internal`].
    async fn text(&self, model: &str) -> Result<Arc<dyn TextModel>, GridError>;

    /// Places a generation on the grid. Dropping the [`Answer`] cancels it. Worker deaths are survived inside.
    ///
    /// # Errors
    /// At once when nobody can take it.
    async fn generate(&self, job: Job) -> Result<Answer, GridError>;

    /// Turns texts into vectors, on as many workers as are worth it. Dropping the future cancels it. Worker deaths are
    /// survived inside.
    ///
    /// # Errors
    /// [`GridError::ContextOverflow`] with the longest text; the first part that nobody could do otherwise.
    async fn embed(&self, job: EmbedJob) -> Result<Embeddings, GridError>;

    /// Dials the node of an invite and remembers it.
    ///
    /// # Errors
    /// A sentence for the person who typed the invite.
    async fn join(&self, invite: &str) -> Result<(), String>;

    /// Fetches a model's file into this node's store, from peers too, and tells how it goes. Dropping the receiver
    /// stops the download; what is there is kept for the next one.
    ///
    /// # Errors
    /// [`GridError::UnknownModel`], or [`GridError::Overloaded`] when too many downloads run already.
    fn pull(&self, model: &str) -> Result<mpsc::Receiver<PullEvent>, GridError>;

    /// Asks the process to drain and exit.
    fn request_shutdown(&self);

    /// Node and network metrics in OpenMetrics text, without the `# EOF` line.
    fn metrics(&self) -> String;
}

/// The text side of a model: lives at the gateway, never crosses the network.
#[async_trait]
pub trait TextModel: Send + Sync {
    /// Token ids of `text`. `add_special` prepends what the model wants first (BOS); `parse_special` turns
    /// `<|…|>` marks into their control tokens.
    ///
    /// # Errors
    /// [`GridError::Internal`] when the tokenizer process died (it is restarted for the next call).
    async fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, GridError>;

    /// The bytes that a token prints; empty for control tokens and for ids out of range.
    fn piece(&self, token: Token) -> &[u8];

    fn vocabulary_size(&self) -> u32;

    /// Tokens that end an answer.
    fn end_tokens(&self) -> &[Token];

    /// The marks before the text in front of a gap, before the text behind it and before what fills it, where the model
    /// was trained to fill gaps.
    fn fill_in_middle(&self) -> Option<[Token; 3]>;

    /// The GGUF's own Jinja template.
    fn chat_template(&self) -> Option<&str>;

    /// The texts of BOS and EOS, for templates.
    fn bos_text(&self) -> &str;
    fn eos_text(&self) -> &str;

    /// Whether prompts get a BOS in front ("add_bos").
    fn adds_bos(&self) -> bool;

    /// Tokens that the model was trained to hold; workers may hold fewer.
    fn trained_context(&self) -> u32;

    /// Numbers of a vector, where the model makes embeddings.
    fn embedding_width(&self) -> u32;
}

/// One answer to compute.
#[derive(Clone, Debug)]
pub struct Job {
    pub model: String,
    pub prompt: Vec<Token>,
    /// `None`: up to the end of the context.
    pub completion_tokens_max: Option<u32>,
    pub stop_tokens: Vec<Token>,
    /// [`TextModel::vocabulary_size`]: a worker that answers with a larger id is caught.
    pub vocabulary_size: u32,
    pub sampling: Sampling,
    pub top_logprobs: Option<u8>,
    /// What the answer must follow: [`Open::grammar`](opengrid_protocol::session::Open::grammar).
    pub grammar: Option<String>,
    pub tier: Tier,
    /// Requests with the same key prefer the same worker (`prompt_cache_key`); else the prompt's prefix decides.
    pub affinity: Option<String>,
}

impl Job {
    /// What a worker must be able to do.
    pub fn features(&self) -> Features {
        let sampling = &self.sampling;
        let wants = [
            (self.grammar.is_some(), Features::GRAMMAR),
            (self.top_logprobs.is_some(), Features::LOGPROBS),
            (!sampling.logit_bias.is_empty(), Features::LOGIT_BIAS),
            (sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0, Features::PENALTIES),
            (sampling.repeat_penalty != 1.0 && sampling.repeat_last_n > 0, Features::REPEAT_PENALTY),
        ];
        let wanted = wants.iter().filter(|(wanted, _)| *wanted);
        wanted.fold(Features::GENERATE, |all, (_, feature)| all.with(*feature))
    }
}

/// Texts to embed.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    pub model: String,
    /// Whole, with the special tokens that the model wants around them; none is empty.
    pub texts: Vec<Vec<Token>>,
    /// [`TextModel::embedding_width`]: a worker that answers with other vectors is caught.
    pub width: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// One of length 1 for each text, in their order.
    pub vectors: Vec<Vec<f32>>,
    /// Who computed them, each once, in the order of the texts.
    pub workers: Vec<NodeId>,
}

/// A running answer. Drop it to cancel.
#[derive(Debug)]
pub struct Answer {
    pub session: SessionId,
    /// The worker that accepted it first.
    pub worker: NodeId,
    /// Ends after `Finished` or `Failed`.
    pub events: mpsc::Receiver<AnswerEvent>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AnswerEvent {
    /// The place in the worker's queue; 1 is next.
    Queued(u32),
    Tokens(Vec<TokenOut>),
    /// The worker died or left; another continues. `exact`: of the same class, so the text is the same to the letter.
    Moved {
        worker: NodeId,
        exact: bool,
    },
    Finished(Finish, Usage),
    Failed(GridError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    #[error("no node serves `{model}` right now")]
    NoWorker { model: String, retry_after_s: u32 },
    /// Workers of the model are there, none of them can do what the request asks for.
    #[error("no node that serves `{model}` right now can do what this request asks for")]
    Incapable { model: String, retry_after_s: u32 },
    #[error("this model's maximum context length is {limit} tokens, the request needs {needed}")]
    ContextOverflow { limit: u32, needed: u32 },
    #[error("{0}")]
    Overloaded(String),
    #[error("invalid request: {0}")]
    Invalid(String),
    #[error("internal error: {0}")]
    Internal(String),
}

/// How a download goes. `Done` or `Failed` is the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullEvent {
    Progress(Progress),
    Done,
    /// With a sentence for the person who asked.
    Failed(String),
}

/// `GET /grid/v1/status`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    pub peer_id: NodeIdText,
    pub version: String,
    pub uptime_seconds: u64,
    /// `edge` or `worker`.
    pub role: String,
    /// Models that this node serves itself.
    pub models: Vec<ServedModel>,
    /// Connected peers.
    pub peers: usize,
    /// One plain reason, e.g. `serving`, `loading smollm2-135m`, `draining`.
    pub state: String,
    pub api: String,
    pub p2p_addresses: Vec<String>,
    /// `public`, `private` or `unknown`.
    pub nat: String,
    pub invite: String,
    pub sessions_running: usize,
    pub tokens_generated: u64,
    /// Answers of this gateway that go through several stages.
    pub pipelines: Vec<PipelineRow>,
    /// Parts of sessions that this node's stages run, standbys included, and what they keep to be sent again, in bytes.
    pub parts: usize,
    pub parts_kept_bytes: usize,
}

/// An answer that goes through several stages.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PipelineRow {
    pub model: String,
    pub stages: Vec<PipelineStage>,
    /// Tokens of the answer so far.
    pub tokens: u32,
    /// How long the last lap took: one pass over all stages.
    pub lap_ms: Option<f64>,
    /// How often the chain was put together: 1, and once more for each fault.
    pub put_together: u32,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PipelineStage {
    pub peer_id: NodeIdText,
    /// `FROM..TO`.
    pub layers: String,
    /// A token's time here, as the stage measured it.
    pub compute_ms: f64,
    /// One way to the next stage (from the last one to the first).
    pub way_ms: f64,
}

/// Who holds which layers of a model that nodes hold in parts.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CoverageRow {
    pub layer_count: u32,
    pub stages: Vec<StageRow>,
    /// Layers that lack a volunteer, as `FROM..TO`.
    pub gaps: Vec<String>,
    /// Chains that share no stage.
    pub chains: u32,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct StageRow {
    pub layers: String,
    pub holders: Vec<NodeIdText>,
}

/// A node's id: the libp2p peer id of its Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, example = "12D3KooWEXE6ogH7rATZ3TGBnCwMdMZ7jMbhckFLz9xSjZNjYcek")]
pub struct NodeIdText(pub NodeId);

impl Serialize for NodeIdText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServedModel {
    pub id: String,
    /// Which layers, as `FROM..TO`, where not the whole model is served.
    pub layers: Option<String>,
    /// `loading`, `ready`, `restarting` or `failed: why`.
    pub state: String,
    /// `exact:…` or `approximate`.
    pub class: String,
    pub context_tokens: u32,
    pub slots: u16,
    pub slots_busy: u16,
    pub queued: u16,
    pub decode_tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    pub memory_bytes: u64,
    /// Which engine computes, with its version; empty until it is ready.
    pub engine: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PeerRow {
    pub peer_id: NodeIdText,
    pub version: Option<String>,
    pub connected: bool,
    /// `direct`, `relayed` or `none`.
    pub path: String,
    pub addresses: Vec<String>,
    pub rtt_ms: Option<f64>,
    pub models: Vec<PeerModel>,
    /// What it did that no honest program does; it is refused for some minutes.
    pub refused: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PeerModel {
    pub id: String,
    /// Which layers, as `FROM..TO`, where it does not serve the whole model.
    pub layers: Option<String>,
    pub class: String,
    pub slots: u16,
    pub slots_busy: u16,
    pub queued: u16,
    pub decode_tokens_per_s: f32,
    pub draining: bool,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelRow {
    pub id: String,
    /// The BLAKE3 hash of the file.
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = String)]
    pub root: ModelRoot,
    pub size_bytes: u64,
    pub licence: String,
    /// `tiny`, `small`, `medium` or `large`.
    pub class: String,
    /// `generation` or `embedding`.
    pub task: Task,
    /// Live workers, ourselves included.
    pub workers: usize,
    /// The file is in this node's store.
    pub local: bool,
    /// Smallest context among the live workers; 0 without one.
    pub context_tokens: u32,
    /// Where nodes hold parts of it.
    pub coverage: Option<CoverageRow>,
    /// Unix seconds at which the model entered the catalogue.
    pub created: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
