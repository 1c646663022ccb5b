//! How much a caller may ask: requests and tokens per minute, each a [`bucket`]. A caller's [`Meter`] holds both; tokens
//! are reserved before an answer is placed and settled with what it used when it ends, however it ends.

mod bucket;
pub mod headers;

use std::{num::NonZeroU32, sync::Arc, time::Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::bucket::{Bucket, Refused, State};
use crate::openai_api::errors::ApiError;

/// Tokens per answer that are reserved where the request does not bound it.
const UNBOUNDED_ANSWER_TOKENS: u64 = 512;

/// Per minute; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
}

impl Limits {
    /// Where nothing is said here, `other` holds.
    pub fn or(self, other: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
        }
    }
}

/// What one caller has left.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    started: Instant,
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

impl Meter {
    /// A meter with full buckets; `None` without any limit.
    pub fn new(limits: Limits) -> Option<Arc<Self>> {
        if limits == Limits::default() {
            return None;
        }
        let bucket = |limit: Option<NonZeroU32>| limit.map(|limit| Mutex::new(Bucket::full(limit, 0)));
        Some(Arc::new(Self {
            limits,
            started: Instant::now(),
            requests: bucket(limits.requests_per_minute),
            tokens: bucket(limits.tokens_per_minute),
        }))
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Counts one request.
    ///
    /// # Errors
    /// 429 with the time to wait.
    pub fn take_request(&self) -> Result<(), ApiError> {
        let Some(bucket) = &self.requests else { return Ok(()) };
        let mut bucket = bucket.lock();
        let now_us = self.now_us();
        bucket.take(1, now_us).map_err(|refused| rate_limited("requests", refused, 1, bucket.state(now_us)))
    }

    /// Takes `tokens` until the [`Charge`] ends.
    ///
    /// # Errors
    /// 429 with the time to wait, or with the advice not to try again if the limit is below `tokens`.
    pub fn reserve(self: &Arc<Self>, tokens: u64) -> Result<Charge, ApiError> {
        let Some(bucket) = &self.tokens else { return Ok(Charge::default()) };
        let mut bucket = bucket.lock();
        let now_us = self.now_us();
        match bucket.take(tokens, now_us) {
            Ok(()) => Ok(Charge { meter: Some(self.clone()), reserved: tokens, used: 0 }),
            Err(refused) => Err(rate_limited("tokens", refused, tokens, bucket.state(now_us))),
        }
    }

    fn settle(&self, reserved: u64, used: u64) {
        if let Some(bucket) = &self.tokens {
            bucket.lock().settle(reserved, used, self.now_us());
        }
    }

    /// The states of the buckets for requests and tokens.
    fn states(&self) -> [Option<State>; 2] {
        let state = |bucket: &Option<Mutex<Bucket>>| bucket.as_ref().map(|bucket| bucket.lock().state(self.now_us()));
        [state(&self.requests), state(&self.tokens)]
    }
}

/// Tokens of one request, reserved; settles with those used when dropped. The default one counts for nobody.
#[derive(Debug, Default)]
pub struct Charge {
    meter: Option<Arc<Meter>>,
    reserved: u64,
    used: u64,
}

impl Charge {
    pub fn add_used(&mut self, tokens: u64) {
        self.used = self.used.saturating_add(tokens);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.settle(self.reserved, self.used);
        }
    }
}

/// What a request may come to: its prompts, and for each of `choices` answers its bound, or 512 tokens without one.
pub fn tokens_to_reserve(prompt_tokens: usize, completion_tokens_max: Option<u32>, choices: usize) -> u64 {
    let answer = completion_tokens_max.map_or(UNBOUNDED_ANSWER_TOKENS, u64::from);
    (prompt_tokens as u64).saturating_add(answer.saturating_mul(choices as u64))
}

/// `what` is OpenAI's `type`: `requests` or `tokens`.
fn rate_limited(what: &'static str, refused: Refused, wanted: u64, state: State) -> ApiError {
    let State { limit, remaining, .. } = state;
    match refused {
        Refused::Wait(time) => {
            let shown = headers::duration(time);
            let message = format!(
                "rate limit reached for {what}: {limit} per minute, {remaining} left, {wanted} wanted; try again in {shown}"
            );
            ApiError::rate_limited(what, message).retry_after(time)
        }
        Refused::TooLarge => {
            let message = format!(
                "this request is too large for your limit of {limit} {what} per minute: it may take {wanted}; shorten it \
                 or set a smaller `max_tokens`"
            );
            ApiError::rate_limited(what, message).do_not_retry()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn meter(requests: u32, tokens: u32) -> Arc<Meter> {
        let limits =
            Limits { requests_per_minute: NonZeroU32::new(requests), tokens_per_minute: NonZeroU32::new(tokens) };
        Meter::new(limits).unwrap()
    }

    #[test]
    fn no_limit_needs_no_meter() {
        assert!(Meter::new(Limits::default()).is_none());
        let meter = meter(1, 0);
        assert!(meter.reserve(u64::MAX).is_ok(), "only requests are limited");
        assert!(meter.take_request().is_ok() && meter.take_request().is_err());
    }

    #[test]
    fn a_charge_gives_back_what_was_not_used() {
        let meter = meter(0, 100);
        let mut charge = meter.reserve(90).unwrap();
        let refused = meter.reserve(50).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limit_exceeded"));
        charge.add_used(20);
        drop(charge);
        assert!((80..=81).contains(&meter.states()[1].unwrap().remaining));
        drop(meter.reserve(80).unwrap());
        let never = meter.reserve(101).unwrap_err();
        assert!(never.message.contains("too large"), "{}", never.message);
    }

    #[test]
    fn answers_without_a_bound_reserve_a_usual_length() {
        assert_eq!(tokens_to_reserve(10, Some(5), 3), 25);
        assert_eq!(tokens_to_reserve(10, None, 1), 522);
        assert_eq!(tokens_to_reserve(usize::MAX, Some(u32::MAX), usize::MAX), u64::MAX);
    }
}
