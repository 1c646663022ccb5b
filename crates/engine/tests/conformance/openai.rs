//! vLLM and trtllm-serve: `/v1/completions` with token ids.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use opengrid_engine::Kind;
use serde_json::{Value, json};

use super::{CONTEXT, Engine, Fault, prompt_of, stream, token_at};

/// The fields of TensorRT-LLM's `CompletionRequest`; it refuses all others.
const TENSORRT_FIELDS: [&str; 26] = [
    "model",
    "prompt",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "detokenize",
    "add_special_tokens",
    "prompt_ignore_length",
    "echo",
];

pub fn routes(engine: Engine) -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/version", get(|| async { Json(json!({"version": "9.9.9"})) }))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/metrics", get(metrics))
        .route("/tokenize", post(tokenize))
        .with_state(engine)
}

async fn models(State(engine): State<Engine>) -> Json<Value> {
    let model = match engine.kind {
        Kind::TensorRtLlm => json!({"id": "model", "object": "model", "created": 1, "owned_by": "tensorrt_llm"}),
        _ => json!({"id": "model", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": CONTEXT}),
    };
    Json(json!({"object": "list", "data": [model]}))
}

async fn metrics(State(engine): State<Engine>) -> Response {
    match engine.kind {
        Kind::TensorRtLlm => Json(json!([{"iter": 1, "numActiveRequests": 1, "numQueuedRequests": 4}])).into_response(),
        _ => {
            "vllm:num_requests_running{engine=\"0\"} 1.0\nvllm:num_requests_waiting{engine=\"0\"} 4.0\n".into_response()
        }
    }
}

async fn tokenize(State(engine): State<Engine>, Json(body): Json<Value>) -> Response {
    if engine.kind == Kind::TensorRtLlm {
        return StatusCode::NOT_FOUND.into_response();
    }
    Json(json!({"tokens": engine.tokenize(body["prompt"].as_str().unwrap()), "max_model_len": CONTEXT})).into_response()
}

fn refuse(message: String) -> Response {
    let body = json!({"object": "error", "message": message, "type": "BadRequestError", "param": null, "code": 400});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

async fn completions(State(engine): State<Engine>, Json(body): Json<Value>) -> Response {
    if let Some(response) = engine.admit(&body).await {
        return response;
    }
    let tensorrt = engine.kind == Kind::TensorRtLlm;
    let strange = body.as_object().unwrap().keys().find(|key| !TENSORRT_FIELDS.contains(&key.as_str()));
    if let Some(field) = strange.filter(|_| tensorrt) {
        return refuse(format!("Extra inputs are not permitted: {field}"));
    }
    let prompt =
        if body["prompt"].is_string() { engine.tokenize(body["prompt"].as_str().unwrap()) } else { prompt_of(&body) };
    let ids_wanted =
        if tensorrt { body["detokenize"] == json!(false) } else { body["return_token_ids"] == json!(true) };
    let ids_shown = ids_wanted && engine.fault() != Fault::NoIds;
    let stops: Vec<u64> = body["stop_token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let more = usize::from(engine.fault() == Fault::TooMany) * 5;
    let most = body["max_tokens"].as_u64().unwrap() as usize + more;
    let mut tokens: Vec<u32> = (prompt.len()..prompt.len() + most).map(token_at).collect();
    let stopped = tokens.iter().position(|token| stops.contains(&u64::from(*token)));
    if let Some(at) = stopped {
        tokens.truncate(at + 1);
    }
    let finish = if stopped.is_some() { "stop" } else { "length" };
    let reason = stopped.and(tokens.last().copied());
    if body["stream"] != json!(true) {
        let skew = u32::from(engine.fault() == Fault::OtherVocabulary);
        return whole(&prompt, &tokens, skew, ids_shown).into_response();
    }
    let logprobs = body.get("logprobs").is_some();
    let prompt_tokens = prompt.len();
    let count = tokens.len();
    let chunks = tokens.into_iter().enumerate().map(move |(index, token)| {
        move || {
            let is_last = index + 1 == count;
            let mut choice = json!({
                "index": 0, "text": if tensorrt { "" } else { "x" }, "token_ids": if ids_shown { json!([token]) } else { Value::Null },
                "logprobs": null, "finish_reason": if is_last { json!(finish) } else { Value::Null },
                "stop_reason": if is_last { json!(reason) } else { Value::Null },
            });
            if logprobs {
                choice["logprobs"] = json!({
                    "text_offset": [0], "token_logprobs": [-0.5], "tokens": [format!("token_id:{token}")],
                    "top_logprobs": [{(format!("token_id:{token}")): -0.5, "token_id:65": -1.5}],
                });
            }
            let mut events = vec![json!({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})];
            if is_last {
                let usage = json!({"prompt_tokens": prompt_tokens, "prompt_tokens_details": {"cached_tokens": 1}});
                events.push(json!({"id": "cmpl-1", "choices": [], "usage": usage}));
            }
            events
        }
    });
    stream(engine, chunks)
}

/// trtllm-serve decodes the tokens of `logprobs` by themselves; its prompt is counted, not shown.
fn whole(prompt: &[u32], tokens: &[u32], skew: u32, ids_shown: bool) -> Json<Value> {
    let texts: Vec<String> = tokens.iter().map(|token| String::from_utf8_lossy(&[*token as u8]).into_owned()).collect();
    let ids: Vec<u32> = tokens.iter().map(|token| token + skew).collect();
    let choice = json!({
        "index": 0, "text": "", "token_ids": if ids_shown { json!(ids) } else { Value::Null }, "finish_reason": "length",
        "logprobs": {"tokens": texts, "token_logprobs": vec![-0.5; tokens.len()]},
    });
    Json(json!({"choices": [choice], "usage": {"prompt_tokens": prompt.len(), "completion_tokens": tokens.len()}}))
}
