use serde_json::{Value, json};

use super::*;

fn output(streams: bool, thinks: bool) -> Output {
    let shape =
        Shape { id: "msg_1".into(), model: "m".into(), max_tokens: 7, thinks, streams, request_id: "req_1".into() };
    Output::new(shape, shapes::Usage::new(5, 0, 0))
}

fn parts() -> Vec<Part> {
    let call = |head: Option<&str>, arguments: &str| {
        let head = head.map(|name| CallHead { id: format!("call_{name}"), name: name.into() });
        Part::Call(CallDelta { index: 0, head, arguments: arguments.into() })
    };
    vec![
        Part::Reasoning("hmm".into()),
        Part::Text("I look.".into()),
        call(Some("f"), ""),
        call(None, "{\"a\":"),
        call(None, "1}"),
        call(Some("g"), "{}"),
    ]
}

fn run(output: &mut Output, parts: Vec<Part>, reason: &'static str) -> Vec<Value> {
    let mut out = Vec::new();
    output.start(&mut out);
    for part in parts {
        output.push(part, &mut out);
    }
    output.finish(&End { reason, stop_sequence: None }, shapes::Usage::new(5, 7, 2), &mut out);
    let frames = std::str::from_utf8(&out).unwrap().split_terminator("\n\n");
    frames.map(|frame| serde_json::from_str(frame.split_once("data: ").unwrap().1).unwrap()).collect()
}

#[test]
fn thoughts_text_and_calls_are_blocks_of_their_own() {
    let events = run(&mut output(true, true), parts(), "tool_calls");
    let shown: Vec<(&str, &Value)> =
        events.iter().map(|event| (event["type"].as_str().unwrap(), &event["index"])).collect();
    let (zero, one, two, three) = (json!(0), json!(1), json!(2), json!(3));
    let expected = [
        ("message_start", &Value::Null),
        ("content_block_start", &zero),
        ("content_block_delta", &zero),
        ("content_block_stop", &zero),
        ("content_block_start", &one),
        ("content_block_delta", &one),
        ("content_block_stop", &one),
        ("content_block_start", &two),
        ("content_block_delta", &two),
        ("content_block_delta", &two),
        ("content_block_stop", &two),
        ("content_block_start", &three),
        ("content_block_delta", &three),
        ("content_block_stop", &three),
        ("message_delta", &Value::Null),
        ("message_stop", &Value::Null),
    ];
    assert_eq!(shown, expected);
    assert_eq!(events[2]["delta"], json!({ "type": "thinking_delta", "thinking": "hmm" }));
    let start = json!({ "type": "tool_use", "id": "call_f", "name": "f", "input": {} });
    assert_eq!(events[7]["content_block"], start);
    assert_eq!(events[8]["delta"], json!({ "type": "input_json_delta", "partial_json": "{\"a\":" }));
    assert_eq!(events[14]["delta"]["stop_reason"], "tool_use");
}

#[test]
fn the_whole_message_has_the_same_blocks() {
    let mut whole = output(false, true);
    assert!(run(&mut whole, parts(), "tool_calls").is_empty());
    let expected = json!([
        { "type": "thinking", "thinking": "hmm", "signature": "" },
        { "type": "text", "text": "I look." },
        { "type": "tool_use", "id": "call_f", "name": "f", "input": { "a": 1 } },
        { "type": "tool_use", "id": "call_g", "name": "g", "input": {} },
    ]);
    assert_eq!(serde_json::to_value(whole.message()).unwrap()["content"], expected);
}

#[test]
fn thoughts_are_shown_to_those_who_asked_for_them() {
    let mut whole = output(false, false);
    run(&mut whole, parts(), "tool_calls");
    assert_eq!(serde_json::to_value(whole.message()).unwrap()["content"][0]["type"], "text");
}

#[test]
fn a_call_that_was_cut_has_no_arguments() {
    let mut whole = output(false, false);
    run(&mut whole, parts()[2..4].to_vec(), "length");
    let message = serde_json::to_value(whole.message()).unwrap();
    assert_eq!((&message["content"][0]["input"], &message["stop_reason"]), (&json!({}), &json!("max_tokens")));
}
