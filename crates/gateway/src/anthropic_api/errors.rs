//! Anthropic's error shape (<https://docs.anthropic.com/en/api/errors>).

use axum::{
    Json,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::openai_api::errors::ApiError;

const OVERLOADED: u16 = 529;

#[derive(Serialize)]
pub struct ErrorBody<'a> {
    r#type: &'static str,
    error: Fields<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Fields<'a> {
    r#type: &'static str,
    message: &'a str,
}

pub fn body<'a>(error: &'a ApiError, request_id: &'a str) -> ErrorBody<'a> {
    let error = Fields { r#type: kind(error.status.as_u16()), message: &error.message };
    ErrorBody { r#type: "error", error, request_id }
}

fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | OVERLOADED => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// The answer to a request under `/v1/messages`, whoever made it: its errors in this API's shape, its id under this
/// API's name.
pub fn reshape(mut response: Response, request_id: &str) -> Response {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let reshaped = Json(body(&error, request_id)).into_response();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = reshaped.into_body();
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(HeaderName::from_static("request-id"), id);
    }
    response
}
