//! Sealed sessions between a gateway and a worker.
//!
//! [`link`] is the gateway's end of one channel, [`server`] the worker's; [`sealed`] joins the two over a stream,
//! and a node that is both joins them in memory. [`answer`] keeps one answer alive over the death of its workers,
//! [`embed`] gets texts embedded in spite of it.

pub mod answer;
mod chain;
pub mod embed;
mod handover;
pub mod keys;
mod laps;
pub mod link;
pub mod links;
pub mod sealed;
pub mod server;
mod spares;
mod standby;
pub mod wire;

/// Carries sealed frames; the gateway opens it.
pub const SESSION_PROTOCOL: &str = "/opengrid/session/1";
/// The worker answers with its signed sealing key and closes.
pub const KEY_PROTOCOL: &str = "/opengrid/key/1";

use opengrid_protocol::NodeId;

/// What a peer did that an honest program never does, unless it [`may be another's`](Fault::may_be_anothers). It is
/// disconnected, refused for a while and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    #[error("a frame that does not open (altered, replayed or from another session)")]
    BadSeal,
    #[error("a frame over the size limit")]
    Oversized,
    #[error("a message that does not decode")]
    Malformed,
    #[error("a message about a session that was never opened")]
    ForeignSession,
    #[error("tokens or places in the queue out of order, or more than asked for")]
    WrongTokens,
    #[error("rows of another width, out of order, or no numbers")]
    BadRows,
    #[error("cells of a cache of another layout, out of order, or no numbers")]
    BadCells,
    #[error("vectors of another number or length than asked for")]
    WrongVectors,
    #[error("a signed record that does not hold")]
    BadRecord,
    #[error("a sealed channel that was opened before")]
    ReplayedHello,
}

impl Fault {
    /// Whether an honest node can be made to do so: by a gateway that joins parts which do not belong together, by the
    /// stage before it.
    pub fn may_be_anothers(self) -> bool {
        matches!(self, Self::BadRows | Self::BadCells)
    }
}

/// Takes reports of faults; never blocks.
pub type FaultSink = std::sync::Arc<dyn Fn(NodeId, Fault) + Send + Sync>;
