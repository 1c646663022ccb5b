//! `/v1/responses`: objects, events in their order, and what a gateway without a store refuses.

use std::time::Duration;

use opengrid_gateway::GatewayConfig;
use opengrid_node::handle::{AnswerEvent, GridError};
use serde_json::{Value, json};

use crate::{
    client::Answered,
    fake::{Act, CONTEXT, config, say, served, served_with, token},
};

const PATH: &str = "/v1/responses";

fn body(extra: Value) -> Value {
    let mut body = json!({ "model": "bytes", "input": "hi" });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn an_answer_is_a_response_object() {
    let s = served().await;
    let extra = json!({
        "instructions": "Be brief.", "store": true, "metadata": { "a": "b" }, "user": "me", "temperature": 0.5,
        "top_p": 0.9, "max_output_tokens": 50, "prompt_cache_key": "key", "truncation": "auto", "seed": 3,
        "service_tier": "flex", "safety_identifier": "x", "reasoning": { "effort": "low" }, "unknown": [1],
    });
    let answered = s.client.post(PATH, &body(extra)).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert!(answered.header("x-opengrid-worker").is_some() && answered.header("x-opengrid-session").is_some());
    let mut json = answered.json();
    let object = json.as_object_mut().unwrap();
    assert!(object.remove("id").unwrap().as_str().unwrap().starts_with("resp_"));
    assert!(object.remove("created_at").unwrap().as_u64().unwrap() > 1_700_000_000);
    let message_id = object["output"][0]["id"].take();
    assert!(message_id.as_str().unwrap().starts_with("msg_"));
    let prompt = s.grid.last_job().prompt.len();
    let part = json!({ "type": "output_text", "text": "Hello, world!", "annotations": [], "logprobs": [] });
    let expected = json!({
        "object": "response", "status": "completed", "background": false, "error": null, "incomplete_details": null,
        "model": "bytes", "service_tier": "flex", "store": false, "truncation": "disabled",
        "previous_response_id": null, "max_tool_calls": null, "reasoning": { "effort": null, "summary": null },
        "output": [{ "type": "message", "id": null, "status": "completed", "role": "assistant", "content": [part] }],
        "usage": {
            "input_tokens": prompt, "input_tokens_details": { "cached_tokens": 3, "cache_write_tokens": 0 },
            "output_tokens": 13, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": prompt + 13,
        },
        "instructions": "Be brief.", "metadata": { "a": "b" }, "tools": [], "tool_choice": "auto",
        "parallel_tool_calls": true, "text": { "format": { "type": "text" }, "verbosity": "medium" },
        "max_output_tokens": 50, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 0, "prompt_cache_key": "key",
        "safety_identifier": "x", "user": "me",
    });
    assert_eq!(json, expected);
    let job = s.grid.last_job();
    assert_eq!((job.sampling.seed, job.sampling.temperature, job.sampling.top_p), (3, 0.5, 0.9));
    assert_eq!((job.completion_tokens_max, job.affinity.as_deref()), (Some(50), Some("key")));
}

#[tokio::test]
async fn items_become_the_same_prompt_as_messages_of_a_chat() {
    let s = served().await;
    let input = json!([
        { "role": "developer", "content": "Be brief." },
        { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "one " },
                                                          { "type": "input_text", "text": "two" }] },
        { "type": "reasoning", "id": "rs_1", "summary": [] },
        { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
          "content": [{ "type": "output_text", "text": "three", "annotations": [], "logprobs": [] }] },
        { "role": "user", "content": "four" },
    ]);
    let answered = s.client.post(PATH, &body(json!({ "input": input, "instructions": "First." }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let prompt = s.grid.last_prompt();
    let chat = json!({ "model": "bytes", "messages": [
        { "role": "system", "content": "First." },
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": "one two" },
        { "role": "assistant", "content": "three" },
        { "role": "user", "content": "four" },
    ]});
    s.client.post("/v1/chat/completions", &chat).await;
    assert_eq!(prompt, s.grid.last_prompt());
    let counted = s.client.post("/v1/responses/input_tokens", &body(json!({}))).await.json();
    s.client.post(PATH, &body(json!({}))).await;
    assert_eq!(counted, json!({ "object": "response.input_tokens", "input_tokens": s.grid.last_job().prompt.len() }));
}

#[tokio::test]
async fn events_come_in_openai_s_order_and_add_up_to_the_object() {
    let s = served().await;
    s.grid.set(|job| say(job, b"Hi!"));
    let answered = s.client.post(PATH, &body(json!({ "stream": true, "max_output_tokens": 9 }))).await;
    let events = answered.named_events();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names(&events), expected);
    for (at, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], at);
    }
    assert_eq!(events[0].1["response"]["status"], "in_progress");
    assert_eq!((&events[0].1["response"]["output"], &events[0].1["response"]["usage"]), (&json!([]), &Value::Null));
    let item = &events[2].1["item"];
    assert_eq!((&item["status"], &item["content"]), (&json!("in_progress"), &json!([])));
    assert_eq!(events[3].1["part"]["text"], "");
    for (_, data) in &events[4..8] {
        assert_eq!(
            (&data["item_id"], &data["output_index"], &data["content_index"]),
            (&item["id"], &json!(0), &json!(0))
        );
        assert_eq!(data["logprobs"], json!([]));
    }
    let text: String = events[4..7].iter().map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), &events[7].1["text"]), ("Hi!", &json!("Hi!")));
    let response = &events[10].1["response"];
    assert_eq!(response["output"], json!([events[9].1["item"]]));
    assert_eq!(response["output"][0]["content"][0], events[8].1["part"]);
    assert_eq!((&response["status"], &response["usage"]["output_tokens"]), (&json!("completed"), &json!(3)));
    assert!(
        events.iter().all(|(_, data)| data["response"]["id"].is_null() || data["response"]["id"] == response["id"])
    );
}

#[tokio::test]
async fn an_answer_at_its_maximum_is_incomplete() {
    let s = served().await;
    let cut = json!({ "max_output_tokens": 4 });
    let json = s.client.post(PATH, &body(cut)).await.json();
    assert_eq!(
        (&json["status"], &json["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(
        (&json["output"][0]["status"], &json["output"][0]["content"][0]["text"]),
        (&json!("incomplete"), &json!("Hell"))
    );
    let events = s.client.post(PATH, &body(json!({ "max_output_tokens": 4, "stream": true }))).await.named_events();
    assert_eq!(events.last().unwrap().0, "response.incomplete");
    assert_eq!(events.last().unwrap().1["response"]["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn a_maximum_beyond_the_context_is_an_upper_bound_only() {
    let s = served().await;
    let answered = s.client.post(PATH, &body(json!({ "max_output_tokens": CONTEXT }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert_eq!(answered.json()["max_output_tokens"], CONTEXT);
    let job = s.grid.last_job();
    assert_eq!(job.completion_tokens_max, Some(CONTEXT - job.prompt.len() as u32));
    let long = "x".repeat(CONTEXT as usize);
    let refused = s.client.post(PATH, &body(json!({ "input": long }))).await;
    assert_eq!(refused.error(), ("context_length_exceeded".into(), Some("input".into())));
    assert!(refused.text().contains("your input resulted in"), "{}", refused.text());
}

#[tokio::test]
async fn an_empty_answer_has_an_empty_message() {
    let s = served().await;
    s.grid.set(|job| say(job, b""));
    let json = s.client.post(PATH, &body(json!({}))).await.json();
    assert_eq!(json["output"][0]["content"][0]["text"], "");
    let events = s.client.post(PATH, &body(json!({ "stream": true }))).await.named_events();
    assert_eq!(
        names(&events)[2..5],
        ["response.output_item.added", "response.content_part.added", "response.output_text.done"]
    );
}

#[tokio::test]
async fn logprobs_come_when_they_are_included() {
    let s = served().await;
    s.grid.set(|job| say(job, "é!".as_bytes()));
    let with = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 2 });
    let json = s.client.post(PATH, &body(with.clone())).await.json();
    let logprobs = json["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), json["top_logprobs"].as_u64()), (3, Some(2)));
    assert_eq!((&logprobs[0]["bytes"], logprobs[0]["top_logprobs"].as_array().unwrap().len()), (&json!([0xc3]), 2));
    let mut streamed = with;
    streamed["stream"] = true.into();
    let events = s.client.post(PATH, &body(streamed)).await.named_events();
    let of = |name: &'static str| {
        events.iter().filter(move |(n, _)| n == name).flat_map(|(_, d)| d["logprobs"].as_array().unwrap())
    };
    assert_eq!(of("response.output_text.delta").count(), 3, "each token exactly once");
    assert!(of("response.output_text.done").eq(logprobs));

    s.client.post(PATH, &body(json!({ "top_logprobs": 2, "include": ["reasoning.encrypted_content"] }))).await;
    assert_eq!(s.grid.last_job().top_logprobs, None, "nobody asked to see them");
}

#[tokio::test]
async fn a_failure_in_the_middle_fails_the_response() {
    let s = served().await;
    s.grid.set(|_| {
        let failed = GridError::NoWorker { model: "bytes".into(), retry_after_s: 5 };
        vec![Act::Send(AnswerEvent::Tokens(vec![token(65)])), Act::Send(AnswerEvent::Failed(failed))]
    });
    let events = s.client.post(PATH, &body(json!({ "stream": true }))).await.named_events();
    let [.., (_, error), (last, failed)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (&json!("error"), &json!("no_capacity"), &json!("model"))
    );
    assert_eq!((last.as_str(), &failed["response"]["status"]), ("response.failed", &json!("failed")));
    assert_eq!(failed["response"]["error"]["code"], "server_error");
    assert_eq!(failed["response"]["output"][0]["status"], "incomplete");
    let whole = s.client.post(PATH, &body(json!({}))).await;
    assert_eq!((whole.status, whole.error().0.as_str()), (503, "no_capacity"));
}

#[tokio::test]
async fn a_stalled_stream_is_kept_alive_and_a_hang_up_cancels() {
    let s = served_with(GatewayConfig { keep_alive_every: Duration::from_millis(50), ..config() }).await;
    s.grid.set(|job| {
        let mut acts = say(job, b"ab");
        acts.insert(1, Act::Wait(Duration::from_millis(300)));
        acts
    });
    let answered: Answered = s.client.post(PATH, &body(json!({ "stream": true }))).await;
    let comments = answered.text().matches(": keep-alive\n\n").count();
    assert!((3..=7).contains(&comments), "{comments} comments in 300 ms at one each 50 ms");
    assert_eq!(answered.named_events().last().unwrap().0, "response.completed");

    s.grid.set(|_| vec![Act::Send(AnswerEvent::Tokens(vec![token(65)])), Act::Hang]);
    let mut stream = s.client.open(PATH, &body(json!({ "stream": true }))).await;
    crate::client::read_until(&mut stream, "response.output_text.delta").await;
    drop(stream);
    s.grid.wait_cancelled(1).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_field() {
    let s = served().await;
    let cases = [
        (json!({ "previous_response_id": "resp_1" }), "unsupported_value", "previous_response_id"),
        (json!({ "conversation": { "id": "conv_1" } }), "unsupported_value", "conversation"),
        (json!({ "prompt": { "id": "pmpt_1" } }), "unsupported_value", "prompt"),
        (json!({ "background": true }), "unsupported_value", "background"),
        (json!({ "truncation": "some" }), "invalid_value", "truncation"),
        (json!({ "input": null }), "missing_required_parameter", "input"),
        (json!({ "input": 1 }), "invalid_type", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (json!({ "input": [{ "content": "x" }] }), "missing_required_parameter", "input[0].role"),
        (json!({ "input": [{ "role": "user" }] }), "missing_required_parameter", "input[0].content"),
        (json!({ "input": [{ "role": "king", "content": "x" }] }), "invalid_value", "input[0].role"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "unsupported_value", "input[0].type"),
        (json!({ "input": [{ "type": "computer_call" }] }), "unsupported_value", "input[0].type"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }] }),
            "unsupported_value",
            "input[0].content[0].type",
        ),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_text" }] }] }),
            "missing_required_parameter",
            "input[0].content[0].text",
        ),
        (
            json!({ "input": [{ "type": "function_call", "name": "f", "arguments": "{}" }] }),
            "missing_required_parameter",
            "input[0].call_id",
        ),
        (
            json!({ "input": [{ "type": "function_call_output", "output": "x" }] }),
            "missing_required_parameter",
            "input[0].call_id",
        ),
        (json!({ "tools": [{ "type": "web_search" }] }), "unsupported_value", "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "missing_required_parameter", "tools[0].name"),
        (json!({ "tools": [{ "type": "function", "name": "a b" }] }), "invalid_value", "tools[0].name"),
        (json!({ "tool_choice": { "type": "mcp" } }), "unsupported_value", "tool_choice"),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "text": { "format": { "type": "xml" } } }), "unsupported_value", "text.format.type"),
        (
            json!({ "text": { "format": { "type": "json_schema" } } }),
            "missing_required_parameter",
            "text.format.schema",
        ),
        (json!({ "max_output_tokens": 0 }), "invalid_value", "max_output_tokens"),
        (json!({ "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "include": ["everything"] }), "invalid_value", "include[0]"),
        (json!({ "temperature": 3 }), "invalid_value", "temperature"),
        (json!({ "service_tier": "gold" }), "invalid_value", "service_tier"),
        (json!({ "metadata": { "a": 1 } }), "invalid_value", "metadata"),
        (json!({ "metadata": { "a": "x".repeat(513) } }), "invalid_value", "metadata"),
        (json!({ "user": "x".repeat(600) }), "invalid_value", "user"),
        (json!({ "model": "nobody" }), "model_not_found", "model"),
    ];
    for (extra, code, param) in cases {
        let answered = s.client.post(PATH, &body(extra.clone())).await;
        let (found, at) = answered.error();
        assert_eq!((found.as_str(), at.as_deref()), (code, Some(param)), "{extra}: {}", answered.text());
        assert!(matches!(answered.status, 400 | 404), "{extra}");
    }
    assert!(s.grid.jobs.lock().is_empty(), "a refused request costs nobody anything");
}

#[tokio::test]
async fn nothing_is_stored() {
    let s = served().await;
    for (method, path) in [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("GET", "/v1/responses/resp_1/input_items"),
    ] {
        let answered = s.client.send(method, path, &[], b"").await;
        assert_eq!((answered.status, answered.error().0.as_str()), (404, "not_found"), "{method} {path}");
        assert!(answered.text().contains("stores none"), "{}", answered.text());
    }
}

const CALLS: &[u8] = b"I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"sky\"}}\n</tool_call>";

fn with_tools(extra: Value) -> Value {
    let parameters = json!({ "type": "object", "properties": { "at": { "type": "string" } }, "required": ["at"] });
    let tool = json!({ "type": "function", "name": "look", "description": "Looks.", "parameters": parameters });
    let mut body = body(extra);
    body["tools"] = json!([tool]);
    body
}

#[tokio::test]
async fn calls_are_items_and_their_results_go_on_with_the_conversation() {
    let s = served().await;
    s.grid.set(|job| say(job, CALLS));
    let json = s.client.post(PATH, &with_tools(json!({ "tool_choice": "auto" }))).await.json();
    let items = json["output"].as_array().unwrap();
    assert_eq!(
        (items.len(), &items[0]["type"], &items[1]["type"]),
        (2, &json!("message"), &json!("function_call")),
        "{json}"
    );
    assert_eq!((&items[1]["name"], &items[1]["arguments"]), (&json!("look"), &json!("{\"at\": \"sky\"}")));
    assert_eq!((&items[1]["status"], &json["status"]), (&json!("completed"), &json!("completed")));
    assert_eq!((&json["tools"][0]["name"], &json["tool_choice"]), (&json!("look"), &json!("auto")));

    let result = json!({ "type": "function_call_output", "call_id": items[1]["call_id"], "output": "blue" });
    let input = json!([{ "role": "user", "content": "hi" }, items[0], items[1], result]);
    let answered = s.client.post(PATH, &with_tools(json!({ "input": input }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let prompt = s.grid.last_prompt();
    let call = json!({ "id": items[1]["call_id"], "type": "function",
                       "function": { "name": "look", "arguments": items[1]["arguments"] } });
    let function = json!({ "name": "look", "description": "Looks.", "parameters": json["tools"][0]["parameters"] });
    let chat = json!({ "model": "bytes", "tools": [{ "type": "function", "function": function }], "messages": [
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": items[0]["content"][0]["text"], "tool_calls": [call] },
        { "role": "tool", "tool_call_id": items[1]["call_id"], "content": "blue" },
    ]});
    s.client.post("/v1/chat/completions", &chat).await;
    assert_eq!(prompt, s.grid.last_prompt());
}

#[tokio::test]
async fn calls_stream_their_arguments() {
    let s = served().await;
    s.grid.set(|job| say(job, CALLS));
    let extra = json!({ "stream": true, "tool_choice": { "type": "function", "name": "look" } });
    let events = s.client.post(PATH, &with_tools(extra)).await.named_events();
    assert!(s.grid.last_job().grammar.is_some(), "a call that must come is enforced");
    let of = |name: &str| events.iter().filter(|(n, _)| n == name).map(|(_, data)| data.clone()).collect::<Vec<_>>();
    let deltas: String =
        of("response.function_call_arguments.delta").iter().map(|d| d["delta"].as_str().unwrap().to_owned()).collect();
    let done = &of("response.function_call_arguments.done")[0];
    assert_eq!((&done["arguments"], deltas.as_str()), (&json!("{\"at\": \"sky\"}"), "{\"at\": \"sky\"}"));
    let added = of("response.output_item.added");
    let call = added.iter().find(|event| event["item"]["type"] == "function_call").unwrap();
    assert_eq!((&call["item"]["arguments"], &call["item"]["id"]), (&json!(""), &done["item_id"]));
}

#[tokio::test]
async fn a_schema_is_enforced() {
    let s = served().await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "thing", "schema": schema, "strict": true });
    s.grid.set(|job| say(job, b"{\"a\":1}"));
    let answered = s.client.post(PATH, &body(json!({ "text": { "format": format } }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert!(s.grid.last_job().grammar.is_some_and(|grammar| grammar.contains("integer")));
    assert_eq!(answered.json()["text"]["format"], format);
    let broken = json!({ "type": "json_schema", "name": "x", "schema": { "type": "sphere" }, "strict": true });
    let refused = s.client.post(PATH, &body(json!({ "text": { "format": broken } }))).await;
    assert_eq!(refused.error(), ("invalid_value".into(), Some("text.format.schema".into())), "{}", refused.text());
}
