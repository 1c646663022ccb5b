//! External engines: a server on the volunteer's machine that speaks HTTP, asked with token ids. Three profiles, found by
//! probing: llama-server, vLLM and TensorRT-LLM (`trtllm-serve`).
//!
//! `probe` finds out what answers at an address, `accept` whether it computes the wanted model, `profile` turns requests
//! and chunks into each engine's words, `answer` runs one generation (pure parts: `assembly`, `gaps`), `monitor` watches
//! health and load. What comes from the engine is bounded and checked like everything from outside: it may be broken.
//!
//! The class is always approximate: nobody here knows the engine's kernels, and its sampler is its own.

mod accept;
mod answer;
mod assembly;
mod config;
mod gaps;
mod http;
mod monitor;
mod places;
mod probe;
mod profile;
mod reference;

use std::sync::Arc;

use async_trait::async_trait;
use opengrid_protocol::{
    beacon::Class,
    limits::{COMPLETION_TOKENS_MAX, PROMPT_TOKENS_MAX, STOP_TOKENS_MAX, TOP_LOGPROBS_MAX},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use config::{ExternalConfig, Timeouts};
pub use probe::{Found, LOCAL_PORTS, find_local};
pub use profile::Kind;
pub use reference::Reference;

use self::{answer::Answer, monitor::Shared};
use crate::{CancelGuard, Capabilities, Engine, EngineError, GenerateRequest, Generation, Load};

/// Events of one answer that wait for a slow reader.
const EVENTS_MAX: usize = 64;

/// Why an engine at an address is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalError {
    /// It may come, or come back.
    #[error("{0}")]
    NotThere(String),
    /// It is there and will not do.
    #[error("{0}")]
    Unfit(String),
}

/// A server outside of this program. When it is gone, what ran ends with [`EngineError::Died`], and the engine is unhealthy
/// until the same model answers again.
pub struct ExternalEngine {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl ExternalEngine {
    /// Probes the address, checks that the engine computes the wanted model, and measures it with a short answer.
    ///
    /// # Errors
    /// [`ExternalError`] in words for people.
    pub async fn start(config: ExternalConfig) -> Result<Arc<Self>, ExternalError> {
        let accepted = accept::accept(&config).await?;
        let capabilities = Capabilities {
            class: Class::Approximate,
            features: accepted.found.kind.features(),
            context_tokens: accepted.context_tokens,
            slots: accepted.slots,
            queue_max: config.queue_max,
            decode_tokens_per_s: accepted.speeds.decode,
            prefill_tokens_per_s: accepted.speeds.prefill,
            // Another process', unknown here.
            memory_bytes: 0,
            description: format!("{} at {}", accepted.found.name(), accepted.found.url),
        };
        tracing::info!(engine = %capabilities.description, "external engine ready");
        let shared = Arc::new(Shared::new(config, accepted));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(stop.clone().run_until_cancelled_owned(monitor::watch(shared.clone())));
        Ok(Arc::new(Self { shared, capabilities, tasks, stop }))
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), EngineError> {
        let size = self.shared.config.reference.size;
        let known = |tokens: &[u32]| tokens.iter().all(|token| *token < size);
        let rules = [
            (!request.tokens.is_empty(), "at least one token is needed"),
            (request.tokens.len() <= PROMPT_TOKENS_MAX, "too many tokens"),
            (known(&request.tokens), "a token lies outside the vocabulary"),
            (request.stop_tokens.len() <= STOP_TOKENS_MAX, "too many stop tokens"),
            (known(&request.stop_tokens), "a stop token lies outside the vocabulary"),
            (request.completion_tokens_max <= COMPLETION_TOKENS_MAX, "completion_tokens_max is too large"),
            (request.top_logprobs.is_none_or(|n| n <= TOP_LOGPROBS_MAX), "too many top_logprobs"),
            (
                request.prompt_tokens >= 1 && request.prompt_tokens as usize <= request.tokens.len(),
                "prompt_tokens must lie in 1..=tokens",
            ),
            (request.sampling.logit_bias.iter().all(|(token, _)| *token < size), "logit_bias outside the vocabulary"),
        ];
        if let Some((_, why)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(EngineError::Invalid((*why).to_owned()));
        }
        request.sampling.check().map_err(|error| EngineError::Invalid(error.to_string()))?;
        let (needed, context_tokens) = (request.tokens.len() as u32 + 1, self.capabilities.context_tokens);
        if needed > context_tokens {
            return Err(EngineError::ContextTooSmall { needed, context_tokens });
        }
        self.shared.kind.check(request)
    }
}

#[async_trait]
impl Engine for ExternalEngine {
    fn capabilities(&self) -> Capabilities {
        let speeds = self.shared.speeds();
        Capabilities {
            decode_tokens_per_s: speeds.decode,
            prefill_tokens_per_s: speeds.prefill,
            description: format!("{} at {}", self.shared.name(), self.shared.config.url),
            ..self.capabilities.clone()
        }
    }

    fn load(&self) -> Load {
        Load { healthy: !self.stop.is_cancelled() && self.shared.is_healthy(), ..self.shared.load() }
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        self.check(&request)?;
        if !self.shared.is_healthy() {
            return Err(EngineError::Died);
        }
        let waiting = self.shared.places.queue().ok_or(EngineError::Busy)?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let cancel = self.stop.child_token();
        let answer = Answer::new(self.shared.clone(), request, sender);
        self.tasks.spawn(cancel.clone().run_until_cancelled_owned(answer.run(waiting)));
        Ok(Generation { events, guard: CancelGuard::new(move || cancel.cancel()) })
    }

    async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for ExternalEngine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
