//! Bounded HTTP: bodies, lines and waits.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, RequestBuilder, Response, StatusCode, redirect::Policy};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

/// Largest answer to a question, in bytes: metrics of a busy server are some 100 KiB.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Longest part of an engine's error message that is shown.
const MESSAGE_CHARS_MAX: usize = 200;
/// Connections to one engine that are kept while idle.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("no connection")]
    Connect,
    #[error("no answer in time")]
    Late,
    #[error("the connection broke")]
    Broken,
    #[error("status {status}: {message}")]
    Status { status: u16, message: String },
    #[error("not what was expected: {0}")]
    Nonsense(&'static str),
}

/// Without proxies and redirects: the owner named this very server.
pub fn client(connect: Duration) -> Result<Client, String> {
    Client::builder()
        .connect_timeout(connect)
        .redirect(Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .tcp_nodelay(true)
        .user_agent(concat!("opengrid/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.to_string())
}

/// Asks and reads all of a small answer.
pub async fn ask<T: DeserializeOwned>(request: RequestBuilder, within: Duration) -> Result<T, HttpError> {
    let body = ask_text(request, within).await?;
    serde_json::from_slice(&body).map_err(|_| HttpError::Nonsense("the body is no such JSON"))
}

pub async fn ask_text(request: RequestBuilder, within: Duration) -> Result<Bytes, HttpError> {
    timeout(within, async {
        let mut response = good(request.send().await.map_err(of_reqwest)?).await?;
        body(&mut response).await
    })
    .await
    .map_err(|_| HttpError::Late)?
}

fn of_reqwest(error: reqwest::Error) -> HttpError {
    if error.is_connect() {
        HttpError::Connect
    } else if error.is_timeout() {
        HttpError::Late
    } else {
        HttpError::Broken
    }
}

async fn body(response: &mut Response) -> Result<Bytes, HttpError> {
    let mut all = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(of_reqwest)? {
        if all.len() + piece.len() > BODY_BYTES_MAX {
            return Err(HttpError::Nonsense("the body is too long"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

/// The response itself when its status is 200.
async fn good(mut response: Response) -> Result<Response, HttpError> {
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let text = body(&mut response).await.unwrap_or_default();
    Err(HttpError::Status { status, message: message(&text) })
}

/// The sentence in `{"error":{"message":…}}` or `{"message":…}`, cut and on one line.
fn message(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let found = [value.pointer("/error/message"), value.pointer("/message"), value.get("error"), value.get("detail")];
    let text = found.into_iter().flatten().find_map(Value::as_str).unwrap_or("no reason given");
    clip(text)
}

pub fn clip(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The lines `data: …` of an event stream.
pub struct Events {
    response: Response,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold no line end.
    searched: usize,
    quiet_bytes: usize,
}

impl Events {
    /// Waits for the head of the response until `deadline`.
    pub async fn open(request: RequestBuilder, deadline: Instant) -> Result<Self, HttpError> {
        let response = timeout_at(deadline, async { good(request.send().await.map_err(of_reqwest)?).await });
        let response = response.await.map_err(|_| HttpError::Late)??;
        Ok(Self { response, buffer: Vec::new(), searched: 0, quiet_bytes: 0 })
    }

    /// The next event; `None` at the end (`[DONE]` or the body's). Comments do not extend the deadline.
    pub async fn next(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, HttpError> {
        loop {
            while let Some(line) = self.line() {
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                let data = data.trim_ascii();
                if data == b"[DONE]" {
                    return Ok(None);
                }
                self.quiet_bytes = 0;
                return Ok(Some(data.to_vec()));
            }
            let piece = timeout_at(deadline, self.response.chunk()).await.map_err(|_| HttpError::Late)?;
            let Some(piece) = piece.map_err(of_reqwest)? else { return Ok(None) };
            self.quiet_bytes += piece.len();
            if self.quiet_bytes > LINE_BYTES_MAX {
                return Err(HttpError::Nonsense("a line is too long, or nothing but comments comes"));
            }
            self.buffer.extend_from_slice(&piece);
        }
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| at + self.searched);
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        self.searched = 0;
        Some(line)
    }
}
