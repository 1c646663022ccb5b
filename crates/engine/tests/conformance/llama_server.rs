//! llama-server: `/completion` with `return_tokens`. A token that ends within a character is not streamed, and any end
//! token of the vocabulary ends a generation, whoever asked for it.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{CONTEXT, END, Engine, Fault, SLOTS, prompt_of, stream, token_at};

pub fn routes(engine: Engine) -> Router {
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/v1/models", get(models))
        .route("/props", get(props))
        .route("/tokenize", post(tokenize))
        .route("/completion", post(completion))
        .route(
            "/slots",
            get(|| async { Json(json!([{"id": 0, "is_processing": true}, {"id": 1, "is_processing": false}])) }),
        )
        .with_state(engine)
}

async fn models() -> Json<Value> {
    let meta = json!({"vocab_type": 2, "n_vocab": 256, "n_ctx_train": 8192, "n_embd": 8, "n_params": 1000, "size": 1});
    let model = json!({"id": "model.gguf", "object": "model", "created": 1, "owned_by": "llamacpp", "meta": meta});
    Json(json!({"object": "list", "data": [model]}))
}

async fn props() -> impl IntoResponse {
    let defaults = json!({"params": {}, "n_ctx": CONTEXT});
    let props = json!({"default_generation_settings": defaults, "total_slots": SLOTS, "build_info": "b1-test"});
    ([("server", "llama.cpp")], Json(props))
}

async fn tokenize(State(engine): State<Engine>, Json(body): Json<Value>) -> Json<Value> {
    Json(json!({"tokens": engine.tokenize(body["content"].as_str().unwrap())}))
}

struct Generated {
    token: u32,
    /// What is sent with it: all since the last whole character; nothing while within one.
    text: Option<String>,
}

fn generate(prompt: &[u32], tokens_max: u64) -> Vec<Generated> {
    let mut bytes: Vec<u8> =
        prompt.iter().skip_while(|token| **token & 0xC0 == 0x80).map(|token| *token as u8).collect();
    let mut sent = String::from_utf8_lossy(&bytes).len().min(bytes.len());
    let mut out = Vec::new();
    for place in prompt.len()..prompt.len() + tokens_max as usize {
        let token = token_at(place);
        bytes.push(token as u8);
        let text = std::str::from_utf8(&bytes[sent..]).ok().map(str::to_owned);
        if text.is_some() {
            sent = bytes.len();
        }
        out.push(Generated { token, text });
        if token == END {
            break;
        }
    }
    out
}

async fn completion(State(engine): State<Engine>, Json(body): Json<Value>) -> Response {
    if let Some(response) = engine.admit(&body).await {
        return response;
    }
    let prompt = prompt_of(&body);
    let more = u64::from(engine.fault() == Fault::TooMany) * 5;
    let generated = generate(&prompt, body["n_predict"].as_u64().unwrap() + more);
    let stop_type = if generated.last().is_some_and(|last| last.token == END) { "eos" } else { "limit" };
    let count = generated.len();
    let last = move |tokens: Vec<u32>| {
        json!({
            "index": 0, "content": "", "tokens": tokens, "stop": true, "stop_type": stop_type, "tokens_predicted": count,
            "timings": {"cache_n": 1, "prompt_n": 100, "prompt_ms": 50.0},
        })
    };
    if body["stream"] != json!(true) {
        return Json(last(generated.iter().map(|one| one.token).collect())).into_response();
    }
    let probabilities = body["n_probs"].as_u64().unwrap() > 0;
    let hide_ids = engine.fault() == Fault::NoIds;
    let tokens = generated.into_iter().enumerate().map(move |(index, one)| {
        let end = (index + 1 == count).then(|| last(Vec::new()));
        move || {
            let mut events: Vec<Value> =
                one.text.iter().map(|text| event(index, one.token, text, probabilities)).collect();
            if hide_ids {
                events.iter_mut().for_each(|event| event["tokens"] = json!([]));
            }
            events.extend(end);
            events
        }
    });
    stream(engine, tokens)
}

fn event(index: usize, token: u32, text: &str, probabilities: bool) -> Value {
    let mut event = json!({
        "index": 0, "content": text, "tokens": [token], "stop": false, "id_slot": -1, "tokens_predicted": index + 1,
        "tokens_evaluated": 14,
    });
    if probabilities {
        let one = json!({"id": token, "token": text, "bytes": text.as_bytes(), "logprob": -0.5});
        let top = json!([one, {"id": 65, "token": "A", "bytes": [65], "logprob": -1.5}]);
        event["completion_probabilities"] =
            json!([{"id": token, "token": text, "bytes": text.as_bytes(), "logprob": -0.5, "top_logprobs": top}]);
    }
    event
}
