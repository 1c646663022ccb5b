//! The sealing key of another node, asked for anew each time: a restarted node has new keys, and channels are opened
//! rarely.

use opengrid_network::Network;
use opengrid_protocol::{NodeId, Signed, limits::RECORD_BYTES_MAX, sealing_key::SealingKey};

use super::{
    Fault, FaultSink, KEY_PROTOCOL,
    wire::{WireError, read_frame},
};
use crate::clock;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("no key came: {0}")]
    Unreachable(String),
    #[error("the node's sealing key does not hold: {0}")]
    Bad(String),
}

/// Asks `node` for its key.
///
/// # Errors
/// See [`KeyError`]; a key that does not hold is reported to `faults`, unless it is the clocks that differ.
pub async fn fetch(network: &Network, node: NodeId, faults: &FaultSink) -> Result<SealingKey, KeyError> {
    let bad = |why: &str| {
        faults(node, Fault::BadRecord);
        KeyError::Bad(why.to_owned())
    };
    let unreachable = |error: &dyn std::fmt::Display| KeyError::Unreachable(error.to_string());
    let mut stream = network.open_stream(node, KEY_PROTOCOL).await.map_err(|error| unreachable(&error))?;
    let bytes = match read_frame(&mut stream, RECORD_BYTES_MAX).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(unreachable(&"closed before the key came")),
        Err(WireError::Oversized(_)) => return Err(bad("oversized")),
        Err(WireError::Io(error)) => return Err(unreachable(&error)),
    };
    let signed = Signed::from_bytes(&bytes).map_err(|error| bad(&error.to_string()))?;
    if signed.signer != node {
        return Err(bad("signed by another node"));
    }
    match signed.open(clock::now_ms()) {
        Ok(key) => Ok(key),
        Err(error) if clock::is_clock_error(&error) => Err(KeyError::Bad(error.to_string())),
        Err(error) => Err(bad(&error.to_string())),
    }
}
