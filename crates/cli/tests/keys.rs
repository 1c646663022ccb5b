//! `opengrid keys` without a node.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Place;

#[test]
fn a_key_is_shown_once_listed_by_its_beginning_and_revoked() {
    let place = Place::new();
    let made = place.run(&["keys", "create", "laptop", "--scope", "read", "--scope", "inference", "--expires", "30d"]);
    let key = made.succeeds().stdout.trim_end();
    assert!(key.starts_with("og-") && !key.contains('\n'), "the key alone, for scripts: {key}");
    assert!(made.stderr.contains("not shown again"), "{}", made.stderr);
    let rows = place.run(&["keys", "ls", "--json"]).json();
    assert_eq!(rows[0]["name"], "laptop");
    assert_eq!(rows[0]["scopes"], serde_json::json!(["inference", "read"]));
    assert!(key.starts_with(rows[0]["prefix"].as_str().unwrap()));
    let listed = place.run(&["keys", "ls"]).succeeds().stdout.clone();
    // A second may have passed since it was made, or none.
    assert!(listed.contains("in 29 d 23 h") || listed.contains("in 30 d 0 h"), "{listed}");
    assert!(listed.contains("laptop") && !listed.contains(key), "{listed}");
    let kept = std::fs::read_to_string(place.home().join("keys.json")).unwrap();
    assert!(!kept.contains(&key[10..]), "only its hash is kept");

    place.run(&["keys", "create", "laptop"]).fails(1, &["laptop", "exists already"]);
    place.run(&["keys", "create", "my key"]).fails(1, &["no name"]);
    place.run(&["keys", "revoke", "phone"]).fails(1, &["phone", "opengrid keys ls"]);
    place.run(&["keys", "revoke", "laptop"]).succeeds();
    assert_eq!(place.run(&["keys", "ls", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn limits_and_names_have_defaults() {
    let place = Place::new();
    let made = place.run(&["keys", "create", "--requests-per-minute", "3", "--tokens-per-minute", "900", "--json"]);
    let made = made.json();
    assert_eq!(made["about"]["name"], "key-1");
    assert_eq!(made["about"]["scopes"], serde_json::json!(["inference"]));
    assert_eq!((&made["about"]["requests_per_minute"], &made["about"]["tokens_per_minute"]), (&3.into(), &900.into()));
    assert!(made["about"]["expires_unix_s"].is_null() && made["key"].as_str().unwrap().starts_with("og-"));
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let place = Place::new();
    place.write("keys.json", "{}");
    for command in [&["keys", "ls"][..], &["keys", "create"], &["keys", "revoke", "a"], &["up", "--serve", "none"]] {
        place.run(command).fails(1, &["keys.json", "no file of keys"]);
    }
    assert_eq!(std::fs::read_to_string(place.home().join("keys.json")).unwrap(), "{}");
}
