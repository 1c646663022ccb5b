//! Around every request, from the outside in: [`admit`] (from where it comes, and how its answer is labelled and
//! counted), CORS, [`authorise`] (who asks, and how much is left to them).

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use crate::{
    anthropic_api, asked::Asked, limits, metrics::HttpLabels, openai_api::errors::ApiError, server::SharedGateway,
};

/// The version of OpenAI's API that ours follows, as that one's answers state it.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
/// OpenAI's bound.
const CLIENT_REQUEST_ID_BYTES_MAX: usize = 512;

pub async fn admit(State(gateway): State<SharedGateway>, mut request: Request, next: Next) -> Response {
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |path| path.as_str().into());
    let is_openai = is_openai(&request);
    let is_anthropic = anthropic_api::is_path(request.uri().path());
    let asked = Asked::new();
    let span = tracing::info_span!("request", id = %asked.id, client_id = tracing::field::Empty, route);
    let admitted = gateway
        .policy
        .check(request.method(), request.uri(), request.headers())
        .and_then(|()| client_request_id(request.headers()));
    let mut response = match admitted {
        Ok(client_id) => {
            span.record("client_id", client_id.as_ref().and_then(|id| id.to_str().ok()));
            request.extensions_mut().insert(asked.clone());
            let mut response = next.run(request).instrument(span.clone()).await;
            client_id.map(|id| response.headers_mut().insert(CLIENT_REQUEST_ID, id));
            response
        }
        Err(error) => error.into_response(),
    };
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, ms = asked.came.elapsed().as_millis(), "answered"));
    gateway.metrics.count_http(&HttpLabels { route, status });
    if is_openai {
        response.headers_mut().insert(HeaderName::from_static("openai-version"), OPENAI_VERSION);
        response.headers_mut().insert(HeaderName::from_static("openai-processing-ms"), milliseconds_since(asked.came));
    }
    label(response.headers_mut(), &asked);
    if is_anthropic { anthropic_api::errors::reshape(response, &asked.id) } else { response }
}

/// Who asks, may they, and is anything left to them? The limits are those of `/v1`.
pub async fn authorise(State(gateway): State<SharedGateway>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let meter = match gateway.access.check(request.method(), path, request.headers()) {
        Ok(meter) => meter.filter(|_| is_openai(&request)),
        Err(error) => return error.into_response(),
    };
    let Some(meter) = meter else { return next.run(request).await };
    let mut response = match meter.take_request() {
        Ok(()) => {
            let asked = Asked::of(&request).with_meter(meter.clone());
            request.extensions_mut().insert(asked);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    limits::headers::write(response.headers_mut(), &meter);
    response
}

fn is_openai(request: &Request) -> bool {
    request.uri().path().starts_with("/v1/")
}

/// The client's own name for its request: logged beside ours and sent back.
fn client_request_id(headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    let Some(id) = headers.get(CLIENT_REQUEST_ID) else { return Ok(None) };
    let is_plain = id.as_bytes().iter().all(|byte| matches!(byte, b' '..=b'~'));
    if is_plain && id.len() <= CLIENT_REQUEST_ID_BYTES_MAX {
        return Ok(Some(id.clone()));
    }
    let message =
        format!("`x-client-request-id` takes at most {CLIENT_REQUEST_ID_BYTES_MAX} printable ASCII characters");
    Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param("x-client-request-id"))
}

fn milliseconds_since(instant: Instant) -> HeaderValue {
    u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX).into()
}

fn label(headers: &mut HeaderMap, asked: &Asked) {
    if let Ok(id) = HeaderValue::from_str(&asked.id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
