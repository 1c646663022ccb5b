//! The NAT laboratory: three real processes in network namespaces (`tests/lab/nat.sh`). Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

const PUBLIC_TCP: &str = "/ip4/198.51.100.1/tcp/4470";
const PUBLIC_QUIC: &str = "/ip4/198.51.100.1/udp/4470/quic-v1";

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/lab/nat.sh")
}

/// Examples are built beside the tests: `target/PROFILE/examples`.
fn lab_node() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/lab_node");
    assert!(program.exists(), "{} is missing: cargo build --release -p opengrid-network --examples", program.display());
    program
}

/// Removes the namespaces however the test ends.
struct Laboratory {
    name: String,
}

impl Laboratory {
    /// `None`, with the reason printed, where this machine cannot do it.
    fn up(letter: char, kind: &str) -> Option<Self> {
        let check = Command::new(script()).arg("check").output().unwrap();
        if !check.status.success() {
            println!("skipped: {}", String::from_utf8_lossy(&check.stdout).trim());
            return None;
        }
        let laboratory = Self { name: format!("{letter}{}", std::process::id() % 10_000_000) };
        let up = Command::new(script()).args(["up", &laboratory.name, kind]).output().unwrap();
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        Some(laboratory)
    }

    fn node(&self, place: &str, arguments: &[String]) -> Node {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &format!("{}-{place}", self.name)])
            .arg(lab_node())
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                if sender.send((Instant::now(), value)).is_err() {
                    return;
                }
            }
        });
        Node { child, lines, reader: Some(reader), started: Instant::now() }
    }
}

impl Drop for Laboratory {
    fn drop(&mut self) {
        let _ = Command::new(script()).args(["down", &self.name]).status();
    }
}

struct Node {
    child: Child,
    lines: mpsc::Receiver<(Instant, Value)>,
    reader: Option<JoinHandle<()>>,
    started: Instant,
}

impl Node {
    /// The first line for which `pick` holds, and when it came.
    fn wait(&self, patience: Duration, what: &str, pick: impl Fn(&Value) -> bool) -> (Instant, Value) {
        let until = Instant::now() + patience;
        let mut seen = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((at, value)) if pick(&value) => return (at, value),
                Ok((_, value)) => seen.push(value.to_string()),
                Err(error) => {
                    let tail = seen.len().saturating_sub(40);
                    panic!("no {what} within {patience:?} ({error}); it said:\n{}", seen[tail..].join("\n"));
                }
            }
        }
    }

    fn is(event: &'static str) -> impl Fn(&Value) -> bool {
        move |value| value["event"] == event
    }

    /// Bytes through this node's sockets so far.
    fn total_bytes(&self) -> u64 {
        while self.lines.try_recv().is_ok() {}
        self.wait(Duration::from_secs(5), "totals", Self::is("totals")).1["transport_bytes"].as_u64().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// A public node, and two behind NATs that know only it, by different transports. Returns them and how long the first
/// exchange took.
fn meet(laboratory: &Laboratory) -> (Node, Node, Node, Duration) {
    let public = laboratory.node("p", &arguments(&["seed=1", "port=4470"]));
    let ready = public.wait(Duration::from_secs(10), "start", Node::is("ready")).1;
    let by = |address: &str| vec![format!("bootstrap={address}/p2p/{}", ready["node"].as_str().unwrap())];
    let a = laboratory.node("a", &[arguments(&["seed=2", "port=4471", "provide=9"]), by(PUBLIC_TCP)].concat());
    let b = laboratory.node("b", &[arguments(&["seed=3", "port=4472", "find=9"]), by(PUBLIC_QUIC)].concat());
    let (at, _) = b.wait(Duration::from_secs(15), "exchange", Node::is("echo"));
    let took = at.duration_since(b.started);
    (public, a, b, took)
}

#[test]
fn nodes_behind_cone_nats_meet_over_the_relay_and_move_to_a_direct_path() {
    let Some(laboratory) = Laboratory::up('c', "cone") else { return };
    let (public, _a, b, took) = meet(&laboratory);
    assert!(took < Duration::from_secs(5), "the first exchange took {took:?}");
    b.wait(Duration::from_secs(20), "direct exchange", |value| value["event"] == "echo" && value["relayed"] == false);
    std::thread::sleep(Duration::from_secs(3));
    let before = public.total_bytes();
    let mut exchanged = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let (_, echo) = b.wait(Duration::from_secs(5), "exchange", Node::is("echo"));
        assert_eq!(echo["relayed"], false);
        exchanged += 2 * echo["bytes"].as_u64().unwrap();
    }
    let relayed = public.total_bytes() - before;
    assert!(exchanged > 2_000_000, "only {exchanged} bytes were exchanged");
    assert!(relayed < 200_000, "{relayed} bytes went over the public node while {exchanged} went directly");
}

#[test]
fn nodes_behind_symmetric_nats_stay_on_the_relay() {
    let Some(laboratory) = Laboratory::up('s', "symmetric") else { return };
    let (public, _a, b, took) = meet(&laboratory);
    assert!(took < Duration::from_secs(5), "the first exchange took {took:?}");
    // Longer than three attempts of hole punching take.
    let before = public.total_bytes();
    let (start, mut exchanged) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(12) {
        let (_, echo) = b.wait(Duration::from_secs(5), "exchange", Node::is("echo"));
        assert_eq!(echo["relayed"], true);
        exchanged += 2 * echo["bytes"].as_u64().unwrap();
    }
    assert!(exchanged > 4_000_000, "only {exchanged} bytes were exchanged");
    assert!(public.total_bytes() - before > exchanged, "the relay counts what it carries");
}
