//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use opengrid_protocol::signed::RecordError;

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Milliseconds since the process asked first; never set back or forward.
pub fn monotonic_ms() -> u64 {
    static BEGAN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BEGAN.get_or_init(std::time::Instant::now).elapsed().as_millis() as u64
}

/// The record may be honest and one of the two clocks wrong: no reason to punish.
pub fn is_clock_error(error: &RecordError) -> bool {
    matches!(error, RecordError::Expired(_) | RecordError::FromTheFuture(_))
}
