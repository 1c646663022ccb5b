//! Anthropic's Messages (<https://docs.anthropic.com/en/api/messages>), answered as a chat.
//!
//! `request` (as it came) becomes a chat in `translate` and `turns`; `output` makes blocks and events of the answer.

pub mod errors;
mod message;
mod output;
mod request;
mod translate;
mod turns;
mod writer;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use self::{
    request::MessagesRequest,
    translate::{thinks, translate},
    writer::{Shown, Writer},
};
use crate::{
    asked::Asked,
    body::read_reserved,
    openai_api::{
        chat::name_workers,
        errors::ApiError,
        options::Api,
        prepare,
        stream::{run, stream},
    },
    openapi,
    server::SharedGateway,
};

/// Whether `path` belongs to this API.
pub fn is_path(path: &str) -> bool {
    path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An answer to a conversation.
#[utoipa::path(
    post,
    path = "/v1/messages",
    operation_id = "createMessage",
    tag = "anthropic",
    request_body = openapi::messages::MessagesRequest,
    responses((status = 200, description = "The answer, or with `stream` its events", content((openapi::messages::AnthropicMessage = "application/json"), (crate::openapi::errors::ServerSentEvent = "text/event-stream"))), openapi::messages::Messaging),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn create(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::of(&request);
    let (shown, placed) = {
        let (request, _room) = read_reserved::<MessagesRequest>(&gateway, request).await?;
        let max_tokens = request.max_tokens.ok_or_else(|| ApiError::missing("max_tokens"))?;
        let shown = Shown { thoughts: thinks(&request)?, max_tokens: max_tokens.try_into().unwrap_or(0) };
        (shown, prepare::place(&gateway, translate(request)?, Api::Chat, &asked).await)
    };
    let (options, generation) = placed.map_err(|error| error.renamed(translate::NAMES))?;
    let headers = generation.header_values();
    let mut writer = Writer::new(shown, options.stream, &generation, &asked);
    let response = if options.stream {
        stream(writer, generation, gateway.config.keep_alive_every)
    } else {
        run(&mut writer, generation).await?;
        Json(writer.message()).into_response()
    };
    Ok(name_workers(response, headers))
}

#[derive(Serialize)]
struct TokenCount {
    input_tokens: usize,
}

/// How many tokens a request's prompt has.
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    operation_id = "countMessageTokens",
    tag = "anthropic",
    request_body = openapi::messages::MessagesPrompt,
    responses((status = 200, description = "Their number", body = openapi::messages::TokenCount), openapi::messages::Messaging),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn count(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let (request, _room) = read_reserved::<MessagesRequest>(&gateway, request).await?;
    let counted = prepare::count(&gateway, translate(request)?).await;
    let input_tokens = counted.map_err(|error| error.renamed(translate::NAMES))?;
    Ok(Json(TokenCount { input_tokens }).into_response())
}
