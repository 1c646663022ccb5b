//! Talks to a running node over its HTTP API.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use reqwest::{Client, Response, StatusCode, Url, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    args::TargetArgs,
    errors::usage,
    output::clean,
    runtime::{self, Runtime, RuntimeError},
};

/// Largest answer that is read, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest message of an error that is shown, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
const CONNECT_MAX: Duration = Duration::from_secs(3);
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// A node sends a keep-alive every 10 s while an answer waits.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);

/// A node's API and what opens it: for the node of the home its local token, for another a key, if one was given.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    base: Url,
    token: Option<String>,
}

/// What the node answered instead of data.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub status: StatusCode,
    pub message: String,
}

impl Api {
    /// The node at `target.api`, or else the one that runs in `home`.
    ///
    /// # Errors
    /// When the URL is none, or no node runs.
    pub fn of(target: &TargetArgs, home: &Path) -> anyhow::Result<Self> {
        match &target.api {
            Some(url) => Ok(Self { token: target.key.clone(), ..Self::at(url)? }),
            None => Ok(Self::of_runtime(&runtime::read(home)?)?),
        }
    }

    /// The node of the home, or `None` when none runs there.
    ///
    /// # Errors
    /// When its runtime file cannot be read.
    pub fn of_home(home: &Path) -> anyhow::Result<Option<Self>> {
        match runtime::read(home) {
            Ok(runtime) => Self::of_runtime(&runtime).map(Some),
            Err(RuntimeError::NotRunning { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// When the file's address is no URL.
    pub fn of_runtime(runtime: &Runtime) -> anyhow::Result<Self> {
        Ok(Self { token: Some(runtime.token.clone()), ..Self::at(&runtime.api)? })
    }

    fn at(url: &str) -> anyhow::Result<Self> {
        let base = base_url(url)?;
        let client = Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(STREAM_SILENCE_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("cannot start the HTTP client")?;
        Ok(Self { client, base, token: None })
    }

    pub fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// `GET path` as JSON, with the token or key.
    ///
    /// # Errors
    /// [`Refused`] for an error answer; else why there was none.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.client.get(self.join(path)?).timeout(REQUEST_MAX);
        let body = self.body(self.send(self.authorised(request)).await?).await?;
        serde_json::from_slice(&body).with_context(|| format!("{}{path} answered no valid JSON", self.url()))
    }

    /// `POST path` with the node's token.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn change(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let request = self.client.post(self.join(path)?).json(body).timeout(REQUEST_MAX);
        let response = self.send(self.authorised(request)).await?;
        self.body(response).await.map(drop)
    }

    /// `POST path` with the node's token, if this is the home's node; the answer's body to be read as it comes.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        let request = self.client.post(self.join(path)?).json(body);
        self.send(self.authorised(request)).await
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn join(&self, path: &str) -> anyhow::Result<Url> {
        self.base.join(path.trim_start_matches('/')).with_context(|| format!("{path} is no path"))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let response = request.header(header::ACCEPT, "*/*").send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await.unwrap_or_default();
        Err(Refused { status, message: message_of(status, &body) }.into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let url = self.url();
        if error.is_connect() {
            anyhow::anyhow!("no node answers at {url}: start one with `opengrid up`, or name another with --api")
        } else if error.is_timeout() {
            anyhow::anyhow!("the node at {url} did not answer in time: see `opengrid doctor`")
        } else {
            anyhow::anyhow!("the node at {url} closed the connection ({})", cause(error))
        }
    }

    async fn body(&self, mut response: Response) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + part.len() > BODY_BYTES_MAX {
                bail!("the node at {} sent more than {BODY_BYTES_MAX} bytes", self.url());
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }
}

/// The innermost cause, which is the one that says something.
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn base_url(text: &str) -> anyhow::Result<Url> {
    let wrong = || usage(format!("`{}` is no API address: it looks like http://127.0.0.1:8470", clean(text)));
    let trimmed = text.trim().trim_end_matches('/').trim_end_matches("/v1");
    let url = Url::parse(&format!("{trimmed}/")).map_err(|_| wrong())?;
    let usable = matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none();
    if usable { Ok(url) } else { Err(wrong()) }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorMessage,
}

#[derive(Deserialize)]
struct ErrorMessage {
    message: String,
}

/// The message of an OpenAI error body; else the status.
fn message_of(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => clean(&body.error.message).chars().take(MESSAGE_CHARS_MAX).collect(),
        Err(_) => format!("the node answered {status}"),
    }
}

/// The rows of a list answer: a bare array, or the array under `key`.
///
/// # Errors
/// When there is neither, or a row has another shape.
pub fn rows<T: DeserializeOwned>(answer: &Value, key: &str) -> anyhow::Result<Vec<T>> {
    let list = if answer.is_array() { answer } else { answer.get(key).unwrap_or(answer) };
    serde_json::from_value(list.clone()).with_context(|| {
        format!(
            "the node's list of {key} has an unknown shape: node and command are of different versions, update both"
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_the_openai_path() {
        for text in [
            "http://127.0.0.1:8470",
            "http://127.0.0.1:8470/",
            "http://127.0.0.1:8470/v1",
            " http://127.0.0.1:8470/v1/ ",
        ] {
            assert_eq!(base_url(text).unwrap().as_str(), "http://127.0.0.1:8470/");
        }
        for text in ["127.0.0.1:8470", "ftp://x", "", "http://", "http://x/?a=b"] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn error_bodies_give_their_message_and_nothing_harmful() {
        let body = br#"{"error":{"message":"no \u001b[31msuch model","type":"x"}}"#;
        assert_eq!(message_of(StatusCode::NOT_FOUND, body), "no [31msuch model");
        assert_eq!(message_of(StatusCode::BAD_GATEWAY, b"<html>"), "the node answered 502 Bad Gateway");
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(10_000));
        assert_eq!(message_of(StatusCode::OK, long.as_bytes()).chars().count(), MESSAGE_CHARS_MAX);
    }
}
