//! What a worker tells everybody about one model, or one stage of a model, that it serves: gossiped on that model's topic, signed, expiring.

use serde::{Deserialize, Serialize};

use crate::{
    Layers, ModelRoot, NodeId,
    codec::DecodeError,
    limits::{BEACON_DELAYS_MAX, BEACON_LIFE_MS_MAX, LAYERS_MAX, MODEL_ID_BYTES_MAX},
    signed::Record,
};

/// How far two workers' numerics can be trusted to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Batch-invariant, proven by a self-test on the loaded model; the value is the hash of the logits of the
    /// known-answer run. Equal hash, equal class: such workers continue each other's answers bit for bit.
    Exact([u8; 16]),
    /// Everything else: GPUs, fast kernels. A failover may change later words, never break the answer.
    Approximate,
}

/// What a worker can do with a model: a set of bits. Unknown ones are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Features(pub u32);

impl Features {
    pub const NONE: Self = Self(0);
    /// Continues prompts.
    pub const GENERATE: Self = Self(1);
    /// Turns texts into vectors.
    pub const EMBED: Self = Self(1 << 1);
    /// Draws tokens with the grid's own sampler: the same seed gives the same answer on every such worker of a class.
    pub const SEEDED: Self = Self(1 << 2);
    /// Keeps an answer to a grammar.
    pub const GRAMMAR: Self = Self(1 << 3);
    /// Gives log-probabilities.
    pub const LOGPROBS: Self = Self(1 << 4);
    pub const LOGIT_BIAS: Self = Self(1 << 5);
    /// Presence and frequency penalties, which look at the answer alone.
    pub const PENALTIES: Self = Self(1 << 6);
    /// The repeat penalty, which looks at the last tokens of prompt and answer.
    pub const REPEAT_PENALTY: Self = Self(1 << 7);
    /// What the embedded engine does with a language model.
    pub const EMBEDDED: Self = Self::GENERATE
        .with(Self::SEEDED)
        .with(Self::GRAMMAR)
        .with(Self::LOGPROBS)
        .with(Self::LOGIT_BIAS)
        .with(Self::PENALTIES)
        .with(Self::REPEAT_PENALTY);

    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All of `other` and perhaps more.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Load and capability of one model on one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    pub model: ModelRoot,
    pub model_id: String,
    pub class: Class,
    pub features: Features,
    /// Rises with every beacon of this worker; of two beacons the higher wins.
    pub sequence: u64,
    /// Unix milliseconds.
    pub issued_ms: u64,
    pub life_ms: u64,
    /// Tokens that one session can hold.
    pub context_tokens: u32,
    /// Sessions that run at once.
    pub slots: u16,
    pub slots_busy: u16,
    /// Sessions that wait for a slot.
    pub queued: u16,
    /// Measured, in thousandths of tokens per second: one stream decoding, and prefill.
    pub decode_millitokens_per_s: u32,
    pub prefill_millitokens_per_s: u32,
    /// The owner is draining this worker: no new sessions, please.
    pub draining: bool,
    /// Which part of the model this is; `None`: the whole.
    pub stage: Option<StageBeacon>,
}

/// What a stage tells besides. Its `slots_busy` counts sessions of stages, its speeds count rows, and it queues nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageBeacon {
    pub layers: Layers,
    /// Of the whole model.
    pub layer_count: u16,
    /// Numbers of a row.
    pub width: u32,
    /// Measured round trips to other nodes that hold stages, in microseconds.
    pub delays: Vec<(NodeId, u32)>,
}

impl StageBeacon {
    fn check(&self) -> Result<(), DecodeError> {
        let rules = [
            (self.layer_count <= LAYERS_MAX, "too many layers"),
            (self.layers.to() <= self.layer_count.into(), "layers beyond the model's"),
            (self.layers.count() < self.layer_count.into(), "a stage of all layers is a whole model"),
            (self.width > 0, "rows of no width"),
            (self.delays.len() <= BEACON_DELAYS_MAX, "too many delays"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, why)) => Err(DecodeError::Invalid(why)),
            None => Ok(()),
        }
    }
}

impl Record for Beacon {
    const DOMAIN: &'static str = "opengrid/beacon/1";

    fn validity_ms(&self) -> (u64, u64) {
        (self.issued_ms, self.issued_ms.saturating_add(self.life_ms))
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.life_ms > BEACON_LIFE_MS_MAX {
            return Err(DecodeError::Invalid("beacon lives too long"));
        }
        if self.model_id.len() > MODEL_ID_BYTES_MAX || self.model_id.is_empty() {
            return Err(DecodeError::Invalid("model id is empty or too long"));
        }
        self.stage.as_ref().map_or(Ok(()), StageBeacon::check)
    }
}
