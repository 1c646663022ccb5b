//! How the tokens of one answer are drawn from logits.

use opengrid_grammar::Constraint;
use opengrid_protocol::session::{Finish, Token, TokenOut};
use opengrid_sampler::Sampler;

use super::messages::Generate;

pub struct Answer {
    pub id: u64,
    sampler: Sampler,
    /// Index of the next token.
    step: u32,
    stop_tokens: Vec<Token>,
    top_logprobs: Option<u8>,
    constraint: Option<Box<Constraint>>,
}

/// What came of logits.
pub enum Draw {
    /// A token of the answer, and the finish where the grammar has what it asks for.
    Token(TokenOut, Option<Finish>),
    /// The model ends the answer.
    End(Finish),
}

impl Answer {
    /// With the number of tokens, prompt included, at which the answer is full.
    ///
    /// # Errors
    /// How the answer ends before its first token.
    pub fn new(
        generate: &Generate,
        constraint: Option<Box<Constraint>>,
        context_tokens: usize,
    ) -> Result<(Self, usize), Finish> {
        let is_complete = constraint.as_ref().is_some_and(|constraint| constraint.is_complete());
        if let (true, Some(stop)) = (is_complete, generate.stop_tokens.first()) {
            return Err(Finish::Stop(*stop));
        }
        let tokens = &generate.tokens;
        let prompt = (generate.prompt_tokens as usize).min(tokens.len());
        let tokens_max = prompt.saturating_add(generate.completion_tokens_max as usize).min(context_tokens);
        if tokens.is_empty() || tokens.len() >= tokens_max {
            return Err(Finish::Length);
        }
        let answer = Self {
            id: generate.id,
            sampler: Sampler::new(&generate.sampling, &tokens[..prompt], &tokens[prompt..]),
            step: (tokens.len() - prompt) as u32,
            stop_tokens: generate.stop_tokens.clone(),
            top_logprobs: generate.top_logprobs,
            constraint,
        };
        Ok((answer, tokens_max))
    }

    /// Draws what a draft model guesses to follow the answer and these guesses; `None` with a grammar.
    pub fn drawer(&self, guesses: &[Token]) -> Option<Drawer> {
        if self.constraint.is_some() {
            return None;
        }
        let mut sampler = self.sampler.clone();
        guesses.iter().for_each(|token| sampler.accept(*token));
        let step = self.step.saturating_add(guesses.len() as u32);
        Some(Drawer { sampler, step, stop_tokens: self.stop_tokens.clone() })
    }

    /// Draws the next token and takes it into the answer; `logits` are overwritten.
    ///
    /// # Errors
    /// When the grammar leaves none.
    pub fn draw(&mut self, logits: &mut [f32], scratch: &mut Vec<f32>) -> Result<Draw, String> {
        let out = self.choose(logits, scratch)?;
        if self.stop_tokens.contains(&out.token) {
            return Ok(Draw::End(Finish::Stop(out.token)));
        }
        let complete = self.advance(out.token);
        Ok(Draw::Token(out, complete))
    }

    fn choose(&mut self, logits: &mut [f32], scratch: &mut Vec<f32>) -> Result<TokenOut, String> {
        let Some(top_n) = self.top_logprobs else {
            let token = self.pick(logits)?;
            return Ok(TokenOut { token, logprob: None, top: Vec::new() });
        };
        scratch.clear();
        scratch.extend_from_slice(logits);
        let token = self.pick(scratch)?;
        let (logprob, top) = opengrid_sampler::logprobs(logits, token, top_n);
        Ok(TokenOut { token, logprob: Some(logprob), top })
    }

    fn pick(&mut self, logits: &mut [f32]) -> Result<Token, String> {
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits).map_err(|error| error.to_string())?;
        }
        let token = self.sampler.pick(logits, self.step);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token).map_err(|error| error.to_string())?;
        }
        Ok(token)
    }

    /// Takes a token into the answer; the finish when that completes what the grammar asks for.
    fn advance(&mut self, token: Token) -> Option<Finish> {
        self.sampler.accept(token);
        self.step += 1;
        let complete = self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete());
        let stop = self.stop_tokens.first().filter(|_| complete)?;
        Some(Finish::Stop(*stop))
    }
}

/// Draws as its answer would, from another model's logits.
pub struct Drawer {
    sampler: Sampler,
    step: u32,
    stop_tokens: Vec<Token>,
}

impl Drawer {
    /// The next token; `None` where the answer would end. `logits` are overwritten.
    pub fn draw(&mut self, logits: &mut [f32]) -> Option<Token> {
        let token = self.sampler.pick(logits, self.step);
        if self.stop_tokens.contains(&token) {
            return None;
        }
        self.sampler.accept(token);
        self.step += 1;
        Some(token)
    }
}
