//! `/health`, `/metrics` and the native API under `/grid/v1`. The rows are those of
//! [`opengrid_node::handle`]; lists are plain JSON arrays.

pub mod control;
pub mod events;

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use opengrid_node::handle::{ModelRow, PeerRow, Status};
use serde_json::{Value, json};

use crate::server::SharedGateway;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub async fn status(State(gateway): State<SharedGateway>) -> Json<Status> {
    Json(gateway.grid.status())
}

pub async fn peers(State(gateway): State<SharedGateway>) -> Json<Vec<PeerRow>> {
    Json(gateway.grid.peers())
}

pub async fn models(State(gateway): State<SharedGateway>) -> Json<Vec<ModelRow>> {
    Json(gateway.grid.models())
}

pub async fn metrics(State(gateway): State<SharedGateway>) -> Response {
    let mut text = gateway.metrics.encode();
    let node = gateway.grid.metrics();
    text.push_str(&node);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# EOF\n");
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
