//! Bytes to values and back: [postcard](https://postcard.jamesmunns.com/wire-format), bounded and exact.

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes from outside are no such value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("{size} bytes are over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    #[error("invalid: {0}")]
    Invalid(&'static str),
}

/// The canonical bytes of `value`.
///
/// # Panics
/// Never for the types of this crate: postcard fails only on sequences of unknown length, of which there are none.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    #[allow(clippy::expect_used, reason = "the wire types have no unsized sequences")]
    postcard::to_stdvec(value).expect("wire types have known lengths")
}

/// The value in exactly `bytes`.
///
/// # Errors
/// When `bytes` are over `limit`, malformed, or longer than the value. postcard reserves no more memory than the
/// input could fill.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge { size: bytes.len(), limit });
    }
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(rest.len())) }
}
