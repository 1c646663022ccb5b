//! Real nodes: start, what they leave for other commands, and every way to end.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{Guard, Place, signal, wait_until};

const START_MAX: Duration = Duration::from_secs(20);

/// Starts `up` with free ports and reads its first line, so that it is up.
fn up(place: &Place) -> Guard {
    let arguments = ["up", "--serve", "none", "--listen", "127.0.0.1:0", "--p2p-port", "0", "--json"];
    let mut command = place.command(&arguments);
    let mut node = Guard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(shown["pid"], node.0.id());
    node
}

/// The exit code, within the limit.
fn end(node: &mut Guard, limit: Duration) -> i32 {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = node.0.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(Instant::now() < deadline, "the node still runs after {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_starts_answers_its_commands_and_goes_down() {
    let place = Place::new();
    let mut node = up(&place);
    wait_until("the node answers", START_MAX, || place.run(&["status"]).code == 0);
    let status = place.run(&["status", "--json"]).json();
    for key in ["peer_id", "version", "uptime_seconds", "role", "models", "peers"] {
        assert!(!status[key].is_null(), "{key} is missing: {status}");
    }
    let invite = place.run(&["invite"]).succeeds().stdout.clone();
    let read = opengrid_protocol::invite::Invite::from_text(invite.lines().next().unwrap()).unwrap();
    assert_eq!(read.node.to_string(), status["peer_id"].as_str().unwrap());
    assert!(!read.addresses.is_empty());
    assert_eq!(place.run(&["ps", "--json"]).json()["models"], serde_json::json!([]));
    place.run(&["run", "no-such-model", "hi"]).fails(1, &["no-such-model", "opengrid ls"]);
    place.run(&["run", "all-minilm-l6-v2", "hi"]).fails(1, &["embeddings", "/v1/embeddings"]);
    place.run(&["run", "smollm2-135m", "hi"]).fails(1, &["smollm2-135m", "--serve"]);
    let rows = place.run(&["ls", "--json"]).json();
    assert_eq!(rows[0]["workers"], 0);
    place.run(&["down"]).succeeds();
    assert_eq!(end(&mut node, Duration::from_secs(5)), 0);
    assert!(!place.home().join("runtime.json").exists());
}

#[test]
fn signals_end_a_node_with_0() {
    for name in ["-TERM", "-INT", "-HUP"] {
        let place = Place::new();
        let mut node = up(&place);
        signal(node.0.id(), name);
        assert_eq!(end(&mut node, Duration::from_secs(10)), 0, "{name}");
    }
}

#[test]
fn a_second_node_on_a_home_is_refused_with_the_pid() {
    let place = Place::new();
    let node = up(&place);
    let pid = node.0.id().to_string();
    place.run(&["up", "--listen", "127.0.0.1:0", "--p2p-port", "0"]).fails(1, &[&pid, "--home"]);
    // Without the runtime file the lock of the home still decides.
    std::fs::remove_file(place.home().join("runtime.json")).unwrap();
    place.run(&["up", "--listen", "127.0.0.1:0", "--p2p-port", "0"]).fails(1, &[&pid, "--home"]);
}

#[test]
fn a_taken_port_is_named_with_another() {
    let place = Place::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let arguments = ["up", "--serve", "none", "--p2p-port", "0", "--listen", &address];
    place.run(&arguments).fails(1, &[&address, "taken", "--listen"]);
    let port = address.rsplit(':').next().unwrap();
    place
        .run(&["up", "--serve", "none", "--listen", "127.0.0.1:0", "--p2p-port", port])
        .fails(1, &[port, "--p2p-port"]);
}

#[test]
fn unknown_models_and_bad_grid_keys_are_refused_at_start() {
    let place = Place::new();
    let base = ["up", "--listen", "127.0.0.1:0", "--p2p-port", "0"];
    place.run(&[&base[..], &["--serve", "no-such-model"]].concat()).fails(1, &["no-such-model", "opengrid ls"]);
    place.write("key", "short");
    let key = place.home().join("key");
    place.run(&[&base[..], &["--grid-key", key.to_str().unwrap()]].concat()).fails(2, &["64 hexadecimal digits"]);
    place.run(&[&base[..], &["--join", "grid1nonsense"]].concat()).fails(2, &["--join", "opengrid invite"]);
}
