//! Ids, units, signed records, wire messages, codecs, size limits and invites. Pure: no clock, no I/O.
//!
//! A newcomer reads [`session`] first (what a gateway and a worker say to each other inside a sealed channel), then
//! [`beacon`] (what a worker tells everybody about itself) and [`limits`] (the bound of every size, count and time).
//! All integers cross the wire in postcard's varint form; every decoder is [`codec::decode`], which refuses records
//! over their size and trailing bytes.

pub mod beacon;
pub mod codec;
pub mod content;
pub mod frame;
pub mod ids;
pub mod invite;
mod layers;
pub mod limits;
pub mod pipeline;
pub mod sampling;
pub mod sealing_key;
pub mod session;
pub mod signed;

pub use ids::{ModelRoot, NodeId, SessionId};
pub use layers::{Layers, LayersError, Share};
pub use sampling::Sampling;
pub use signed::{Record, Signed};
