//! `/v1/embeddings` against a scripted grid.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::fake::{BOS, CONTEXT, EMBEDDING_WIDTH, VOCABULARY, served};

const PATH: &str = "/v1/embeddings";

fn vector(row: &Value) -> Vec<f32> {
    row["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn texts_and_tokens_come_back_as_rows_in_order_with_usage() {
    let served = served().await;
    let body = json!({ "model": "vectors", "input": ["ab", "c"], "user": "x", "unknown": 1 });
    let answer = served.client.post(PATH, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert_eq!((&json["object"], &json["model"]), (&json!("list"), &json!("vectors")));
    // A BOS and the bytes of each text.
    assert_eq!(json["usage"], json!({ "prompt_tokens": 5, "total_tokens": 5 }));
    let rows = json["data"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert!(rows.iter().all(|row| row["object"] == "embedding" && vector(row).len() == EMBEDDING_WIDTH as usize));
    assert_ne!(vector(&rows[0]), vector(&rows[1]));
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    assert_eq!(answer.header("x-opengrid-worker").unwrap().split(", ").count(), 2);

    let alike = [
        (json!("c"), vec![vec![BOS, 99]]),
        (json!([BOS, 99]), vec![vec![BOS, 99]]),
        (json!([[BOS, 99], [98]]), vec![vec![BOS, 99], vec![98]]),
        (json!([[BOS, 99], "c"]), vec![vec![BOS, 99], vec![BOS, 99]]),
    ];
    for (input, texts) in alike {
        let answer = served.client.post(PATH, &json!({ "model": "vectors", "input": input })).await;
        assert_eq!(answer.status, 200, "{input}: {}", answer.text());
        assert_eq!(served.grid.embed_jobs.lock().last().unwrap().texts, texts, "{input}");
    }
}

#[tokio::test]
async fn base64_holds_the_same_numbers() {
    let served = served().await;
    let ask = |format: Value| {
        let body = json!({ "model": "vectors", "input": "hello", "encoding_format": format, "dimensions": 3 });
        let client = served.client;
        async move { client.post(PATH, &body).await.json() }
    };
    let plain = ask(json!("float")).await;
    let encoded = ask(json!("base64")).await;
    let bytes = BASE64.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(numbers, vector(&plain["data"][0]));
    assert_eq!(ask(Value::Null).await, plain, "the default");
}

#[tokio::test]
async fn what_cannot_be_embedded_names_its_field() {
    let served = served().await;
    let long = "x".repeat(CONTEXT as usize + 1);
    let with = |fields: Value| {
        let mut body = json!({ "model": "vectors", "input": "a" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({ "model": "vectors" }), 400, "missing_required_parameter", "input"),
        (with(json!({ "input": {} })), 400, "invalid_type", "input"),
        (with(json!({ "input": null })), 400, "invalid_type", "input"),
        (with(json!({ "input": [true] })), 400, "invalid_type", "input[0]"),
        (with(json!({ "input": [-1] })), 400, "invalid_type", "input[0]"),
        (with(json!({ "input": "" })), 400, "invalid_value", "input[0]"),
        (with(json!({ "input": [] })), 400, "invalid_value", "input"),
        (with(json!({ "input": ["a", ""] })), 400, "invalid_value", "input[1]"),
        (with(json!({ "input": ["a", []] })), 400, "invalid_value", "input[1]"),
        (with(json!({ "input": [1, "a"] })), 400, "invalid_value", "input"),
        (with(json!({ "input": [[1], [VOCABULARY]] })), 400, "invalid_value", "input[1]"),
        (with(json!({ "input": vec!["a"; 2_049] })), 400, "invalid_value", "input"),
        (with(json!({ "input": ["a", long] })), 400, "context_length_exceeded", "input[1]"),
        (with(json!({ "input": vec!["x".repeat(1_990); 160] })), 400, "invalid_value", "input"),
        (with(json!({ "encoding_format": "hex" })), 400, "invalid_value", "encoding_format"),
        (with(json!({ "dimensions": 2 })), 400, "invalid_value", "dimensions"),
        (with(json!({ "dimensions": -3 })), 400, "invalid_value", "dimensions"),
        (with(json!({ "model": "bytes" })), 400, "unsupported_value", "model"),
        (with(json!({ "model": "gpt-4" })), 404, "model_not_found", "model"),
        (with(json!({ "model": "vectors-idle" })), 503, "no_capacity", "model"),
    ];
    for (body, status, code, param) in cases {
        let answer = served.client.post(PATH, &body).await;
        let shown: String = body.to_string().chars().take(100).collect();
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        assert_eq!(answer.error(), (code.to_owned(), Some(param.to_owned())), "{shown}");
    }
    assert!(served.grid.embed_jobs.lock().is_empty());
    let many = with(json!({ "input": vec!["a"; 2_048] }));
    assert_eq!(served.client.post(PATH, &many).await.json()["data"].as_array().unwrap().len(), 2_048);
}

#[tokio::test]
async fn a_model_is_asked_only_for_what_it_does() {
    let served = served().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let bodies = [
        ("/v1/chat/completions", json!({ "model": "vectors", "messages": messages })),
        ("/v1/completions", json!({ "model": "vectors", "prompt": "hi" })),
        ("/v1/responses", json!({ "model": "vectors", "input": "hi" })),
        ("/v1/messages", json!({ "model": "vectors", "max_tokens": 5, "messages": messages })),
    ];
    for (path, body) in bodies {
        let answer = served.client.post(path, &body).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert!(answer.text().contains("POST /v1/embeddings"), "{path}: {}", answer.text());
    }
    let listed = served.client.get("/v1/models").await.json();
    let rows = listed["data"].as_array().unwrap();
    let task = |id: &str| rows.iter().find(|row| row["id"] == id).unwrap()["task"].clone();
    assert_eq!((task("vectors"), task("bytes")), (json!("embedding"), json!("generation")));
}
