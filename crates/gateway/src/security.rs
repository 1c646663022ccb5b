//! From where one may ask. A gateway on loopback can be reached by every web page that its user opens, so:
//!
//! - the `Host` must be ours: a page whose own name was rebound to 127.0.0.1 sends that name (DNS rebinding);
//! - an `Origin` must be ours or one that the settings name, and else `Sec-Fetch-Site` must not speak of another site
//!   (cross-origin requests). Bodies must be `application/json`, which needs a preflight that others do not pass.
//!
//! Who may ask, and for what, is [`access`](crate::access)'s to say.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority};

use crate::{openai_api::errors::ApiError, web};

/// What is ours.
pub struct Policy {
    listen: IpAddr,
    allowed_hosts: Vec<String>,
    /// Exactly as browsers write them; `*` is any.
    allowed_origins: Vec<String>,
}

impl Policy {
    /// `allowed_hosts` are names (no ports) besides localhost and the address listened on.
    pub fn new(listen: SocketAddr, allowed_hosts: &[String], allowed_origins: &[String]) -> Self {
        let allowed_hosts = allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { listen: listen.ip(), allowed_hosts, allowed_origins: allowed_origins.to_vec() }
    }

    /// # Errors
    /// 403 for foreign hosts, origins and sites.
    pub fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = self.check_host(uri, headers)?;
        if self.is_allowed_origin(headers) {
            return Ok(());
        }
        check_origin(&host, headers)?;
        check_fetch_site(method, uri, headers)
    }

    /// Exactly one origin, and the settings name it.
    fn is_allowed_origin(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
        self.allowed_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }

    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            _ => None,
        };
        let target_matches = uri.authority().is_none_or(|target| host.as_ref() == Some(target));
        host.filter(|host| target_matches && self.is_ours(host)).ok_or_else(|| {
            ApiError::new(
                StatusCode::FORBIDDEN,
                "foreign_host",
                "refused: the Host header does not name this gateway; use the address that `opengrid up` prints",
            )
        })
    }

    fn is_ours(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().to_ascii_lowercase();
        if host == "localhost" || self.allowed_hosts.contains(&host) {
            return true;
        }
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok_and(|address| {
            // A name can be rebound, an address cannot: one that listens everywhere answers to all its addresses.
            address == self.listen || address.is_loopback() || self.listen.is_unspecified()
        })
    }
}

fn check_origin(host: &Authority, headers: &HeaderMap) -> Result<(), ApiError> {
    let ours = |origin: &HeaderValue| {
        origin.to_str().is_ok_and(|origin| {
            origin.strip_prefix("http://").is_some_and(|rest| rest.eq_ignore_ascii_case(host.as_str()))
        })
    };
    if headers.get_all(header::ORIGIN).iter().all(ours) { Ok(()) } else { Err(foreign_origin()) }
}

fn check_fetch_site(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let is = |name: &str, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let no_other_site = headers.get_all("sec-fetch-site").iter().all(|site| site == "same-origin" || site == "none");
    // Following a link to the page shows it to the user only: it cannot be framed or read.
    let followed_link = *method == Method::GET
        && is("sec-fetch-mode", "navigate")
        && is("sec-fetch-dest", "document")
        && web::is_page(uri.path());
    if no_other_site || followed_link { Ok(()) } else { Err(foreign_origin()) }
}

fn foreign_origin() -> ApiError {
    let message = "refused: web pages of other origins may not use this gateway";
    ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn code(listen: &str, method: &str, target: &str, headers: &[(&'static str, &str)]) -> Option<&'static str> {
        let origins = ["https://app.example".to_owned()];
        let policy = Policy::new(listen.parse().unwrap(), &["grid.lan".into()], &origins);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        policy.check(&method.parse().unwrap(), &target.parse().unwrap(), &map).err().map(|error| error.code)
    }

    #[test]
    fn only_our_own_hosts_are_answered() {
        for ours in ["127.0.0.1:8470", "localhost:8470", "LOCALHOST", "[::1]:8470", "grid.lan:1", "127.0.0.1"] {
            assert_eq!(code("127.0.0.1:8470", "GET", "/v1/models", &[("host", ours)]), None, "{ours}");
        }
        for foreign in
            ["evil.example", "evil.example:8470", "localhost.evil.example", "10.0.0.1", "a@localhost", "0.0.0.0:8470"]
        {
            let refused = code("127.0.0.1:8470", "GET", "/health", &[("host", foreign)]);
            assert_eq!(refused, Some("foreign_host"), "{foreign}");
        }
        assert_eq!(code("127.0.0.1:8470", "GET", "/health", &[]), Some("foreign_host"));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(code("127.0.0.1:8470", "GET", "/health", &twice), Some("foreign_host"));
        let absolute = code("127.0.0.1:1", "GET", "http://evil.example/health", &[("host", "localhost")]);
        assert_eq!(absolute, Some("foreign_host"));
    }

    #[test]
    fn only_our_own_origin_is_answered() {
        let with = |origin: &str| {
            code("127.0.0.1:8470", "GET", "/v1/models", &[("host", "localhost:8470"), ("origin", origin)])
        };
        assert_eq!(with("http://localhost:8470"), None);
        for foreign in [
            "http://localhost:3000",
            "https://localhost:8470",
            "http://evil.example",
            "null",
            "",
            "http://localhost:8470.evil.example",
            "http://127.0.0.1:8470",
            "file://",
        ] {
            assert_eq!(with(foreign), Some("foreign_origin"), "{foreign}");
        }
    }

    #[test]
    fn other_sites_are_refused_even_without_an_origin() {
        let with = |site: &str| {
            code("127.0.0.1:8470", "GET", "/v1/models", &[("host", "localhost"), ("sec-fetch-site", site)])
        };
        assert_eq!(with("same-origin"), None);
        assert_eq!(with("none"), None);
        assert_eq!(with("cross-site"), Some("foreign_origin"));
        assert_eq!(with("same-site"), Some("foreign_origin"));
    }

    #[test]
    fn origins_of_the_settings_are_answered_exactly() {
        let with = |origin: &str, host: &str| {
            let headers = [("host", host), ("origin", origin), ("sec-fetch-site", "cross-site")];
            code("127.0.0.1:8470", "POST", "/v1/chat/completions", &headers)
        };
        assert_eq!(with("https://app.example", "localhost:8470"), None);
        assert_eq!(with("https://app.example", "evil.example"), Some("foreign_host"), "a rebound name stays out");
        for foreign in
            ["http://app.example", "https://app.example:444", "https://app.example.evil", "https://APP.example"]
        {
            assert_eq!(with(foreign, "localhost:8470"), Some("foreign_origin"), "{foreign}");
        }
        let twice = [("host", "localhost"), ("origin", "https://app.example"), ("origin", "https://evil.example")];
        assert_eq!(code("127.0.0.1:8470", "GET", "/v1/models", &twice), Some("foreign_origin"));
    }
}
