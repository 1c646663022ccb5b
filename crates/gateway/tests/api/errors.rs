//! Every refusal: status, code and the field at fault.

use opengrid_gateway::GatewayConfig;
use serde_json::{Value, json};

use crate::{
    client::head,
    fake::{Act, CONTEXT, config, served, served_with},
};

const CHAT: &str = "/v1/chat/completions";

fn with(extra: Value) -> Value {
    let mut body = json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn bad_fields_are_named() {
    let s = served().await;
    let cases = [
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": -1 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": 131_073 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": i64::MAX }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": 1e30 }), "invalid_type", "max_tokens"),
        (json!({ "max_tokens": 1.5 }), "invalid_type", "max_tokens"),
        (json!({ "max_tokens": "many" }), "invalid_type", "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), "invalid_value", "max_completion_tokens"),
        (json!({ "messages": "hi" }), "invalid_type", "messages"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": null }), "missing_required_parameter", "messages"),
        (json!({ "messages": [{ "content": "x" }] }), "missing_required_parameter", "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), "invalid_value", "messages[0].content"),
        (json!({ "messages": [{ "role": "user", "content": 3 }] }), "invalid_type", "messages[0].content"),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "invalid_value", "messages[0].role"),
        (
            json!({ "messages": [{ "role": "tool", "content": "x" }] }),
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (json!({ "messages": [{ "role": "function", "content": "x" }] }), "unsupported_value", "messages[0].role"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
            "invalid_value",
            "messages[0].content[0].text",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": 1 }] }] }),
            "invalid_type",
            "messages[0].content[0].text",
        ),
        (json!({ "model": 1 }), "invalid_type", "model"),
        (json!({ "stream": "yes" }), "invalid_type", "stream"),
        (json!({ "temperature": 2.5 }), "invalid_value", "temperature"),
        (json!({ "temperature": -0.1 }), "invalid_value", "temperature"),
        (json!({ "temperature": "hot" }), "invalid_type", "temperature"),
        (json!({ "top_p": 1.1 }), "invalid_value", "top_p"),
        (json!({ "top_k": -2 }), "invalid_value", "top_k"),
        (json!({ "min_p": 2 }), "invalid_value", "min_p"),
        (json!({ "presence_penalty": 3 }), "invalid_value", "presence_penalty"),
        (json!({ "frequency_penalty": -3 }), "invalid_value", "frequency_penalty"),
        (json!({ "repeat_penalty": 0 }), "invalid_value", "repeat_penalty"),
        (json!({ "repeat_last_n": 65_537 }), "invalid_value", "repeat_last_n"),
        (json!({ "seed": 1.5 }), "invalid_value", "seed"),
        (json!({ "seed": "x" }), "invalid_type", "seed"),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "n": 65 }), "invalid_value", "n"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "invalid_value", "stop"),
        (json!({ "stop": ["x".repeat(5_000)] }), "invalid_value", "stop"),
        (json!({ "stop": 1 }), "invalid_type", "stop"),
        (json!({ "stop": [1] }), "invalid_type", "stop[0]"),
        (json!({ "logit_bias": { "261": 1 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "invalid_value", "logit_bias"),
        (json!({ "logit_bias": { "x": 1 } }), "invalid_type", "logit_bias"),
        (json!({ "logprobs": 1 }), "invalid_value", "logprobs"),
        (json!({ "top_logprobs": 1 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "prompt_cache_key": "x".repeat(600) }), "invalid_value", "prompt_cache_key"),
        (json!({ "tools": [{ "type": "function" }] }), "invalid_value", "tools[0].function"),
        (json!({ "tools": [{ "type": "retrieval" }] }), "unsupported_value", "tools[0].type"),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "tool_choice": { "type": "function" } }), "invalid_value", "tool_choice"),
        (json!({ "functions": [{}] }), "unsupported_value", "functions"),
        (json!({ "response_format": { "type": "json_schema" } }), "invalid_value", "response_format.json_schema"),
        (json!({ "response_format": { "type": "xml" } }), "unsupported_value", "response_format.type"),
        (json!({ "service_tier": "express" }), "invalid_value", "service_tier"),
        (json!({ "modalities": ["text", "audio"] }), "unsupported_value", "modalities"),
        (json!({ "audio": { "voice": "x" } }), "unsupported_value", "audio"),
    ];
    for (extra, code, param) in cases {
        let answered = s.client.post(CHAT, &with(extra.clone())).await;
        assert_eq!(answered.status, 400, "{extra}: {}", answered.text());
        let (found, at) = answered.error();
        let at = at.unwrap_or_default();
        let named = at == param || (code == "invalid_type" && at.starts_with(param));
        assert!(found == code && named, "{extra}: {}", answered.text());
        assert!(answered.header("x-request-id").is_some());
    }
    assert!(s.grid.jobs.lock().is_empty(), "a refused request costs nobody anything");
}

#[tokio::test]
async fn harmless_values_of_unsupported_fields_pass() {
    let s = served().await;
    let extra = json!({
        "tools": [], "tool_choice": "auto", "response_format": { "type": "text" }, "modalities": ["text"],
        "audio": null, "functions": null, "stop": null, "logit_bias": {}, "n": null, "temperature": 0,
        "service_tier": "default", "metadata": {}, "store": false, "parallel_tool_calls": true, "stop ": 1,
        "max_tokens": null, "logprobs": false, "top_p": 1, "stream_options": null,
    });
    let answered = s.client.post(CHAT, &with(extra)).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
}

#[tokio::test]
async fn what_is_no_json_object_is_refused() {
    let s = served().await;
    let json = [("content-type", "application/json")];
    for (body, code) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("{\"model\":\"bytes\"} x", "invalid_json"),
        ("[]", "invalid_type"),
        ("null", "invalid_type"),
        ("\"x\"", "invalid_type"),
        ("12", "invalid_type"),
        ("{}", "missing_required_parameter"),
        ("{\"model\":\"bytes\",\"model\":\"bytes\"}", "invalid_type"),
        ("\u{feff}{}", "invalid_json"),
        ("{\"temperature\":1e999,\"model\":\"bytes\"}", "invalid_json"),
        (&"{\"metadata\":".repeat(300), "invalid_json"),
    ] {
        let answered = s.client.send("POST", CHAT, &json, body.as_bytes()).await;
        assert_eq!(answered.status, 400, "{body}");
        assert_eq!(answered.error().0, code, "{body}: {}", answered.text());
    }
    let not_utf8 = s.client.send("POST", CHAT, &json, b"{\"model\":\"\xff\"}").await;
    assert_eq!(not_utf8.status, 400);
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let body = with(json!({})).to_string();
        let answered = s.client.send("POST", CHAT, &[("content-type", content_type)], body.as_bytes()).await;
        assert_eq!((answered.status, answered.error().0.as_str()), (415, "unsupported_media_type"), "{content_type}");
    }
    let encoded = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let answered = s.client.send("POST", CHAT, &encoded, b"{}").await;
    assert_eq!((answered.status, answered.error().0.as_str()), (415, "unsupported_media_type"));
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    let answered = s.client.send("POST", CHAT, &charset, with(json!({})).to_string().as_bytes()).await;
    assert_eq!(answered.status, 200);
}

#[tokio::test]
async fn unknown_models_are_404_and_unserved_ones_503() {
    let s = served().await;
    for body in [with(json!({ "model": "nope" })), with(json!({ "model": "" }))] {
        let answered = s.client.post(CHAT, &body).await;
        assert_eq!(answered.status, 404);
        assert_eq!(answered.error(), ("model_not_found".into(), Some("model".into())));
    }
    let answered = s.client.post(CHAT, &with(json!({ "model": "idle" }))).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (503, "no_capacity"));
    assert_eq!(answered.header("retry-after"), Some("5"));
    let huge = s.client.post(CHAT, &with(json!({ "model": "x".repeat(1_000_000) }))).await;
    assert_eq!(huge.status, 404);
    assert!(huge.body.len() < 1_000, "the answer does not repeat a megabyte");
}

#[tokio::test]
async fn context_overflow_names_both_numbers() {
    let s = served().await;
    let long = "x".repeat(CONTEXT as usize);
    let answered = s.client.post(CHAT, &with(json!({ "messages": [{ "role": "user", "content": long }] }))).await;
    assert_eq!(answered.error(), ("context_length_exceeded".into(), Some("messages".into())));
    let (prompt, limit) = (CONTEXT as usize + "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n".len(), CONTEXT);
    let message = answered.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&limit.to_string()) && message.contains(&prompt.to_string()), "{message}");

    let body = json!({ "model": "bytes", "prompt": "x".repeat(500), "max_tokens": 1_500 });
    let answered = s.client.post("/v1/completions", &body).await;
    assert_eq!(answered.error(), ("context_length_exceeded".into(), Some("prompt".into())));
    let message = answered.json()["error"]["message"].as_str().unwrap().to_owned();
    for number in ["2000", "2001", "501", "1500"] {
        assert!(message.contains(number), "{number}: {message}");
    }
    let fits = json!({ "model": "bytes", "prompt": "x".repeat(499), "max_tokens": 1_500 });
    assert_eq!(s.client.post("/v1/completions", &fits).await.status, 200);
}

#[tokio::test]
async fn paths_methods_and_sizes_are_refused_in_the_same_shape() {
    let s = served().await;
    for path in ["/nope", "/v1/nope", "/v1", "/grid/v1/nope", "/v1/models/%ff", "/../../etc/passwd", "/v1/models/nope"]
    {
        let answered = s.client.get(path).await;
        assert_eq!(answered.status, 404, "{path}");
        answered.error();
    }
    for (method, path) in [("GET", CHAT), ("DELETE", "/v1/models"), ("PUT", "/health"), ("GET", "/grid/v1/join")] {
        let answered = s.client.send(method, path, &[], b"").await;
        assert_eq!((answered.status, answered.error().0.as_str()), (405, "method_not_allowed"), "{method} {path}");
        assert!(answered.header("allow").is_some());
    }
    let json = [("content-type", "application/json")];
    let large = vec![b' '; 8 * 1024 * 1024 + 1];
    let answered = s.client.send("POST", CHAT, &json, &large).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (413, "request_too_large"));
    // Of a length that is not announced.
    let host = s.client.address.to_string();
    let mut request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n",
        large.len()
    )
    .into_bytes();
    request.extend_from_slice(&large);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    let answered = s.client.raw(&request).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (413, "request_too_large"));
    // One that waits to be asked for its body.
    let headers = [json[0], ("expect", "100-continue")];
    let answered = s.client.raw(head("POST", CHAT, &host, &headers, large.len()).as_bytes()).await;
    assert_eq!(answered.status, 413);
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_back() {
    let s = served_with(GatewayConfig { requests_max: 1, ..config() }).await;
    s.grid.set(|_| vec![Act::Hang]);
    let first = s.client.open(CHAT, &with(json!({}))).await;
    while s.grid.jobs.lock().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let answered = s.client.post(CHAT, &with(json!({}))).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (503, "overloaded"));
    assert_eq!(answered.header("retry-after"), Some("1"));
    drop(first);
    s.grid.wait_cancelled(1).await;
    s.grid.set(|job| crate::fake::say(job, b"ok"));
    assert_eq!(s.client.post(CHAT, &with(json!({}))).await.status, 200);
}
