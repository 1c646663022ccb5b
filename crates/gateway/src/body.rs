//! Reading a JSON body: bounded in size and time, errors in the API's shape.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{openai_api::errors::ApiError, server::Gateway};

/// A client that sends its body slower than this is given up.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
/// How much of a body that is too large is read and thrown away, so that the client gets to see the answer.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// The body of `request` as a `T`, and the room that it takes in the memory that all bodies share: hold it as long as
/// what came is held.
///
/// # Errors
/// Like [`read_json`]; 503 where there is no room, at once: slow senders must not make others wait.
pub async fn read_reserved<T: DeserializeOwned>(
    gateway: &Gateway,
    request: Request,
) -> Result<(T, OwnedSemaphorePermit), ApiError> {
    let bytes_max = gateway.config.body_bytes_max;
    let bytes = announced_length(request.headers()).unwrap_or(u64::MAX).min(bytes_max as u64);
    let full = |_| ApiError::overloaded("too many large requests arrive at once: try again in a second");
    let room = gateway.bodies.clone().try_acquire_many_owned(kibibytes(bytes)).map_err(full)?;
    Ok((read_json(request, bytes_max).await?, room))
}

/// Permits of the memory that all bodies share.
pub fn kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// The body of `request` as a `T`.
///
/// # Errors
/// 415 for other content types and for encoded bodies, 413 over `bytes_max`, 408 when it comes too slowly, 400 with the path of the field at
/// fault.
pub async fn read_json<T: DeserializeOwned>(request: Request, bytes_max: usize) -> Result<T, ApiError> {
    check_content_type(request.headers())?;
    check_encoding(request.headers())?;
    let bytes = read(request, bytes_max).await?;
    parse(&bytes)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "the content type must be application/json (curl: -H 'content-type: application/json')";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match encoding {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            let shown: String = encoding.chars().take(40).collect();
            let message = format!("send the body as it is: the content encoding `{shown}` is not supported");
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
        }
        _ => Ok(()),
    }
}

async fn read(request: Request, bytes_max: usize) -> Result<Bytes, ApiError> {
    let waits = request.headers().contains_key(header::EXPECT);
    let announced = announced_length(request.headers());
    let mut body = request.into_body();
    if announced.is_some_and(|length| length > bytes_max as u64) {
        // A client that waits for `100 Continue` has sent nothing yet.
        if !waits {
            discard(&mut body).await;
        }
        return Err(too_large(bytes_max));
    }
    let mut bytes = BytesMut::with_capacity(announced.map_or(0, |length| length as usize));
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > bytes_max {
                return Ok(false);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(true)
    };
    match timeout(READ_TIME_MAX, reading).await {
        Ok(Ok(true)) => Ok(bytes.freeze()),
        Ok(Ok(false)) => {
            discard(&mut body).await;
            Err(too_large(bytes_max))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body came too slowly")),
    }
}

/// Bytes that the body is said to have.
fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn discard(body: &mut Body) {
    let reading = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    let _ = timeout(DISCARD_TIME_MAX, reading).await;
}

fn too_large(bytes_max: usize) -> ApiError {
    let message = format!("the body is over {bytes_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// Exactly one JSON object.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bad = |code, message: String| ApiError::new(StatusCode::BAD_REQUEST, code, message);
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if matches!(first, Some(b'[' | b'"' | b't' | b'f' | b'n' | b'0'..=b'9' | b'-')) {
        return Err(bad("invalid_type", "the body must be a JSON object, such as {\"model\": …}".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.classify() != serde_json::error::Category::Data {
            return bad("invalid_json", format!("the body is not valid JSON: {inner}"));
        }
        let text = in_words_of_json(&inner.to_string());
        match missing_field(&text) {
            Some(field) => {
                let param = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
                bad("missing_required_parameter", format!("missing required parameter: `{param}`")).with_param(param)
            }
            None if path == "." => bad("invalid_type", text),
            None => bad("invalid_type", format!("invalid value for `{path}`: {text}")).with_param(path),
        }
    })?;
    deserializer.end().map_err(|error| bad("invalid_json", format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

/// serde's message without the names of our types.
fn in_words_of_json(message: &str) -> String {
    let Some((before, rest)) = message.split_once("expected struct ") else { return message.to_owned() };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    format!("{before}expected an object{after}")
}

/// The name in serde's "missing field `model` at line 1 column 2".
fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

#[cfg(test)]
mod tests {
    use super::in_words_of_json;

    #[test]
    fn messages_name_no_type_of_ours() {
        let named = "invalid type: integer `5`, expected struct FormatIn at line 1 column 9";
        assert_eq!(in_words_of_json(named), "invalid type: integer `5`, expected an object at line 1 column 9");
        let other = "invalid type: map, expected a string at line 1 column 9";
        assert_eq!(in_words_of_json(other), other);
    }
}
