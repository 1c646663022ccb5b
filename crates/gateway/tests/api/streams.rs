//! Server-sent events: order and shape of chunks, held-back text, keep-alives, errors, hang-ups.

use std::time::{Duration, Instant};

use opengrid_gateway::GatewayConfig;
use opengrid_node::handle::{AnswerEvent, GridError};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{
    client::{Answered, read_until},
    fake::{Act, config, say, served, served_with, token},
};

const CHAT: &str = "/v1/chat/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }], "stream": true });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn text_of(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn chunks_come_in_openai_s_order() {
    let s = served().await;
    let answered = s.client.post(CHAT, &body(json!({}))).await;
    assert!(answered.header("x-opengrid-worker").is_some() && answered.header("x-opengrid-session").is_some());
    let chunks = answered.chunks();
    for key in ["id", "created", "model", "system_fingerprint"] {
        assert!(chunks.iter().all(|chunk| chunk[key] == chunks[0][key] && !chunk[key].is_null()), "{key}");
    }
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let (first, last) = (&chunks[0]["choices"][0], &chunks.last().unwrap()["choices"][0]);
    assert_eq!(first["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    let before = &chunks[..chunks.len() - 1];
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    assert_eq!(text_of(&chunks), "Hello, world!");
}

#[tokio::test]
async fn usage_comes_last_and_only_when_asked_for() {
    let s = served().await;
    let chunks = s.client.post(CHAT, &body(json!({ "stream_options": { "include_usage": true } }))).await.chunks();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 13);
    assert!(before.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    let text = json!({ "model": "bytes", "prompt": "x", "stream": true, "stream_options": { "include_usage": true } });
    let chunks = s.client.post("/v1/completions", &text).await.chunks();
    assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens"], 2);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
}

#[tokio::test]
async fn no_chunk_holds_half_a_character_or_a_beginning_of_a_stop_string() {
    let s = served().await;
    s.grid.set(|job| say(job, "x😀 ENter END rest".as_bytes()));
    let chunks = s.client.post(CHAT, &body(json!({ "stop": "END", "logprobs": true }))).await.chunks();
    assert_eq!(text_of(&chunks), "x😀 ENter ");
    assert!(!text_of(&chunks).contains('\u{fffd}'));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let tokens: usize =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).map(Vec::len).sum();
    assert_eq!(tokens, "x😀 ENter ".len(), "each shown token exactly once");
}

#[tokio::test]
async fn what_was_held_back_comes_when_the_answer_ends() {
    let s = served().await;
    s.grid.set(|job| say(job, b"the EN"));
    let chunks = s.client.post(CHAT, &body(json!({ "stop": ["END"] }))).await.chunks();
    assert_eq!(text_of(&chunks), "the EN");
}

#[tokio::test]
async fn choices_interleave_with_their_index() {
    let s = served().await;
    s.grid.set(|job| say(job, format!("number {}", job.sampling.choice).as_bytes()));
    let chunks = s.client.post(CHAT, &body(json!({ "n": 3 }))).await.chunks();
    for index in 0..3 {
        let own: Vec<Value> = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(text_of(&own), format!("number {index}"));
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_event() {
    let s = served().await;
    s.grid.set(|_| {
        let failed = GridError::NoWorker { model: "bytes".into(), retry_after_s: 5 };
        vec![Act::Send(AnswerEvent::Tokens(vec![token(65)])), Act::Send(AnswerEvent::Failed(failed))]
    });
    let answered: Answered = s.client.post(CHAT, &body(json!({}))).await;
    let last: Value = serde_json::from_str(answered.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_capacity");
    assert_eq!(last["error"]["type"], "service_unavailable_error");
}

#[tokio::test]
async fn a_stalled_stream_is_kept_alive_by_comments() {
    let s = served_with(GatewayConfig { keep_alive_every: Duration::from_millis(50), ..config() }).await;
    s.grid.set(|job| {
        let mut acts = say(job, b"ab");
        acts.insert(1, Act::Wait(Duration::from_millis(300)));
        acts
    });
    let answered = s.client.post(CHAT, &body(json!({}))).await;
    let comments = answered.text().matches(": keep-alive\n\n").count();
    assert!((3..=7).contains(&comments), "{comments} comments in 300 ms at one each 50 ms");
    assert_eq!(text_of(&answered.chunks()), "ab");
}

#[tokio::test]
async fn tokens_are_sent_as_they_come() {
    let s = served().await;
    s.grid.set(|job| {
        let mut acts = say(job, b"first");
        acts.insert(5, Act::Hang);
        acts
    });
    let mut stream = s.client.open(CHAT, &body(json!({}))).await;
    let seen = read_until(&mut stream, "\"t\"").await;
    assert!(!seen.contains("[DONE]"));
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_all_its_sessions() {
    let s = served().await;
    let hang = |job: &opengrid_node::handle::Job| {
        let mut acts = say(job, b"ab");
        acts.truncate(1);
        acts.push(Act::Hang);
        acts
    };
    s.grid.set(hang);
    let mut stream = s.client.open(CHAT, &body(json!({ "n": 2 }))).await;
    read_until(&mut stream, "\"a\"").await;
    assert_eq!(s.grid.cancelled(), 0);
    let hung_up = Instant::now();
    drop(stream);
    s.grid.wait_cancelled(2).await;
    assert!(hung_up.elapsed() < Duration::from_secs(1), "{:?}", hung_up.elapsed());

    // And one that waits for the whole answer.
    let stream = s.client.open(CHAT, &body(json!({ "stream": false }))).await;
    while s.grid.jobs.lock().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    s.grid.wait_cancelled(3).await;
}

#[tokio::test]
async fn many_streams_at_once_stay_apart() {
    let s = served().await;
    s.grid.set(|job| {
        let prompt: Vec<u8> = job.prompt.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
        say(job, &[b"you said: ".as_slice(), &prompt].concat())
    });
    let asks = (0..200).map(|i| {
        let client = s.client;
        async move {
            let body = json!({ "model": "bytes", "prompt": format!("<{i}>"), "stream": true, "max_tokens": 99 });
            let chunks = client.post("/v1/completions", &body).await.chunks();
            let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
            assert_eq!(text, format!("you said: <{i}>"));
        }
    });
    futures::future::join_all(asks).await;
}

#[tokio::test]
async fn snapshots_stream_and_subscribers_are_bounded() {
    let s =
        served_with(GatewayConfig { subscribers_max: 2, snapshot_every: Duration::from_millis(20), ..config() }).await;
    let mut first = s.client.open("/grid/v1/events", &Value::Null).await;
    let second = s.client.open("/grid/v1/events", &Value::Null).await;
    let seen = read_until(&mut first, "\n\n\r\n").await;
    let data = seen.split("data: ").nth(1).unwrap().split("\n\n").next().unwrap();
    let snapshot: Value = serde_json::from_str(data).unwrap();
    assert_eq!(snapshot["status"]["role"], "edge");
    assert_eq!(snapshot["peers"].as_array().unwrap().len(), 1);
    assert_eq!(snapshot["models"][0]["id"], "bytes");
    read_until(&mut first, "data: ").await;
    let third = s.client.get("/grid/v1/events").await;
    assert_eq!((third.status, third.error().0.as_str()), (503, "overloaded"));
    drop(second);
    for attempt in 0.. {
        let mut again = s.client.open("/grid/v1/events", &Value::Null).await;
        let mut start = [0; 12];
        again.read_exact(&mut start).await.unwrap();
        if start.ends_with(b"200") {
            break;
        }
        assert!(attempt < 50, "the place of a subscriber who left is not given to another");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
