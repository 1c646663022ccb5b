//! An answer as server-sent events, whatever API they are of.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    errors::ApiError,
    generation::{Generation, Step},
    sse,
};
use crate::text::answer::Delta;

/// What an API makes of an answer. The calls come in the order of the methods; after `fail` nothing comes.
pub trait AnswerWriter: Send + 'static {
    /// Sent while there is nothing to say.
    const KEEP_ALIVE: &'static [u8];

    /// Workers have accepted the request.
    fn open(&mut self, generation: &Generation, out: &mut Vec<u8>);

    fn delta(&mut self, generation: &Generation, choice: usize, delta: Delta, out: &mut Vec<u8>);

    /// The last word of a choice.
    fn finish(&mut self, generation: &Generation, choice: usize, reason: &'static str, out: &mut Vec<u8>);

    fn fail(&mut self, error: ApiError, out: &mut Vec<u8>);

    /// All choices are complete.
    fn close(&mut self, generation: &Generation, out: &mut Vec<u8>);
}

struct Stream<W> {
    writer: W,
    generation: Generation,
    keep_alive_every: Duration,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Opening,
    Running,
    Ended,
}

/// The answer's body. It is driven by the connection: when the client hangs up, it is dropped and so are the sessions.
pub fn stream<W: AnswerWriter>(writer: W, generation: Generation, keep_alive_every: Duration) -> Response {
    let stream = Stream { writer, generation, keep_alive_every, state: State::Opening };
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    ([(header::CONTENT_TYPE, sse::CONTENT_TYPE)], Body::from_stream(events)).into_response()
}

/// Lets `writer` see the whole answer.
///
/// # Errors
/// What made it fail.
pub async fn run<W: AnswerWriter>(writer: &mut W, mut generation: Generation) -> Result<(), ApiError> {
    let mut out = Vec::new();
    writer.open(&generation, &mut out);
    while let Some(step) = generation.step().await {
        if let Step::Failed(error) = step {
            return Err(error.into());
        }
        take(writer, &generation, step, &mut out);
        out.clear();
    }
    writer.close(&generation, &mut out);
    Ok(())
}

fn take<W: AnswerWriter>(writer: &mut W, generation: &Generation, step: Step, out: &mut Vec<u8>) {
    match step {
        Step::Delta { choice, delta } => writer.delta(generation, choice, delta, out),
        Step::Finished { choice, delta, reason } => {
            writer.delta(generation, choice, delta, out);
            writer.finish(generation, choice, reason, out);
        }
        Step::Failed(error) => writer.fail(error.into(), out),
    }
}

impl<W: AnswerWriter> Stream<W> {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(512);
        if self.state == State::Opening {
            self.state = State::Running;
            self.writer.open(&self.generation, &mut out);
        }
        while out.is_empty() && self.state == State::Running {
            match timeout(self.keep_alive_every, self.generation.step()).await {
                Err(_) => return Some(Bytes::from_static(W::KEEP_ALIVE)),
                Ok(Some(step)) => {
                    if matches!(step, Step::Failed(_)) {
                        self.state = State::Ended;
                    }
                    take(&mut self.writer, &self.generation, step, &mut out);
                }
                Ok(None) => {
                    self.state = State::Ended;
                    self.writer.close(&self.generation, &mut out);
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }
}
