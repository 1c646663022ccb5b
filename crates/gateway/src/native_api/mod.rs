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
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    openapi::errors::{Open, Reading},
    server::SharedGateway,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether this gateway answers.
#[derive(Serialize, ToSchema)]
pub struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether this gateway answers; open to all.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "node",
    responses((status = 200, description = "It answers", body = Health), Open),
)]
pub async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// What this node is and does.
#[utoipa::path(
    get,
    path = "/grid/v1/status",
    operation_id = "status",
    tag = "node",
    responses((status = 200, description = "The node", body = Status), Reading),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn status(State(gateway): State<SharedGateway>) -> Json<Status> {
    Json(gateway.grid.status())
}

/// Connected nodes and nodes known from live beacons.
#[utoipa::path(
    get,
    path = "/grid/v1/peers",
    operation_id = "peers",
    tag = "node",
    responses((status = 200, description = "The other nodes", body = Vec<PeerRow>), Reading),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn peers(State(gateway): State<SharedGateway>) -> Json<Vec<PeerRow>> {
    Json(gateway.grid.peers())
}

/// Every model of the catalogue; those with workers can be answered now.
#[utoipa::path(
    get,
    path = "/grid/v1/models",
    operation_id = "models",
    tag = "node",
    responses((status = 200, description = "The models", body = Vec<ModelRow>), Reading),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn models(State(gateway): State<SharedGateway>) -> Json<Vec<ModelRow>> {
    Json(gateway.grid.models())
}

/// Metrics of gateway and node.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "node",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), Reading),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
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
