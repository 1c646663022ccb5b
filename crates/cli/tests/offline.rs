//! Commands that need no node.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{net::TcpListener, process::Stdio};

use common::{Place, test_model};
use opengrid_protocol::{NodeId, invite::Invite};

fn invite(node: u8) -> String {
    Invite { node: NodeId([node; 32]), addresses: vec![vec![4, 127, 0, 0, 1, 6, 0x11, 0x76]], private: false }.to_text()
}

#[test]
fn wrong_command_lines_and_settings_exit_with_2_and_one_line() {
    let place = Place::new();
    place.run(&["upp"]).fails(2, &["upp", "up"]);
    place.run(&["up", "--p2p-port", "99999"]).fails(2, &["99999"]);
    place.run(&["run", "m", "hi", "--temperature", "9"]).fails(2, &["0 to 2"]);
    place.write("config.toml", "[api]\nliste = \"127.0.0.1:1\"\n");
    place.run(&["status"]).fails(2, &["config.toml line 2", "liste", "listen"]);
    place.write("config.toml", "[network]\np2p_port = \"x\"\n");
    place.run(&["up"]).fails(2, &["config.toml line 2", "p2p_port"]);
}

#[test]
fn without_a_node_the_mend_is_named() {
    let place = Place::new();
    for command in [&["status"][..], &["ps"], &["peers"], &["down"], &["invite", "--wait", "0"], &["run", "m", "hi"]] {
        place.run(command).fails(1, &["no node runs", "opengrid up"]);
    }
    place.run(&["status", "--api", "http://127.0.0.1:9"]).fails(1, &["no node answers at http://127.0.0.1:9"]);
    place.run(&["status", "--api", "nonsense"]).fails(2, &["http://127.0.0.1:8470"]);
}

#[test]
fn stale_runtime_files_count_as_no_node() {
    let place = Place::new();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let pid = gone.id();
    place.write(
        "runtime.json",
        &format!(
            r#"{{"pid":{pid},"api":"http://127.0.0.1:9","token":"t","peer_id":"p","invite":"i","started_unix_ms":1}}"#
        ),
    );
    place.run(&["status"]).fails(1, &["no node runs"]);
}

#[test]
fn settings_show_their_origin_and_the_commented_file_changes_nothing() {
    let place = Place::new();
    let before = place.run(&["config", "show", "--json"]).json();
    place.run(&["config", "init"]).succeeds();
    place.run(&["config", "init"]).fails(1, &["exists already"]);
    assert_eq!(place.run(&["config", "show", "--json"]).json(), before);
    let mut command = place.command(&["config", "show", "--json"]);
    let shown = command.env("OPENGRID_API_LISTEN", "127.0.0.1:7").output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["api.listen"]["origin"], "env");
}

#[test]
fn completions_know_every_verb_and_a_closed_pipe_is_no_failure() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = place.run(&["completions", shell]).succeeds().stdout.clone();
        for verb in ["up", "run", "pull", "doctor", "invite", "completions"] {
            assert!(script.contains(verb), "{shell} lacks {verb}");
        }
        assert!(!script.contains("engine-child"), "hidden commands are offered");
    }
    let mut command = place.command(&["completions", "bash"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
}

#[test]
fn doctor_reports_in_json_and_fails_when_a_port_is_taken() {
    let place = Place::new();
    place.write("config.toml", "[api]\nlisten = \"127.0.0.1:0\"\n[network]\np2p_port = 0\n");
    let report = place.run(&["doctor", "--json", "--quick"]).json();
    let rows = report.as_array().unwrap();
    for check in ["settings", "home", "node", "ports", "nat", "clock", "memory", "disk", "models", "engine"] {
        let row = rows.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no {check}: {report}"));
        let level = row["level"].as_str().unwrap();
        assert!(["ok", "warn"].contains(&level), "{row}");
        assert_eq!(level == "warn", !row["mend"].is_null(), "a warning says how to mend: {row}");
    }
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = held.local_addr().unwrap();
    place.write("config.toml", &format!("[api]\nlisten = \"{listen}\"\n[network]\np2p_port = 0\n"));
    let done = place.run(&["doctor", "--quick"]);
    assert_eq!(done.code, 1, "{done:?}");
    let line = done.stdout.lines().find(|line| line.starts_with("fail")).unwrap();
    assert!(line.contains(&listen.to_string()) && line.contains("--listen"), "{line}");
    place.write("config.toml", "[nonsense]\n");
    assert_eq!(place.run(&["doctor", "--quick"]).code, 1);
}

#[test]
fn join_without_a_node_keeps_the_invite_for_the_next_start() {
    let place = Place::new();
    let done = place.run(&["join", &invite(1)]);
    assert!(done.succeeds().stdout.contains("next `opengrid up`"), "{done:?}");
    let row = place.run(&["join", &invite(2), "--json"]).json();
    assert_eq!((row["joined"].as_bool(), row["kept"].as_u64()), (Some(false), Some(2)));
    let kept: Vec<String> = serde_json::from_slice(&std::fs::read(place.home().join("joins.json")).unwrap()).unwrap();
    assert_eq!(kept, [invite(1), invite(2)]);
    place.run(&["join", "hello"]).fails(2, &["grid1"]);
}

#[test]
fn the_catalogue_is_listed_and_unknown_models_are_told_with_the_nearest() {
    let place = Place::new();
    let rows = place.run(&["ls", "--json"]).json();
    let row = rows.as_array().unwrap().iter().find(|row| row["id"] == "smollm2-135m").unwrap();
    assert_eq!(row["size_bytes"], 98_362_432);
    assert_eq!((&row["local"], &row["task"]), (&false.into(), &"generation".into()));
    assert!(row["workers"].is_null());
    assert!(place.run(&["ls"]).succeeds().stdout.starts_with("MODEL"));
    let embedding = place.run(&["show", "all-minilm-l6-v2"]).succeeds().stdout.clone();
    assert!(embedding.contains("embedding") && embedding.contains("(converted)"), "{embedding}");
    assert!(place.run(&["ls", "--local"]).succeeds().stdout.contains("opengrid pull"));
    place.run(&["show", "smollm2-135"]).fails(1, &["did you mean `smollm2-135m`"]);
    place.run(&["show", "smollm2-135m", "--path"]).fails(1, &["opengrid pull smollm2-135m"]);
    place.run(&["rm", "smollm2-135m"]).fails(1, &["smollm2-135m"]);
    place.run(&["pull", "nothing-like-it"]).fails(1, &["does not exist"]);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let place = Place::new();
    place.run(&["pull", "./none.gguf"]).fails(1, &["no file"]);
    std::fs::write(place.directory.path().join("bad.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    place.run(&["pull", "./bad.gguf"]).fails(1, &["bad.gguf"]);
    std::fs::write(place.directory.path().join("text.gguf"), b"hello").unwrap();
    place.run(&["pull", "text.gguf"]).fails(1, &["text.gguf"]);
    assert_eq!(place.run(&["ls", "--local", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn a_slice_is_made_of_a_pulled_model_and_goes_with_it() {
    let place = Place::new();
    place.run(&["slice", "smollm2-135m", "--layers", "3..3"]).fails(2, &["3..3", "larger"]);
    place.run(&["slice", "smollm2-135m", "--layers", "all"]).fails(2, &["FROM..TO"]);
    place.run(&["slice", "nothing", "--layers", "0..1"]).fails(1, &["does not exist"]);
    std::fs::copy(test_model(), place.directory.path().join("mine.gguf")).unwrap();
    place.run(&["pull", "./mine.gguf"]).succeeds();
    place.run(&["slice", "smollm2-135m", "--layers", "20..31"]).fails(1, &["30 layers", "20..31"]);
    let first = place.run(&["slice", "smollm2-135m", "--layers", "0..10", "--json"]).json();
    assert_eq!(first["layers"], serde_json::json!({ "from": 0, "to": 10, "of": 30 }));
    let path = |slice: &serde_json::Value, name: &str| std::path::PathBuf::from(slice[name].as_str().unwrap());
    let size = std::fs::metadata(path(&first, "path")).unwrap().len();
    assert!((20_000_000..30_000_000).contains(&size), "a third of the layers, no head: {size} bytes");
    assert!(path(&first, "tokens").is_file());
    let last = place.run(&["slice", "smollm2-135m", "--layers", "20..30"]).succeeds().stdout.clone();
    assert!(last.contains("20..30 of 30") && !last.contains("token table"), "{last}");
    place.run(&["rm", "smollm2-135m"]).succeeds();
    assert!(!path(&first, "path").exists() && !path(&first, "tokens").exists());
    place.run(&["slice", "smollm2-135m", "--layers", "0..10"]).fails(1, &["opengrid pull smollm2-135m"]);
}

#[test]
fn a_local_file_is_pulled_recognised_shown_and_removed() {
    let place = Place::new();
    let file = place.directory.path().join("mine.gguf");
    std::os::unix::fs::symlink(test_model(), &file).unwrap();
    let pulled = place.run(&["pull", "./mine.gguf", "--json"]).json();
    assert_eq!((pulled["id"].as_str(), pulled["known"].as_bool()), (Some("smollm2-135m"), Some(false)));
    assert_eq!(place.run(&["pull", "smollm2-135m", "--json"]).json()["known"], true);
    let shown = place.run(&["show", "smollm2-135m", "--json"]).json();
    assert_eq!(shown["sha256"], "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    assert_eq!(shown["file"]["quantisation"], "Q4_1");
    let path = place.run(&["show", "smollm2-135m", "--path"]).succeeds().stdout.trim().to_owned();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 98_362_432);
    let removed = place.run(&["rm", "smollm2-135m", "--json"]).json();
    assert!(removed[0]["freed_bytes"].as_u64().unwrap() >= 98_362_432, "{removed}");
    assert_eq!(place.run(&["ls", "--local", "--json"]).json(), serde_json::json!([]));
}
