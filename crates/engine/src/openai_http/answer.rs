//! One generation, over as many requests to the engine as it takes.

use std::{sync::Arc, time::Duration};

use opengrid_protocol::session::{Finish, Usage};
use tokio::{sync::mpsc, time::Instant};

use super::{
    assembly::{Assembly, Step, Then},
    http::{Events, HttpError, ask_text},
    monitor::Shared,
    places::{Running, Waiting},
    profile::{Chunk, Segment},
};
use crate::{EngineError, Event, GenerateRequest};

/// How long the engine's last word is waited for after its last token, and after a stop token: it has the usage.
const LAST_WORD: Duration = Duration::from_secs(1);
const LAST_WORD_STOP: Duration = Duration::from_millis(100);

pub struct Answer {
    shared: Arc<Shared>,
    request: GenerateRequest,
    events: mpsc::Sender<Event>,
}

/// Why an answer ends early.
enum Halt {
    /// Nobody listens.
    Abandoned,
    Failed(EngineError),
}

impl From<EngineError> for Halt {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

impl Answer {
    pub fn new(shared: Arc<Shared>, request: GenerateRequest, events: mpsc::Sender<Event>) -> Self {
        Self { shared, request, events }
    }

    pub async fn run(self, waiting: Waiting) {
        let Some(running) = self.slot(waiting).await else { return };
        let last = match self.stream(&running).await {
            Ok((finish, usage)) => Event::Finished(finish, usage),
            Err(Halt::Failed(error)) => Event::Failed(error),
            Err(Halt::Abandoned) => return,
        };
        let _ = self.events.send(last).await;
    }

    async fn slot(&self, waiting: Waiting) -> Option<Running> {
        match waiting.try_run(self.request.client) {
            Ok(running) => Some(running),
            Err((waiting, place)) => {
                self.events.send(Event::Queued(place)).await.ok()?;
                let running = waiting.run(self.request.client).await?;
                self.events.send(Event::Queued(0)).await.ok()?;
                Some(running)
            }
        }
    }

    async fn stream(&self, running: &Running) -> Result<(Finish, Usage), Halt> {
        let mut assembly = Assembly::new(&self.shared.config.reference, &self.shared.gaps, &self.request);
        let mut cached_tokens = None;
        let mut own_cache = running.own_cache;
        let finish = loop {
            if assembly.left() == 0 {
                break Finish::Length;
            }
            let (tokens_max, stream) = assembly.begin_segment();
            let tokens = assembly.tokens.clone();
            let model = self.shared.model();
            let segment = Segment {
                request: &self.request,
                model: &model,
                tokens: &tokens,
                tokens_max,
                stream,
                slot: running.slot,
                own_cache,
            };
            let body = self.shared.kind.body(&segment);
            let post = self.shared.client.post(self.url()).json(&body);
            let then = if stream {
                self.read_stream(post, &mut assembly, &mut cached_tokens).await?
            } else {
                self.read_whole(post, &mut assembly).await?
            };
            if let Then::Finished(finish) = then {
                break finish;
            }
            own_cache = true;
        };
        let prompt = self.request.tokens.len() as u32;
        let cached_tokens = cached_tokens.unwrap_or(0).min(prompt);
        let generated_tokens = (assembly.tokens.len() - self.request.tokens.len()) as u32;
        Ok((finish, Usage { cached_tokens, prefilled_tokens: prompt - cached_tokens, generated_tokens }))
    }

    fn url(&self) -> String {
        format!("{}{}", self.shared.config.url, self.shared.kind.path())
    }

    async fn read_stream(
        &self,
        post: reqwest::RequestBuilder,
        assembly: &mut Assembly<'_>,
        cached_tokens: &mut Option<u32>,
    ) -> Result<Then, Halt> {
        let timeouts = self.shared.config.timeouts;
        let mut deadline = Instant::now() + timeouts.first_token;
        let mut events = Events::open(post, deadline).await.map_err(|error| self.failed(&error))?;
        let mut last: Option<Instant> = None;
        loop {
            let data = match events.next(deadline).await {
                Ok(Some(data)) => data,
                _ if assembly.left() == 0 => return Ok(Then::Finished(Finish::Length)),
                Ok(None) => return Err(self.failed(&HttpError::Broken).into()),
                Err(error) => return Err(self.failed(&error).into()),
            };
            let chunk = self.read(&data)?;
            note_usage(&chunk, cached_tokens);
            self.record(&chunk, &mut last);
            let step = assembly.take(chunk).map_err(|why| self.broken(why))?;
            if !step.tokens.is_empty() {
                deadline = Instant::now() + if assembly.left() == 0 { LAST_WORD } else { timeouts.next_token };
            }
            match self.send(step).await? {
                Then::More => {}
                then => {
                    self.last_word(&mut events, cached_tokens).await;
                    return Ok(then);
                }
            }
        }
    }

    async fn read_whole(&self, post: reqwest::RequestBuilder, assembly: &mut Assembly<'_>) -> Result<Then, Halt> {
        let body = ask_text(post, self.shared.config.timeouts.first_token).await;
        let chunk = self.read(&body.map_err(|error| self.failed(&error))?)?;
        let step = assembly.take(chunk).map_err(|why| self.broken(why))?;
        match self.send(step).await? {
            // It has said all.
            Then::More => Err(self.broken("an answer without an end").into()),
            then => Ok(then),
        }
    }

    fn read(&self, data: &[u8]) -> Result<Chunk, EngineError> {
        self.shared.kind.read(data).map_err(|why| self.broken(why))
    }

    async fn send(&self, step: Step) -> Result<Then, Halt> {
        if !step.tokens.is_empty() {
            self.events.send(Event::Tokens(step.tokens)).await.map_err(|_| Halt::Abandoned)?;
        }
        Ok(step.then)
    }

    /// The usage, if it comes at once; read to its end, the connection serves again.
    async fn last_word(&self, events: &mut Events, cached_tokens: &mut Option<u32>) {
        let deadline = Instant::now() + LAST_WORD_STOP;
        while let Ok(Some(data)) = events.next(deadline).await {
            if let Ok(chunk) = self.shared.kind.read(&data) {
                note_usage(&chunk, cached_tokens);
                if !chunk.tokens.is_empty() {
                    return;
                }
            }
        }
    }

    /// Speeds of a lone stream.
    fn record(&self, chunk: &Chunk, last: &mut Option<Instant>) {
        if let Some((tokens, ms)) = chunk.prefill.filter(|(_, ms)| ms.is_finite() && *ms > 0.0 && *ms < 1e9) {
            self.shared.record(tokens as usize, Duration::from_secs_f64(ms / 1e3));
        }
        if chunk.tokens.is_empty() {
            return;
        }
        let before = last.replace(Instant::now());
        let alone = self.shared.places.running() == 1 && chunk.tokens.len() == 1;
        if let Some(before) = before.filter(|_| alone) {
            self.shared.record(1, before.elapsed());
        }
    }

    fn failed(&self, error: &HttpError) -> EngineError {
        match error {
            HttpError::Status { status: 429 | 503, .. } => EngineError::Busy,
            HttpError::Status { status: 400 | 413 | 422, message } => {
                EngineError::Invalid(format!("{} refuses it: {message}", self.shared.kind.name()))
            }
            _ => {
                self.shared.suspect();
                // An engine's message may repeat what it was asked: the kind of the failure is enough.
                let status = if let HttpError::Status { status, .. } = error { *status } else { 0 };
                tracing::warn!(status, late = (*error == HttpError::Late), "the external engine failed an answer");
                EngineError::Died
            }
        }
    }

    fn broken(&self, why: &str) -> EngineError {
        self.shared.suspect();
        tracing::warn!(why, "the external engine breaks its own rules");
        EngineError::Died
    }
}

/// The first segment's: later ones find what the first computed.
fn note_usage(chunk: &Chunk, cached_tokens: &mut Option<u32>) {
    if cached_tokens.is_none() {
        *cached_tokens = chunk.cached_tokens;
    }
}
