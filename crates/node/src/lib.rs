//! The actors that wire the pure machines to I/O. The gateway sees only [`handle::GridHandle`].
//!
//! Pure: [`directory`] (who serves what), [`routing`] (who gets a session). Shell around them: [`start`] builds a
//! [`Node`], [`session`] carries answers over sealed channels and past dead workers, [`serving`] and [`loading`] run
//! the engines, [`beacons`] and [`discovery`] make workers known, [`content`] moves model files, [`texts`] tokenises.

mod beacons;
pub mod chains;
pub mod clock;
pub mod config;
mod content;
pub mod directory;
mod discovery;
mod external;
pub mod handle;
pub mod identity;
pub mod invites;
mod loading;
mod metrics;
mod node;
pub mod pipeline;
pub mod placement;
mod places;
mod proof;
pub mod pull;
pub mod routing;
mod running;
pub mod runtime;
pub mod serving;
pub mod session;
mod skew;
pub mod start;
mod text;
mod texts;

pub use config::NodeConfig;
pub use node::Node;
pub use start::StartError;
