//! The models that this node serves: fetched, loaded, announced, drained.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use opengrid_engine::{Load, SharedEngine};
use opengrid_protocol::{
    ModelRoot,
    beacon::{Beacon, Class},
    limits::BEACON_LIFE_MS,
    session::Refusal,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{handle::ServedModel, session::server::Backend};

/// What became of a model so far.
#[derive(Clone)]
enum State {
    /// With a sentence: `fetching 43%`, `loading`.
    Preparing(String),
    Ready(SharedEngine),
    Failed(String),
}

#[derive(Clone)]
struct Served {
    id: String,
    state: State,
}

pub struct Serving {
    models: RwLock<BTreeMap<ModelRoot, Served>>,
    draining: AtomicBool,
    changed: watch::Sender<u64>,
    tokens: AtomicU64,
    /// Of the latest beacons.
    sequence: AtomicU64,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            models: RwLock::default(),
            draining: false.into(),
            changed: watch::Sender::new(0),
            tokens: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        }
    }
}

impl Serving {
    /// Something worth a beacon happened.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn note_change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn preparing(&self, model: ModelRoot, id: &str, what: String) {
        self.set(model, id, State::Preparing(what));
    }

    pub fn ready(&self, model: ModelRoot, id: &str, engine: SharedEngine) {
        self.set(model, id, State::Ready(engine));
        self.note_change();
    }

    pub fn failed(&self, model: ModelRoot, id: &str, why: String) {
        self.set(model, id, State::Failed(why));
    }

    fn set(&self, model: ModelRoot, id: &str, state: State) {
        self.models.write().insert(model, Served { id: id.to_owned(), state });
    }

    /// No new sessions from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.note_change();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn engines(&self) -> Vec<(ModelRoot, String, SharedEngine)> {
        let models = self.models.read();
        models
            .iter()
            .filter_map(|(root, served)| match &served.state {
                State::Ready(engine) => Some((*root, served.id.clone(), engine.clone())),
                _ => None,
            })
            .collect()
    }

    /// Sessions that run or wait on all engines.
    pub fn sessions(&self) -> usize {
        let count = |load: Load| usize::from(load.slots_busy) + usize::from(load.queued);
        self.engines().iter().map(|(_, _, engine)| count(engine.load())).sum()
    }

    /// Tokens that this node's engines generated since it started.
    pub fn tokens_generated(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    pub async fn shutdown(&self) {
        for (_, _, engine) in self.engines() {
            engine.shutdown().await;
        }
        self.models.write().clear();
    }

    /// Unsigned beacons of all that is ready.
    pub fn beacons(&self, now_ms: u64) -> Vec<Beacon> {
        let draining = self.is_draining();
        // Rises even when the clock is set back.
        let sequence = self.sequence.fetch_max(now_ms, Ordering::Relaxed).max(now_ms);
        let sequence = sequence.max(self.sequence.fetch_add(1, Ordering::Relaxed) + 1);
        self.engines()
            .into_iter()
            .filter(|(_, _, engine)| engine.load().healthy)
            .map(|(model, model_id, engine)| {
                let capabilities = engine.capabilities();
                let load = engine.load();
                Beacon {
                    model,
                    model_id,
                    class: capabilities.class,
                    features: capabilities.features,
                    sequence,
                    issued_ms: now_ms,
                    life_ms: BEACON_LIFE_MS,
                    context_tokens: capabilities.context_tokens,
                    slots: capabilities.slots,
                    slots_busy: load.slots_busy,
                    queued: load.queued,
                    decode_millitokens_per_s: millitokens(capabilities.decode_tokens_per_s),
                    prefill_millitokens_per_s: millitokens(capabilities.prefill_tokens_per_s),
                    draining,
                }
            })
            .collect()
    }

    /// What people see.
    pub fn rows(&self) -> Vec<ServedModel> {
        self.models.read().values().map(row).collect()
    }

    /// One plain sentence about the node's state.
    pub fn summary(&self) -> String {
        if self.is_draining() {
            return "draining: finishing what runs".into();
        }
        let models = self.models.read();
        if models.is_empty() {
            return "serving no model".into();
        }
        let describe = |served: &Served| match &served.state {
            State::Preparing(what) => format!("{what} {}", served.id),
            State::Ready(engine) if engine.load().healthy => format!("serving {}", served.id),
            State::Ready(_) => format!("restarting the engine of {}", served.id),
            State::Failed(why) => format!("not serving {}: {why}", served.id),
        };
        models.values().map(describe).collect::<Vec<_>>().join("; ")
    }
}

fn millitokens(tokens_per_s: f32) -> u32 {
    // A cast saturates; NaN becomes 0.
    (tokens_per_s * 1_000.0) as u32
}

fn row(served: &Served) -> ServedModel {
    let (state, engine) = match &served.state {
        State::Preparing(what) => (what.clone(), None),
        State::Ready(engine) if engine.load().healthy => ("ready".to_owned(), Some(engine)),
        State::Ready(engine) => ("restarting".to_owned(), Some(engine)),
        State::Failed(why) => (format!("failed: {why}"), None),
    };
    let capabilities = engine.map(|engine| engine.capabilities());
    let load = engine.map(|engine| engine.load()).unwrap_or_default();
    ServedModel {
        id: served.id.clone(),
        state,
        class: capabilities.as_ref().map_or_else(String::new, |c| class_text(c.class)),
        context_tokens: capabilities.as_ref().map_or(0, |c| c.context_tokens),
        slots: capabilities.as_ref().map_or(0, |c| c.slots),
        slots_busy: load.slots_busy,
        queued: load.queued,
        decode_tokens_per_s: capabilities.as_ref().map_or(0.0, |c| c.decode_tokens_per_s),
        prefill_tokens_per_s: capabilities.as_ref().map_or(0.0, |c| c.prefill_tokens_per_s),
        memory_bytes: capabilities.as_ref().map_or(0, |c| c.memory_bytes),
        engine: capabilities.map_or_else(String::new, |c| c.description),
    }
}

/// `exact:<hash>` or `approximate`.
pub fn class_text(class: Class) -> String {
    match class {
        Class::Exact(hash) => format!("exact:{}", hex::encode(hash)),
        Class::Approximate => "approximate".into(),
    }
}

impl Backend for Serving {
    fn count_tokens(&self, tokens: usize) {
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    fn load_changed(&self) {
        self.note_change();
    }

    fn engine(&self, model: ModelRoot) -> Result<SharedEngine, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        match self.models.read().get(&model).map(|served| &served.state) {
            Some(State::Ready(engine)) => Ok(engine.clone()),
            Some(State::Preparing(_)) => Err(Refusal::Busy),
            _ => Err(Refusal::ModelNotServed),
        }
    }
}
