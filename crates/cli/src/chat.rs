//! One conversation with a model over the OpenAI API, answers streamed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    api::{Api, Refused},
    output::clean,
    sse::Events,
};

/// Largest answer that is kept, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Unless told: small models talk sense at it, and still not always the same.
const TEMPERATURE: f32 = 0.3;

#[derive(Clone, Debug, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

impl Message {
    pub fn new(role: &'static str, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What stays the same over a conversation.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub model: String,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    pub seed: Option<u64>,
}

/// A finished answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    pub model: String,
    pub content: String,
    pub finish_reason: Option<String>,
    pub usage: Option<Value>,
    /// Peer id of the worker that accepted it first.
    pub worker: Option<String>,
    pub session: Option<String>,
    pub seconds_to_first_token: Option<f64>,
    pub seconds: f64,
}

impl Answer {
    pub fn tokens(&self) -> Option<u64> {
        self.usage.as_ref()?.get("completion_tokens")?.as_u64()
    }

    /// Of the decoding alone, the wait for the first token left out.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.seconds - self.seconds_to_first_token?;
        let tokens = self.tokens()?.checked_sub(1)?;
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// `41 tokens, 93 tok/s, by …HrqUiZnS`.
    pub fn summary(&self) -> String {
        let tokens = self.tokens().map(|tokens| format!("{tokens} tokens"));
        let speed = self.tokens_per_s().map(|speed| format!("{speed:.0} tok/s"));
        let worker = self.worker.as_ref().map(|worker| {
            let start = worker.char_indices().rev().nth(7).map_or(0, |(at, _)| at);
            format!("by …{}", &worker[start..])
        });
        [tokens, speed, worker].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Asks for the answer to `messages`; `print` gets each new piece of text, free of control characters.
///
/// Dropping the future closes the connection, which cancels the answer on the grid.
///
/// # Errors
/// What the node or the grid says, with the mend; and what `print` fails with.
pub async fn ask(
    api: &Api,
    settings: &Settings,
    messages: &[Message],
    mut print: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let body = request_body(settings, messages);
    let mut response =
        api.stream("/v1/chat/completions", &body).await.map_err(|error| with_mend(error, &settings.model))?;
    let mut answer = Answer {
        model: settings.model.clone(),
        worker: header(&response, "x-opengrid-worker"),
        session: header(&response, "x-opengrid-session"),
        ..Answer::default()
    };
    let mut events = Events::default();
    loop {
        let part = response.chunk().await.context("the connection to the node broke in the middle of the answer")?;
        let Some(part) = part else { bail!("the node ended the answer too early: see its log") };
        for data in events.push(&part)? {
            if data == "[DONE]" {
                answer.seconds = started.elapsed().as_secs_f64();
                return Ok(answer);
            }
            answer.take(&data, started.elapsed(), &mut print)?;
        }
    }
}

impl Answer {
    fn take(
        &mut self,
        data: &str,
        elapsed: Duration,
        print: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let chunk: Chunk = serde_json::from_str(data).context("the node sent a malformed event")?;
        if let Some(error) = chunk.error {
            bail!("the answer broke off: {}", clean(&error.message));
        }
        if chunk.usage.is_some() {
            self.usage = chunk.usage;
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(()) };
        if choice.finish_reason.is_some() {
            self.finish_reason = choice.finish_reason;
        }
        let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) else { return Ok(()) };
        self.seconds_to_first_token.get_or_insert(elapsed.as_secs_f64());
        if self.content.len() + text.len() > ANSWER_BYTES_MAX {
            bail!("the answer is over {ANSWER_BYTES_MAX} bytes: limit it with --max-tokens");
        }
        let text = clean(&text);
        print(&text)?;
        self.content.push_str(&text);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Value>,
    error: Option<StreamError>,
}

#[derive(Deserialize)]
struct StreamError {
    message: String,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
}

fn request_body(settings: &Settings, messages: &[Message]) -> Value {
    let mut body = json!({
        "model": settings.model,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    // A float widened to double would print as 0.800000011920929.
    let temperature =
        settings.temperature.or(Some(TEMPERATURE)).and_then(|value| value.to_string().parse::<f64>().ok());
    let options = [
        ("temperature", temperature.map(Value::from)),
        ("max_tokens", settings.max_tokens.map(Value::from)),
        ("seed", settings.seed.map(Value::from)),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(clean)
}

/// What to do about the refusals that people meet.
fn with_mend(error: anyhow::Error, model: &str) -> anyhow::Error {
    let Some(refused) = error.downcast_ref::<Refused>() else { return error };
    let mend = match refused.status {
        StatusCode::NOT_FOUND => "`opengrid ls` lists the models".to_owned(),
        StatusCode::SERVICE_UNAVAILABLE => {
            format!("try again soon, or serve it on some node with `opengrid up --serve {model}`")
        }
        _ => return error,
    };
    anyhow::anyhow!("{}: {mend}", refused.message.trim_end_matches('.'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn take(answer: &mut Answer, data: &str) -> anyhow::Result<String> {
        let mut printed = String::new();
        answer.take(data, Duration::from_millis(500), &mut |text: &str| {
            printed.push_str(text);
            Ok(())
        })?;
        Ok(printed)
    }

    #[test]
    fn chunks_become_an_answer() {
        let mut answer = Answer { worker: Some("12D3KooWabcdefgh".into()), ..Answer::default() };
        assert_eq!(
            take(&mut answer, r#"{"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}"#).unwrap(),
            ""
        );
        assert_eq!(answer.seconds_to_first_token, None);
        assert_eq!(take(&mut answer, r#"{"choices":[{"delta":{"content":"a\u001b[2J"}}]}"#).unwrap(), "a[2J");
        take(&mut answer, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#).unwrap();
        take(&mut answer, r#"{"choices":[],"usage":{"completion_tokens":51}}"#).unwrap();
        answer.seconds = 1.0;
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        assert_eq!(answer.summary(), "51 tokens, 100 tok/s, by …abcdefgh");
    }

    #[test]
    fn errors_in_the_stream_are_errors() {
        let mut answer = Answer::default();
        let error = take(&mut answer, r#"{"error":{"message":"no worker"}}"#).unwrap_err();
        assert_eq!(error.to_string(), "the answer broke off: no worker");
        assert!(take(&mut answer, "{").is_err());
        let long = json!({ "choices": [{ "delta": { "content": "x".repeat(ANSWER_BYTES_MAX + 1) } }] });
        assert!(take(&mut answer, &long.to_string()).is_err());
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let settings = Settings { model: "m".into(), temperature: Some(0.8), ..Settings::default() };
        let body = request_body(&settings, &[Message::new("user", "q")]);
        assert_eq!(body["temperature"].to_string(), "0.8");
        assert!(body.get("seed").is_none() && body.get("max_tokens").is_none());
        assert_eq!(body["messages"][0]["role"], "user");
    }
}
