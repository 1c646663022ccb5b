//! Sessions over several stages, at the nodes that hold them.
//!
//! Pure: [`flow`] (what a part takes, sends and keeps), `ring` (what it sent, by position), [`recovery`] (what is sent
//! again after a fault), `ahead` and `pace` (what goes to a standby, and how fast). Shell: `part` (a part of a session
//! between gateway, engine and neighbours), `hub` (the parts of this node and the channels to others), [`standby`] (rows for
//! parts that may be opened).

mod ahead;
pub mod flow;
pub mod hub;
mod pace;
mod part;
pub mod recovery;
mod ring;
pub mod standby;

pub use part::run;

/// Carries sealed [`ToStage`](opengrid_protocol::pipeline::ToStage) messages; the part that sends opens it.
pub const STAGE_PROTOCOL: &str = "/opengrid/stage/1";
