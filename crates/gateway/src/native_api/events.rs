//! `GET /grid/v1/events`: a snapshot of status, peers and models every second, as server-sent events.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use opengrid_node::handle::{GridHandle, ModelRow, PeerRow, Status};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};
use utoipa::ToSchema;

use crate::{
    openai_api::{errors::ApiError, sse},
    openapi::errors::{ErrorBody, Reading},
    server::SharedGateway,
};

/// One event of `/grid/v1/events`.
#[derive(Serialize, ToSchema)]
pub struct Snapshot {
    status: Status,
    peers: Vec<PeerRow>,
    models: Vec<ModelRow>,
}

/// The newest snapshot, shared by all subscribers, and their places.
pub struct Snapshots {
    places: Arc<Semaphore>,
    every: Duration,
    newest: Mutex<Option<(Instant, Bytes)>>,
}

impl Snapshots {
    pub fn new(subscribers_max: usize, every: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(subscribers_max)), every, newest: Mutex::new(None) }
    }

    /// A snapshot younger than half the interval, as an event.
    fn newest(&self, grid: &dyn GridHandle) -> Bytes {
        let mut newest = self.newest.lock();
        if let Some((taken, event)) = &*newest
            && taken.elapsed() < self.every / 2
        {
            return event.clone();
        }
        let event = sse::event(&Snapshot { status: grid.status(), peers: grid.peers(), models: grid.models() });
        *newest = Some((Instant::now(), event.clone()));
        event
    }
}

/// A snapshot about once a second, without end.
#[utoipa::path(
    get,
    path = "/grid/v1/events",
    operation_id = "events",
    tag = "node",
    responses((status = 200, description = "Events whose data is a `Snapshot`", body = crate::openapi::errors::ServerSentEvent, content_type = "text/event-stream"), (status = 503, description = "Too many subscribers", body = ErrorBody), Reading),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn handle(State(gateway): State<SharedGateway>) -> Result<Response, ApiError> {
    let place = gateway
        .events
        .places
        .clone()
        .try_acquire_owned()
        .map_err(|_| ApiError::overloaded("too many subscribers of /grid/v1/events: close other pages"))?;
    let mut ticks = interval(gateway.events.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = futures::stream::unfold((gateway, ticks, place), |(gateway, mut ticks, place)| async move {
        tokio::select! {
            () = gateway.shutdown.cancelled() => return None,
            _ = ticks.tick() => {}
        }
        let event = gateway.events.newest(gateway.grid.as_ref());
        Some((Ok::<_, Infallible>(event), (gateway, ticks, place)))
    });
    Ok(([(header::CONTENT_TYPE, sse::CONTENT_TYPE)], Body::from_stream(events)).into_response())
}
