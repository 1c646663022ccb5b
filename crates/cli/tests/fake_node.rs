//! Commands that talk to a node, against a small server that plays one: what is sent, what is shown, what goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use common::{Guard, Place};
use serde_json::{Value, json};

/// What the played node answers and what it was asked.
#[derive(Default)]
struct Play {
    chat_status: u16,
    chat_body: String,
    asked: Vec<Value>,
    tokens: Vec<String>,
    stops: Option<Guard>,
}

type Shared = Arc<Mutex<Play>>;

struct FakeNode {
    address: SocketAddr,
    play: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl FakeNode {
    fn start(chat_status: u16, chat_body: &str) -> Self {
        let play = Play { chat_status, chat_body: chat_body.into(), ..Play::default() };
        let play = Arc::new(Mutex::new(play));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/grid/v1/status", get(status))
            .route("/grid/v1/peers", get(peers))
            .route("/grid/v1/models", get(|| async { Json(json!([{"id": "m", "workers": 2}])) }))
            .route("/grid/v1/join", post(join))
            .route("/grid/v1/shutdown", post(shutdown))
            .with_state(play.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, play, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes the runtime file of a node with this pid.
    fn live_in(&self, place: &Place, pid: u32) {
        let runtime = json!({
            "pid": pid, "api": self.url(), "token": "secret", "peer_id": "12D3KooWfake", "invite": "grid1file",
            "started_unix_ms": 1,
        });
        place.write("runtime.json", &runtime.to_string());
    }
}

async fn chat(State(play): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut play = play.lock().unwrap();
    play.asked.push(body);
    let headers = [("x-opengrid-worker", "12D3KooWworker99"), ("x-opengrid-session", "00000000000000ff")];
    let status = StatusCode::from_u16(play.chat_status).unwrap();
    (status, headers, Body::from(play.chat_body.clone())).into_response()
}

async fn status() -> Json<Value> {
    Json(json!({
        "peer_id": "12D3KooWfake", "version": "0.1.0", "uptime_seconds": 67, "role": "edge", "state": "serving \u{1b}[31m",
        "models": [{"id": "m", "state": "ready", "class": "exact:ab", "slots": 8, "slots_busy": 3, "memory_bytes": 1000000,
                    "decode_tokens_per_s": 90.5, "context_tokens": 4096, "queued": 0}],
        "peers": 2, "invite": "grid1status", "api": "x", "nat": "private", "p2p_addresses": ["/ip4/127.0.0.1/tcp/1"],
        "sessions_running": 3, "tokens_generated": 7,
    }))
}

async fn peers() -> Json<Value> {
    Json(json!([{
        "peer_id": "12D3KooWpeer", "version": "evil\u{1b}]0;title\u{7}", "connected": true, "path": "direct",
        "addresses": [], "rtt_ms": 1.25, "models": [{"id": "m", "slots": 8, "slots_busy": 1, "draining": true}],
    }]))
}

fn remember_token(play: &Shared, headers: &HeaderMap) {
    let token = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    play.lock().unwrap().tokens.push(token.unwrap_or_default());
}

async fn join(State(play): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Json<Value> {
    remember_token(&play, &headers);
    play.lock().unwrap().asked.push(body);
    Json(json!({}))
}

async fn shutdown(State(play): State<Shared>, headers: HeaderMap) -> Json<Value> {
    remember_token(&play, &headers);
    drop(play.lock().unwrap().stops.take());
    Json(json!({}))
}

const ANSWER: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n: keep-alive\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"The \\u001b[31msky\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\" is blue.\"},\"finish_reason\":\"stop\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n";

#[test]
fn an_answer_is_printed_clean_and_settings_are_sent() {
    let (node, place) = (FakeNode::start(200, ANSWER), Place::new());
    let url = node.url();
    let arguments = [
        "run",
        "m",
        "why?",
        "--api",
        &url,
        "--system",
        "short",
        "--temperature",
        "0.8",
        "--seed",
        "7",
        "--max-tokens",
        "9",
    ];
    let done = place.run(&arguments);
    assert_eq!(done.succeeds().stdout, "The [31msky is blue.\n");
    assert_eq!(done.stderr, "", "no statistics without a terminal");
    let asked = node.play.lock().unwrap().asked.remove(0);
    assert_eq!(asked["messages"], json!([{"role": "system", "content": "short"}, {"role": "user", "content": "why?"}]));
    assert_eq!((asked["seed"].as_u64(), asked["max_tokens"].as_u64()), (Some(7), Some(9)));
    assert_eq!(asked["temperature"].as_f64(), Some(0.8));
    assert_eq!(asked["stream"], true);
}

#[test]
fn a_pipe_is_the_prompt_and_json_has_everything() {
    let (node, place) = (FakeNode::start(200, ANSWER), Place::new());
    let answer = place.run_with_input(&["run", "m", "--api", &node.url(), "--json"], "from a pipe\n").json();
    assert_eq!(answer["content"], "The [31msky is blue.");
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["worker"], "12D3KooWworker99");
    assert_eq!(answer["session"], "00000000000000ff");
    assert_eq!(node.play.lock().unwrap().asked[0]["messages"][0]["content"], "from a pipe\n");
    place.run_with_input(&["run", "m", "--api", &node.url()], " \n").fails(2, &["prompt is empty"]);
}

#[test]
fn refusals_come_with_their_mend() {
    let place = Place::new();
    let body = |message: &str| {
        json!({ "error": { "message": message, "type": "t", "param": null, "code": null } }).to_string()
    };
    let ask = |node: &FakeNode| place.run(&["run", "m", "hi", "--api", &node.url()]);
    ask(&FakeNode::start(404, &body("the model `m` does not exist"))).fails(1, &["does not exist", "opengrid ls"]);
    ask(&FakeNode::start(503, &body("no node serves `m` right now"))).fails(1, &["no node serves", "--serve m"]);
    ask(&FakeNode::start(400, &body("temperature must be"))).fails(1, &["temperature must be"]);
    ask(&FakeNode::start(502, "<html>")).fails(1, &["502"]);
}

#[test]
fn answers_that_break_off_are_failures() {
    let place = Place::new();
    let ask = |body: &str| {
        let node = FakeNode::start(200, body);
        place.run(&["run", "m", "hi", "--api", &node.url()])
    };
    ask("data: {\"error\":{\"message\":\"the worker left\"}}\n\n").fails(1, &["the worker left"]);
    ask("data: nonsense\n\n").fails(1, &["malformed"]);
    ask("").fails(1, &["too early"]);
    let half = ask("data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n");
    assert_eq!((half.code, half.stdout.as_str()), (1, "half\n"), "{half:?}");
}

#[test]
fn what_the_node_says_is_shown_without_control_characters() {
    let (node, place) = (FakeNode::start(200, ""), Place::new());
    node.live_in(&place, std::process::id());
    let status = place.run(&["status"]).succeeds().stdout.clone();
    assert!(status.contains("1 min 7 s") && status.contains("m (ready)") && !status.contains('\u{1b}'), "{status}");
    let peers = place.run(&["peers"]).succeeds().stdout.clone();
    assert!(peers.contains("1.2 ms") && peers.contains("draining") && !peers.contains(['\u{1b}', '\u{7}']), "{peers}");
    let ps = place.run(&["ps"]).succeeds().stdout.clone();
    assert!(ps.contains("3/8") && ps.contains("exact:ab"), "{ps}");
    assert_eq!(place.run(&["ps", "--json"]).json()["models"][0]["slots_busy"], 3);
    assert_eq!(place.run(&["status", "--json"]).json()["uptime_seconds"], 67);
    assert_eq!(place.run(&["peers", "--json"]).json()[0]["rtt_ms"], 1.25);
    place.run(&["rm", "smollm2-135m"]).fails(1, &["smollm2-135m"]);
}

#[test]
fn the_invite_is_alone_on_the_first_line_and_waited_for() {
    let (node, place) = (FakeNode::start(200, ""), Place::new());
    place.run(&["invite", "--wait", "0"]).fails(1, &["no node runs"]);
    let command =
        place.command(&["invite", "--qr", "--wait", "20"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    node.live_in(&place, std::process::id());
    let output = command.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().next(), Some("grid1status"));
    assert!(text.lines().count() > 10, "no QR code: {text}");
    assert_eq!(place.run(&["invite"]).stdout, "grid1status\n");
    assert_eq!(place.run(&["invite", "--json"]).json()["invite"], "grid1status");
}

#[test]
fn join_and_down_send_the_token_and_down_waits_for_the_end() {
    let (node, place) = (FakeNode::start(200, ""), Place::new());
    let sleeper = Guard(std::process::Command::new("sleep").arg("60").spawn().unwrap());
    let pid = sleeper.0.id();
    node.play.lock().unwrap().stops = Some(sleeper);
    node.live_in(&place, pid);
    let invite = opengrid_protocol::invite::Invite {
        node: opengrid_protocol::NodeId([3; 32]),
        addresses: vec![vec![4, 127, 0, 0, 1, 6, 0x11, 0x76]],
        private: false,
    }
    .to_text();
    assert!(place.run(&["join", &invite]).succeeds().stdout.contains("joined"));
    assert_eq!(node.play.lock().unwrap().asked[0]["invite"], invite.as_str());
    assert_eq!(place.run(&["down", "--json"]).json()["stopped"], pid);
    assert_eq!(node.play.lock().unwrap().tokens, ["Bearer secret", "Bearer secret"]);
    place.run(&["down"]).fails(1, &["no node runs"]);
}

#[test]
fn down_gives_up_on_a_node_that_stays() {
    let (node, place) = (FakeNode::start(200, ""), Place::new());
    let sleeper = Guard(std::process::Command::new("sleep").arg("60").spawn().unwrap());
    node.live_in(&place, sleeper.0.id());
    place.run(&["down", "--wait", "0"]).fails(1, &["still runs", "kill"]);
}
