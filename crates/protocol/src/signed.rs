//! Records signed by a node's key. The signature covers a domain, so that one kind never passes for another.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    NodeId,
    codec::{self, DecodeError},
    limits::{CLOCK_SKEW_MS_MAX, RECORD_BYTES_MAX},
};

/// A kind of record that nodes sign.
pub trait Record: Serialize + DeserializeOwned {
    /// Distinguishes this kind and its version from all others under one key, e.g. `opengrid/beacon/1`.
    const DOMAIN: &'static str;

    /// When the record was signed and until when it holds, in Unix milliseconds.
    fn validity_ms(&self) -> (u64, u64);

    /// Limits that the encoding itself does not enforce.
    ///
    /// # Errors
    /// The first limit that the record breaks.
    fn check(&self) -> Result<(), DecodeError>;
}

/// A record with its author and signature. Encoded with [`Signed::to_bytes`]; nothing is trusted before
/// [`Signed::open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    pub signer: NodeId,
    pub payload: Vec<u8>,
    /// 64 bytes.
    pub signature: Vec<u8>,
}

/// Why a signed record is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the signature of {0} does not hold")]
    BadSignature(NodeId),
    #[error("expired {0} ms ago")]
    Expired(u64),
    #[error("signed {0} ms in the future: one of the two clocks is wrong")]
    FromTheFuture(u64),
}

impl Signed {
    /// Signs `record` with a node's secret key (32-byte Ed25519 seed).
    pub fn seal<T: Record>(record: &T, secret: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(secret);
        let payload = codec::encode(record);
        let signature = key.sign(&signed_bytes(T::DOMAIN, &payload)).to_bytes().to_vec();
        Self { signer: NodeId(key.verifying_key().to_bytes()), payload, signature }
    }

    /// Checks signature, validity at `now_ms` (Unix milliseconds, [`CLOCK_SKEW_MS_MAX`] of tolerance at both ends)
    /// and the record's own limits.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn open<T: Record>(&self, now_ms: u64) -> Result<T, RecordError> {
        let bad = || RecordError::BadSignature(self.signer);
        let key = VerifyingKey::from_bytes(&self.signer.0).map_err(|_| bad())?;
        let signature = Signature::from_slice(&self.signature).map_err(|_| bad())?;
        key.verify_strict(&signed_bytes(T::DOMAIN, &self.payload), &signature).map_err(|_| bad())?;
        let record: T = codec::decode(&self.payload, RECORD_BYTES_MAX)?;
        let (from_ms, until_ms) = record.validity_ms();
        if from_ms > now_ms.saturating_add(CLOCK_SKEW_MS_MAX) {
            return Err(RecordError::FromTheFuture(from_ms - now_ms));
        }
        if until_ms.saturating_add(CLOCK_SKEW_MS_MAX) < now_ms {
            return Err(RecordError::Expired(now_ms - until_ms));
        }
        record.check()?;
        Ok(record)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// # Errors
    /// Over [`RECORD_BYTES_MAX`] or malformed. The signature is not looked at yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes, RECORD_BYTES_MAX)
    }
}

fn signed_bytes(domain: &str, payload: &[u8]) -> Vec<u8> {
    [&(domain.len() as u32).to_le_bytes(), domain.as_bytes(), payload].concat()
}
