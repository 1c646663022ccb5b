//! The embedded engine: llama.cpp in a supervised, sandboxed child process of the same binary.
//!
//! On the node's side: [`EmbeddedEngine`] (the [`Engine`] trait), `supervisor` (the child's life), `jobs` (what runs),
//! `measured` (the cache of self-test results). In the child: `child` (the step loop), `encoder` (the same for
//! embedding models), `draft_model` (beside the last stage), `pace` (how many threads), `grammars`,
//! `self_test`, `budget`, `ffi`. `speeds` is known to both.

mod answer;
mod budget;
mod child;
mod config;
mod draft_model;
mod encoder;
pub(crate) mod ffi;
mod grammars;
mod jobs;
mod measured;
mod messages;
mod pace;
#[cfg(test)]
mod parity_tests;
mod self_test;
pub(crate) mod speeds;
mod stage;
mod stage_cells;
mod stage_child;
mod stage_head;
mod supervisor;

use std::sync::Arc;

use async_trait::async_trait;
use opengrid_protocol::{
    beacon::{Class, Features},
    limits::{COMPLETION_TOKENS_MAX, GRAMMAR_BYTES_MAX, PROMPT_TOKENS_MAX, STOP_TOKENS_MAX, TOP_LOGPROBS_MAX},
    session::{Token, check_texts as check_embed},
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use child::run as run_child;
pub use config::{Draft, EmbeddedConfig, Mode};
pub use stage::EmbeddedStage;

use self::{
    jobs::{Bounds, Jobs},
    messages::{DraftState, Embed, Generate, Ready},
    supervisor::Supervisor,
};
use crate::{
    Capabilities, EmbedRequest, Engine, EngineError, GenerateRequest, Generation, Load, sandbox::SandboxProbe,
};

/// Version of the llama-cpp-sys-2 crate, which vendors llama.cpp.
const LLAMA_CPP: &str = "0.1.161";

/// llama.cpp in a child process. Restarted when it dies; what ran then ends with [`EngineError::Died`].
pub struct EmbeddedEngine {
    capabilities: Capabilities,
    vocabulary_size: u32,
    embedding_width: Option<u32>,
    jobs: Arc<Jobs>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    stop: DropGuard,
}

impl EmbeddedEngine {
    /// Starts the child, loads the model, tests and measures it (or takes both from the cache).
    ///
    /// # Errors
    /// [`EngineError::Load`] in words for people: a file that is no model, memory that is missing.
    pub async fn start(config: EmbeddedConfig) -> Result<Arc<Self>, EngineError> {
        let stop = CancellationToken::new();
        let (supervisor, process, ready) = Supervisor::launch(config).await.map_err(EngineError::Load)?;
        if let Some(why) = &ready.inexact {
            tracing::warn!(%why, "the engine is not batch-invariant on this machine: its class is approximate");
        }
        let capabilities = capabilities(supervisor.config(), &ready);
        tracing::info!(engine = %capabilities.description, class = ?capabilities.class, "engine ready");
        let bounds = Bounds {
            slots: ready.slots,
            queue_max: supervisor.config().queue_max,
            context_tokens: ready.context_tokens,
        };
        let jobs = Arc::new(Jobs::new(bounds, ready.measured.speeds()));
        jobs.start(process.id());
        let task = tokio::spawn(supervisor.run(process, jobs.clone(), stop.clone()));
        Ok(Arc::new(Self {
            capabilities,
            vocabulary_size: ready.vocabulary_size,
            embedding_width: ready.embedding_width,
            jobs,
            supervisor: Mutex::new(Some(task)),
            stop: stop.drop_guard(),
        }))
    }

    /// The child's process id; `None` while it is being restarted.
    pub fn child_pid(&self) -> Option<u32> {
        self.jobs.pid()
    }

    pub fn vocabulary_size(&self) -> u32 {
        self.vocabulary_size
    }

    /// Lets the child try what its sandbox must refuse.
    ///
    /// # Errors
    /// [`EngineError::Died`] when there is no child to ask.
    pub async fn probe_sandbox(&self) -> Result<SandboxProbe, EngineError> {
        self.jobs.probe_sandbox().ok_or(EngineError::Died)?.await.map_err(|_| EngineError::Died)
    }

    /// The width of the vectors of texts that can be embedded.
    fn check_texts(&self, texts: &[Vec<Token>]) -> Result<usize, EngineError> {
        let invalid = |why: &str| EngineError::Invalid(why.to_owned());
        let width = self.embedding_width.ok_or_else(|| invalid("this model makes no embeddings"))?;
        check_embed(texts).map_err(|error| EngineError::Invalid(error.to_string()))?;
        if texts.iter().flatten().any(|token| *token >= self.vocabulary_size) {
            return Err(invalid("a token lies outside the vocabulary"));
        }
        let (needed, context_tokens) =
            (texts.iter().map(Vec::len).max().unwrap_or(0), self.capabilities.context_tokens);
        match u32::try_from(needed) {
            Ok(needed) if needed <= context_tokens => Ok(width as usize),
            needed => Err(EngineError::ContextTooSmall { needed: needed.unwrap_or(u32::MAX), context_tokens }),
        }
    }
}

#[async_trait]
impl Engine for EmbeddedEngine {
    fn capabilities(&self) -> Capabilities {
        let speeds = self.jobs.speeds();
        Capabilities {
            decode_tokens_per_s: speeds.decode,
            prefill_tokens_per_s: speeds.prefill,
            ..self.capabilities.clone()
        }
    }

    fn load(&self) -> Load {
        self.jobs.load()
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        if self.embedding_width.is_some() {
            return Err(EngineError::Invalid("this model makes embeddings, no text".to_owned()));
        }
        check(&request, self.vocabulary_size, self.capabilities.context_tokens)?;
        self.jobs.submit(|id| generate(request, id))
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Vec<Vec<f32>>, EngineError> {
        let width = self.check_texts(&request.texts)?;
        let count = request.texts.len();
        let (vectors, _guard) = self.jobs.submit_embed(|id| Embed { id, texts: request.texts })?;
        let vectors = vectors.await.map_err(|_| EngineError::Died)??;
        // The child parsed a stranger's file: it is believed no more than a peer.
        let sound = |vector: &Vec<f32>| vector.len() == width && vector.iter().all(|value| value.is_finite());
        if vectors.len() == count && vectors.iter().all(sound) { Ok(vectors) } else { Err(EngineError::Died) }
    }

    async fn shutdown(&self) {
        self.jobs.close();
        self.stop.token().cancel();
        let task = self.supervisor.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// What an honest node would not ask of a model with this vocabulary and context.
fn check(request: &GenerateRequest, vocabulary_size: u32, context_tokens: u32) -> Result<(), EngineError> {
    let known = |tokens: &[u32]| tokens.iter().all(|token| *token < vocabulary_size);
    let rules = [
        (!request.tokens.is_empty(), "at least one token is needed"),
        (request.tokens.len() <= PROMPT_TOKENS_MAX, "too many tokens"),
        (known(&request.tokens), "a token lies outside the vocabulary"),
        (request.stop_tokens.len() <= STOP_TOKENS_MAX, "too many stop tokens"),
        (request.completion_tokens_max <= COMPLETION_TOKENS_MAX, "completion_tokens_max is too large"),
        (request.top_logprobs.is_none_or(|n| n <= TOP_LOGPROBS_MAX), "too many top_logprobs"),
        (request.grammar.as_ref().is_none_or(|text| text.len() <= GRAMMAR_BYTES_MAX), "the grammar is too large"),
        (request.grammar.is_none() || !request.stop_tokens.is_empty(), "a grammar needs a stop token"),
        (
            request.prompt_tokens >= 1 && request.prompt_tokens as usize <= request.tokens.len(),
            "prompt_tokens must lie in 1..=tokens",
        ),
    ];
    if let Some((_, why)) = rules.iter().find(|(holds, _)| !holds) {
        return Err(EngineError::Invalid((*why).to_owned()));
    }
    request.sampling.check().map_err(|error| EngineError::Invalid(error.to_string()))?;
    let needed = request.tokens.len() as u32 + 1;
    if needed > context_tokens {
        return Err(EngineError::ContextTooSmall { needed, context_tokens });
    }
    Ok(())
}

fn generate(request: GenerateRequest, id: u64) -> Generate {
    let GenerateRequest {
        client,
        tokens,
        prompt_tokens,
        completion_tokens_max,
        stop_tokens,
        sampling,
        top_logprobs,
        grammar,
        tier,
    } = request;
    Generate {
        id,
        client,
        tokens,
        prompt_tokens,
        completion_tokens_max,
        stop_tokens,
        sampling,
        top_logprobs,
        grammar,
        tier,
    }
}

fn capabilities(config: &EmbeddedConfig, ready: &Ready) -> Capabilities {
    Capabilities {
        class: ready.measured.class,
        features: if ready.embedding_width.is_some() { Features::EMBED } else { Features::EMBEDDED },
        context_tokens: ready.context_tokens,
        slots: ready.slots,
        queue_max: config.queue_max,
        decode_tokens_per_s: ready.measured.decode_tokens_per_s,
        prefill_tokens_per_s: ready.measured.prefill_tokens_per_s,
        memory_bytes: ready.weight_bytes.saturating_add(ready.kv_bytes),
        description: description(config, ready) + &draft_words(config.draft.as_ref(), ready.draft.as_ref()),
    }
}

fn description(config: &EmbeddedConfig, ready: &Ready) -> String {
    let device = if config.gpu_layers > 0 { "gpu" } else { "cpu" };
    let kind = if matches!(ready.measured.class, Class::Exact(_)) { "exact" } else { "approximate" };
    format!("llama.cpp {LLAMA_CPP} ({device}, {kind}, {} threads; sandbox: {})", config.threads, ready.sandbox)
}

/// What became of the draft model that was asked for, behind a description.
fn draft_words(draft: Option<&Draft>, state: Option<&DraftState>) -> String {
    let Some(Draft { name, file }) = draft else { return String::new() };
    match (file, state) {
        (Ok(_), Some(DraftState::Beside { .. })) => format!(", draft model {name}"),
        (Err(why), _) | (Ok(_), Some(DraftState::LeftOut(why))) => format!(", no draft model {name}: {why}"),
        (Ok(_), None) => format!(", no draft model {name}: only the last stage has a use for it"),
    }
}
