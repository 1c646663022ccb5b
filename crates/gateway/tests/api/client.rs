//! A small HTTP/1.1 client that sends exactly what it is told to.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub struct Client {
    pub address: SocketAddr,
}

#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answered {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// `code` and `param` of an error in OpenAI's shape, all four fields of which are there.
    pub fn error(&self) -> (String, Option<String>) {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error: {json}"));
        assert_eq!(error.len(), 4, "{json}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
        assert!(error["type"].is_string(), "{json}");
        (error["code"].as_str().unwrap().to_owned(), error["param"].as_str().map(str::to_owned))
    }

    /// The `data:` values of an event stream.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let frames = self.text().strip_suffix("\n\n").expect("the stream ends with a blank line").split("\n\n");
        let data = frames.filter(|frame| !frame.starts_with(':'));
        data.map(|frame| frame.strip_prefix("data: ").unwrap_or_else(|| panic!("{frame:?}")).to_owned()).collect()
    }

    /// The events of a stream whose events have names, which their data repeat.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let frames = self.text().strip_suffix("\n\n").expect("the stream ends with a blank line").split("\n\n");
        let event = |frame: &str| {
            let (name, data) = frame.split_once('\n').unwrap_or_else(|| panic!("{frame:?}"));
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).unwrap();
            let name = name.strip_prefix("event: ").expect("a name").to_owned();
            assert_eq!(data["type"], name.as_str(), "{data}");
            (name, data)
        };
        frames.filter(|frame| !frame.starts_with(':')).map(event).collect()
    }

    /// Like [`events`](Self::events) in JSON, without the closing `[DONE]`, which must be there.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

pub fn head(method: &str, path: &str, host: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("content-length: {length}\r\n");
    }
    head + "\r\n"
}

impl Client {
    pub async fn get(&self, path: &str) -> Answered {
        self.send("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answered {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answered {
        let host = self.address.to_string();
        self.raw(&[head(method, path, &host, headers, body.len()).as_bytes(), body].concat()).await
    }

    pub async fn raw(&self, bytes: &[u8]) -> Answered {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer
        };
        parse(&timeout(TIMEOUT, exchange).await.expect("no complete answer within 20 s"))
    }

    /// Sends a request and returns the connection.
    pub async fn open(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let body = body.to_string();
        let headers = [("content-type", "application/json")];
        let method = if body == "null" { "GET" } else { "POST" };
        let head = head(method, path, &self.address.to_string(), &headers, body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        if method == "POST" {
            stream.write_all(body.as_bytes()).await.unwrap();
        }
        stream
    }
}

/// Reads until `needle` has come.
pub async fn read_until(stream: &mut TcpStream, needle: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(needle) {
            let mut buffer = [0; 4_096];
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "closed before {needle:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(TIMEOUT, reading).await.unwrap_or_else(|_| panic!("{needle:?} did not come within 20 s"));
    String::from_utf8_lossy(&seen).into_owned()
}

fn parse(answer: &[u8]) -> Answered {
    let border = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("no end of headers");
    let head = std::str::from_utf8(&answer[..border]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body = &answer[border + 4..];
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { dechunk(body) } else { body.to_vec() };
    Answered { status, headers, body }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|window| window == b"\r\n").expect("a chunk is cut off");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).unwrap(), 16).unwrap();
        body = &body[line + 2..];
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&body[..size]);
        body = &body[size + 2..];
    }
}
