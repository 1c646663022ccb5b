//! A server that speaks the documented wire formats of the three external engines, and breaks on demand. Its vocabulary is
//! one token a byte, its model repeats [`TEXT`]: token and place decide what comes next, so that any continuation is right
//! or wrong for all to see.
//!
//! Sources: llama.cpp `tools/server` (as vendored by llama-cpp-python 0.3.36), vLLM 0.32 `entrypoints/openai`,
//! TensorRT-LLM 1.x `tensorrt_llm/serve` (`openai_protocol.py`: `extra="forbid"`, `detokenize`, `token_ids`;
//! `openai_server.py`: `/metrics` is a JSON list; `postprocess_handlers.py`: chunks). The first two are compared with real
//! servers by `./test --engines`; TensorRT-LLM needs a GPU and is known from its sources alone.

pub mod llama_server;
pub mod openai;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use opengrid_engine::Kind;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::mpsc,
};

/// What the model says, over and over; ETX (3) is its end token.
pub const TEXT: &str = "An é, a 東 and a 🙂; the end.\u{3}";
pub const END: u32 = 3;
pub const CONTEXT: u32 = 2_048;
pub const SLOTS: u16 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    Status(u16),
    /// Takes the request and says nothing.
    Hang,
    /// After so many tokens.
    HangAfter(u32),
    CutAfter(u32),
    GarbageAfter(u32),
    ErrorAfter(u32),
    /// A line without an end.
    EndlessLine,
    Comments,
    /// Goes on after the length that was asked for.
    TooMany,
    OtherVocabulary,
    NoIds,
}

#[derive(Clone)]
pub struct Engine {
    pub kind: Kind,
    pub fault: Arc<Mutex<Fault>>,
    /// Bodies of the generations that were asked for.
    pub asked: Arc<Mutex<Vec<Value>>>,
    pub token_pause: Duration,
}

pub struct Server {
    pub engine: Engine,
    pub address: SocketAddr,
    /// Of its own, so that it ends as a process does.
    runtime: Option<Runtime>,
}

impl Server {
    pub async fn start(kind: Kind) -> Self {
        let engine = Engine { kind, fault: Arc::default(), asked: Arc::default(), token_pause: Duration::ZERO };
        Self::start_with(engine).await
    }

    pub async fn start_with(engine: Engine) -> Self {
        let mut server = Self { engine, address: "127.0.0.1:0".parse().unwrap(), runtime: None };
        server.up().await;
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn fail(&self, fault: Fault) {
        *self.engine.fault.lock().unwrap() = fault;
    }

    pub fn asked(&self) -> Vec<Value> {
        self.engine.asked.lock().unwrap().clone()
    }

    /// As if the process ended: connections and all.
    pub async fn down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// On the same port as before.
    pub async fn up(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = loop {
            match runtime.spawn(TcpListener::bind(self.address)).await.unwrap() {
                Ok(listener) => break listener,
                // The one before is about to go.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.address = listener.local_addr().unwrap();
        let routes = match self.engine.kind {
            Kind::LlamaServer => llama_server::routes(self.engine.clone()),
            _ => openai::routes(self.engine.clone()),
        };
        runtime.spawn(async move { axum::serve(listener, routes).await });
        self.runtime = Some(runtime);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    pub fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    pub fn tokenize(&self, text: &str) -> Vec<u32> {
        let skew = u32::from(self.fault() == Fault::OtherVocabulary);
        text.bytes().map(|byte| u32::from(byte) + skew).collect()
    }

    /// What a generation meets before its first byte.
    pub async fn admit(&self, body: &Value) -> Option<Response> {
        self.asked.lock().unwrap().push(body.clone());
        match self.fault() {
            Fault::Status(status) => {
                let status = StatusCode::from_u16(status).unwrap();
                Some(
                    (status, json!({"error": {"message": "as told", "code": status.as_u16()}}).to_string())
                        .into_response(),
                )
            }
            Fault::Hang => std::future::pending().await,
            _ => None,
        }
    }
}

/// The token at `place` of prompt and answer.
pub fn token_at(place: usize) -> u32 {
    u32::from(TEXT.as_bytes()[place % TEXT.len()])
}

pub fn prompt_of(body: &Value) -> Vec<u32> {
    body["prompt"].as_array().expect("token ids").iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// An event stream that a generator feeds; faults strike after so many events of tokens.
pub fn stream<F>(engine: Engine, tokens: impl Iterator<Item = F> + Send + 'static) -> Response
where
    F: FnOnce() -> Vec<Value> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    tokio::spawn(async move {
        let fault = engine.fault();
        for (index, events) in (0_u32..).zip(tokens) {
            let strike = match fault {
                Fault::HangAfter(n) if index == n => return drop((sender.closed().await, engine)),
                Fault::CutAfter(n) if index == n => Some(Err(std::io::Error::other("cut"))),
                Fault::GarbageAfter(n) if index == n => Some(Ok(b"data: {\"tokens\": [tru\n\n".to_vec())),
                Fault::ErrorAfter(n) if index == n => Some(Ok(b"data: {\"error\":{\"message\":\"x\"}}\n\n".to_vec())),
                Fault::EndlessLine => return flood(sender, b"data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").await,
                Fault::Comments => return flood(sender, b": still there\n\n").await,
                _ => None,
            };
            if let Some(strike) = strike {
                let _ = sender.send(strike).await;
                return;
            }
            for event in events() {
                if sender.send(Ok(format!("data: {event}\n\n").into_bytes())).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(engine.token_pause).await;
        }
        if engine.kind != Kind::LlamaServer {
            let _ = sender.send(Ok(b"data: [DONE]\n\n".to_vec())).await;
        }
    });
    let body = Body::from_stream(futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }));
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn flood(sender: mpsc::Sender<Result<Vec<u8>, std::io::Error>>, with: &[u8]) {
    while sender.send(Ok(with.repeat(100))).await.is_ok() {}
}
