//! `/v1/messages`: messages, events in their order, errors in Anthropic's shape.

use std::time::Duration;

use opengrid_gateway::GatewayConfig;
use opengrid_node::handle::{AnswerEvent, GridError};
use serde_json::{Value, json};

use crate::{
    client::Answered,
    fake::{Act, CONTEXT, config, say, served, served_with, token},
};

const PATH: &str = "/v1/messages";

fn body(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let mut body = json!({ "model": "bytes", "max_tokens": 64, "messages": messages });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Type and message of an error in Anthropic's shape.
fn error(answered: &Answered) -> (String, String) {
    let json = answered.json();
    assert_eq!(json["type"], "error", "{json}");
    assert_eq!(json["request_id"].as_str(), answered.header("request-id"), "{json}");
    let text = |key: &str| json["error"][key].as_str().unwrap_or_else(|| panic!("{json}")).to_owned();
    (text("type"), text("message"))
}

#[tokio::test]
async fn an_answer_is_a_message() {
    let s = served().await;
    let headers = [("content-type", "application/json"), ("anthropic-version", "2023-06-01"), ("x-api-key", "none")];
    let extra = json!({ "temperature": 0.5, "top_k": 7, "top_p": 0.5, "metadata": { "user_id": "me" }, "seed": 3 });
    let answered = s.client.send("POST", PATH, &headers, body(extra).to_string().as_bytes()).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert!(answered.header("request-id").is_some() && answered.header("x-opengrid-worker").is_some());
    let mut json = answered.json();
    assert!(json["id"].take().as_str().unwrap().starts_with("msg_"));
    let job = s.grid.last_job();
    let expected = json!({
        "id": null, "type": "message", "role": "assistant", "model": "bytes",
        "content": [{ "type": "text", "text": "Hello, world!" }], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {
            "input_tokens": job.prompt.len() - 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3,
            "output_tokens": 13,
        },
    });
    assert_eq!(json, expected);
    assert_eq!((job.sampling.temperature, job.sampling.top_k, job.sampling.top_p), (0.5, 7, 0.5));
    assert_eq!((job.sampling.seed, job.completion_tokens_max), (3, Some(64)));
}

#[tokio::test]
async fn turns_become_the_same_prompt_as_messages_of_a_chat() {
    let s = served().await;
    let turns = json!([
        { "role": "user", "content": [{ "type": "text", "text": "one ", "cache_control": { "type": "ephemeral" } },
                                       { "type": "text", "text": "two" }] },
        { "role": "assistant", "content": [{ "type": "redacted_thinking", "data": "x" },
                                            { "type": "text", "text": "three" }] },
        { "role": "user", "content": "four" },
    ]);
    let system = json!([{ "type": "text", "text": "Be " }, { "type": "text", "text": "brief." }]);
    let answered = s.client.post(PATH, &body(json!({ "messages": turns, "system": system }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let prompt = s.grid.last_prompt();
    let chat = json!({ "model": "bytes", "messages": [
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "one two" },
        { "role": "assistant", "content": "three" },
        { "role": "user", "content": "four" },
    ]});
    s.client.post("/v1/chat/completions", &chat).await;
    assert_eq!(prompt, s.grid.last_prompt());
    let counted = json!({ "model": "bytes", "messages": turns, "system": system });
    let counted = s.client.post("/v1/messages/count_tokens", &counted).await;
    assert_eq!(counted.json(), json!({ "input_tokens": s.grid.last_job().prompt.len() }), "{}", counted.text());
}

#[tokio::test]
async fn events_come_in_anthropic_s_order() {
    let s = served().await;
    s.grid.set(|job| say(job, b"Hi!"));
    let answered = s.client.post(PATH, &body(json!({ "stream": true }))).await;
    assert!(answered.header("request-id").is_some());
    let mut events = answered.named_events();
    let message = &mut events[0].1["message"];
    assert!(message["id"].take().as_str().unwrap().starts_with("msg_"));
    let input = s.grid.last_job().prompt.len();
    let usage = |cached: usize, output: usize| {
        json!({
            "input_tokens": input - cached, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
            "output_tokens": output,
        })
    };
    let delta = |text: &str| json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } });
    let expected = [
        json!({ "type": "message_start", "message": {
            "id": null, "type": "message", "role": "assistant", "model": "bytes", "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": usage(0, 0),
        }}),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        delta("H"),
        delta("i"),
        delta("!"),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({
            "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": usage(3, 3),
        }),
        json!({ "type": "message_stop" }),
    ];
    let events: Vec<Value> = events.into_iter().map(|(_, data)| data).collect();
    assert_eq!(events, expected);
}

#[tokio::test]
async fn the_reason_to_stop_is_told() {
    let s = served().await;
    let reason = |json: &Value| (json["stop_reason"].as_str().unwrap().to_owned(), json["stop_sequence"].clone());
    let stops = json!({ "stop_sequences": ["never", "wor", "world"] });
    let stopped = s.client.post(PATH, &body(stops.clone())).await.json();
    assert_eq!(reason(&stopped), ("stop_sequence".into(), json!("wor")));
    assert_eq!(stopped["content"][0]["text"], "Hello, ");
    let mut streamed = stops;
    streamed["stream"] = true.into();
    let events = s.client.post(PATH, &body(streamed)).await.named_events();
    assert_eq!(reason(&events[events.len() - 2].1["delta"]), ("stop_sequence".into(), json!("wor")));

    let cut = s.client.post(PATH, &body(json!({ "max_tokens": 4 }))).await.json();
    assert_eq!((reason(&cut), &cut["content"][0]["text"]), (("max_tokens".into(), Value::Null), &json!("Hell")));
    s.grid.set(|job| say(job, &[b'x'; CONTEXT as usize]));
    let full = s.client.post(PATH, &body(json!({ "max_tokens": CONTEXT }))).await.json();
    assert_eq!(reason(&full), ("model_context_window_exceeded".into(), Value::Null));
    s.grid.set(|job| say(job, b""));
    let nothing = s.client.post(PATH, &body(json!({}))).await.json();
    assert_eq!((reason(&nothing).0.as_str(), &nothing["content"]), ("end_turn", &json!([])));
}

#[tokio::test]
async fn a_stalled_stream_is_pinged_and_a_failure_is_an_error_event() {
    let s = served_with(GatewayConfig { keep_alive_every: Duration::from_millis(50), ..config() }).await;
    s.grid.set(|job| {
        let mut acts = say(job, b"ab");
        acts.insert(1, Act::Wait(Duration::from_millis(300)));
        acts
    });
    let events = s.client.post(PATH, &body(json!({ "stream": true }))).await.named_events();
    let pings = events.iter().filter(|(name, _)| name == "ping").count();
    assert!((3..=7).contains(&pings), "{pings} pings in 300 ms at one each 50 ms");

    s.grid.set(|_| {
        let failed = GridError::NoWorker { model: "bytes".into(), retry_after_s: 5 };
        vec![Act::Send(AnswerEvent::Tokens(vec![token(65)])), Act::Send(AnswerEvent::Failed(failed))]
    });
    let answered = s.client.post(PATH, &body(json!({ "stream": true }))).await;
    let (name, data) = answered.named_events().pop().unwrap();
    assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &json!("overloaded_error")));
    assert_eq!(data["request_id"].as_str(), answered.header("request-id"));
    let whole = s.client.post(PATH, &body(json!({}))).await;
    assert_eq!((whole.status, error(&whole).0.as_str()), (503, "overloaded_error"));
    assert_eq!(whole.header("retry-after"), Some("5"));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_named() {
    let s = served().await;
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let turn = |role: &str, block: Value| {
        let ask = json!({ "role": "user", "content": "x" });
        json!({ "messages": [ask, { "role": role, "content": [block] }, ask] })
    };
    let cases = [
        (json!({ "max_tokens": null }), "max_tokens"),
        (json!({ "max_tokens": 0 }), "`max_tokens` must lie"),
        (json!({ "messages": null }), "messages"),
        (json!({ "messages": [] }), "messages"),
        (
            json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": "y" }] }),
            "messages",
        ),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "messages.0.role"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (user(json!([])), "messages.0.content"),
        (user(json!([{ "type": "image", "source": {} }])), "messages.0.content.0.type: blocks of type `image`"),
        (user(json!([{ "type": "text" }])), "messages.0.content.0.text"),
        (user(json!([{ "type": "tool_result", "content": "x" }])), "messages.0.content.0.tool_use_id"),
        (
            user(json!([{ "type": "tool_result", "tool_use_id": "a", "content": [{ "type": "image" }] }])),
            "messages.0.content.0.content.0.type",
        ),
        (turn("assistant", json!({ "type": "tool_use", "id": "a", "name": "f" })), "messages.1.content.0.input"),
        (
            turn("assistant", json!({ "type": "tool_use", "id": "a", "name": "f", "input": [] })),
            "messages.1.content.0.input",
        ),
        (turn("assistant", json!({ "type": "tool_result", "tool_use_id": "a" })), "messages.1.content.0.type"),
        (json!({ "system": [{ "type": "image" }] }), "system.0.type"),
        (json!({ "stop_sequences": ["a", "b", "c", "d", "e"] }), "`stop_sequences` has more than 4"),
        (json!({ "temperature": 2.5 }), "`temperature`"),
        (json!({ "tools": [{ "type": "web_search_20250305", "name": "web_search" }] }), "tools.0.type"),
        (json!({ "tools": [{ "name": "f" }] }), "tools.0.input_schema"),
        (json!({ "tools": [{ "name": "f", "input_schema": { "type": "array" } }] }), "`input_schema`"),
        (json!({ "tool_choice": { "type": "some" } }), "tool_choice.type"),
        (json!({ "tool_choice": { "type": "any" } }), "`tool_choice`"),
        (json!({ "thinking": { "type": "deep" } }), "thinking.type"),
        (json!({ "mcp_servers": [{ "url": "x" }] }), "mcp_servers"),
        (json!({ "output_config": { "format": { "type": "xml" } } }), "output_config.format.type"),
    ];
    for (extra, said) in cases {
        let answered = s.client.post(PATH, &body(extra.clone())).await;
        let (kind, message) = error(&answered);
        assert_eq!((answered.status, kind.as_str()), (400, "invalid_request_error"), "{extra}");
        assert!(message.contains(said), "{extra}: {message}");
    }
    assert!(s.grid.jobs.lock().is_empty(), "a refused request costs nobody anything");
}

#[tokio::test]
async fn every_refusal_under_the_path_has_anthropic_s_shape() {
    let s = served_with(GatewayConfig { body_bytes_max: 1_000, ..config() }).await;
    let json = [("content-type", "application/json")];
    let unknown = s.client.post(PATH, &body(json!({ "model": "nobody" }))).await;
    assert_eq!((unknown.status, error(&unknown).0.as_str()), (404, "not_found_error"));
    let nowhere = s.client.post("/v1/messages/batches", &json!({})).await;
    assert_eq!((nowhere.status, error(&nowhere).0.as_str()), (404, "not_found_error"));
    let method = s.client.get(PATH).await;
    assert_eq!((method.status, error(&method).0.as_str()), (405, "invalid_request_error"));
    let large = s.client.send("POST", PATH, &json, &[b' '; 2_000]).await;
    assert_eq!((large.status, error(&large).0.as_str()), (413, "request_too_large"));
    let no_json = s.client.send("POST", PATH, &json, b"{").await;
    assert_eq!((no_json.status, error(&no_json).0.as_str()), (400, "invalid_request_error"));
    let foreign = s.client.send("POST", PATH, &[json[0], ("origin", "http://evil.example")], b"{}").await;
    assert_eq!((foreign.status, error(&foreign).0.as_str()), (403, "permission_error"));
    let chat = s.client.get("/v1/messagesx").await;
    assert_eq!(chat.error().0, "not_found", "other paths keep OpenAI's shape");
}

const CALLS: &[u8] = b"I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";

fn with_tools(extra: Value) -> Value {
    let schema = json!({ "type": "object", "properties": { "at": { "type": "string" } }, "required": ["at"] });
    let mut body = body(extra);
    body["tools"] = json!([{ "name": "look", "description": "Looks.", "input_schema": schema }]);
    body
}

#[tokio::test]
async fn calls_are_blocks_and_their_results_go_on_with_the_conversation() {
    let s = served().await;
    s.grid.set(|job| say(job, CALLS));
    let choice = json!({ "type": "any", "disable_parallel_tool_use": true });
    let answered = s.client.post(PATH, &with_tools(json!({ "tool_choice": choice, "max_tokens": 500 }))).await;
    let json = answered.json();
    assert!(s.grid.last_job().grammar.is_some(), "a call that must come is enforced");
    let call = &json["content"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("look"), &json!({ "at": "sky" })),
        "{json}"
    );
    assert_eq!(json["stop_reason"], "tool_use");

    let result =
        json!({ "type": "tool_result", "tool_use_id": call["id"], "content": [{ "type": "text", "text": "blue" }] });
    let messages = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": json["content"] },
        { "role": "user", "content": [result, { "type": "text", "text": "so?" }] },
    ]);
    let answered = s.client.post(PATH, &with_tools(json!({ "messages": messages }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let prompt = s.grid.last_prompt();
    let function = json!({ "name": "look", "description": "Looks.", "parameters": with_tools(json!({}))["tools"][0]["input_schema"] });
    let called = json!({ "id": call["id"], "type": "function",
                         "function": { "name": "look", "arguments": "{\"at\":\"sky\"}" } });
    let chat = json!({ "model": "bytes", "tools": [{ "type": "function", "function": function }], "messages": [
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": json["content"][0]["text"], "tool_calls": [called] },
        { "role": "tool", "tool_call_id": call["id"], "content": "blue" },
        { "role": "user", "content": "so?" },
    ]});
    s.client.post("/v1/chat/completions", &chat).await;
    assert_eq!(prompt, s.grid.last_prompt());
}

#[tokio::test]
async fn calls_stream_their_input() {
    let s = served().await;
    s.grid.set(|job| say(job, CALLS));
    let events = s.client.post(PATH, &with_tools(json!({ "stream": true, "max_tokens": 500 }))).await.named_events();
    let start = events.iter().find(|(_, data)| data["content_block"]["type"] == "tool_use").unwrap();
    assert_eq!((&start.1["content_block"]["name"], &start.1["content_block"]["input"]), (&json!("look"), &json!({})));
    let input: String = events.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str()).collect();
    assert_eq!(input, "{\"at\": \"sky\"}");
    assert_eq!(events[events.len() - 2].1["delta"]["stop_reason"], "tool_use");
}

#[tokio::test]
async fn an_output_format_is_enforced() {
    let s = served().await;
    s.grid.set(|job| say(job, b"{\"a\":1}"));
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"], "additionalProperties": false });
    let config = json!({ "format": { "type": "json_schema", "schema": schema }, "effort": "low" });
    let answered = s.client.post(PATH, &body(json!({ "output_config": config }))).await;
    assert_eq!(answered.json()["content"][0]["text"], "{\"a\":1}");
    assert!(s.grid.last_job().grammar.is_some_and(|grammar| grammar.contains("integer")));
}
