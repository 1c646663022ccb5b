//! The last stage's side of a session: it draws the answer, and guesses ahead of it.

use std::time::Instant;

use opengrid_protocol::session::{Finish, Token, TokenOut, Usage};

use super::{
    answer::{Answer, Draw},
    draft_model::{DraftModel, Text},
    ffi::Context,
};
use crate::{
    drafts::{self, Drafting, Source},
    spans::Chunk,
    stage::Next,
};

/// What the last stage knows of a session.
pub struct Head {
    pub answer: Answer,
    /// Prompt and answer, and behind them guesses that are under way.
    pub text: Vec<Token>,
    pub known: usize,
    /// Number of the lap.
    pub lap: u32,
    pub opened: Instant,
    /// Once the first token was drawn.
    pub drafting: Option<Drafting>,
    pub tokens_max: usize,
    pub usage: Usage,
}

pub struct Drawn {
    pub tokens: Vec<TokenOut>,
    /// So many of them were guessed.
    pub came_true: usize,
    /// The last one was not: a lap begins with it. Another guess stood in its place.
    pub begins: bool,
    pub missed: bool,
    pub end: Option<Result<Finish, String>>,
}

/// What guessing goes by beside the session itself.
pub struct Pricing {
    pub guesses_max: usize,
    pub sessions: usize,
    /// Of this stage: seconds of a row alone and of one among many, and so many times as long all stages take.
    pub row_s: f64,
    pub prefill_row_s: f64,
    pub stages: f64,
}

impl Pricing {
    /// What a lap and a row will take, by how long the prompt took. It came through all stages, and over all links.
    fn expected(&self, prompt: usize, took: f64) -> Drafting {
        let computing = prompt as f64 * self.prefill_row_s * self.stages;
        Drafting::new((took - computing).max(self.row_s * self.stages), self.row_s, self.stages)
    }
}

impl Head {
    /// How many of the chunk's last rows tell what is not known yet.
    pub fn outputs(&self, chunk: &Chunk) -> usize {
        (chunk.from + chunk.rows).saturating_sub(self.known - 1).min(chunk.rows)
    }

    /// Draws from the logits of `outputs` rows, as long as each token drawn is the one whose row comes next.
    pub fn draw(
        &mut self,
        context: &mut Context<'_>,
        first: usize,
        outputs: usize,
        scratch: &mut Vec<f32>,
    ) -> Result<Drawn, String> {
        let mut drawn = Drawn { tokens: Vec::new(), came_true: 0, begins: false, missed: false, end: None };
        for at in 0..outputs {
            let logits = context.logits(first + at).ok_or("llama.cpp gave no logits")?;
            match self.answer.draw(logits, scratch) {
                Err(why) => drawn.end = Some(Err(why)),
                Ok(Draw::End(finish)) => drawn.end = Some(Ok(finish)),
                Ok(Draw::Token(token, complete)) => {
                    self.take(token, &mut drawn);
                    let full = self.known >= self.tokens_max;
                    drawn.end = complete.or(full.then_some(Finish::Length)).map(Ok);
                }
            }
            if drawn.end.is_some() || drawn.begins {
                break;
            }
        }
        Ok(drawn)
    }

    fn take(&mut self, token: TokenOut, drawn: &mut Drawn) {
        let guess = self.text.get(self.known);
        if guess == Some(&token.token) {
            drawn.came_true += 1;
        } else {
            (drawn.begins, drawn.missed) = (true, guess.is_some());
            self.text.truncate(self.known);
            self.text.push(token.token);
            self.lap += 1;
        }
        self.known += 1;
        self.usage.generated_tokens += 1;
        drawn.tokens.push(token);
    }

    /// What the first stage computes next: the last token where a lap begins with it, and guesses at what follows.
    pub fn next(
        &mut self,
        drawn: &Drawn,
        pricing: &Pricing,
        slot: usize,
        draft: Option<&mut DraftModel<'_>>,
    ) -> Result<Next, String> {
        let now = self.now();
        let mut drafting = self.drafting.take().unwrap_or_else(|| pricing.expected(self.known - 1, now));
        drafting.judged(drawn.came_true, drawn.missed, now);
        let mut from = self.text.len();
        if drawn.begins {
            from -= 1;
            drafting.begin(now);
        }
        // No row is computed of what fills the answer.
        let room = self.tokens_max.saturating_sub(self.text.len() + 1);
        let room = room.min(pricing.guesses_max.saturating_sub(self.text.len() - self.known));
        let mut draft = draft.filter(|_| drafting.may_ask_model());
        let at_hand = draft.as_mut().map_or(0, |draft| draft.at_hand(slot, self.text()).min(room));
        let found = drafts::look_up(&self.text, room);
        let (source, most) = drafting.choose(found, at_hand, pricing.sessions);
        let guesses = match (source, draft) {
            (Source::Model, Some(draft)) => draft.guesses(slot, self.text(), most)?.to_vec(),
            _ => found.tokens[..most].to_vec(),
        };
        drafting.left(guesses.len(), self.now());
        self.drafting = Some(drafting);
        let by_model = source == Source::Model && !guesses.is_empty();
        self.text.extend(guesses);
        Ok(Next { lap: self.lap, from: from as u32, tokens: self.text[from..].to_vec(), by_model })
    }

    fn now(&self) -> f64 {
        self.opened.elapsed().as_secs_f64()
    }

    /// With the guesses under way.
    pub fn text(&self) -> Text<'_> {
        let (tokens, in_flight) = self.text.split_at(self.known);
        Text { tokens, in_flight, answer: &self.answer }
    }
}
