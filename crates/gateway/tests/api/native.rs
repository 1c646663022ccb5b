//! Health, metrics, the native API, the models list and the page.

use serde_json::json;

use crate::fake::served;

#[tokio::test]
async fn only_what_can_be_answered_now_is_listed() {
    let s = served().await;
    let json = s.client.get("/v1/models").await.json();
    assert_eq!(json["object"], "list");
    let ids: Vec<_> = json["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bytes", "org/bytes", "broken", "llama", "vectors"]);
    assert_eq!(json["data"][0]["object"], "model");
    assert_eq!(json["data"][0]["created"], 1_700_000_000);
    for path in ["/v1/models/org/bytes", "/v1/models/org%2Fbytes"] {
        assert_eq!(s.client.get(path).await.json()["id"], "org/bytes");
    }
    let idle = s.client.get("/v1/models/idle").await;
    assert_eq!((idle.status, idle.error().0.as_str()), (503, "no_capacity"));
}

#[tokio::test]
async fn the_native_api_shows_the_node_s_own_rows() {
    let s = served().await;
    assert_eq!(s.client.get("/health").await.json(), json!({ "status": "ok" }));
    let status = s.client.get("/grid/v1/status").await.json();
    assert_eq!((&status["role"], &status["peers"], &status["uptime_seconds"]), (&json!("edge"), &json!(1), &json!(12)));
    assert!(status["peer_id"].as_str().unwrap().starts_with("12D3KooW"));
    assert_eq!(s.client.get("/grid/v1/peers").await.json()[0]["path"], "direct");
    let models = s.client.get("/grid/v1/models").await.json();
    assert_eq!(models.as_array().unwrap().len(), 7, "unserved ones, too");
    assert_eq!(models[0]["root"], "ab".repeat(32));
    assert_eq!((&models[0]["task"], &models[5]["task"]), (&json!("generation"), &json!("embedding")));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let s = served().await;
    let body = json!({ "model": "bytes", "prompt": "hi" });
    s.client.post("/v1/completions", &body).await;
    s.client.post("/v1/completions", &json!({ "model": "nope", "prompt": "hi" })).await;
    s.client.get("/no/such/path").await;
    let answered = s.client.get("/metrics").await;
    assert!(answered.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = answered.text();
    for line in [
        "opengrid_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "opengrid_http_requests_total{route=\"/v1/completions\",status=\"404\"} 1",
        "opengrid_http_requests_total{route=\"other\",status=\"404\"} 1",
        "opengrid_request_success_total{model_name=\"bytes\",finished_reason=\"stop\"} 1",
        "opengrid_prompt_tokens_total{model_name=\"bytes\"} 3",
        "opengrid_generation_tokens_total{model_name=\"bytes\"} 13",
        "opengrid_time_to_first_token_seconds_count{model_name=\"bytes\"} 1",
        "opengrid_inter_token_latency_seconds_count{model_name=\"bytes\"} 12",
        "opengrid_e2e_request_latency_seconds_count{model_name=\"bytes\"} 1",
        "opengrid_num_requests_running 0",
        "opengrid_num_requests_waiting 0",
        "opengrid_node_peers 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
}

#[tokio::test]
async fn the_page_is_served_under_a_strict_policy() {
    let s = served().await;
    let page = s.client.get("/").await;
    assert_eq!(page.status, 200, "crates/gateway/web/index.html");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let tag = page.header("etag").unwrap();
    assert_eq!(s.client.send("GET", "/", &[("if-none-match", tag)], b"").await.status, 304);
    assert_eq!(s.client.send("POST", "/", &[], b"").await.status, 405);
}
