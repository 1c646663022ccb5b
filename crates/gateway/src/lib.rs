//! The HTTP face of a node: the OpenAI API under `/v1`, the native API under `/grid/v1`, `/health`, `/metrics` and
//! the web page.
//!
//! Start at [`serve`]. A request passes `security` (who may ask at all), then a handler of `openai_api` or
//! `native_api`; `text` turns messages into tokens and tokens into text. The gateway sees the node only through
//! [`GridHandle`](opengrid_node::handle::GridHandle), and keeps no state between requests but compiled templates.

mod access;
mod anthropic_api;
mod asked;
mod body;
mod cors;
mod guard;
pub mod keys;
mod limits;
mod metrics;
mod native_api;
mod openai_api;
mod openapi;
mod security;
mod server;
mod text;
mod web;

pub use limits::Limits;
pub use openapi::text as openapi_text;
pub use server::{GatewayConfig, ServeError, serve};
