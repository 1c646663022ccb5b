//! Which nodes hold which layers of a model, and which of them a session goes through. Pure: no clock, no I/O; integers
//! only, so that equal inputs give equal answers on every machine.
//!
//! [`route`](mod@route): the stages of one session. [`coverage`](mod@coverage): what a model lacks.
//! [`join`](mod@join): what a node takes that asks. [`allocate`](mod@allocate): which nodes take what if all are told at
//! once. All times are microseconds.

#![forbid(unsafe_code)]

pub mod allocate;
pub mod coverage;
mod flow;
pub mod join;
pub mod route;

pub use allocate::{Aim, AllocateError, Machine, ModelSize, Plan, PlannedChain, allocate};
pub use coverage::{Coverage, coverage};
pub use join::{Held, join, should_move};
pub use route::{Delays, Offer, route};
