//! OpenAI's error shape, for every answer that is no success.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use opengrid_node::handle::GridError;
use serde::Serialize;

use crate::text::template::TemplateError;

const MESSAGE_CHARS_MAX: usize = 600;

/// `{"error":{"message","type","param","code"}}` with its status.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field at fault, e.g. `messages[0].content`.
    pub param: Option<Cow<'static, str>>,
    pub code: &'static str,
    /// OpenAI's `type`; `None`: by the status.
    kind: Option<&'static str>,
    retry_after: Option<Duration>,
    should_retry: Option<bool>,
}

#[derive(Serialize)]
struct Shape<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
        Self { status, message, param: None, code, kind: None, retry_after: None, should_retry: None }
    }

    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Tells the client when to ask again.
    pub fn retry_after(self, time: Duration) -> Self {
        Self { retry_after: Some(time), ..self }
    }

    /// Tells the client that asking again cannot help.
    pub fn do_not_retry(self) -> Self {
        Self { should_retry: Some(false), ..self }
    }

    /// 429; `kind` names what is limited.
    pub fn rate_limited(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind: Some(kind), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message) }
    }

    /// 400: the value of `param` cannot be used.
    pub fn invalid_value(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    /// 400: `param` must be there.
    pub fn missing(param: impl Into<Cow<'static, str>>) -> Self {
        let param = param.into();
        let message = format!("missing required parameter: `{param}`");
        Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).with_param(param)
    }

    /// With the names that fields have in an API which is answered through chat: `names` are pairs of chat's and that
    /// API's. The place of a message is left out, as it may be another one there.
    pub fn renamed(mut self, names: &[(&'static str, &'static str)]) -> Self {
        for (ours, theirs) in names {
            self.message = self.message.replace(&format!("`{ours}`"), &format!("`{theirs}`"));
            for word in ["the", "your"] {
                self.message = self.message.replace(&format!("{word} {ours}"), &format!("{word} {theirs}"));
            }
            self.param = self.param.map(|param| match param.strip_prefix("messages[") {
                Some(_) => "messages".into(),
                None if param.contains(ours) => param.replace(ours, theirs).into(),
                None => param,
            });
        }
        self
    }

    /// 400: what `param` asks for does not exist here.
    pub fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported_value", message).with_param(param)
    }

    pub fn unknown_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("unknown path {path}"))
    }

    pub fn method_not_allowed(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{method} is not allowed on {path}"))
    }

    pub fn model_not_found(model: &str) -> Self {
        let shown: String = model.chars().take(128).collect();
        let message = format!("the model `{shown}` does not exist; GET /v1/models lists what can be answered now");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    /// 503: nobody serves the model.
    pub fn no_capacity(model: &str, retry_after_s: u32) -> Self {
        let message = format!("no node serves `{model}` right now; retry in {retry_after_s} s");
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_capacity", message).with_param("model");
        error.retry_after(Duration::from_secs(retry_after_s.max(1).into()))
    }

    /// 503: this gateway has too much to do.
    pub fn overloaded(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(1))
    }

    /// 400 with both numbers. `completion` is `None` where the request does not bound the answer.
    pub fn context_length(limit: u32, prompt: u32, completion: Option<u32>, param: &'static str) -> Self {
        let message = match completion {
            Some(completion) => format!(
                "this model's maximum context length is {limit} tokens. However, you requested {} tokens ({prompt} in \
                 the {param}, {completion} in the completion). Please reduce the length of the {param} or completion.",
                u64::from(prompt) + u64::from(completion),
            ),
            None => format!(
                "this model's maximum context length is {limit} tokens. However, your {param} resulted in {prompt} \
                 tokens, and at least 1 more is needed for the answer. Please reduce the length of the {param}.",
            ),
        };
        Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).with_param(param)
    }

    /// 500: something of ours failed.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", format!("internal error: {error}"))
    }

    fn kind(&self) -> &'static str {
        self.kind.unwrap_or(match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        })
    }

    /// The JSON object, also sent in the middle of a stream.
    pub fn to_json(&self) -> impl Serialize + '_ {
        Shape {
            error: Fields {
                message: &self.message,
                r#type: self.kind(),
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if let Some(time) = self.retry_after {
            let ms = u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
            headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(ms));
        }
        if self.should_retry == Some(false) {
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For an API that has another shape.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<GridError> for ApiError {
    fn from(error: GridError) -> Self {
        match error {
            GridError::UnknownModel(model) => Self::model_not_found(&model),
            GridError::NoWorker { model, retry_after_s } => Self::no_capacity(&model, retry_after_s),
            GridError::Incapable { retry_after_s, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_capacity", error.to_string())
                    .retry_after(Duration::from_secs(retry_after_s.max(1).into()))
            }
            GridError::ContextOverflow { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", error.to_string())
            }
            GridError::Overloaded(why) => Self::overloaded(&why),
            GridError::Invalid(_) => Self::new(StatusCode::BAD_REQUEST, "invalid_value", error.to_string()),
            GridError::Internal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string()),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let (status, code) = match error {
            TemplateError::Refused(_) => (StatusCode::BAD_REQUEST, "invalid_value"),
            TemplateError::TooLarge => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
            TemplateError::Broken(_) => (StatusCode::BAD_REQUEST, "broken_chat_template"),
        };
        Self::new(status, code, error.to_string()).with_param("messages")
    }
}
