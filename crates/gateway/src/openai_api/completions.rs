//! `POST /v1/completions`.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{chat::generate, errors::ApiError, options::Api};
use crate::{
    openapi::{
        errors::Answering,
        generation::{Completion, CompletionRequest},
    },
    server::SharedGateway,
};

/// The continuation of a text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "createCompletion",
    tag = "openai",
    request_body = CompletionRequest,
    responses((status = 200, description = "The answer, or with `stream` its events", content((Completion = "application/json"), (crate::openapi::errors::ServerSentEvent = "text/event-stream"))), Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn handle(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    generate(&gateway, request, Api::Text).await
}
