//! What changes the node. `access` lets nobody in without the local token or a key with the scope `admin`.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use opengrid_node::handle::PullEvent;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};
use utoipa::ToSchema;

use crate::{
    body::read_json,
    openai_api::{errors::ApiError, sse},
    openapi::errors::{Changing, ErrorBody, Reading},
    server::SharedGateway,
};

/// An invite has at most 1,023 characters.
const BODY_BYTES_MAX: usize = 8 * 1024;

/// An invite that another node printed.
#[derive(Deserialize, ToSchema)]
pub struct JoinRequest {
    #[schema(max_length = 1023, example = "grid1qy…")]
    invite: String,
}

#[derive(Serialize, ToSchema)]
pub struct Joined {
    joined: bool,
}

#[derive(Serialize, ToSchema)]
pub struct ShuttingDown {
    shutting_down: bool,
}

/// Dials the node of an invite and remembers it.
#[utoipa::path(
    post,
    path = "/grid/v1/join",
    operation_id = "join",
    tag = "control",
    request_body = JoinRequest,
    responses((status = 200, description = "Joined", body = Joined), Changing),
    security(("bearer" = []), ("x_api_key" = [])),
)]
pub async fn join(State(gateway): State<SharedGateway>, request: Request) -> Result<Json<Joined>, ApiError> {
    let JoinRequest { invite } = read_json(request, BODY_BYTES_MAX).await?;
    match gateway.grid.join(&invite).await {
        Ok(()) => Ok(Json(Joined { joined: true })),
        Err(why) => Err(ApiError::new(StatusCode::BAD_REQUEST, "cannot_join", why).with_param("invite")),
    }
}

/// A model of the catalogue.
#[derive(Deserialize, ToSchema)]
pub struct PullRequest {
    #[schema(example = "smollm2-135m")]
    model: String,
}

/// A download that is silent for so long (a package tool says nothing) shows that it lives.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// Fetches a model into the node's store. Who hangs up stops the download; what is there is kept for the next one.
#[utoipa::path(
    post,
    path = "/grid/v1/pull",
    operation_id = "pull",
    tag = "control",
    request_body = PullRequest,
    responses((status = 200, description = "Events whose data is a `PullEvent`; `done` or `failed` is the last", body = crate::openapi::errors::ServerSentEvent, content_type = "text/event-stream"), (status = 404, description = "There is no such model", body = ErrorBody), (status = 503, description = "Too many downloads run already", body = ErrorBody), Changing),
    security(("bearer" = []), ("x_api_key" = [])),
)]
pub async fn pull(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    let PullRequest { model } = read_json(request, BODY_BYTES_MAX).await?;
    let events = gateway.grid.pull(&model)?;
    let stream = futures::stream::unfold((gateway, Some(events)), |(gateway, events)| async move {
        let mut events = events?;
        let event = tokio::select! {
            () = gateway.shutdown.cancelled() => return None,
            event = next_or_keep_alive(&mut events) => event?,
        };
        let (bytes, is_last) = event;
        Some((Ok::<_, Infallible>(bytes), (gateway, (!is_last).then_some(events))))
    });
    Ok(([(header::CONTENT_TYPE, sse::CONTENT_TYPE)], Body::from_stream(stream)).into_response())
}

async fn next_or_keep_alive(events: &mut mpsc::Receiver<PullEvent>) -> Option<(Bytes, bool)> {
    match timeout(KEEP_ALIVE_EVERY, events.recv()).await {
        Ok(Some(event)) => Some((sse::event(&event), !matches!(event, PullEvent::Progress(_)))),
        Ok(None) => None,
        Err(_) => Some((Bytes::from_static(sse::KEEP_ALIVE), false)),
    }
}

/// Lets running answers end, then exits.
#[utoipa::path(
    post,
    path = "/grid/v1/shutdown",
    operation_id = "shutdown",
    tag = "control",
    responses((status = 202, description = "It will", body = ShuttingDown), Reading),
    security(("bearer" = []), ("x_api_key" = [])),
)]
pub async fn shutdown(State(gateway): State<SharedGateway>) -> (StatusCode, Json<ShuttingDown>) {
    gateway.grid.request_shutdown();
    (StatusCode::ACCEPTED, Json(ShuttingDown { shutting_down: true }))
}
