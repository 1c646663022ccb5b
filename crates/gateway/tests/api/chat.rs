//! `/v1/chat/completions` in one piece: fields, sampling, log-probabilities, stop strings, templates.

use opengrid_node::handle::AnswerEvent;
use opengrid_protocol::session::{Finish, Usage};
use serde_json::{Value, json};

use crate::fake::{Act, EOS, say, served, token};

const PATH: &str = "/v1/chat/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn an_answer_has_openai_s_shape_and_our_headers() {
    let s = served().await;
    let answered = s.client.post(PATH, &body(json!({ "user": "x", "unknown_field": { "a": [1] } }))).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let json = answered.json();
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["model"], "bytes");
    assert_eq!(json["system_fingerprint"], "fp_abababababab");
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    let message = json!({ "role": "assistant", "content": "Hello, world!", "refusal": null });
    assert_eq!(json["choices"], json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" }]));
    let prompt = s.grid.last_job().prompt.len();
    assert_eq!(
        json["usage"],
        json!({
            "prompt_tokens": prompt, "completion_tokens": 13, "total_tokens": prompt + 13,
            "prompt_tokens_details": { "cached_tokens": 3 },
        })
    );
    assert!(answered.header("x-opengrid-worker").unwrap().starts_with("12D3KooW"));
    assert_eq!(answered.header("x-opengrid-session"), Some("0000000000000001"));
    assert!(answered.header("x-request-id").unwrap().starts_with("req_"));
    assert_eq!(answered.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn messages_reach_the_model_through_its_template() {
    let s = served().await;
    let messages = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "one " }, { "type": "text", "text": "two" }] },
        { "role": "assistant", "content": null },
        { "role": "user", "content": "" },
    ]);
    assert_eq!(s.client.post(PATH, &body(json!({ "messages": messages }))).await.status, 200);
    assert_eq!(
        s.grid.last_prompt(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none two<|im_end|>\n\
         <|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    );
    let answered = s.client.post(PATH, &body(json!({ "model": "broken" }))).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (400, "broken_chat_template"));
}

#[tokio::test]
async fn sampling_reaches_the_grid() {
    let s = served().await;
    let all = json!({
        "seed": 42, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repeat_penalty": 1.5, "repeat_last_n": 32, "logit_bias": { "65": -100 },
        "max_completion_tokens": 7, "prompt_cache_key": "me", "ignore_eos": true, "max_tokens": 9,
    });
    let answered = s.client.post(PATH, &body(all)).await;
    assert_eq!(answered.json()["choices"][0]["finish_reason"], "length");
    let job = s.grid.last_job();
    let p = &job.sampling;
    assert_eq!((p.seed, p.temperature, p.top_p, p.top_k, p.min_p), (42, 0.5, 0.9, 40, 0.1));
    assert_eq!((p.presence_penalty, p.frequency_penalty, p.repeat_penalty, p.repeat_last_n), (0.5, -0.5, 1.5, 32));
    assert_eq!(p.logit_bias, [(65, -100.0)]);
    assert_eq!((job.completion_tokens_max, job.affinity.as_deref()), (Some(7), Some("me")));
    assert!(job.stop_tokens.is_empty());

    s.client.post(PATH, &body(json!({ "seed": -1, "top_k": -1 }))).await;
    let job = s.grid.last_job();
    assert_eq!((job.sampling.seed, job.sampling.top_k, job.sampling.temperature), (u64::MAX, 0, 1.0));
    assert_eq!((job.completion_tokens_max, job.stop_tokens), (None, vec![EOS]));
    assert_eq!(job.top_logprobs, None);

    let mut seeds = Vec::new();
    for _ in 0..2 {
        s.client.post(PATH, &body(json!({ "seed": null }))).await;
        seeds.push(s.grid.last_job().sampling.seed);
    }
    assert_ne!(seeds[0], seeds[1], "without a seed one is drawn");
}

#[tokio::test]
async fn n_choices_are_sessions_of_one_seed() {
    let s = served().await;
    s.grid.set(|job| say(job, format!("choice {}", job.sampling.choice).as_bytes()));
    let answered = s.client.post(PATH, &body(json!({ "n": 3 }))).await;
    let json = answered.json();
    let texts: Vec<&Value> = json["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts, ["choice 0", "choice 1", "choice 2"]);
    assert_eq!(json["usage"]["completion_tokens"], 24);
    let jobs = s.grid.jobs.lock();
    assert!(jobs.iter().all(|job| job.sampling.seed == jobs[0].sampling.seed));
    assert_eq!(json["usage"]["prompt_tokens"], jobs[0].prompt.len());
    assert_eq!(answered.header("x-opengrid-session").unwrap().split(',').count(), 3);
}

#[tokio::test]
async fn logprobs_carry_text_bytes_and_alternatives() {
    let s = served().await;
    s.grid.set(|job| say(job, "é".as_bytes()));
    let answered = s.client.post(PATH, &body(json!({ "logprobs": true, "top_logprobs": 2 }))).await;
    let json = answered.json();
    assert_eq!(json["choices"][0]["message"]["content"], "é");
    let content = json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2, "one entry for each token");
    assert_eq!(content[0]["bytes"], json!([0xc3]));
    assert_eq!(content[0]["logprob"], -0.5);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["top_logprobs"][1]["logprob"], -1.5);
    assert_eq!(s.grid.last_job().top_logprobs, Some(2));
    s.client.post(PATH, &body(json!({ "logprobs": true }))).await;
    assert_eq!(s.grid.last_job().top_logprobs, Some(0));
}

#[tokio::test]
async fn a_stop_string_across_tokens_cuts_exactly_and_cancels() {
    let s = served().await;
    s.grid.set(|job| {
        let mut acts = say(job, b"one two ENDING and more");
        acts.truncate(12);
        acts.push(Act::Hang);
        acts
    });
    let answered = s.client.post(PATH, &body(json!({ "stop": ["END", "unused"], "logprobs": true }))).await;
    let choice = &answered.json()["choices"][0];
    assert_eq!(choice["message"]["content"], "one two ");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 8, "no token of the stop string");
    s.grid.wait_cancelled(1).await;
}

#[tokio::test]
async fn bytes_that_are_no_text_become_replacement_characters() {
    let s = served().await;
    s.grid.set(|job| say(job, b"a\xff\xf0\x9f\x98\x80b\xe2\x82"));
    let answered = s.client.post(PATH, &body(json!({}))).await;
    assert_eq!(answered.json()["choices"][0]["message"]["content"], "a\u{fffd}😀b\u{fffd}");
}

#[tokio::test]
async fn a_worker_that_says_more_than_asked_is_cut() {
    let s = served().await;
    s.grid.set(|_| {
        let usage = Usage { generated_tokens: 9, cached_tokens: u32::MAX, prefilled_tokens: 0 };
        let many = vec![token(65); 9];
        vec![Act::Send(AnswerEvent::Tokens(many)), Act::Send(AnswerEvent::Finished(Finish::Length, usage))]
    });
    let answered = s.client.post(PATH, &body(json!({ "max_tokens": 4 }))).await;
    let json = answered.json();
    assert_eq!(json["choices"][0]["message"]["content"], "AAAA");
    assert_eq!(json["usage"]["completion_tokens"], 4);
    assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], json["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_worker_s_move_is_not_seen_and_a_failure_is() {
    let s = served().await;
    s.grid.set(|job| {
        let mut acts = say(job, b"moved on");
        let to = opengrid_protocol::NodeId([3; 32]);
        acts.insert(3, Act::Send(AnswerEvent::Moved { worker: to, exact: true }));
        acts.insert(0, Act::Send(AnswerEvent::Queued(2)));
        acts
    });
    let answered = s.client.post(PATH, &body(json!({}))).await;
    assert_eq!(answered.json()["choices"][0]["message"]["content"], "moved on");

    s.grid.set(|_| vec![Act::Send(AnswerEvent::Tokens(vec![token(65)]))]);
    let answered = s.client.post(PATH, &body(json!({}))).await;
    assert_eq!((answered.status, answered.error().0.as_str()), (500, "internal_error"));
}
