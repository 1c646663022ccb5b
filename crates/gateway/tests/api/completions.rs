//! `/v1/completions`: kinds of prompts, echo, column-wise log-probabilities.

use serde_json::{Value, json};

use crate::fake::{BOS, GAP, say, served};

const PATH: &str = "/v1/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({ "model": "bytes", "prompt": "Once" });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_completion_has_openai_s_shape_and_defaults() {
    let s = served().await;
    let json = s.client.post(PATH, &body(json!({}))).await.json();
    assert!(json["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(json["object"], "text_completion");
    assert_eq!(
        json["choices"],
        json!([{ "index": 0, "text": "Hello, world!", "logprobs": null, "finish_reason": "stop" }])
    );
    let job = s.grid.last_job();
    assert_eq!(job.prompt[0], BOS, "special tokens are added as the model wants them");
    assert_eq!((job.prompt.len(), job.completion_tokens_max), (5, Some(16)));
    assert_eq!(json["usage"]["prompt_tokens"], 5);
}

#[tokio::test]
async fn prompts_are_text_tokens_or_lists_of_them() {
    let s = served().await;
    s.client.post(PATH, &body(json!({ "prompt": [79, 110] }))).await;
    assert_eq!(s.grid.last_job().prompt, [79, 110]);

    s.grid.set(|job| say(job, &[*job.prompt.last().unwrap() as u8, b'0' + job.sampling.choice as u8]));
    for prompts in [json!(["a", "b"]), json!([[97], [98]]), json!(["a", [98]])] {
        let json = s.client.post(PATH, &body(json!({ "prompt": prompts, "n": 2 }))).await.json();
        let texts: Vec<&Value> = json["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
        assert_eq!(texts, ["a0", "a1", "b0", "b1"]);
    }
    for (bad, code) in [
        (json!([]), "invalid_value"),
        (json!(""), "ok"),
        (json!([261]), "invalid_value"),
        (json!([-1]), "invalid_type"),
        (json!([1.5]), "invalid_type"),
        (json!([4_294_967_296_u64]), "invalid_type"),
        (json!([1, "a"]), "invalid_value"),
        (json!([[]]), "invalid_value"),
        (json!({}), "invalid_type"),
        (json!(null), "missing_required_parameter"),
        (json!(vec!["a"; 65]), "invalid_value"),
    ] {
        let answered = s.client.post(PATH, &body(json!({ "prompt": bad }))).await;
        if code == "ok" {
            assert_eq!(answered.status, 200, "an empty text is a BOS alone");
            continue;
        }
        let (found, param) = answered.error();
        assert_eq!((answered.status, found.as_str()), (400, code), "{bad}: {}", answered.text());
        assert!(param.unwrap().starts_with("prompt"), "{}", answered.text());
    }
}

#[tokio::test]
async fn echo_puts_the_prompt_in_front() {
    let s = served().await;
    let json = s.client.post(PATH, &body(json!({ "echo": true }))).await.json();
    assert_eq!(json["choices"][0]["text"], "OnceHello, world!");
    let json = s.client.post(PATH, &body(json!({ "echo": true, "prompt": [79, 256, 110] }))).await.json();
    assert_eq!(json["choices"][0]["text"], "OnHello, world!");
    let chunks = s.client.post(PATH, &body(json!({ "echo": true, "stream": true }))).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["text"], "Once");
    let answered = s.client.post(PATH, &body(json!({ "echo": true, "logprobs": 1 }))).await;
    assert_eq!(answered.error(), ("unsupported_value".into(), Some("echo".into())));
}

#[tokio::test]
async fn logprobs_come_in_columns() {
    let s = served().await;
    s.grid.set(|job| say(job, "aé.".as_bytes()));
    let json = s.client.post(PATH, &body(json!({ "logprobs": 2 }))).await.json();
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "."]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["top_logprobs"][0], json!({ "a": -0.5, "b": -1.5 }));
}

#[tokio::test]
async fn a_suffix_makes_the_answer_fill_a_gap() {
    let s = served().await;
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let [prefix, suffix, middle] = GAP;
    let expected = [&[BOS, prefix], &bytes("Once")[..], &[suffix], &bytes(" end"), &[middle]].concat();
    for prompt in [json!("Once"), json!(bytes("Once"))] {
        let answered = s.client.post(PATH, &body(json!({ "prompt": prompt, "suffix": " end" }))).await;
        assert_eq!(answered.status, 200);
        assert_eq!(s.grid.last_job().prompt, expected);
    }
    s.client.post(PATH, &body(json!({ "suffix": "" }))).await;
    assert_eq!(s.grid.last_job().prompt.len(), 5, "an empty suffix is none");
    let refused = s.client.post(PATH, &body(json!({ "model": "llama", "suffix": " end" }))).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("suffix")));
}
