//! `GET /v1/models` and `/v1/models/{id}`: what can be answered now.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use opengrid_node::handle::{ModelRow, Task};
use serde::Serialize;
use utoipa::ToSchema;

use super::{errors::ApiError, prepare::find_model};
use crate::{openapi::errors::Answering, server::SharedGateway};

#[derive(Serialize, ToSchema)]
pub struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<Model>,
}

/// A model that can be answered now.
#[derive(Serialize, ToSchema)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// vLLM's name for the context in tokens.
    max_model_len: u32,
    /// `generation` or `embedding`.
    task: Task,
    /// The hash of the weights.
    root: String,
}

impl From<ModelRow> for Model {
    fn from(row: ModelRow) -> Self {
        Self {
            root: row.root.to_string(),
            id: row.id,
            object: "model",
            created: row.created,
            owned_by: "opengrid",
            max_model_len: row.context_tokens,
            task: row.task,
        }
    }
}

/// The models that can be answered now.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "openai",
    responses((status = 200, description = "The models", body = ModelList), Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn list(State(gateway): State<SharedGateway>) -> Json<ModelList> {
    let served = gateway.grid.models().into_iter().filter(|row| row.workers > 0);
    Json(ModelList { object: "list", data: served.map(Model::from).collect() })
}

/// One of them. Ids may contain slashes.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "retrieveModel",
    tag = "openai",
    params(("id" = String, Path, description = "The model's id")),
    responses((status = 200, description = "The model", body = Model), Answering),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub async fn retrieve(
    State(gateway): State<SharedGateway>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::model_not_found("?"))?;
    find_model(&gateway, &id).map(|row| Json(row.into()))
}
