//! How an external engine is used.

use std::{sync::Arc, time::Duration};

use super::Reference;

#[derive(Clone, Debug)]
pub struct ExternalConfig {
    /// Of the server, without a path: `http://127.0.0.1:8000`.
    pub url: String,
    /// The vocabulary that the engine must have.
    pub reference: Arc<Reference>,
    /// Weights of the model, by count; compared where the engine says its own.
    pub parameters: Option<u64>,
    /// Tokens that the model was trained to hold: the most that is offered.
    pub trained_context: u32,
    /// The owner's wishes: less than the engine can, or what it does not say.
    pub slots: Option<u16>,
    pub context_tokens: Option<u32>,
    /// Generations that may wait for a slot.
    pub queue_max: u16,
    pub timeouts: Timeouts,
}

/// After which silence an engine counts as hung.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    /// An answer to a question about the engine itself.
    pub question: Duration,
    /// From a request to its first token: queue of the engine and prefill.
    pub first_token: Duration,
    pub next_token: Duration,
    /// Between two looks at the engine's health.
    pub watch: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            question: Duration::from_secs(5),
            first_token: Duration::from_secs(180),
            next_token: Duration::from_secs(30),
            watch: Duration::from_secs(1),
        }
    }
}
