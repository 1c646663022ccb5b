//! `POST /v1/chat/completions`.

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    response::Response,
};

use super::{
    chunks::Chunks, collect::collect, errors::ApiError, options::Api, prepare, stream::stream, types::GenerationRequest,
};
use crate::{
    asked::Asked,
    body::read_reserved,
    openapi::{
        errors::Answering,
        generation::{ChatCompletion, ChatRequest},
    },
    server::{Gateway, SharedGateway},
};

/// An answer to a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "createChatCompletion",
    tag = "openai",
    request_body = ChatRequest,
    responses((status = 200, description = "The answer, or with `stream` its events", content((ChatCompletion = "application/json"), (crate::openapi::errors::ServerSentEvent = "text/event-stream"))), Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn handle(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    generate(&gateway, request, Api::Chat).await
}

/// Both generation endpoints: places the request, then answers in one piece or as a stream.
pub async fn generate(gateway: &Gateway, request: Request, api: Api) -> Result<Response, ApiError> {
    let asked = Asked::of(&request);
    let (options, generation) = {
        let (request, _memory) = read_reserved::<GenerationRequest>(gateway, request).await?;
        prepare::place(gateway, request, api, &asked).await?
    };
    let headers = generation.header_values();
    let response = if options.stream {
        stream(Chunks(options), generation, gateway.config.keep_alive_every)
    } else {
        collect(&options, generation).await?
    };
    Ok(name_workers(response, headers))
}

/// Adds the headers that say who answered and in which session, from [`Generation::header_values`](super::generation::Generation).
pub fn name_workers(mut response: Response, values: impl IntoIterator<Item = String>) -> Response {
    for (name, value) in ["x-opengrid-worker", "x-opengrid-session"].into_iter().zip(values) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}
