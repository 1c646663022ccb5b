//! The gateway on a real socket, with a deterministic grid behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod chat;
mod client;
mod completions;
mod embeddings;
mod errors;
mod fake;
mod hostile;
mod lifecycle;
mod limits;
mod messages;
mod native;
mod openapi;
mod performance;
mod responses;
mod security;
mod streams;
