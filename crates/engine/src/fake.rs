//! An engine without a model, for load tests: paced, deterministic, and of an exact class, so that failover between
//! two of them continues an answer to the token.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use opengrid_protocol::{
    Sampling,
    beacon::{Class, Features},
    session::{Finish, Token, TokenOut, Usage},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{CancelGuard, Capabilities, EmbedRequest, Engine, EngineError, Event, GenerateRequest, Generation, Load};

/// All fake engines continue each other's answers.
const CLASS: Class = Class::Exact(*b"opengrid fake 01");

/// All but grammars: what it cannot heed does no harm to nonsense.
const FEATURES: Features = Features::GENERATE
    .with(Features::SEEDED)
    .with(Features::LOGPROBS)
    .with(Features::LOGIT_BIAS)
    .with(Features::PENALTIES)
    .with(Features::REPEAT_PENALTY);

#[derive(Clone, Debug)]
pub struct FakeConfig {
    /// Of each stream; also how fast a prompt of `prefill_tokens_per_s` passes.
    pub tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    pub slots: u16,
    pub queue_max: u16,
    pub context_tokens: u32,
    /// Tokens are drawn from `0..vocabulary_size`.
    pub vocabulary_size: u32,
    /// Stands for an embedding model with vectors of so many numbers, instead of one that generates.
    pub embedding_width: Option<u32>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            tokens_per_s: 50.0,
            prefill_tokens_per_s: 5_000.0,
            slots: 16,
            queue_max: 256,
            context_tokens: 8_192,
            vocabulary_size: 32_000,
            embedding_width: None,
        }
    }
}

pub struct FakeEngine {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    config: FakeConfig,
    slots: Semaphore,
    running: AtomicU16,
    waiting: AtomicU16,
}

impl FakeEngine {
    pub fn new(config: FakeConfig) -> Arc<Self> {
        let slots = Semaphore::new(usize::from(config.slots.max(1)));
        let shared = Shared { config, slots, running: AtomicU16::new(0), waiting: AtomicU16::new(0) };
        Arc::new(Self { shared: Arc::new(shared), tasks: TaskTracker::new(), stop: CancellationToken::new() })
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn capabilities(&self) -> Capabilities {
        let config = &self.shared.config;
        Capabilities {
            class: CLASS,
            features: if config.embedding_width.is_some() { Features::EMBED } else { FEATURES },
            context_tokens: config.context_tokens,
            slots: config.slots,
            queue_max: config.queue_max,
            decode_tokens_per_s: config.tokens_per_s,
            prefill_tokens_per_s: config.prefill_tokens_per_s,
            memory_bytes: 0,
            description: "fake (no model)".to_owned(),
        }
    }

    fn load(&self) -> Load {
        Load {
            slots_busy: self.shared.running.load(Ordering::Relaxed),
            queued: self.shared.waiting.load(Ordering::Relaxed),
            healthy: !self.stop.is_cancelled(),
        }
    }

    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError> {
        let config = &self.shared.config;
        if self.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        if config.embedding_width.is_some() {
            return Err(EngineError::Invalid("this model makes embeddings, no text".to_owned()));
        }
        if request.tokens.is_empty() || request.prompt_tokens as usize > request.tokens.len() {
            return Err(EngineError::Invalid("prompt_tokens must lie in 1..=tokens".to_owned()));
        }
        let (needed, context_tokens) = (request.tokens.len() as u32 + 1, config.context_tokens);
        if needed > context_tokens {
            return Err(EngineError::ContextTooSmall { needed, context_tokens });
        }
        let waiting = Counted::within(&self.shared, |shared| &shared.waiting, self.room()).ok_or(EngineError::Busy)?;
        let (sender, events) = mpsc::channel(32);
        let cancel = self.stop.child_token();
        let answer = Answer { shared: self.shared.clone(), request, events: sender };
        let cancelled = cancel.clone();
        self.tasks.spawn(async move {
            let _ = cancelled.run_until_cancelled_owned(answer.run(waiting)).await;
        });
        Ok(Generation { events, guard: CancelGuard::new(move || cancel.cancel()) })
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Vec<Vec<f32>>, EngineError> {
        let config = &self.shared.config;
        let none = || EngineError::Invalid("this model makes no embeddings".to_owned());
        let width = config.embedding_width.ok_or_else(none)?;
        let waiting = Counted::within(&self.shared, |shared| &shared.waiting, self.room()).ok_or(EngineError::Busy)?;
        let work = async {
            let _permit = self.shared.slots.acquire().await;
            drop(waiting);
            let _running = Counted::within(&self.shared, |shared| &shared.running, u16::MAX);
            let tokens: usize = request.texts.iter().map(Vec::len).sum();
            tokio::time::sleep(Duration::from_secs_f32(tokens as f32 / config.prefill_tokens_per_s.max(1e-3))).await;
            request.texts.iter().map(|text| vector_of(text, width)).collect()
        };
        self.stop.run_until_cancelled(work).await.ok_or(EngineError::ShuttingDown)
    }

    async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl FakeEngine {
    /// Jobs that may be on their way to a slot: the queue, and one for each free slot.
    fn room(&self) -> u16 {
        let free = u16::try_from(self.shared.slots.available_permits()).unwrap_or(u16::MAX);
        self.shared.config.queue_max.saturating_add(free)
    }
}

/// One more in a counter while it lives.
struct Counted {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicU16,
}

impl Counted {
    fn within(shared: &Arc<Shared>, counter: fn(&Shared) -> &AtomicU16, most: u16) -> Option<Self> {
        let less = |count: u16| (count < most).then(|| count + 1);
        counter(shared).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        Some(Self { shared: shared.clone(), counter })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}

struct Answer {
    shared: Arc<Shared>,
    request: GenerateRequest,
    events: mpsc::Sender<Event>,
}

impl Answer {
    async fn run(self, waiting: Counted) {
        let permit = match self.shared.slots.try_acquire() {
            Ok(permit) => Ok(permit),
            Err(_) => {
                let place = self.shared.waiting.load(Ordering::Relaxed).max(1);
                let _ = self.events.send(Event::Queued(u32::from(place))).await;
                let permit = self.shared.slots.acquire().await;
                let _ = self.events.send(Event::Queued(0)).await;
                permit
            }
        };
        drop(waiting);
        let running = Counted::within(&self.shared, |shared| &shared.running, u16::MAX);
        if permit.is_ok() {
            let (finish, usage) = self.stream().await;
            let _ = self.events.send(Event::Finished(finish, usage)).await;
        }
        drop((running, permit));
    }

    /// Sends the answer token by token; an event that nobody takes ends it.
    async fn stream(&self) -> (Finish, Usage) {
        let GenerateRequest { tokens, prompt_tokens, completion_tokens_max, .. } = &self.request;
        let config = &self.shared.config;
        let mut usage = Usage { prefilled_tokens: tokens.len() as u32, ..Usage::default() };
        let answered = tokens.len() as u32 - prompt_tokens;
        let room = config.context_tokens - prompt_tokens;
        let prompt = hash_prompt(&tokens[..*prompt_tokens as usize], &self.request.sampling);
        let prefill = Duration::from_secs_f32(tokens.len() as f32 / config.prefill_tokens_per_s.max(1e-3));
        let pace = Duration::from_secs_f32(1.0 / config.tokens_per_s.max(1e-3));
        let start = Instant::now() + prefill;
        for index in answered..(*completion_tokens_max).min(room) {
            wait_until(start + pace * usage.generated_tokens).await;
            let token = draw(&prompt, index, config.vocabulary_size);
            if self.request.stop_tokens.contains(&token) {
                return (Finish::Stop(token), usage);
            }
            usage.generated_tokens += 1;
            if self.events.send(Event::Tokens(vec![self.token_out(token)])).await.is_err() {
                break;
            }
        }
        (Finish::Length, usage)
    }

    fn token_out(&self, token: Token) -> TokenOut {
        let wanted = self.request.top_logprobs;
        let top = if wanted.is_some_and(|n| n > 0) { vec![(token, -0.5)] } else { Vec::new() };
        TokenOut { token, logprob: wanted.map(|_| -0.5), top }
    }
}

/// The runtime's timers tick in milliseconds: what is due within one is due now, or fast engines would be slowed to them.
async fn wait_until(due: Instant) {
    if due > Instant::now() + Duration::from_millis(1) {
        sleep_until(due).await;
    }
}

fn hash_prompt(prompt: &[Token], sampling: &Sampling) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("opengrid 2026 fake engine");
    hasher.update(&sampling.seed.to_le_bytes()).update(&sampling.choice.to_le_bytes());
    for token in prompt {
        hasher.update(&token.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The answer's token `index`: a pseudo-random function of seed, prompt and position.
fn draw(prompt: &[u8; 32], index: u32, vocabulary_size: u32) -> Token {
    let hash = blake3::keyed_hash(prompt, &index.to_le_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(word) % u64::from(vocabulary_size.max(1))) as Token
}

/// A vector of length 1 that depends on every token of the text.
fn vector_of(text: &[Token], width: u32) -> Vec<f32> {
    let key = hash_prompt(text, &Sampling::greedy());
    let value = |index| draw(&key, index, 2_001) as f32 - 1_000.5;
    let mut vector: Vec<f32> = (0..width).map(value).collect();
    crate::encoding::normalise(&mut vector);
    vector
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "fake_tests.rs"]
mod tests;
