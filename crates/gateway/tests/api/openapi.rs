//! The description of the API: the committed copy, and that it speaks of every route.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fake::served;

const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

/// Renews the copy: `UPDATE_GOLDEN=1 cargo nextest run --release -p opengrid-gateway the_copy`.
#[test]
fn the_copy_in_the_repository_is_what_the_code_says() {
    let text = opengrid_gateway::openapi_text();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(COPY, &text).unwrap();
    }
    let copy = std::fs::read_to_string(COPY).unwrap_or_default();
    assert!(
        copy == text,
        "crates/gateway/openapi.json is not what the code says; look at what has changed with \
         `UPDATE_GOLDEN=1 cargo nextest run --release -p opengrid-gateway the_copy && git diff crates/gateway/openapi.json`"
    );
}

fn described() -> Value {
    serde_json::from_str(&opengrid_gateway::openapi_text()).unwrap()
}

/// Routes whose only answer is that there is nothing.
const EMPTY: [&str; 3] = ["/v1/responses/{id}", "/v1/responses/{id}/input_items", "/v1/responses/{id}/cancel"];

#[test]
fn every_route_is_described_and_nothing_else() {
    let server = include_str!("../../src/server.rs");
    let routes = server.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().replace("{*", "{"));
    let routes: BTreeSet<String> = routes.filter(|path| !EMPTY.contains(&path.as_str())).collect();
    let paths: BTreeSet<String> = described()["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(routes.len() > 15, "{routes:?}");
    assert_eq!(paths, routes);
}

#[test]
fn operations_have_names_of_their_own_errors_and_security() {
    let api = described();
    let mut names = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} twice");
            let open = matches!(path.as_str(), "/health" | "/grid/v1/openapi.json");
            assert_eq!(operation.get("security").is_none(), open, "{method} {path}");
            assert_eq!(operation["responses"].get("401").is_none(), open, "{method} {path}");
            let changes = path.starts_with("/grid/") && method == "post";
            let security = operation["security"].as_array().cloned().unwrap_or_default();
            let optional = security.iter().any(|way| way.as_object().unwrap().is_empty());
            assert_eq!(optional, !changes && !open, "{method} {path}: what changes the node always needs a key");
        }
    }
}

#[tokio::test]
async fn it_is_served_to_everybody() {
    let s = served().await;
    let answered = s.client.get("/grid/v1/openapi.json").await;
    assert_eq!(answered.header("content-type"), Some("application/json"));
    assert_eq!(answered.json(), described());
}
