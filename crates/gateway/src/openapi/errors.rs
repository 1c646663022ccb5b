//! The errors that each kind of request can get.
#![allow(dead_code, reason = "described, not built: `ApiError` writes them")]

use utoipa::{IntoResponses, ToSchema};

/// OpenAI's error shape.
#[derive(ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    error: ErrorFields,
}

#[derive(ToSchema)]
#[schema(as = ErrorFields)]
pub struct ErrorFields {
    /// What is wrong, where, and how to mend it.
    message: String,
    /// E.g. `invalid_request_error`, `authentication_error`, `requests` or `tokens` (rate limits), `server_error`.
    r#type: String,
    /// The field at fault.
    param: Option<String>,
    /// For programs, e.g. `model_not_found`, `context_length_exceeded`, `rate_limit_exceeded`.
    code: Option<String>,
}

/// A server-sent event.
#[derive(ToSchema)]
pub struct ServerSentEvent {
    /// What kind it is, where there are several.
    event: Option<String>,
    /// JSON; where OpenAI's clients expect it, the last is `[DONE]`.
    data: String,
}

/// Of requests that are open to all.
#[derive(IntoResponses)]
pub enum Open {
    #[response(status = 400, description = "A header cannot be used")]
    BadRequest(ErrorBody),
    #[response(status = 403, description = "The page is of a foreign origin or host")]
    Forbidden(ErrorBody),
}

/// Of requests that only read.
#[derive(IntoResponses)]
pub enum Reading {
    #[response(status = 400, description = "A header cannot be used")]
    BadRequest(ErrorBody),
    #[response(status = 401, description = "A key is needed, or the given one is wrong")]
    Unauthorized(ErrorBody),
    #[response(status = 403, description = "The key lacks the scope, or the page is of a foreign origin or host")]
    Forbidden(ErrorBody),
}

/// Of requests that change the node.
#[derive(IntoResponses)]
pub enum Changing {
    #[response(status = 400, description = "The body is no JSON, lacks a field, or has one that cannot be used")]
    BadRequest(ErrorBody),
    #[response(status = 401, description = "The local token or a key with the scope `admin` is needed")]
    Unauthorized(ErrorBody),
    #[response(status = 403, description = "The key lacks the scope, or the page is of a foreign origin or host")]
    Forbidden(ErrorBody),
    #[response(status = 408, description = "The body came too slowly")]
    Timeout(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The content type is not application/json")]
    MediaType(ErrorBody),
}

/// Of requests for an answer of a model.
#[derive(IntoResponses)]
pub enum Answering {
    #[response(status = 400, description = "The body is no JSON, lacks a field, or has one that cannot be used")]
    BadRequest(ErrorBody),
    #[response(status = 401, description = "A key is needed, or the given one is wrong")]
    Unauthorized(ErrorBody),
    #[response(status = 403, description = "The key lacks the scope, or the page is of a foreign origin or host")]
    Forbidden(ErrorBody),
    #[response(status = 404, description = "There is no such model")]
    NotFound(ErrorBody),
    #[response(status = 408, description = "The body came too slowly")]
    Timeout(ErrorBody),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ErrorBody),
    #[response(status = 415, description = "The content type is not application/json")]
    MediaType(ErrorBody),
    #[response(
        status = 429,
        description = "The limit of requests or tokens per minute is reached",
        headers(
            ("retry-after" = u64, description = "Seconds"),
            ("retry-after-ms" = u64, description = "Milliseconds"),
            ("x-ratelimit-reset-requests" = String, description = "E.g. `1.5s` or `6m0s`; so for tokens")
        )
    )]
    Limited(ErrorBody),
    #[response(status = 500, description = "Something failed that should not")]
    Internal(ErrorBody),
    #[response(
        status = 503,
        description = "Nobody serves the model now, or this gateway has too much to do",
        headers(("retry-after" = u64, description = "Seconds"))
    )]
    NoCapacity(ErrorBody),
}
