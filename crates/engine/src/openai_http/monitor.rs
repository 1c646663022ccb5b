//! The engine as all its answers share it: health, load, speed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::Client;
use serde::Deserialize;
use tokio::{sync::Notify, time::timeout};

use super::{
    ExternalConfig, ExternalError,
    accept::{self, Accepted},
    gaps::Gaps,
    http::{HttpError, ask_text},
    places::Places,
    probe::{Found, identify},
    profile::Kind,
};
use crate::{Load, llama_cpp::speeds::Speeds};

/// Looks in a row that may be late before the engine counts as gone: a busy one answers slowly.
const LATE_MAX: u32 = 3;

/// Tokens of the answer by which an engine shows that it computes again.
const PROVING_TOKENS: u32 = 4;

pub struct Shared {
    pub config: ExternalConfig,
    pub client: Client,
    pub kind: Kind,
    pub gaps: Gaps,
    pub places: Arc<Places>,
    slots: u16,
    context_tokens: u32,
    found: Mutex<Found>,
    speeds: Mutex<Speeds>,
    healthy: AtomicBool,
    /// What the engine runs and keeps waiting, for others as well.
    running: AtomicU16,
    waiting: AtomicU16,
    poke: Notify,
}

impl Shared {
    pub fn new(config: ExternalConfig, accepted: Accepted) -> Self {
        let Accepted { client, found, context_tokens, slots, speeds, gaps } = accepted;
        let config = ExternalConfig { url: found.url.clone(), ..config };
        Self {
            places: Places::new(slots, config.queue_max),
            config,
            client,
            kind: found.kind,
            gaps,
            slots,
            context_tokens,
            found: Mutex::new(found),
            speeds: Mutex::new(speeds),
            healthy: true.into(),
            running: 0.into(),
            waiting: 0.into(),
            poke: Notify::new(),
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Something went wrong with an answer: no new ones until the engine has proven that it is there.
    pub fn suspect(&self) {
        self.healthy.store(false, Ordering::Relaxed);
        self.poke.notify_one();
    }

    pub fn name(&self) -> String {
        self.found.lock().name()
    }

    /// The engine's name of the model.
    pub fn model(&self) -> String {
        self.found.lock().model.clone()
    }

    pub fn speeds(&self) -> Speeds {
        *self.speeds.lock()
    }

    /// After a step of `tokens`, see [`Speeds::record`].
    pub fn record(&self, tokens: usize, took: Duration) {
        self.speeds.lock().record(tokens, took);
    }

    /// Others may use the engine, too: whatever is more, our count or its own.
    pub fn load(&self) -> Load {
        let (running, waiting) = (self.running.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed));
        Load {
            slots_busy: self.places.running().max(running).min(self.slots),
            queued: self.places.waiting().max(waiting),
            healthy: self.is_healthy(),
        }
    }

    fn set_load(&self, running: u64, waiting: u64) {
        let short = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        self.running.store(short(running), Ordering::Relaxed);
        self.waiting.store(short(waiting), Ordering::Relaxed);
    }
}

/// Looks after the engine until cancelled.
pub async fn watch(shared: Arc<Shared>) {
    let mut late = 0;
    let mut said = String::new();
    loop {
        let _ = timeout(shared.config.timeouts.watch, shared.poke.notified()).await;
        if shared.is_healthy() {
            late = look(&shared, late).await;
            continue;
        }
        match back(&shared).await {
            Ok(()) => {
                tracing::info!(engine = %shared.name(), "the external engine is back");
                (late, said) = (0, String::new());
            }
            Err(error) => {
                let why = error.to_string();
                if why != said {
                    tracing::warn!(why, "the external engine is not used");
                    said = why;
                }
            }
        }
    }
}

/// One look at a healthy engine; returns how many in a row were late.
async fn look(shared: &Shared, late: u32) -> u32 {
    match get(shared, "/health").await {
        Ok(_) => {
            if let Some((running, waiting)) = load(shared).await {
                shared.set_load(running, waiting);
            }
            0
        }
        Err(HttpError::Late) if late + 1 < LATE_MAX => late + 1,
        Err(error) => {
            tracing::warn!(%error, "the external engine is gone");
            shared.suspect();
            0
        }
    }
}

async fn get(shared: &Shared, path: &str) -> Result<bytes::Bytes, HttpError> {
    ask_text(shared.client.get(format!("{}{path}", shared.config.url)), shared.config.timeouts.question).await
}

/// Lets the engine prove that it still computes the same model, and that it computes at all.
async fn back(shared: &Shared) -> Result<(), ExternalError> {
    let config = &shared.config;
    let found = identify(&shared.client, &config.url, config.timeouts.question).await?;
    let shorter = found.context_tokens.is_some_and(|tokens| tokens < shared.context_tokens);
    let fewer = found.slots.is_some_and(|slots| slots < shared.slots);
    if found.kind != shared.kind || shorter || fewer {
        let why = "another engine, or one with a shorter context or fewer slots, took its place: start this node again";
        return Err(ExternalError::Unfit(format!("at {}: {why}", config.url)));
    }
    accept::same_model(config, &shared.client, &found).await?;
    accept::measure(config, &shared.client, &found, &shared.gaps, PROVING_TOKENS).await?;
    *shared.found.lock() = found;
    shared.places.forget_caches();
    shared.set_load(0, 0);
    shared.healthy.store(true, Ordering::Relaxed);
    Ok(())
}

/// Requests that the engine runs and that wait in it. `None` where it does not say.
async fn load(shared: &Shared) -> Option<(u64, u64)> {
    let metrics = get(shared, "/metrics").await;
    match shared.kind {
        Kind::LlamaServer => match metrics {
            Ok(text) => prometheus_load(&text, "llamacpp:requests_processing", "llamacpp:requests_deferred"),
            // It was started without --metrics.
            Err(_) => slots_load(&get(shared, "/slots").await.ok()?),
        },
        Kind::Vllm => prometheus_load(&metrics.ok()?, "vllm:num_requests_running", "vllm:num_requests_waiting"),
        Kind::TensorRtLlm => iteration_load(&metrics.ok()?),
    }
}

fn prometheus_load(text: &[u8], running: &str, waiting: &str) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    Some((prometheus_sum(text, running)?, prometheus_sum(text, waiting)?))
}

/// The sum of a metric over its labels, in Prometheus' text format.
fn prometheus_sum(text: &str, name: &str) -> Option<u64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite())
    });
    samples.map(|value| value as u64).reduce(u64::saturating_add)
}

#[derive(Deserialize)]
struct Slot {
    is_processing: bool,
}

fn slots_load(body: &[u8]) -> Option<(u64, u64)> {
    let slots: Vec<Slot> = serde_json::from_slice(body).ok()?;
    Some((slots.iter().filter(|slot| slot.is_processing).count() as u64, 0))
}

/// trtllm-serve's iteration statistics: a list since the last look, the newest last; empty while it idles.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Iteration {
    #[serde(default)]
    num_active_requests: u64,
    #[serde(default)]
    num_queued_requests: u64,
}

fn iteration_load(body: &[u8]) -> Option<(u64, u64)> {
    let iterations: Vec<Iteration> = serde_json::from_slice(body).ok()?;
    Some(iterations.last().map_or((0, 0), |last| (last.num_active_requests, last.num_queued_requests)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels() {
        let text = "# HELP vllm:num_requests_running n\nvllm:num_requests_running{engine=\"0\",model_name=\"a}b\"} 2.0\n\
                    vllm:num_requests_running{engine=\"1\"} 3\nvllm:num_requests_running_total 9\nother 1";
        assert_eq!(prometheus_sum(text, "vllm:num_requests_running"), Some(5));
        assert_eq!(prometheus_sum("llamacpp:requests_deferred 4\n", "llamacpp:requests_deferred"), Some(4));
        assert_eq!(prometheus_sum(text, "missing"), None);
        assert_eq!(prometheus_sum("x NaN", "x"), None);
        assert_eq!(prometheus_load(b"\xFF", "a", "b"), None);
    }

    #[test]
    fn lists_are_read() {
        let slots = br#"[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]"#;
        assert_eq!(slots_load(slots), Some((1, 0)));
        let stats = br#"[{"iter":1,"numActiveRequests":9},{"iter":2,"numActiveRequests":3,"numQueuedRequests":1}]"#;
        assert_eq!(iteration_load(stats), Some((3, 1)));
        assert_eq!(iteration_load(b"[]"), Some((0, 0)));
        assert_eq!(iteration_load(b"{}"), None);
    }
}
