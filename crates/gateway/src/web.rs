//! The web page and the page of the API's documentation (Swagger UI): files of `web/` and others, embedded by `build.rs`.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

use crate::openai_api::errors::ApiError;

struct File {
    path: &'static str,
    content_type: &'static str,
    etag: &'static str,
    bytes: &'static [u8],
}

static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/web_files.rs"));

/// No script, style, frame, form or connection but our own.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

fn find(path: &str) -> Option<&'static File> {
    let path = match path {
        "/" => "/index.html",
        "/docs" | "/docs/" => "/docs/index.html",
        path => path,
    };
    FILES.iter().find(|file| file.path == path)
}

pub fn is_page(path: &str) -> bool {
    find(path).is_some()
}

/// Everything that is no route: a file of the page, or 404 in the API's shape.
pub async fn serve_file(request: Request) -> Response {
    let Some(file) = find(request.uri().path()) else {
        return ApiError::unknown_path(request.uri().path()).into_response();
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return ApiError::method_not_allowed(request.method(), request.uri().path()).into_response();
    }
    let unchanged = request.headers().get(header::IF_NONE_MATCH).is_some_and(|tag| tag == file.etag);
    let (status, body) = if unchanged {
        (StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        (StatusCode::OK, Body::from(Bytes::from_static(file.bytes)))
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    headers.insert(header::ETAG, HeaderValue::from_static(file.etag));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    response
}
