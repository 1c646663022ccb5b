//! The running choices of one request: events of the grid in, text out.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use opengrid_node::handle::{Answer, AnswerEvent, GridError, TextModel};
use opengrid_protocol::session::{Finish, Usage as GridUsage};
use tokio::sync::OwnedSemaphorePermit;

use super::{options::Options, prepare::Envelope, shapes::Usage};
use crate::{
    metrics::Followed,
    text::answer::{AnswerText, Delta, Reading},
};

/// Dropping it cancels every choice that still runs.
pub struct Generation {
    pub text: Arc<dyn TextModel>,
    pub envelope: Envelope,
    pub choices: Vec<Choice>,
    /// Where polling starts, so that no choice starves another.
    next: usize,
    completion_tokens_max: u32,
    prompt_tokens: usize,
    followed: Followed,
    _place: OwnedSemaphorePermit,
}

pub struct Choice {
    /// What stands before the answer (`echo`).
    pub echo: Option<String>,
    answer_text: AnswerText,
    /// `None` when the choice is complete.
    running: Option<Answer>,
    session: String,
    worker: String,
    generated: u32,
    cached: u32,
    last_token: Option<Instant>,
}

/// What happened to a choice.
pub enum Step {
    Delta { choice: usize, delta: Delta },
    Finished { choice: usize, delta: Delta, reason: &'static str },
    Failed(GridError),
}

impl Generation {
    #[allow(clippy::too_many_arguments, reason = "the parts of one value, gathered in one place")]
    pub fn new(
        answers: Vec<Answer>,
        echoes: Vec<Option<String>>,
        text: Arc<dyn TextModel>,
        options: &Options,
        reading: &Reading,
        prompt_tokens: usize,
        envelope: Envelope,
        followed: Followed,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let choices = answers.into_iter().zip(echoes).map(|(answer, echo)| Choice {
            echo,
            answer_text: AnswerText::new(options.stops.clone(), options.top_logprobs.is_some(), reading.clone()),
            session: answer.session.to_string(),
            worker: answer.worker.to_string(),
            running: Some(answer),
            generated: 0,
            cached: 0,
            last_token: None,
        });
        Self {
            text,
            envelope,
            choices: choices.collect(),
            next: 0,
            completion_tokens_max: options.completion_tokens_max.unwrap_or(u32::MAX),
            prompt_tokens,
            followed,
            _place: place,
        }
    }

    /// What happens next; `None` when all choices are complete or one has failed. Cancel-safe.
    pub async fn step(&mut self) -> Option<Step> {
        let step = poll_fn(|context| self.poll_step(context)).await;
        if step.is_none() {
            self.followed.complete();
        }
        step
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Option<Step>> {
        let count = self.choices.len();
        let mut all_complete = true;
        for offset in 0..count {
            let choice = (self.next + offset) % count;
            while let Some(answer) = &mut self.choices[choice].running {
                all_complete = false;
                let Poll::Ready(event) = answer.events.poll_recv(context) else { break };
                if let Some(step) = self.take(choice, event) {
                    self.next = (choice + 1) % count;
                    return Poll::Ready(Some(step));
                }
            }
        }
        if all_complete { Poll::Ready(None) } else { Poll::Pending }
    }

    fn take(&mut self, at: usize, event: Option<AnswerEvent>) -> Option<Step> {
        match event {
            Some(AnswerEvent::Queued(_) | AnswerEvent::Moved { .. }) => None,
            Some(AnswerEvent::Tokens(tokens)) => self.take_tokens(at, tokens),
            Some(AnswerEvent::Finished(finish, usage)) => Some(self.finish(at, finish, usage)),
            Some(AnswerEvent::Failed(error)) => Some(self.fail(error)),
            None => Some(self.fail(GridError::Internal("the answer broke off".into()))),
        }
    }

    fn take_tokens(&mut self, at: usize, mut tokens: Vec<opengrid_protocol::session::TokenOut>) -> Option<Step> {
        let choice = &mut self.choices[at];
        let allowed = self.completion_tokens_max.saturating_sub(choice.generated);
        tokens.truncate(allowed as usize);
        let count = tokens.len();
        choice.generated += count as u32;
        let since = choice.last_token.replace(Instant::now()).map(|last| last.elapsed());
        self.followed.tokens(count, since);
        let delta = choice.answer_text.push(self.text.as_ref(), tokens);
        if delta.stopped {
            choice.running = None;
            let reason = if choice.answer_text.called() { "tool_calls" } else { "stop" };
            self.followed.finished(reason);
            return Some(Step::Finished { choice: at, delta, reason });
        }
        (!delta.is_empty()).then_some(Step::Delta { choice: at, delta })
    }

    fn finish(&mut self, at: usize, finish: Finish, usage: GridUsage) -> Step {
        let choice = &mut self.choices[at];
        choice.running = None;
        choice.cached = usage.cached_tokens;
        let delta = choice.answer_text.finish();
        let reason = match finish {
            Finish::Length if !delta.stopped => "length",
            Finish::Stop(_) if choice.answer_text.called() => "tool_calls",
            Finish::Length | Finish::Stop(_) => "stop",
        };
        self.followed.finished(reason);
        Step::Finished { choice: at, delta, reason }
    }

    /// One failed choice fails the request: the others are cancelled.
    fn fail(&mut self, error: GridError) -> Step {
        for choice in &mut self.choices {
            choice.running = None;
        }
        self.followed.finished("error");
        Step::Failed(error)
    }

    /// The stop string that ended a choice.
    pub fn stop_string(&self, choice: usize) -> Option<&str> {
        self.choices.get(choice)?.answer_text.stop_string()
    }

    pub fn usage(&self) -> Usage {
        let completion: u64 = self.choices.iter().map(|choice| u64::from(choice.generated)).sum();
        let prompt = self.prompt_tokens as u64;
        let cached = self.choices.iter().map(|choice| u64::from(choice.cached)).max().unwrap_or(0);
        Usage::new(prompt, completion, cached.min(prompt))
    }

    /// Values of `x-opengrid-worker` and `x-opengrid-session`, comma-separated where there are several choices.
    pub fn header_values(&self) -> [String; 2] {
        let join = |part: fn(&Choice) -> &str| self.choices.iter().map(part).collect::<Vec<_>>().join(",");
        [join(|choice| &choice.worker), join(|choice| &choice.session)]
    }
}
