//! One file per verb.

pub mod completions;
pub mod config;
pub mod down;
pub mod invite;
pub mod join;
pub mod peers;
pub mod ps;
pub mod run;
pub mod status;
