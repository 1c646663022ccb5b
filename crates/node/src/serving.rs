//! The models, and parts of models, that this node serves: fetched, loaded, announced, drained.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use opengrid_engine::{Load, SharedEngine, Stage};
use opengrid_protocol::{
    Layers, ModelRoot, NodeId, Share,
    beacon::{Beacon, Class, Features, StageBeacon},
    limits::BEACON_LIFE_MS,
    session::Refusal,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{handle::ServedModel, session::server::Backend};

pub type SharedStage = Arc<dyn Stage>;

/// What computes a share.
#[derive(Clone)]
pub enum Unit {
    Whole(SharedEngine),
    Stage(SharedStage),
}

impl Unit {
    fn load(&self) -> Load {
        match self {
            Self::Whole(engine) => engine.load(),
            Self::Stage(stage) => stage.load(),
        }
    }

    async fn shutdown(&self) {
        match self {
            Self::Whole(engine) => engine.shutdown().await,
            Self::Stage(stage) => stage.shutdown().await,
        }
    }

    fn facts(&self) -> Facts {
        match self {
            Self::Whole(engine) => {
                let c = engine.capabilities();
                Facts {
                    class: c.class,
                    features: c.features,
                    context_tokens: c.context_tokens,
                    slots: c.slots,
                    decode_tokens_per_s: c.decode_tokens_per_s,
                    prefill_tokens_per_s: c.prefill_tokens_per_s,
                    memory_bytes: c.memory_bytes,
                    description: c.description,
                    stage: None,
                }
            }
            Self::Stage(stage) => {
                let c = stage.capabilities();
                Facts {
                    class: c.class,
                    features: Features::EMBEDDED,
                    context_tokens: c.context_tokens,
                    slots: c.slots,
                    decode_tokens_per_s: c.decode_tokens_per_s,
                    prefill_tokens_per_s: c.prefill_tokens_per_s,
                    memory_bytes: c.memory_bytes,
                    description: c.description,
                    stage: Some((c.layers, u16::try_from(c.layer_count).unwrap_or(u16::MAX), c.width)),
                }
            }
        }
    }
}

/// What whole models and stages have in common.
struct Facts {
    class: Class,
    features: Features,
    context_tokens: u32,
    slots: u16,
    decode_tokens_per_s: f32,
    prefill_tokens_per_s: f32,
    memory_bytes: u64,
    description: String,
    /// Layers, of how many, and the width of a row.
    stage: Option<(Layers, u16, u32)>,
}

/// What became of a share so far.
#[derive(Clone)]
enum State {
    /// With a sentence: `fetching 43%`, `loading`.
    Preparing(String),
    Ready(Unit),
    Failed(String),
}

#[derive(Clone)]
struct Served {
    id: String,
    state: State,
}

pub struct Serving {
    shares: RwLock<BTreeMap<Share, Served>>,
    draining: AtomicBool,
    changed: watch::Sender<u64>,
    tokens: AtomicU64,
    /// Of the latest beacons.
    sequence: AtomicU64,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            shares: RwLock::default(),
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

    pub fn preparing(&self, share: Share, id: &str, what: String) {
        self.set(share, id, State::Preparing(what));
    }

    pub fn ready(&self, share: Share, id: &str, unit: Unit) {
        self.set(share, id, State::Ready(unit));
        self.note_change();
    }

    pub fn failed(&self, share: Share, id: &str, why: String) {
        self.set(share, id, State::Failed(why));
    }

    /// It is not served after all.
    pub fn forget(&self, share: Share) {
        self.shares.write().remove(&share);
    }

    /// Serves a share no longer: no new sessions, then those that run may end within `patience`.
    pub async fn retire(&self, share: Share, patience: Duration) {
        let retired = self.shares.write().remove(&share);
        self.note_change();
        let Some(Served { state: State::Ready(unit), .. }) = retired else { return };
        let deadline = tokio::time::Instant::now() + patience;
        while unit.load().slots_busy > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unit.shutdown().await;
    }

    fn set(&self, share: Share, id: &str, state: State) {
        self.shares.write().insert(share, Served { id: id.to_owned(), state });
    }

    /// No new sessions from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.note_change();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn units(&self) -> Vec<(Share, String, Unit)> {
        let shares = self.shares.read();
        shares
            .iter()
            .filter_map(|(share, served)| match &served.state {
                State::Ready(unit) => Some((*share, served.id.clone(), unit.clone())),
                _ => None,
            })
            .collect()
    }

    /// Sessions that run or wait on all engines.
    pub fn sessions(&self) -> usize {
        let count = |load: Load| usize::from(load.slots_busy) + usize::from(load.queued);
        self.units().iter().map(|(_, _, unit)| count(unit.load())).sum()
    }

    /// Tokens that this node's engines generated since it started.
    pub fn tokens_generated(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    pub async fn shutdown(&self) {
        for (_, _, unit) in self.units() {
            unit.shutdown().await;
        }
        self.shares.write().clear();
    }

    /// Unsigned beacons of all that is ready; those of stages tell the `delays` to other nodes.
    pub fn beacons(&self, now_ms: u64, delays: &[(NodeId, u32)]) -> Vec<Beacon> {
        let draining = self.is_draining();
        // Rises even when the clock is set back.
        let sequence = self.sequence.fetch_max(now_ms, Ordering::Relaxed).max(now_ms);
        let sequence = sequence.max(self.sequence.fetch_add(1, Ordering::Relaxed) + 1);
        self.units()
            .into_iter()
            .filter(|(_, _, unit)| unit.load().healthy)
            .map(|(share, model_id, unit)| {
                let facts = unit.facts();
                let load = unit.load();
                let stage =
                    |(layers, layer_count, width)| StageBeacon { layers, layer_count, width, delays: delays.to_vec() };
                Beacon {
                    model: share.model,
                    model_id,
                    class: facts.class,
                    features: facts.features,
                    sequence,
                    issued_ms: now_ms,
                    life_ms: BEACON_LIFE_MS,
                    context_tokens: facts.context_tokens,
                    slots: facts.slots,
                    slots_busy: load.slots_busy,
                    queued: load.queued,
                    decode_millitokens_per_s: millitokens(facts.decode_tokens_per_s),
                    prefill_millitokens_per_s: millitokens(facts.prefill_tokens_per_s),
                    draining,
                    stage: facts.stage.map(stage),
                }
            })
            .collect()
    }

    /// What people see.
    pub fn rows(&self) -> Vec<ServedModel> {
        self.shares.read().iter().map(|(share, served)| row(*share, served)).collect()
    }

    /// One plain sentence about the node's state.
    pub fn summary(&self) -> String {
        if self.is_draining() {
            return "draining: finishing what runs".into();
        }
        let shares = self.shares.read();
        if shares.is_empty() {
            return "serving no model".into();
        }
        let describe = |(share, served): (&Share, &Served)| {
            let id = match share.layers {
                Some(layers) => format!("{}@{layers}", served.id),
                None => served.id.clone(),
            };
            match &served.state {
                State::Preparing(what) => format!("{what} {id}"),
                State::Ready(unit) if unit.load().healthy => format!("serving {id}"),
                State::Ready(_) => format!("restarting the engine of {id}"),
                State::Failed(why) => format!("not serving {id}: {why}"),
            }
        };
        shares.iter().map(describe).collect::<Vec<_>>().join("; ")
    }
}

fn millitokens(tokens_per_s: f32) -> u32 {
    // A cast saturates; NaN becomes 0.
    (tokens_per_s * 1_000.0) as u32
}

fn row(share: Share, served: &Served) -> ServedModel {
    let (state, unit) = match &served.state {
        State::Preparing(what) => (what.clone(), None),
        State::Ready(unit) if unit.load().healthy => ("ready".to_owned(), Some(unit)),
        State::Ready(unit) => ("restarting".to_owned(), Some(unit)),
        State::Failed(why) => (format!("failed: {why}"), None),
    };
    let facts = unit.map(Unit::facts);
    let load = unit.map(Unit::load).unwrap_or_default();
    ServedModel {
        id: served.id.clone(),
        layers: share.layers.map(|layers| layers.to_string()),
        state,
        class: facts.as_ref().map_or_else(String::new, |c| class_text(c.class)),
        context_tokens: facts.as_ref().map_or(0, |c| c.context_tokens),
        slots: facts.as_ref().map_or(0, |c| c.slots),
        slots_busy: load.slots_busy,
        queued: load.queued,
        decode_tokens_per_s: facts.as_ref().map_or(0.0, |c| c.decode_tokens_per_s),
        prefill_tokens_per_s: facts.as_ref().map_or(0.0, |c| c.prefill_tokens_per_s),
        memory_bytes: facts.as_ref().map_or(0, |c| c.memory_bytes),
        engine: facts.map_or_else(String::new, |c| c.description),
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

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn engine(&self, model: ModelRoot) -> Result<SharedEngine, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        match self.shares.read().get(&Share::whole(model)).map(|served| &served.state) {
            Some(State::Ready(Unit::Whole(engine))) => Ok(engine.clone()),
            Some(State::Preparing(_)) => Err(Refusal::Busy),
            _ => Err(Refusal::ModelNotServed),
        }
    }

    fn stage(&self, model: ModelRoot, layers: Layers) -> Result<SharedStage, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        match self.shares.read().get(&Share { model, layers: Some(layers) }).map(|served| &served.state) {
            Some(State::Ready(Unit::Stage(stage))) => Ok(stage.clone()),
            Some(State::Preparing(_)) => Err(Refusal::Busy),
            _ => Err(Refusal::ModelNotServed),
        }
    }
}
