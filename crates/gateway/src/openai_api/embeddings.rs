//! `POST /v1/embeddings`: texts to vectors of length 1.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use opengrid_node::handle::{EmbedJob, GridError, Task, TextModel};
use opengrid_protocol::session::Token;
use serde::{Deserialize, Serialize};

use super::{
    chat::name_workers,
    errors::ApiError,
    prepare::find_model_for,
    text_prompt::tokens_only,
    types::{PromptIn, PromptItem},
};
use crate::{
    asked::Asked,
    body::{kibibytes, read_reserved},
    openapi,
    server::SharedGateway,
};

/// OpenAI's own bounds of one request.
const INPUTS_MAX: usize = 2_048;
const TOKENS_MAX: usize = 300_000;
/// What a number of a vector takes on its way out: as `f32`, and as text.
const BYTES_PER_NUMBER: u64 = 16;
/// Workers named in the answer's header.
const WORKERS_NAMED_MAX: usize = 8;

#[derive(Debug, Deserialize)]
pub struct EmbeddingRequest {
    model: String,
    input: PromptIn,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Row>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Row {
    object: &'static str,
    index: usize,
    embedding: Encoded,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Encoded {
    Float(Vec<f32>),
    /// Little-endian `f32`s.
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Clone, Copy)]
enum Format {
    Float,
    Base64,
}

/// Texts as vectors.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "createEmbedding",
    tag = "openai",
    request_body = openapi::embeddings::EmbeddingRequest,
    responses((status = 200, description = "The vectors, in the order of the inputs", body = openapi::embeddings::EmbeddingList), openapi::errors::Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn handle(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::of(&request);
    let (request, _memory) = read_reserved::<EmbeddingRequest>(&gateway, request).await?;
    let format = format(request.encoding_format.as_deref())?;
    let row = find_model_for(&gateway, &request.model, Task::Embedding)?;
    let busy = |_| ApiError::overloaded("this gateway answers as many requests as it can; retry in 1 s");
    let _place = gateway.requests.clone().try_acquire_owned().map_err(busy)?;
    let mut followed = gateway.metrics.follow(&row.id, asked.came);
    let text = gateway.grid.text(&row.id).await?;
    let width = text.embedding_width();
    check_dimensions(request.dimensions, width)?;
    let inputs = inputs(request.input)?;
    let full = |_| ApiError::overloaded("too many large answers are under way: try again in a second");
    let out = inputs.len() as u64 * u64::from(width) * BYTES_PER_NUMBER;
    let _room = gateway.bodies.clone().try_acquire_many_owned(kibibytes(out)).map_err(full)?;
    let texts = tokenize(inputs, text.as_ref()).await?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    followed.pay(asked.reserve(tokens, Some(0), 0)?);
    let embeddings = gateway.grid.embed(EmbedJob { model: row.id.clone(), texts, width }).await.map_err(of_input)?;
    followed.prompt(tokens);
    followed.finished("stop");
    followed.complete();
    let encode = |(index, vector)| Row { object: "embedding", index, embedding: encoded(vector, format) };
    let data = embeddings.vectors.into_iter().enumerate().map(encode).collect();
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    let answer = Json(Answer { object: "list", data, model: &row.id, usage }).into_response();
    let workers: Vec<String> = embeddings.workers.iter().take(WORKERS_NAMED_MAX).map(ToString::to_string).collect();
    Ok(name_workers(answer, [workers.join(", ")]))
}

fn format(name: Option<&str>) -> Result<Format, ApiError> {
    match name {
        None | Some("float") => Ok(Format::Float),
        Some("base64") => Ok(Format::Base64),
        Some(_) => Err(ApiError::invalid_value("encoding_format", "`encoding_format` must be `float` or `base64`")),
    }
}

/// Vectors are whole or wrong: cutting them short needs a model that was trained for it.
fn check_dimensions(dimensions: Option<i64>, width: u32) -> Result<(), ApiError> {
    match dimensions {
        Some(wanted) if wanted != i64::from(width) => {
            let message = format!("this model's embeddings have {width} dimensions, `dimensions` can only be {width}");
            Err(ApiError::invalid_value("dimensions", message))
        }
        _ => Ok(()),
    }
}

/// Texts or lists of tokens, none of them empty.
fn inputs(input: PromptIn) -> Result<Vec<PromptItem>, ApiError> {
    let inputs = match input {
        PromptIn::Text(text) => vec![PromptItem::Text(text)],
        PromptIn::List(items) if items.is_empty() => items,
        PromptIn::List(items) => match tokens_only(&items) {
            Some(tokens) => vec![PromptItem::Tokens(tokens)],
            None => items,
        },
    };
    if !(1..=INPUTS_MAX).contains(&inputs.len()) {
        let message = format!("`input` must have 1 to {INPUTS_MAX} entries, not {}", inputs.len());
        return Err(ApiError::invalid_value("input", message));
    }
    for (at, input) in inputs.iter().enumerate() {
        let is_empty = match input {
            PromptItem::Text(text) => text.is_empty(),
            PromptItem::Tokens(tokens) => tokens.is_empty(),
            PromptItem::Token(_) => {
                return Err(ApiError::invalid_value("input", "`input` mixes token ids with other inputs"));
            }
        };
        if is_empty {
            return Err(ApiError::invalid_value(format!("input[{at}]"), format!("`input[{at}]` is empty")));
        }
    }
    Ok(inputs)
}

/// Texts get the model's special tokens around them, lists of tokens are taken as they are.
async fn tokenize(inputs: Vec<PromptItem>, text: &dyn TextModel) -> Result<Vec<Vec<Token>>, ApiError> {
    let mut all = Vec::with_capacity(inputs.len());
    let mut sum = 0;
    for (at, input) in inputs.into_iter().enumerate() {
        let tokens = match input {
            PromptItem::Text(input) => text.tokenize(&input, true, false).await.map_err(|error| match error {
                GridError::ContextOverflow { limit, needed } => too_long(at, limit, needed as usize),
                other => other.into(),
            })?,
            PromptItem::Tokens(tokens) => tokens,
            PromptItem::Token(token) => vec![token],
        };
        let limit = text.trained_context();
        if tokens.len() > limit as usize {
            return Err(too_long(at, limit, tokens.len()));
        }
        if let Some(token) = tokens.iter().find(|token| **token >= text.vocabulary_size()) {
            let message = format!("`input[{at}]` has token {token}, the vocabulary has {}", text.vocabulary_size());
            return Err(ApiError::invalid_value(format!("input[{at}]"), message));
        }
        sum += tokens.len();
        if sum > TOKENS_MAX {
            let message = format!("`input` has over {TOKENS_MAX} tokens in all: send it in several requests");
            return Err(ApiError::invalid_value("input", message));
        }
        all.push(tokens);
    }
    Ok(all)
}

fn too_long(at: usize, limit: u32, tokens: usize) -> ApiError {
    let message = format!(
        "this model's maximum context length is {limit} tokens. However, `input[{at}]` has {tokens}. Please reduce its \
         length, or embed it in parts."
    );
    ApiError::new(axum::http::StatusCode::BAD_REQUEST, "context_length_exceeded", message)
        .with_param(format!("input[{at}]"))
}

fn of_input(error: GridError) -> ApiError {
    let is_too_long = matches!(error, GridError::ContextOverflow { .. });
    let error = ApiError::from(error);
    if is_too_long { error.with_param("input") } else { error }
}

fn encoded(vector: Vec<f32>, format: Format) -> Encoded {
    match format {
        Format::Float => Encoded::Float(vector),
        Format::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Encoded::Base64(BASE64.encode(bytes))
        }
    }
}
