//! `POST /v1/completions`.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{chat::generate, errors::ApiError, options::Api};
use crate::server::SharedGateway;

pub async fn handle(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    generate(&gateway, request, Api::Text).await
}
