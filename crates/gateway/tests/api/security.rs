//! A page of another origin, or behind a rebound name, can neither read nor spend.

use serde_json::json;

use crate::{
    client::head,
    fake::{TOKEN, served},
};

const EVERYTHING: [(&str, &str); 10] = [
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/grid/v1/status"),
    ("GET", "/grid/v1/peers"),
    ("GET", "/grid/v1/events"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/grid/v1/join"),
    ("POST", "/grid/v1/pull"),
    ("POST", "/grid/v1/shutdown"),
];

fn chat() -> Vec<u8> {
    json!({ "model": "bytes", "messages": [{ "role": "user", "content": "hi" }] }).to_string().into_bytes()
}

#[tokio::test]
async fn foreign_pages_are_refused_everywhere() {
    let s = served().await;
    let bearer = format!("Bearer {TOKEN}");
    let foreign = [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost:3000"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ];
    for (method, path) in EVERYTHING {
        for mark in foreign {
            let headers = [mark, ("content-type", "application/json"), ("authorization", &bearer)];
            let body = if method == "POST" { chat() } else { Vec::new() };
            let answered = s.client.send(method, path, &headers, &body).await;
            assert_eq!((answered.status, answered.error().0.as_str()), (403, "foreign_origin"), "{path} {mark:?}");
            assert!(answered.headers.iter().all(|(name, _)| !name.starts_with("access-control")));
        }
    }
    assert!(s.grid.jobs.lock().is_empty() && s.grid.joined.lock().is_empty());
    assert!(!s.grid.shut_down.load(std::sync::atomic::Ordering::SeqCst));
}

#[tokio::test]
async fn rebound_names_are_refused_everywhere() {
    let s = served().await;
    for (method, path) in EVERYTHING {
        for host in ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "[::ffff:10.0.0.1]"] {
            let body = if method == "POST" { chat() } else { Vec::new() };
            let head = head(method, path, host, &[("content-type", "application/json")], body.len());
            let answered = s.client.raw(&[head.as_bytes(), &body].concat()).await;
            assert_eq!((answered.status, answered.error().0.as_str()), (403, "foreign_host"), "{path} {host}");
        }
    }
    let none = s.client.raw(b"GET /v1/models HTTP/1.0\r\n\r\n").await;
    assert_eq!(none.status, 403);
    assert!(s.grid.jobs.lock().is_empty());
}

#[tokio::test]
async fn a_preflight_grants_nothing() {
    let s = served().await;
    let headers = [("origin", "http://evil.example"), ("access-control-request-method", "POST")];
    let answered = s.client.send("OPTIONS", "/v1/chat/completions", &headers, b"").await;
    assert_eq!(answered.status, 403);
    assert!(answered.headers.iter().all(|(name, _)| !name.starts_with("access-control")));
}

#[tokio::test]
async fn our_own_page_and_local_programs_may() {
    let s = served().await;
    let origin = format!("http://{}", s.client.address);
    let own = [("origin", origin.as_str()), ("sec-fetch-site", "same-origin"), ("content-type", "application/json")];
    assert_eq!(s.client.send("POST", "/v1/chat/completions", &own, &chat()).await.status, 200);
    assert_eq!(s.client.send("GET", "/grid/v1/status", &own, b"").await.status, 200);
    let program = [("authorization", "Bearer sk-anything"), ("content-type", "application/json")];
    assert_eq!(s.client.send("POST", "/v1/chat/completions", &program, &chat()).await.status, 200);
}

#[tokio::test]
async fn what_changes_the_node_needs_the_token() {
    let s = served().await;
    let invite = json!({ "invite": "grid1abc" }).to_string();
    let json = ("content-type", "application/json");
    for path in ["/grid/v1/join", "/grid/v1/pull", "/grid/v1/shutdown"] {
        for wrong in ["", "Bearer", "Bearer wrong", "Basic bG9jYWwtdG9rZW4=", "local-token"] {
            let answered = s.client.send("POST", path, &[json, ("authorization", wrong)], invite.as_bytes()).await;
            assert_eq!((answered.status, answered.error().0.as_str()), (401, "invalid_api_key"), "{path} {wrong}");
        }
    }
    assert!(s.grid.joined.lock().is_empty());
    assert!(!s.grid.shut_down.load(std::sync::atomic::Ordering::SeqCst));
    let bearer = format!("Bearer {TOKEN}");
    let right = [json, ("authorization", bearer.as_str())];
    assert_eq!(s.client.send("POST", "/grid/v1/join", &right, invite.as_bytes()).await.status, 200);
    assert_eq!(*s.grid.joined.lock(), ["grid1abc"]);
    let bad = s.client.send("POST", "/grid/v1/join", &right, br#"{"invite":"x"}"#).await;
    assert_eq!((bad.status, bad.error().0.as_str()), (400, "cannot_join"));
    let unknown = s.client.send("POST", "/grid/v1/pull", &right, br#"{"model":"x"}"#).await;
    assert_eq!((unknown.status, unknown.error().0.as_str()), (404, "model_not_found"));
    let model = json!({ "model": "echo" }).to_string();
    let pulled = s.client.send("POST", "/grid/v1/pull", &right, model.as_bytes()).await;
    let events: Vec<&str> = std::str::from_utf8(&pulled.body).unwrap().split("\n\n").collect();
    assert!(events[0].contains(r#""progress":{"source":"peers","phase":"downloading","done_bytes":1"#), "{events:?}");
    assert_eq!(events[1..], [r#"data: "done""#, ""]);
    assert_eq!(s.client.send("POST", "/grid/v1/shutdown", &right, b"").await.status, 202);
    assert!(s.grid.shut_down.load(std::sync::atomic::Ordering::SeqCst));
}
