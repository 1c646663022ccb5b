//! Thousands of random bodies: never a 5xx but the promised ones, never a hang, always the same shape.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

use crate::fake::served;

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3..300i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["bytes", "idle", "user", "system", "text", "auto", "", "<|im_end|>"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((prop_oneof![field(), "[a-z0-9]{0,4}".prop_map(String::from)], inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "best_of",
        "stream",
        "stream_options",
        "stop",
        "ignore_eos",
        "echo",
        "logprobs",
        "top_logprobs",
        "prompt_cache_key",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repeat_penalty",
        "repeat_last_n",
        "logit_bias",
        "tools",
        "tool_choice",
        "functions",
        "response_format",
        "modalities",
        "suffix",
        "role",
        "content",
        "type",
        "text",
        "name",
    ])
    .prop_map(String::from)
}

/// A good request with some of its fields replaced: most of such bodies reach deep code.
fn near_miss() -> impl Strategy<Value = Value> {
    prop::collection::vec((field(), any_json()), 0..4).prop_map(|changes| {
        let mut body = json!({
            "model": "bytes", "messages": [{ "role": "user", "content": "hi" }], "prompt": "hi", "max_tokens": 5,
        });
        body.as_object_mut().unwrap().extend(changes);
        body
    })
}

#[test]
fn random_bodies_never_break_anything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let s = runtime.block_on(served());
    let strategy = (prop_oneof![1 => any_json(), 4 => near_miss()], any::<bool>());
    let mut runner = TestRunner::new(Config { cases: 4_000, failure_persistence: None, ..Config::default() });
    let ok = std::cell::Cell::new(0_u32);
    runner
        .run(&strategy, |(body, chat)| {
            let path = if chat { "/v1/chat/completions" } else { "/v1/completions" };
            let answered = runtime.block_on(s.client.post(path, &body));
            match answered.status {
                200 => ok.set(ok.get() + 1),
                400 | 404 => drop(answered.error()),
                503 => prop_assert_eq!(answered.error().0, "no_capacity"),
                other => prop_assert!(false, "{} for {}: {}", other, body, answered.text()),
            }
            Ok(())
        })
        .unwrap();
    assert!(ok.get() > 200, "only {} of 4000 bodies were good ones: the test tests too little", ok.get());
}

#[test]
fn random_bytes_never_break_anything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let s = runtime.block_on(served());
    let json = [("content-type", "application/json")];
    let good = br#"{"model":"bytes","prompt":"hi","stop":["a"],"logit_bias":{"1":2},"n":2}"#;
    let strategy = prop::collection::vec((0..good.len(), any::<u8>()), 1..4);
    let mut runner = TestRunner::new(Config { cases: 1_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&strategy, |changes| {
            let mut body = good.to_vec();
            for (at, byte) in changes {
                body[at] = byte;
            }
            let answered = runtime.block_on(s.client.send("POST", "/v1/completions", &json, &body));
            prop_assert!(matches!(answered.status, 200 | 400 | 404), "{}: {}", answered.status, answered.text());
            Ok(())
        })
        .unwrap();
}
