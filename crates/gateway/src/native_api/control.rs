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
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    body::read_json,
    openai_api::{errors::ApiError, sse},
    server::SharedGateway,
};

/// An invite has at most 1,023 characters.
const BODY_BYTES_MAX: usize = 8 * 1024;

#[derive(Deserialize)]
struct JoinRequest {
    invite: String,
}

/// `POST /grid/v1/join`: `{"invite": "grid1…"}`.
pub async fn join(State(gateway): State<SharedGateway>, request: Request) -> Result<Json<Value>, ApiError> {
    let JoinRequest { invite } = read_json(request, BODY_BYTES_MAX).await?;
    match gateway.grid.join(&invite).await {
        Ok(()) => Ok(Json(json!({ "joined": true }))),
        Err(why) => Err(ApiError::new(StatusCode::BAD_REQUEST, "cannot_join", why).with_param("invite")),
    }
}

#[derive(Deserialize)]
struct PullRequest {
    model: String,
}

/// A download that is silent for so long (a package tool says nothing) shows that it lives.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// `POST /grid/v1/pull`: `{"model": "id"}`; a [`PullEvent`] an event. Who hangs up stops the download.
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

/// `POST /grid/v1/shutdown`: drains and exits. A body is not needed.
pub async fn shutdown(State(gateway): State<SharedGateway>) -> (StatusCode, Json<Value>) {
    gateway.grid.request_shutdown();
    (StatusCode::ACCEPTED, Json(json!({ "shutting_down": true })))
}
