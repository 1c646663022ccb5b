//! What changes the node: needs the local token.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{body::read_json, openai_api::errors::ApiError, server::SharedGateway};

/// An invite has at most 1,023 characters.
const BODY_BYTES_MAX: usize = 8 * 1024;

#[derive(Deserialize)]
struct JoinRequest {
    invite: String,
}

/// `POST /grid/v1/join`: `{"invite": "grid1…"}`.
pub async fn join(State(gateway): State<SharedGateway>, request: Request) -> Result<Json<Value>, ApiError> {
    gateway.policy.check_token(request.headers())?;
    let JoinRequest { invite } = read_json(request, BODY_BYTES_MAX).await?;
    match gateway.grid.join(&invite).await {
        Ok(()) => Ok(Json(json!({ "joined": true }))),
        Err(why) => Err(ApiError::new(StatusCode::BAD_REQUEST, "cannot_join", why).with_param("invite")),
    }
}

/// `POST /grid/v1/shutdown`: drains and exits. A body is not needed.
pub async fn shutdown(
    State(gateway): State<SharedGateway>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    gateway.policy.check_token(request.headers())?;
    gateway.grid.request_shutdown();
    Ok((StatusCode::ACCEPTED, Json(json!({ "shutting_down": true }))))
}
