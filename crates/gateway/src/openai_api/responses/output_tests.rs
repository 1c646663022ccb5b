use serde_json::{Value, json};

use super::*;
use crate::openai_api::{
    responses::{echo::Echo, request::ResponsesRequest},
    shapes::Alternative,
};

fn output(streams: bool) -> Output {
    let request: ResponsesRequest = serde_json::from_value(json!({ "model": "m", "input": "x" })).unwrap();
    let constant = Constant {
        id: "resp_1".into(),
        created_at: 1,
        model: "m".into(),
        service_tier: "default",
        echo: Echo::of(&request).unwrap(),
    };
    Output::new(constant, streams)
}

fn call(index: usize, name: Option<&str>, arguments: &str) -> Part {
    let head = name.map(|name| CallHead { id: format!("call_{index}"), name: name.into() });
    Part::Call(CallDelta { index, head, arguments: arguments.into() })
}

fn run(output: &mut Output, parts: Vec<Part>, cut: bool) -> Vec<Value> {
    let mut out = Vec::new();
    output.start(&mut out);
    for part in parts {
        output.push(vec![part], Vec::new(), &mut out);
    }
    output.finish(cut, Usage::new(5, 7, 2), &mut out);
    events(&out)
}

fn events(out: &[u8]) -> Vec<Value> {
    let frames = std::str::from_utf8(out).unwrap().split_terminator("\n\n");
    frames.map(|frame| serde_json::from_str(frame.split_once("data: ").unwrap().1).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

#[test]
fn thoughts_text_and_calls_are_items_of_their_own() {
    let mut output = output(true);
    let parts = vec![
        Part::Reasoning("hm".into()),
        Part::Reasoning("m".into()),
        Part::Text("I look.".into()),
        call(0, Some("f"), ""),
        call(0, None, "{\"a\":"),
        call(0, None, "1}"),
        call(1, Some("g"), "{}"),
    ];
    let events = run(&mut output, parts, false);
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(names(&events), expected);
    let done = &events[18];
    assert_eq!(
        (&done["arguments"], &done["name"], &done["output_index"]),
        (&json!("{\"a\":1}"), &json!("f"), &json!(2))
    );
    let added = &events[15]["item"];
    assert_eq!(
        (&added["status"], &added["arguments"], &added["call_id"]),
        (&json!("in_progress"), &json!(""), &json!("call_0"))
    );
    let items = &events.last().unwrap()["response"]["output"];
    let done: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|event| &event["item"])
        .collect();
    assert_eq!(items.as_array().unwrap().iter().collect::<Vec<_>>(), done);
    assert_eq!(items[0]["content"], json!([{ "type": "reasoning_text", "text": "hmm" }]));
    assert_eq!(items[3]["name"], "g");
}

#[test]
fn the_object_is_the_same_with_and_without_a_stream() {
    let parts = || vec![Part::Text("a".into()), Part::Text("b".into()), call(0, Some("f"), "{}")];
    let (mut streamed, mut whole) = (output(true), output(false));
    let events = run(&mut streamed, parts(), true);
    assert!(run(&mut whole, parts(), true).is_empty());
    let without_ids = |mut object: Value| {
        for item in object["output"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().remove("id");
        }
        object
    };
    let object = serde_json::to_value(whole.object()).unwrap();
    assert_eq!(object["status"], "incomplete");
    let statuses: Vec<&Value> = object["output"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["completed", "incomplete"]);
    assert_eq!(without_ids(object), without_ids(events.last().unwrap()["response"].clone()));
}

#[test]
fn log_probabilities_wait_for_their_text() {
    let logprob = |text: &str| TokenLogprob {
        token: Alternative { token: text.into(), logprob: -1.0, bytes: text.into() },
        top_logprobs: Vec::new(),
    };
    let (mut output, mut out) = (output(true), Vec::new());
    output.push(Vec::new(), vec![logprob("a")], &mut out);
    assert!(out.is_empty());
    output.push(vec![Part::Text("ab".into())], vec![logprob("b")], &mut out);
    output.push(Vec::new(), vec![logprob("c")], &mut out);
    output.finish(false, Usage::new(1, 3, 0), &mut out);
    let events = events(&out);
    let of = |name: &str| {
        let event = events.iter().find(|event| event["type"] == name).unwrap();
        event["logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["token"].as_str().unwrap().to_owned())
            .collect::<String>()
    };
    assert_eq!(of("response.output_text.delta"), "ab");
    assert_eq!(of("response.output_text.done"), "abc");
}

#[test]
fn only_thoughts_still_get_a_message() {
    let mut output = output(false);
    run(&mut output, vec![Part::Reasoning("hm".into())], true);
    let object = serde_json::to_value(output.object()).unwrap();
    assert_eq!(
        (&object["output"][1]["type"], &object["output"][1]["content"][0]["text"]),
        (&json!("message"), &json!(""))
    );
}
