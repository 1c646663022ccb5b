//! Around every request: who asks, how much they may, how the answer is labelled, and that it is counted.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use crate::{asked::Asked, limits, metrics::HttpLabels, openai_api::errors::ApiError, server::SharedGateway};

/// The version of OpenAI's API that ours follows, as that one's answers state it.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

pub async fn guard(State(gateway): State<SharedGateway>, mut request: Request, next: Next) -> Response {
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |path| path.as_str().into());
    let is_openai = request.uri().path().starts_with("/v1/");
    let admitted = gateway.policy.check(request.method(), request.uri(), request.headers());
    let meter = if is_openai { gateway.keyless.clone() } else { None };
    let asked = Asked::new(meter);
    let admitted = admitted.and_then(|()| count_request(&asked));
    let span = tracing::info_span!("request", id = %asked.id, route);
    request.extensions_mut().insert(asked.clone());
    let mut response = match admitted {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(error) => error.into_response(),
    };
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, ms = asked.came.elapsed().as_millis(), "answered"));
    gateway.metrics.count_http(&HttpLabels { route, status });
    if is_openai {
        label_openai(response.headers_mut(), &asked);
    }
    label(response.headers_mut(), &asked);
    response
}

fn count_request(asked: &Asked) -> Result<(), ApiError> {
    asked.meter().map_or(Ok(()), |meter| meter.take_request())
}

fn label_openai(headers: &mut HeaderMap, asked: &Asked) {
    headers.insert(HeaderName::from_static("openai-version"), OPENAI_VERSION);
    headers.insert(HeaderName::from_static("openai-processing-ms"), milliseconds_since(asked.came));
    if let Some(meter) = asked.meter() {
        limits::headers::write(headers, meter);
    }
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
