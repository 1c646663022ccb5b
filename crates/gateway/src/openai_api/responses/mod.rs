//! OpenAI's Responses (<https://platform.openai.com/docs/api-reference/responses>) without a store: a request has the
//! whole conversation, nothing of an answer stays here.
//!
//! `request` (as it came) becomes a chat in `translate` and `input`; `output` makes items and `events` of the answer.

mod echo;
mod events;
mod input;
mod object;
mod output;
mod request;
mod translate;
mod writer;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use self::{request::ResponsesRequest, translate::translate, writer::Writer};
use super::{
    chat::name_workers,
    errors::ApiError,
    options::Api,
    prepare,
    stream::{run, stream},
};
use crate::{asked::Asked, body::read_reserved, openapi, server::SharedGateway};

/// An answer to a conversation, without a store.
#[utoipa::path(
    post,
    path = "/v1/responses",
    operation_id = "createResponse",
    tag = "openai",
    request_body = openapi::responses::ResponsesRequest,
    responses((status = 200, description = "The answer, or with `stream` its events", content((openapi::responses::ResponseObject = "application/json"), (crate::openapi::errors::ServerSentEvent = "text/event-stream"))), openapi::errors::Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn create(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::of(&request);
    let (request, room) = read_reserved::<ResponsesRequest>(&gateway, request).await?;
    let (request, echo) = translate(request)?;
    let placed = prepare::place(&gateway, request, Api::Chat, &asked).await;
    let (options, generation) = placed.map_err(|error| error.renamed(translate::NAMES))?;
    let headers = generation.header_values();
    let mut writer = Writer::new(&options, &generation, echo, room);
    let response = if options.stream {
        stream(writer, generation, gateway.config.keep_alive_every)
    } else {
        run(&mut writer, generation).await?;
        Json(writer.object()).into_response()
    };
    Ok(name_workers(response, headers))
}

#[derive(Serialize)]
struct InputTokens {
    object: &'static str,
    input_tokens: usize,
}

/// How many tokens a request's prompt has.
#[utoipa::path(
    post,
    path = "/v1/responses/input_tokens",
    operation_id = "countResponseTokens",
    tag = "openai",
    request_body = openapi::responses::ResponsesPrompt,
    responses((status = 200, description = "Their number", body = openapi::responses::InputTokens), openapi::errors::Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn count(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let (request, _room) = read_reserved::<ResponsesRequest>(&gateway, request).await?;
    let (request, _) = translate(request)?;
    let counted = prepare::count(&gateway, request).await;
    let input_tokens = counted.map_err(|error| error.renamed(translate::NAMES))?;
    Ok(Json(InputTokens { object: "response.input_tokens", input_tokens }).into_response())
}

/// `GET` and `DELETE /v1/responses/{id}` and what lies below.
pub async fn not_stored(Path(id): Path<String>) -> ApiError {
    let shown: String = id.chars().take(128).collect();
    let message = format!("there is no response `{shown}`: this gateway stores none");
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}
