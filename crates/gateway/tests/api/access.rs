//! API keys and cross-origin pages, over a socket.

use std::{num::NonZeroU32, path::Path};

use opengrid_gateway::{
    GatewayConfig, Limits,
    keys::{NewKey, change},
};
use serde_json::json;

use crate::{
    client::Answered,
    fake::{Served, TOKEN, config, served, served_with},
};

const APP: &str = "https://app.example";

fn key(home: &Path, new: NewKey) -> String {
    change(home, |list| list.create(new, 0)).unwrap().expose().to_owned()
}

async fn ask(s: &Served, headers: &[(&str, &str)]) -> Answered {
    let body = json!({ "model": "bytes", "prompt": "hi" }).to_string();
    let headers = [&[("content-type", "application/json")], headers].concat();
    s.client.send("POST", "/v1/completions", &headers, body.as_bytes()).await
}

#[tokio::test]
async fn with_required_keys_only_a_key_or_the_token_is_answered() {
    let home = tempfile::tempdir().unwrap();
    let s = served_with(GatewayConfig { keys_home: Some(home.path().into()), require_key: true, ..config() }).await;
    let key = key(home.path(), NewKey::default());
    for headers in [vec![], vec![("authorization", "Bearer unused")], vec![("x-api-key", "unused")]] {
        let refused = ask(&s, &headers).await;
        assert_eq!((refused.status, refused.error().0.as_str()), (401, "invalid_api_key"), "{headers:?}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert!(refused.text().contains("opengrid keys create"), "it says how to mend it");
        assert!(refused.header("x-request-id").is_some() && refused.header("openai-version").is_some());
    }
    assert!(s.grid.jobs.lock().is_empty());
    let bearer = format!("Bearer {key}");
    let token = format!("bearer {TOKEN}");
    for headers in [[("authorization", bearer.as_str())], [("x-api-key", &key)], [("authorization", &token)]] {
        assert_eq!(ask(&s, &headers).await.status, 200, "{headers:?}");
    }
    let refused = s.client.send("GET", "/grid/v1/status", &[("authorization", &bearer)], b"").await;
    assert_eq!((refused.status, refused.error().0.as_str()), (403, "insufficient_permissions"));
    assert_eq!(s.client.get("/health").await.status, 200);
    assert_eq!(s.client.get("/").await.status, 200);
}

#[tokio::test]
async fn keys_have_limits_of_their_own_and_the_token_has_none() {
    let home = tempfile::tempdir().unwrap();
    let s = served_with(GatewayConfig { keys_home: Some(home.path().into()), ..config() }).await;
    let limits = Limits { requests_per_minute: NonZeroU32::new(2), tokens_per_minute: None };
    let keys = [0, 1].map(|_| format!("Bearer {}", key(home.path(), NewKey { limits, ..NewKey::default() })));
    for expected in [200, 200, 429, 429] {
        assert_eq!(ask(&s, &[("authorization", &keys[0])]).await.status, expected);
    }
    let other = ask(&s, &[("authorization", &keys[1])]).await;
    assert_eq!((other.status, other.header("x-ratelimit-remaining-requests")), (200, Some("1")));
    let token = format!("Bearer {TOKEN}");
    for headers in [vec![("authorization", token.as_str())], vec![]] {
        let unlimited = ask(&s, &headers).await;
        assert_eq!((unlimited.status, unlimited.header("x-ratelimit-limit-requests")), (200, None));
    }
}

#[tokio::test]
async fn client_request_ids_come_back_and_are_bounded() {
    let s = served().await;
    let answered = ask(&s, &[("x-client-request-id", "trace-7 of me")]).await;
    assert_eq!(answered.header("x-client-request-id"), Some("trace-7 of me"));
    assert!(answered.header("x-request-id").unwrap().starts_with("req_"));
    assert!(ask(&s, &[]).await.header("x-client-request-id").is_none());
    for bad in ["ä", &"x".repeat(513), "a\tb"] {
        let refused = ask(&s, &[("x-client-request-id", bad)]).await;
        assert_eq!(refused.status, 400, "{bad}");
        assert_eq!(refused.error().1.as_deref(), Some("x-client-request-id"));
    }
}

async fn served_to(origins: &[&str], require_key: bool) -> Served {
    let cors_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
    served_with(GatewayConfig { cors_origins, require_key, ..config() }).await
}

async fn preflight(s: &Served, origin: &str) -> Answered {
    let headers = [
        ("origin", origin),
        ("sec-fetch-site", "cross-site"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-os"),
        ("access-control-request-private-network", "true"),
    ];
    s.client.send("OPTIONS", "/v1/chat/completions", &headers, b"").await
}

#[tokio::test]
async fn pages_of_named_origins_may_ask_from_preflight_to_answer() {
    let s = served_to(&[APP], true).await;
    let allowed = preflight(&s, APP).await;
    assert_eq!(allowed.status, 200, "without a key: a preflight never has one");
    assert_eq!(allowed.header("access-control-allow-origin"), Some(APP));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization,content-type,x-stainless-os"));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("POST"));
    assert_eq!(allowed.header("access-control-allow-private-network"), Some("true"));
    assert_eq!(allowed.header("access-control-allow-credentials"), None);

    let token = format!("Bearer {TOKEN}");
    let page = [("origin", APP), ("sec-fetch-site", "cross-site")];
    let answered = ask(&s, &[page.as_slice(), &[("authorization", token.as_str())]].concat()).await;
    assert_eq!((answered.status, answered.header("access-control-allow-origin")), (200, Some(APP)));
    let exposed = answered.header("access-control-expose-headers").unwrap();
    for name in ["x-request-id", "x-opengrid-worker", "x-ratelimit-remaining-tokens", "retry-after"] {
        assert!(exposed.contains(name), "{name}: {exposed}");
    }
    assert!(answered.header("vary").unwrap().contains("origin"));
    let refused = ask(&s, &page).await;
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, Some(APP)),
        "the page can read why"
    );
}

#[tokio::test]
async fn other_origins_stay_out() {
    let s = served_to(&[APP], false).await;
    for origin in ["https://evil.example", "null", "http://app.example", "https://app.example:8443"] {
        let refused = preflight(&s, origin).await;
        assert_eq!(refused.status, 403, "{origin}");
        assert!(refused.headers.iter().all(|(name, _)| !name.starts_with("access-control")), "{origin}");
        assert_eq!(ask(&s, &[("origin", origin)]).await.status, 403, "{origin}");
    }
    assert!(s.grid.jobs.lock().is_empty());
    let own = format!("http://{}", s.client.address);
    assert_eq!(ask(&s, &[("origin", &own), ("sec-fetch-site", "same-origin")]).await.status, 200);
    let changing = s
        .client
        .send("POST", "/grid/v1/shutdown", &[("origin", APP), ("content-type", "application/json")], b"{}")
        .await;
    assert_eq!(changing.status, 401, "a named origin is no key");
}

#[tokio::test]
async fn any_origin_is_answered_with_a_star() {
    let s = served_to(&["*"], true).await;
    let allowed = preflight(&s, "https://whoever.example").await;
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("*")));
    assert_eq!(ask(&s, &[("origin", "https://whoever.example")]).await.status, 401);
}
