//! OpenAI's API (<https://platform.openai.com/docs/api-reference>), so that clients work unchanged.
//!
//! A generation goes through `types` (the request as it came), `options` (checked), `prepare` (prompts of tokens, placed
//! on the grid), `generation` (its running choices) and `stream` with `chunks`, or
//! `collect` (its answer). `embeddings` go their own, shorter way.

pub mod chat;
mod chat_prompt;
mod chunks;
mod collect;
pub mod completions;
mod constraint;
mod conversation;
pub mod embeddings;
pub mod errors;
mod gap;
pub mod generation;
pub mod ids;
pub mod logprobs;
pub mod models;
pub mod options;
pub mod prepare;
pub mod responses;
mod sampling;
pub mod shapes;
pub mod sse;
pub mod stream;
mod text_prompt;
mod tools;
pub mod types;
