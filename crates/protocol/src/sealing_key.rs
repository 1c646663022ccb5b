//! The rotating public key to which gateways seal, signed by the worker's node key.

use serde::{Deserialize, Serialize};

use crate::{
    codec::DecodeError,
    limits::{SEALING_KEY_LIFE_MS, SEALING_KEY_OVERLAP_MS},
    signed::Record,
};

/// Bytes of an X-Wing public key (draft-connolly-cfrg-xwing-kem: ML-KEM-768 and X25519).
pub const XWING_PUBLIC_BYTES: usize = 1216;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKey {
    /// Names the key in the first frame of a channel.
    pub key_id: [u8; 8],
    /// [`XWING_PUBLIC_BYTES`] bytes.
    pub public: Vec<u8>,
    /// Unix milliseconds.
    pub issued_ms: u64,
    pub expires_ms: u64,
}

impl Record for SealingKey {
    const DOMAIN: &'static str = "opengrid/sealing-key/1";

    fn validity_ms(&self) -> (u64, u64) {
        (self.issued_ms, self.expires_ms)
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.public.len() != XWING_PUBLIC_BYTES {
            return Err(DecodeError::Invalid("an X-Wing public key has 1,216 bytes"));
        }
        if self.expires_ms.saturating_sub(self.issued_ms) > SEALING_KEY_LIFE_MS + SEALING_KEY_OVERLAP_MS {
            return Err(DecodeError::Invalid("sealing key lives too long"));
        }
        Ok(())
    }
}
