//! The `opengrid` binary: verbs and flags, nothing that a library should know. `args` is the command line,
//! `commands` has one file per verb, `api` talks to a running node, `config` has the settings.

pub mod api;
pub mod args;
pub mod chat;
pub mod commands;
pub mod config;
pub mod context;
pub mod engine;
pub mod errors;
pub mod joins;
pub mod logging;
mod open_files;
mod output;
pub mod progress;
pub mod repl;
pub mod runtime;
pub mod shapes;
pub mod sse;
pub mod store;
