//! Requests and tokens per minute: what is told in headers, what is refused, and what is given back.

use std::num::NonZeroU32;

use opengrid_gateway::{GatewayConfig, Limits};
use serde_json::{Value, json};

use crate::{
    client::read_until,
    fake::{Act, Served, config, served, served_with},
};

async fn limited(requests: u32, tokens: u32) -> Served {
    let limits = Limits { requests_per_minute: NonZeroU32::new(requests), tokens_per_minute: NonZeroU32::new(tokens) };
    served_with(GatewayConfig { limits, ..config() }).await
}

/// "Hello, world!" after a prompt of `prompt` bytes and a BOS.
fn completion(prompt: usize, max_tokens: u32) -> Value {
    json!({ "model": "bytes", "prompt": "x".repeat(prompt), "max_tokens": max_tokens })
}

#[tokio::test]
async fn no_limit_is_not_spoken_of() {
    let s = served().await;
    let answered = s.client.post("/v1/completions", &completion(1, 5)).await;
    assert!(answered.headers.iter().all(|(name, _)| !name.starts_with("x-ratelimit")));
    assert_eq!(answered.header("openai-version"), Some("2020-10-01"));
    answered.header("openai-processing-ms").unwrap().parse::<u64>().unwrap();
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_when_to_come_back() {
    let s = limited(2, 0).await;
    for left in ["1", "0"] {
        let answered = s.client.get("/v1/models").await;
        assert_eq!(answered.status, 200);
        assert_eq!(answered.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answered.header("x-ratelimit-remaining-requests"), Some(left));
        assert!(answered.header("x-ratelimit-limit-tokens").is_none());
    }
    let refused = s.client.post("/v1/completions", &completion(1, 5)).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (429, "rate_limit_exceeded"));
    assert_eq!(refused.json()["error"]["type"], "requests");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    let ms: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((29..=30).contains(&seconds) && ms.div_ceil(1_000) == seconds, "{seconds} s, {ms} ms");
    assert!(refused.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
    assert_eq!(s.client.get("/grid/v1/status").await.status, 200, "only /v1 is limited");
    assert!(s.grid.jobs.lock().is_empty());
}

#[tokio::test]
async fn tokens_are_reserved_and_what_was_not_used_comes_back() {
    let s = limited(0, 1_000).await;
    let answered = s.client.post("/v1/completions", &completion(99, 800)).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let left: u32 = answered.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!((887..900).contains(&left), "100 tokens of prompt and 13 of answer were used, {left} are left");

    let refused = s.client.post("/v1/completions", &completion(99, 850)).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (429, Some("tokens")));
    assert!(refused.header("retry-after-ms").is_some() && refused.header("x-should-retry").is_none());

    let never = s.client.post("/v1/completions", &completion(99, 901)).await;
    assert_eq!((never.status, never.error().0.as_str()), (429, "rate_limit_exceeded"));
    assert_eq!(never.header("x-should-retry"), Some("false"), "no client waits for what never comes");
    assert_eq!(s.grid.jobs.lock().len(), 1);
}

#[tokio::test]
async fn a_running_stream_holds_its_reservation_until_the_client_hangs_up() {
    let s = limited(0, 1_000).await;
    s.grid.set(|_| vec![Act::Hang]);
    let body = json!({ "model": "bytes", "prompt": "x", "max_tokens": 900, "stream": true });
    let mut stream = s.client.open("/v1/completions", &body).await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.contains("x-ratelimit-remaining-tokens: 9"), "two of prompt and 900 are held: {head}");
    assert_eq!(s.client.post("/v1/completions", &completion(1, 500)).await.status, 429);
    drop(stream);
    s.grid.wait_cancelled(1).await;
    s.grid.set(|job| crate::fake::say(job, b""));
    assert_eq!(s.client.post("/v1/completions", &completion(1, 500)).await.status, 200);
}
