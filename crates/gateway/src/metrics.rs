//! The gateway's own metrics: `opengrid_` and vLLM's names, base units, never a label by peer or by request.

use std::{
    sync::atomic::AtomicI64,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::limits::Charge;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct HttpLabels {
    /// The route's pattern, or `other`.
    pub route: String,
    pub status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabels {
    model_name: String,
    finished_reason: &'static str,
}

type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;

pub struct Metrics {
    registry: Registry,
    http_requests: Family<HttpLabels, Counter>,
    finished: Family<FinishLabels, Counter>,
    running: Gauge<i64, AtomicI64>,
    waiting: Gauge<i64, AtomicI64>,
    prompt_tokens: Family<ModelLabels, Counter>,
    generation_tokens: Family<ModelLabels, Counter>,
    first_token: Histograms,
    inter_token: Histograms,
    end_to_end: Histograms,
}

impl Default for Metrics {
    fn default() -> Self {
        let slow: fn() -> Histogram = || Histogram::new(SECONDS);
        let fast: fn() -> Histogram = || Histogram::new(TOKEN_SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("opengrid"),
            http_requests: Family::default(),
            finished: Family::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            first_token: Family::new_with_constructor(slow),
            inter_token: Family::new_with_constructor(fast),
            end_to_end: Family::new_with_constructor(slow),
        };
        metrics.register();
        metrics
    }
}

/// vLLM's buckets.
const SECONDS: [f64; 18] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 240.0];
const TOKEN_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.75, 1.0, 2.5];

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("http_requests", "Answered HTTP requests", self.http_requests.clone());
        r.register("request_success", "Requests whose answer was complete, by reason", self.finished.clone());
        r.register("num_requests_running", "Requests whose answer is being generated", self.running.clone());
        r.register("num_requests_waiting", "Requests before their first token", self.waiting.clone());
        r.register("prompt_tokens", "Prompt tokens of answered requests", self.prompt_tokens.clone());
        r.register("generation_tokens", "Generated tokens", self.generation_tokens.clone());
        r.register("time_to_first_token_seconds", "From the request to its first token", self.first_token.clone());
        r.register("inter_token_latency_seconds", "Between two tokens of an answer", self.inter_token.clone());
        r.register("e2e_request_latency_seconds", "From the request to the end of its answer", self.end_to_end.clone());
    }

    pub fn count_http(&self, labels: &HttpLabels) {
        self.http_requests.get_or_create(labels).inc();
    }

    /// OpenMetrics text without the `# EOF` line.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode_registry(&mut out, &self.registry);
        out
    }

    /// Follows one request from the moment it came; counts it as waiting until its first token.
    pub fn follow(self: &std::sync::Arc<Self>, model: &str, came: Instant) -> Followed {
        self.waiting.inc();
        let labels = ModelLabels { model_name: model.to_owned() };
        Followed {
            first_token: self.first_token.get_or_create_owned(&labels),
            inter_token: self.inter_token.get_or_create_owned(&labels),
            generated: self.generation_tokens.get_or_create_owned(&labels),
            metrics: self.clone(),
            labels,
            came,
            last_token: None,
            charge: Charge::default(),
        }
    }
}

/// One request; leaves the gauges when dropped.
pub struct Followed {
    metrics: std::sync::Arc<Metrics>,
    labels: ModelLabels,
    first_token: Histogram,
    inter_token: Histogram,
    generated: Counter,
    came: Instant,
    last_token: Option<Instant>,
    charge: Charge,
}

impl Followed {
    /// From now on what is used counts against `charge`, which is settled when the request ends.
    pub fn pay(&mut self, charge: Charge) {
        self.charge = charge;
    }

    pub fn prompt(&mut self, tokens: usize) {
        self.charge.add_used(tokens as u64);
        self.metrics.prompt_tokens.get_or_create(&self.labels).inc_by(tokens as u64);
    }

    /// `count` tokens came at once; `since` is when the same choice had its last ones.
    pub fn tokens(&mut self, count: usize, since: Option<Duration>) {
        if count == 0 {
            return;
        }
        self.generated.inc_by(count as u64);
        self.charge.add_used(count as u64);
        if self.last_token.replace(Instant::now()).is_none() {
            self.metrics.waiting.dec();
            self.metrics.running.inc();
            self.first_token.observe(self.came.elapsed().as_secs_f64());
        }
        if let Some(since) = since {
            self.inter_token.observe(since.as_secs_f64() / count as f64);
        }
    }

    pub fn finished(&self, reason: &'static str) {
        let labels = FinishLabels { model_name: self.labels.model_name.clone(), finished_reason: reason };
        self.metrics.finished.get_or_create(&labels).inc();
    }

    pub fn complete(&self) {
        self.metrics.end_to_end.get_or_create(&self.labels).observe(self.came.elapsed().as_secs_f64());
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let gauge = if self.last_token.is_some() { &self.metrics.running } else { &self.metrics.waiting };
        gauge.dec();
    }
}
