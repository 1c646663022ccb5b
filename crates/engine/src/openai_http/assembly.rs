//! From an engine's chunks to an answer that breaks no rule of ours. Pure.

use opengrid_protocol::session::{Finish, Token, TokenOut};

use super::{
    Reference,
    gaps::Gaps,
    profile::{Chunk, End},
};
use crate::GenerateRequest;

/// An engine that makes so many segments of one token each is broken; end tokens in a row are what honest ones do.
const BARREN_MAX: u32 = 256;

/// An answer as it grows, over one or more segments.
pub struct Assembly<'a> {
    reference: &'a Reference,
    gaps: &'a Gaps,
    stop_tokens: &'a [Token],
    top_max: Option<usize>,
    /// Prompt and answer.
    pub tokens: Vec<Token>,
    prompt_tokens: usize,
    answer_max: usize,
    /// Tokens of this segment that came, and that were asked for.
    segment: u32,
    segment_max: u32,
    barren: u32,
    /// The next segment is asked for at once, because the stream lacked tokens.
    next_whole: Option<u32>,
}

/// What comes of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub tokens: Vec<TokenOut>,
    pub then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Read the next chunk.
    More,
    /// The answer goes on in a new segment.
    Again,
    Finished(Finish),
}

impl<'a> Assembly<'a> {
    pub fn new(reference: &'a Reference, gaps: &'a Gaps, request: &'a GenerateRequest) -> Self {
        Self {
            reference,
            gaps,
            stop_tokens: &request.stop_tokens,
            top_max: request.top_logprobs.map(usize::from),
            tokens: request.tokens.clone(),
            prompt_tokens: request.prompt_tokens as usize,
            answer_max: request.completion_tokens_max as usize,
            segment: 0,
            segment_max: 0,
            barren: 0,
            next_whole: None,
        }
    }

    /// Tokens that may still come.
    pub fn left(&self) -> u32 {
        self.answer_max.saturating_sub(self.tokens.len() - self.prompt_tokens) as u32
    }

    /// The tokens to ask for next, and whether as a stream.
    pub fn begin_segment(&mut self) -> (u32, bool) {
        self.segment = 0;
        let whole = self.next_whole.take();
        self.segment_max = whole.unwrap_or(self.left());
        (self.segment_max, whole.is_none())
    }

    /// # Errors
    /// What the engine did wrong.
    pub fn take(&mut self, chunk: Chunk) -> Result<Step, &'static str> {
        let mut out = Vec::new();
        let lacking = chunk.generated.map(|generated| generated.checked_sub(self.segment + chunk.tokens.len() as u32));
        match lacking {
            None | Some(Some(0)) => {}
            Some(None) => return Err("it counts fewer tokens than it sent"),
            Some(Some(missing)) => match self.missing(&chunk, missing) {
                Some(tokens) => {
                    for token in tokens {
                        if let Some(finish) = self.push(TokenOut { token, logprob: None, top: Vec::new() }, &mut out)? {
                            return Ok(Step { tokens: out, then: Then::Finished(finish) });
                        }
                    }
                }
                None => {
                    // Nothing of this chunk is taken: it comes again, with what is missing.
                    self.next_whole = Some(missing.saturating_add(1).min(self.left()));
                    return self.again(out);
                }
            },
        }
        for token in chunk.tokens {
            if let Some(finish) = self.push(token, &mut out)? {
                return Ok(Step { tokens: out, then: Then::Finished(finish) });
            }
        }
        self.end(chunk.end, out)
    }

    fn missing(&self, chunk: &Chunk, missing: u32) -> Option<Vec<Token>> {
        let last = chunk.tokens.first().filter(|_| chunk.tokens.len() == 1)?;
        self.gaps.fill(&chunk.text, missing, self.reference.pieces.get(last.token))
    }

    fn push(&mut self, mut token: TokenOut, out: &mut Vec<TokenOut>) -> Result<Option<Finish>, &'static str> {
        self.segment += 1;
        if self.stop_tokens.contains(&token.token) {
            return Ok(Some(Finish::Stop(token.token)));
        }
        if token.token >= self.reference.size {
            return Err("a token lies outside the vocabulary");
        }
        if self.left() == 0 {
            return Err("it sends more tokens than were asked for");
        }
        token.logprob = token.logprob.filter(|logprob| self.top_max.is_some() && logprob.is_finite());
        token.top.retain(|(id, logprob)| *id < self.reference.size && logprob.is_finite());
        token.top.truncate(self.top_max.unwrap_or(0));
        self.tokens.push(token.token);
        out.push(token);
        Ok(None)
    }

    fn end(&mut self, end: Option<End>, out: Vec<TokenOut>) -> Result<Step, &'static str> {
        let then = match end {
            None => Then::More,
            Some(End::Stop(Some(token))) if self.stop_tokens.contains(&token) => Then::Finished(Finish::Stop(token)),
            Some(_) if self.left() == 0 => Then::Finished(Finish::Length),
            Some(_) if self.segment == 0 => return Err("it ended without a token"),
            // Its end token is not one of ours: it stands in the answer, which goes on.
            Some(End::Stop(None)) => return self.again(out),
            Some(End::Stop(Some(_))) => return Err("it stopped at a token that is no stop token"),
            Some(End::Length) if self.segment >= self.segment_max => return self.again(out),
            Some(End::Length) => return Err("it stopped before the answer was as long as was asked for"),
        };
        Ok(Step { tokens: out, then })
    }

    fn again(&mut self, out: Vec<TokenOut>) -> Result<Step, &'static str> {
        self.barren = if self.segment > 1 { 0 } else { self.barren + 1 };
        if self.barren > BARREN_MAX {
            return Err("it ends answers again and again");
        }
        Ok(Step { tokens: out, then: Then::Again })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "assembly_tests.rs"]
mod tests;
