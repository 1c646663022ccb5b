//! What a worker tells everybody about one model that it serves: gossiped on that model's topic, signed, expiring.

use serde::{Deserialize, Serialize};

use crate::{
    ModelRoot,
    codec::DecodeError,
    limits::{BEACON_LIFE_MS_MAX, MODEL_ID_BYTES_MAX},
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

/// Load and capability of one model on one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    pub model: ModelRoot,
    pub model_id: String,
    pub class: Class,
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
        Ok(())
    }
}
