//! `POST /v1/chat/completions`.

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    response::Response,
};

use super::{collect::collect, errors::ApiError, options::Api, prepare, stream::stream, types::GenerationRequest};
use crate::{
    asked::Asked,
    body::{announced_length, read_json},
    server::{Gateway, SharedGateway},
};

pub async fn handle(State(gateway): State<SharedGateway>, request: Request) -> Result<Response, ApiError> {
    generate(&gateway, request, Api::Chat).await
}

/// Both generation endpoints: places the request, then answers in one piece or as a stream.
pub async fn generate(gateway: &Gateway, request: Request, api: Api) -> Result<Response, ApiError> {
    let asked = Asked::of(&request);
    let (options, generation) = {
        let _memory = reserve_body(gateway, announced_length(request.headers()))?;
        let request: GenerationRequest = read_json(request, gateway.config.body_bytes_max).await?;
        prepare::place(gateway, request, api, &asked).await?
    };
    let headers = generation.header_values();
    let mut response = if options.stream {
        stream(options, generation, gateway.config.keep_alive_every)
    } else {
        collect(&options, generation).await?
    };
    for (name, value) in ["x-opengrid-worker", "x-opengrid-session"].into_iter().zip(headers) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}

/// Takes room in the memory that all bodies share, or refuses at once: slow senders must not make others wait.
fn reserve_body<'a>(
    gateway: &'a Gateway,
    announced: Option<u64>,
) -> Result<tokio::sync::SemaphorePermit<'a>, ApiError> {
    let bytes_max = gateway.config.body_bytes_max as u64;
    let bytes = announced.unwrap_or(bytes_max).min(bytes_max);
    let kibibytes = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
    let full = |_| ApiError::overloaded("too many large requests arrive at once: try again in a second");
    gateway.bodies.try_acquire_many(kibibytes).map_err(full)
}
