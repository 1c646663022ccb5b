//! Cross-origin resource sharing, for the origins that the settings name. Off without any.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::limits;

/// How long a browser may remember a preflight; Chromium's most.
const PREFLIGHT_VALID: Duration = Duration::from_secs(7_200);

/// `None` without origins. `security` has refused others before; no cookie is ever used, so none is allowed.
pub fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // Clients send headers of their own (`x-stainless-…`); whatever they are, none is trusted.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed())
        .allow_private_network(true)
        .max_age(PREFLIGHT_VALID);
    Some(layer)
}

fn exposed() -> Vec<HeaderName> {
    const OURS: [&str; 8] = [
        "x-request-id",
        "x-client-request-id",
        "x-opengrid-worker",
        "x-opengrid-session",
        "openai-processing-ms",
        "openai-version",
        "retry-after-ms",
        "x-should-retry",
    ];
    OURS.into_iter().map(HeaderName::from_static).chain([header::RETRY_AFTER]).chain(limits::headers::names()).collect()
}
