//! The [`Engine`] trait and what implements it: the embedded llama.cpp in a supervised child process and a `fake`
//! engine for load tests, and servers on the volunteer's machine over HTTP. [`Vocabulary`] is the text side of a model.
//!
//! llama.cpp runs in child processes only ([`child_main`]): its crash is a failover, never the node's end.

mod batching;
mod cells;
mod child;
mod drafts;
mod encoding;
mod fake;
mod gathering;
mod ipc;
mod llama_cpp;
mod openai_http;
mod process;
mod sandbox;
mod spans;
mod stage;
mod vocabulary;

use std::sync::Arc;

use async_trait::async_trait;
use opengrid_protocol::{
    Sampling,
    beacon::{Class, Features},
    session::{Finish, Tier, Token, TokenOut, Usage},
};
use tokio::sync::mpsc;

pub use child::{child_main, is_child_command};
pub use fake::{FakeConfig, FakeEngine};
pub use llama_cpp::{Draft, EmbeddedConfig, EmbeddedEngine, EmbeddedStage, Mode};
pub use openai_http::{
    ExternalConfig, ExternalEngine, ExternalError, Found, Kind, LOCAL_PORTS, Reference, Timeouts, find_local,
};
pub use sandbox::SandboxProbe;
pub use stage::{Cells, Input, Lap, Next, Stage, StageCapabilities, StageEvent, StageSession, StageSlice, TableFile};
pub use vocabulary::{TEXT_BYTES_MAX, Vocabulary, VocabularyError, VocabularyInfo};

/// Something that turns tokens into tokens: a whole model now, a stage of one later.
///
/// Implementations are shared by many tasks; every method returns promptly, work happens behind [`Generation`].
#[async_trait]
pub trait Engine: Send + Sync {
    /// What this engine can do. Its speeds follow what it really did; the rest is constant while the engine lives.
    fn capabilities(&self) -> Capabilities;

    /// The load at this moment.
    fn load(&self) -> Load;

    /// Queues a generation. Dropping the returned [`Generation`] cancels it within one step.
    ///
    /// # Errors
    /// [`EngineError`] says whether another worker may do better.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError>;

    /// A vector of length 1 for each text, in their order. Dropping the future cancels it within one step.
    ///
    /// # Errors
    /// [`EngineError`] says whether another worker may do better.
    async fn embed(&self, _request: EmbedRequest) -> Result<Vec<Vec<f32>>, EngineError> {
        Err(EngineError::Invalid("this model makes no embeddings".to_owned()))
    }

    /// Stops taking work, ends what runs and returns when all memory and processes are gone.
    async fn shutdown(&self);
}

pub type SharedEngine = Arc<dyn Engine>;

/// What an engine serves and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// Proven by a self-test at start, see `SLICES.md`, "Batch invariance".
    pub class: Class,
    pub features: Features,
    /// Tokens that one sequence can hold.
    pub context_tokens: u32,
    /// Sequences that run at once.
    pub slots: u16,
    /// Sessions that may wait for a slot before [`EngineError::Busy`].
    pub queue_max: u16,
    /// Tokens per second of one stream, and of prefill, of late.
    pub decode_tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    /// Resident memory that weights and KV cache take, in bytes.
    pub memory_bytes: u64,
    /// e.g. `llama.cpp 0.1.161 (cpu, exact)`, for people.
    pub description: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub slots_busy: u16,
    pub queued: u16,
    /// False while the child process is being restarted.
    pub healthy: bool,
}

/// One answer to generate. Limits are checked by `opengrid_protocol::session::Open::check` before it comes here.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Whose cache may be reused: KV cells are shared only between requests of the same client.
    pub client: [u8; 32],
    /// Prompt and, after a failover, the answer so far.
    pub tokens: Vec<Token>,
    /// Length of the original prompt; `tokens[prompt_tokens..]` is answer already.
    pub prompt_tokens: u32,
    /// Most tokens of the whole answer.
    pub completion_tokens_max: u32,
    pub stop_tokens: Vec<Token>,
    pub sampling: Sampling,
    pub top_logprobs: Option<u8>,
    /// See [`Open::grammar`](opengrid_protocol::session::Open::grammar).
    pub grammar: Option<String>,
    pub tier: Tier,
}

/// Texts to embed. Limits are checked by `opengrid_protocol::session::Embed::check` before it comes here.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Whole, with the special tokens that the model wants around them.
    pub texts: Vec<Vec<Token>>,
}

/// A running (or waiting) generation. Drop it to cancel.
pub struct Generation {
    /// Ends after [`Event::Finished`] or [`Event::Failed`].
    pub events: mpsc::Receiver<Event>,
    /// Cancels on drop.
    pub guard: CancelGuard,
}

/// Runs a closure when dropped.
pub struct CancelGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl CancelGuard {
    pub fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(cancel)))
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel();
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The place in the queue: 1 is next; 0, only after a wait, has begun. It only falls.
    Queued(u32),
    /// Consecutive tokens of the answer; the first one ever has answer index `tokens.len() - prompt_tokens`.
    Tokens(Vec<TokenOut>),
    Finished(Finish, Usage),
    Failed(EngineError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error("the queue is full")]
    Busy,
    #[error("the request needs {needed} tokens of context, this engine has {context_tokens}")]
    ContextTooSmall { needed: u32, context_tokens: u32 },
    #[error("invalid request: {0}")]
    Invalid(String),
    #[error("the engine process died")]
    Died,
    #[error("the engine is shutting down")]
    ShuttingDown,
    #[error("the model cannot be loaded: {0}")]
    Load(String),
}
