//! The description of the API, made from the handlers and their types: `GET /grid/v1/openapi.json`, read by the page at
//! `/docs`, by generators of clients and by schemathesis in the tests. `openapi.json` beside `Cargo.toml` is a copy that
//! a test holds to this one.

pub mod embeddings;
pub mod errors;
pub mod generation;
pub mod messages;
pub mod responses;

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use opengrid_node::handle::PullEvent;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
};

use crate::{anthropic_api, native_api, openai_api};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "OpenGrid gateway",
        description = "OpenAI's API in front of a grid of volunteers' computers, and what the node behind it tells and \
                       does. Without a key anybody on the node's own machine may use `/v1` and read; beyond it, or where \
                       the settings say so, everything but `/health` needs an API key (`opengrid keys create`) or the \
                       node's local token. What changes the node always does."
    ),
    servers((url = "/", description = "This gateway")),
    tags(
        (name = "openai", description = "OpenAI's API, so that its clients work unchanged"),
        (name = "anthropic", description = "Anthropic's Messages, answered as a chat"),
        (name = "node", description = "What the node knows of itself and of the grid"),
        (name = "control", description = "What changes the node: needs the local token or the scope `admin`"),
    ),
    paths(
        openai_api::models::list,
        openai_api::models::retrieve,
        openai_api::chat::handle,
        openai_api::completions::handle,
        openai_api::embeddings::handle,
        openai_api::responses::create,
        openai_api::responses::count,
        anthropic_api::create,
        anthropic_api::count,
        native_api::health,
        native_api::metrics,
        native_api::status,
        native_api::peers,
        native_api::models,
        native_api::events::handle,
        native_api::control::join,
        native_api::control::pull,
        native_api::control::shutdown,
        serve,
    ),
    components(schemas(messages::AnthropicError, PullEvent, native_api::events::Snapshot)),
    modifiers(&Security),
)]
struct Description;

struct Security;

impl Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some("An API key, or the node's local token".to_owned());
        let header = ApiKeyValue::with_description("x-api-key", "The same, as Anthropic's clients send it");
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        components.add_security_scheme("x_api_key", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// The description as indented JSON, ending with a line break.
pub fn text() -> String {
    // Serialising our own description cannot fail; the test that reads it would see an empty one.
    Description::openapi().to_pretty_json().map(|text| text + "\n").unwrap_or_default()
}

/// This description.
#[utoipa::path(
    get,
    path = "/grid/v1/openapi.json",
    operation_id = "openapi",
    tag = "node",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object), errors::Open),
)]
pub async fn serve() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| text().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}
