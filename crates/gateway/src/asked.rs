//! What is known of a request besides its body: when it came, its id, and whose limits it counts against.

use std::{sync::Arc, time::Instant};

use axum::extract::Request;

use crate::{
    limits::{Charge, Meter, tokens_to_reserve},
    openai_api::errors::ApiError,
};

/// Put into the extensions of every request by the server.
#[derive(Clone, Debug)]
pub struct Asked {
    pub came: Instant,
    /// `x-request-id` of the answer.
    pub id: Arc<str>,
    /// `None` for callers without limits.
    meter: Option<Arc<Meter>>,
}

impl Asked {
    /// A request that comes now, without limits.
    pub fn new() -> Self {
        let id = format!("req_{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        Self { came: Instant::now(), id: id.into(), meter: None }
    }

    pub fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or_else(Self::new)
    }

    pub fn with_meter(self, meter: Arc<Meter>) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Reserves the tokens of prompts and `choices` answers of at most `completion_tokens_max` each. Hand the charge to
    /// [`Followed::pay`](crate::metrics::Followed::pay), or count what was used on it.
    ///
    /// # Errors
    /// 429 when the caller's limit is reached.
    pub fn reserve(
        &self,
        prompt_tokens: usize,
        completion_tokens_max: Option<u32>,
        choices: usize,
    ) -> Result<Charge, ApiError> {
        match &self.meter {
            Some(meter) => meter.reserve(tokens_to_reserve(prompt_tokens, completion_tokens_max, choices)),
            None => Ok(Charge::default()),
        }
    }
}
