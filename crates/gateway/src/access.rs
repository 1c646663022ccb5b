//! Who asks, and for what that suffices.
//!
//! Three kinds of callers: the node's local token (everything, no limits), an API key (its scopes, its limits) and
//! anyone. On loopback anyone may use `/v1` and read; beyond it, or with `require_key`, only the page and `/health` are
//! open. A text that is no key of ours is ignored where none is needed, because clients must send something; a key of
//! ours is always held to what it says.

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::http::{HeaderMap, Method, StatusCode, header};

use crate::{
    keys::{
        KeyText, Scope,
        live::{LiveKey, LiveKeys, Rejected},
    },
    limits::{Limits, Meter},
    openai_api::errors::ApiError,
    web,
};

/// Where Anthropic's clients put their key.
const API_KEY_HEADER: &str = "x-api-key";
/// Described and documented for everybody.
const OPEN_PATHS: [&str; 2] = ["/health", "/grid/v1/openapi.json"];

pub struct Access {
    local_token: String,
    keys: LiveKeys,
    key_required: bool,
    /// What callers without a key have left, together.
    keyless: Option<Arc<Meter>>,
}

enum Caller {
    LocalToken,
    Key(Arc<LiveKey>),
    Anyone,
}

impl Access {
    /// `home` holds the keys. `limits` are for callers without limits of their own. An empty token opens nothing.
    pub fn new(
        listen: SocketAddr,
        local_token: String,
        home: Option<&Path>,
        require_key: bool,
        limits: Limits,
    ) -> Self {
        Self {
            local_token,
            keys: LiveKeys::new(home, limits),
            key_required: require_key || !listen.ip().is_loopback(),
            keyless: Meter::new(limits),
        }
    }

    /// The meter that the request counts against; `None` without limits.
    ///
    /// # Errors
    /// 401 for a missing key where one is needed and for a wrong one everywhere, 403 for one that does not open this.
    pub fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Option<Arc<Meter>>, ApiError> {
        let Some(needed) = needed(method, path) else { return Ok(None) };
        match self.identify(headers)? {
            Caller::LocalToken => Ok(None),
            Caller::Key(key) if key.record.opens(needed) => Ok(key.meter.clone()),
            Caller::Key(_) => Err(missing_scope(needed)),
            Caller::Anyone if needed == Scope::Admin => Err(unauthorized(
                "this needs the node's local token (`token` in its home's runtime.json) or an API key with the scope \
                 `admin`: send `Authorization: Bearer <token>`",
            )),
            Caller::Anyone if self.key_required && bearer(headers).or(api_key(headers)).is_some() => Err(unauthorized(
                "what was sent is no API key of this gateway: they begin with `og-` (`opengrid keys create` on its \
                 machine makes one)",
            )),
            Caller::Anyone if self.key_required => Err(unauthorized(
                "this gateway needs an API key (`opengrid keys create` on its machine makes one): send \
                 `Authorization: Bearer <key>` or `x-api-key: <key>`",
            )),
            Caller::Anyone => Ok(self.keyless.clone()),
        }
    }

    fn identify(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let given = || [bearer(headers), api_key(headers)].into_iter().flatten();
        if given().any(|text| self.is_local_token(text)) {
            return Ok(Caller::LocalToken);
        }
        match given().find(|text| KeyText::is_meant_by(text)) {
            Some(text) => self.keys.find(text).map(Caller::Key).map_err(rejected),
            None => Ok(Caller::Anyone),
        }
    }

    fn is_local_token(&self, text: &str) -> bool {
        !self.local_token.is_empty() && equal(text.as_bytes(), self.local_token.as_bytes())
    }
}

/// The scope that a request needs; `None` for what is open to all. What is unknown is not open.
fn needed(method: &Method, path: &str) -> Option<Scope> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if path == "/v1" || path.starts_with("/v1/") {
        Some(Scope::Inference)
    } else if reads && (OPEN_PATHS.contains(&path) || web::is_page(path)) {
        None
    } else if reads || !path.starts_with("/grid/") {
        Some(Scope::Read)
    } else {
        Some(Scope::Admin)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, text) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(text.trim())
}

fn api_key(headers: &HeaderMap) -> Option<&str> {
    headers.get(API_KEY_HEADER)?.to_str().ok().map(str::trim)
}

fn unauthorized(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

fn rejected(why: Rejected) -> ApiError {
    unauthorized(format!("{why}; `opengrid keys create` on the gateway's machine makes a new one"))
}

fn missing_scope(needed: Scope) -> ApiError {
    let needed = needed.as_str();
    let message = format!("the API key does not open this: it lacks the scope `{needed}`");
    ApiError::new(StatusCode::FORBIDDEN, "insufficient_permissions", message)
}

/// In time that depends on the lengths only.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::keys::{NewKey, change};

    struct Gate {
        home: TempDir,
        access: Access,
    }

    fn gate(listen: &str, require_key: bool) -> Gate {
        let home = tempfile::tempdir().unwrap();
        let access =
            Access::new(listen.parse().unwrap(), "secret".into(), Some(home.path()), require_key, Limits::default());
        Gate { home, access }
    }

    impl Gate {
        fn key(&self, scopes: &[Scope]) -> String {
            let new = NewKey { scopes: scopes.to_vec(), ..NewKey::default() };
            change(self.home.path(), |list| list.create(new, 0)).unwrap().expose().to_owned()
        }

        fn ask(&self, method: &str, path: &str, header: Option<(&'static str, &str)>) -> u16 {
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(name, value.parse().unwrap());
            }
            match self.access.check(&method.parse().unwrap(), path, &headers) {
                Ok(_) => 200,
                Err(error) => error.status.as_u16(),
            }
        }

        fn with_bearer(&self, method: &str, path: &str, text: &str) -> u16 {
            self.ask(method, path, Some(("authorization", &format!("Bearer {text}"))))
        }
    }

    #[test]
    fn on_loopback_anyone_may_ask_and_read_but_not_change() {
        let gate = gate("127.0.0.1:8470", false);
        for (method, path) in [("POST", "/v1/chat/completions"), ("GET", "/grid/v1/status"), ("GET", "/metrics")] {
            assert_eq!(gate.ask(method, path, None), 200, "{path}");
            assert_eq!(gate.with_bearer(method, path, "unused"), 200, "{path}");
            assert_eq!(gate.with_bearer(method, path, "og-unknown"), 401, "our keys are always looked at: {path}");
        }
        for (method, path) in [("POST", "/grid/v1/join"), ("DELETE", "/grid/v1/status"), ("POST", "/grid/other")] {
            assert_eq!(gate.ask(method, path, None), 401, "{path}");
            assert_eq!(gate.with_bearer(method, path, "secret"), 200, "{path}");
        }
    }

    #[test]
    fn beyond_loopback_or_when_told_only_the_page_is_open() {
        for gate in [gate("0.0.0.0:8470", false), gate("127.0.0.1:8470", true), gate("[::]:1", true)] {
            for path in ["/health", "/", "/index.html", "/docs", "/grid/v1/openapi.json"] {
                assert_eq!(gate.ask("GET", path, None), 200, "{path}");
            }
            for path in ["/v1/models", "/v1", "/metrics", "/grid/v1/status", "/nothing", "/docs/x", "/V1/models"] {
                assert_eq!(gate.ask("GET", path, None), 401, "{path}");
                for wrong in ["unused", "secre", "secretx", ""] {
                    assert_eq!(gate.with_bearer("GET", path, wrong), 401, "{path} {wrong}");
                }
                assert_eq!(gate.with_bearer("GET", path, "secret"), 200, "{path}");
            }
            for wrong in ["Basic secret", "secret", "Bearersecret"] {
                assert_eq!(gate.ask("GET", "/v1/models", Some(("authorization", wrong))), 401, "{wrong}");
            }
        }
    }

    #[test]
    fn scopes_are_held_to() {
        for gate in [gate("0.0.0.0:1", false), gate("127.0.0.1:1", false)] {
            let ways = [("POST", "/v1/messages"), ("GET", "/grid/v1/peers"), ("POST", "/grid/v1/shutdown")];
            for (scope, expected) in
                [(Scope::Inference, [200, 403, 403]), (Scope::Read, [403, 200, 403]), (Scope::Admin, [200, 200, 200])]
            {
                let key = gate.key(&[scope]);
                assert_eq!(ways.map(|(method, path)| gate.with_bearer(method, path, &key)), expected, "{scope:?}");
                let way = |(method, path)| gate.ask(method, path, Some(("x-api-key", &key)));
                assert_eq!(ways.map(way), expected, "{scope:?} as Anthropic's clients send it");
            }
        }
    }

    #[test]
    fn an_empty_token_opens_nothing() {
        let access = Access::new("127.0.0.1:1".parse().unwrap(), String::new(), None, false, Limits::default());
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer ".parse().unwrap());
        assert!(access.check(&Method::POST, "/grid/v1/shutdown", &headers).is_err());
    }
}
