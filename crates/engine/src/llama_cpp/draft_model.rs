//! A draft model beside the last stage: a small whole model with the same tokens, which guesses the next ones.
//!
//! It draws with the sampler of the answer itself: same seed, same index, same penalties. The noise of a draw is a function
//! of seed, index and token, so both models draw under the same noise and agree far more often than two draws of their own
//! would; see ADR 0020. Whether a guess comes true is decided by what the stage draws, whatever is done here.
//!
//! What the model computes stays within bounds of time: prompts in small pieces while the stage has nothing to do, and
//! guesses ahead of the lap that is under way.

use std::time::{Duration, Instant};

use opengrid_protocol::session::Token;

use super::{
    Mode,
    answer::{Answer, Drawer},
    budget,
    ffi::{BatchToken, Context, ContextOptions, Model, ModelOptions},
    messages::{DraftFile, DraftState, Load},
    pace::Pace,
};
use crate::spans::DECODE_ROWS_MAX;

/// Tokens of a step at most.
const BATCH: usize = 64;
/// How long a piece of a text may take while the stage has nothing to do, in seconds, and the smallest piece.
const PIECE_S: f32 = 0.01;
const PIECE_MIN: usize = 4;
/// What a step can add to a text is computed at once before it is guessed from; a text that lacks more is caught up first.
const NEAR: usize = DECODE_ROWS_MAX + 1;
/// Room for graphs beside weights and cache, in bytes.
const WORKSPACE_BYTES: u64 = 64 * 1024 * 1024;
/// Weight of the newest step in the mean.
const NEWEST: f32 = 0.2;

/// The draft model, or why it is left out.
///
/// # Errors
/// Why this model can never guess for the served one, for people.
pub fn load(load: &Load, draft: &DraftFile, served: &Model) -> Result<Result<Model, String>, String> {
    let refuse = |why: &str| format!("the draft model {}: {why}", draft.name);
    let options = ModelOptions { vocabulary_only: false, repack: load.mode == Mode::Fast, gpu_layers: load.gpu_layers };
    let model = match Model::load(&draft.path, options) {
        Ok(model) => model,
        // Its file may be gone since the last start: the layers are served all the same.
        Err(why) => return Ok(Err(why)),
    };
    if let Some(why) = model.unsupported() {
        return Err(refuse(why));
    }
    let (mine, its) = (model.vocabulary_size(), served.vocabulary_size());
    if mine == its { Ok(Ok(model)) } else { Err(refuse(&format!("it has {mine} tokens, the served model {its}"))) }
}

/// A session's text, and the answer that it draws with.
#[derive(Clone, Copy)]
pub struct Text<'t> {
    pub tokens: &'t [Token],
    /// Behind them: guesses under way, taken for true.
    pub in_flight: &'t [Token],
    pub answer: &'t Answer,
}

impl Text<'_> {
    fn length(&self) -> usize {
        self.tokens.len() + self.in_flight.len()
    }
}

pub struct DraftModel<'m> {
    context: Context<'m>,
    context_tokens: usize,
    pace: Pace,
    level: usize,
    /// Seconds a token, in pieces of several.
    token_s: Option<f32>,
    lines: Vec<Line>,
    batch: Vec<BatchToken>,
}

impl<'m> DraftModel<'m> {
    /// Beside a stage's context, where there is room for as many and as long sessions as the stage takes. `taken_bytes` is
    /// what the stage takes.
    ///
    /// # Errors
    /// llama.cpp's own words.
    pub fn beside(
        stage: &Context<'_>,
        load: &Load,
        model: &'m Model,
        fit: budget::Fit,
        taken_bytes: u64,
    ) -> Result<(Option<Self>, DraftState), String> {
        let context_tokens = fit.context_tokens.min(model.trained_context().max(1));
        let kv_bytes = budget::kv_bytes(fit.slots.into(), context_tokens.into(), model.kv_bytes_per_token());
        let weights = if load.gpu_layers == 0 { model.weight_bytes() } else { 0 };
        let needed = weights.saturating_add(kv_bytes).saturating_add(WORKSPACE_BYTES);
        let room = load.memory_available_bytes.saturating_sub(taken_bytes);
        if needed > room {
            return Ok((None, DraftState::LeftOut(format!("{} bytes of memory are missing", needed - room))));
        }
        let options = ContextOptions {
            slots: fit.slots,
            context_tokens,
            threads: load.threads,
            batch: BATCH as u32,
            outputs: u32::from(fit.slots),
            flash_attention: load.mode == Mode::Fast,
            rows_out: false,
            is_stage: false,
        };
        let mut context = stage.beside(model, options)?;
        context.decode(&[BatchToken { token: 0, position: 0, slot: 0, output: true }])?;
        context.truncate(0, 0);
        if load.gpu_layers == 0 {
            context.release_cache();
        }
        let draft = Self {
            pace: Pace::new(if load.gpu_layers > 0 { 1 } else { context.levels() }),
            level: 0,
            context,
            context_tokens: context_tokens as usize,
            token_s: None,
            lines: (0..fit.slots).map(|_| Line::default()).collect(),
            batch: Vec::new(),
        };
        Ok((Some(draft), DraftState::Beside { bytes: model.weight_bytes().saturating_add(kv_bytes) }))
    }

    /// Another session has the slot: nothing of one client's is of use to another.
    pub fn forget(&mut self, slot: usize) {
        self.context.truncate(slot, 0);
        self.lines[slot] = Line::default();
    }

    /// How many guesses can be had at once, without a text to catch up with first.
    pub fn at_hand(&mut self, slot: usize, text: Text<'_>) -> usize {
        if !self.follow(slot, text) || self.lines[slot].lacks() > NEAR {
            return 0;
        }
        self.room(text)
    }

    /// What follows the text, at most `most` tokens: fewer where the model thinks that it ends.
    ///
    /// # Errors
    /// When llama.cpp fails: the cache is in doubt then, the process must end.
    pub fn guesses(&mut self, slot: usize, text: Text<'_>, most: usize) -> Result<&[Token], String> {
        if self.follow(slot, text) {
            let end = text.length() + most.min(self.room(text));
            while self.lines[slot].wants(end) {
                self.step(slot, BATCH)?;
            }
        }
        Ok(self.lines[slot].guessed(most))
    }

    /// Does a piece of the work that `most` guesses would be; false when nothing is left of it. For when the stage has
    /// nothing else to do.
    ///
    /// # Errors
    /// As [`DraftModel::guesses`].
    pub fn advance(&mut self, slot: usize, text: Text<'_>, most: usize) -> Result<bool, String> {
        if !self.follow(slot, text) {
            return Ok(false);
        }
        let end = text.length() + most.min(self.room(text));
        let works = self.lines[slot].wants(end);
        if works {
            self.step(slot, self.piece())?;
        }
        Ok(works)
    }

    fn room(&self, text: Text<'_>) -> usize {
        self.context_tokens.saturating_sub(text.length())
    }

    fn piece(&self) -> usize {
        self.token_s.map_or(PIECE_MIN, |token_s| (PIECE_S / token_s.max(1e-6)) as usize).clamp(PIECE_MIN, BATCH)
    }

    /// Brings the slot's line in step with the text. False for answers that a grammar binds: what may follow costs as much
    /// to know as to draw, and the work of a grammar is bounded for its answer's own draws.
    fn follow(&mut self, slot: usize, text: Text<'_>) -> bool {
        let line = &mut self.lines[slot];
        let cut_to = line.follow(text.tokens, text.in_flight);
        if line.drawer.is_none() {
            line.drawer = text.answer.drawer(text.in_flight);
        }
        if let Some(keep) = cut_to
            && !self.context.truncate(slot, keep)
        {
            line.cells = 0;
        }
        line.drawer.is_some()
    }

    /// Computes what the line lacks, at most so many tokens of it; behind its end it draws the next guess.
    fn step(&mut self, slot: usize, most: usize) -> Result<(), String> {
        let line = &mut self.lines[slot];
        let rows = line.lacks().min(most);
        let (from, is_end) = (line.cells, rows == line.lacks());
        self.batch.clear();
        self.batch.extend(line.tokens[from..from + rows].iter().enumerate().map(|(at, token)| BatchToken {
            token: *token,
            position: from + at,
            slot,
            output: is_end && at + 1 == rows,
        }));
        if rows == 1 {
            self.level = self.pace.level(rows);
        }
        self.context.use_threads(self.level);
        let started = Instant::now();
        self.context.decode(&self.batch)?;
        self.took(rows, started.elapsed());
        let line = &mut self.lines[slot];
        line.cells += rows;
        if is_end {
            let logits = self.context.logits(rows - 1).ok_or("llama.cpp gave no logits")?;
            line.draw(logits);
        }
        Ok(())
    }

    fn took(&mut self, rows: usize, time: Duration) {
        if rows == 1 {
            return self.pace.record(rows, time);
        }
        let token_s = time.as_secs_f32() / rows as f32;
        self.token_s = Some(self.token_s.map_or(token_s, |mean| mean + (token_s - mean) * NEWEST));
    }
}

/// A session's text as the draft model has it: what is known, and its guesses behind that. Pure.
#[derive(Default)]
struct Line {
    tokens: Vec<Token>,
    known: usize,
    /// Of the first so many tokens the cache holds keys and values.
    cells: usize,
    /// As it stands behind the last token.
    drawer: Option<Drawer>,
    /// It guessed that nothing follows the last token.
    ended: bool,
}

impl Line {
    /// The text is this now. Guesses that it bears out stay, with what they would be followed by; else the line is cut to
    /// what both have in common, and the text put behind it. Says to how many cells the cache is to be cut.
    fn follow(&mut self, tokens: &[Token], in_flight: &[Token]) -> Option<usize> {
        let text = || tokens.iter().chain(in_flight);
        let common = text().zip(&self.tokens).take_while(|(a, b)| a == b).count();
        self.known = tokens.len() + in_flight.len();
        if common == self.known {
            return None;
        }
        self.tokens.truncate(common);
        self.tokens.extend(text().skip(common));
        self.drawer = None;
        self.ended = false;
        let cut_to = (common < self.cells).then_some(common);
        self.cells = self.cells.min(common);
        cut_to
    }

    fn lacks(&self) -> usize {
        self.tokens.len() - self.cells
    }

    /// Whether a step would bring it nearer to `end` tokens.
    fn wants(&self, end: usize) -> bool {
        self.tokens.len() < end && !self.ended && self.lacks() > 0
    }

    fn guessed(&self, most: usize) -> &[Token] {
        let guessed = &self.tokens[self.known..];
        &guessed[..guessed.len().min(most)]
    }

    fn draw(&mut self, logits: &mut [f32]) {
        match self.drawer.as_mut().and_then(|drawer| drawer.draw(logits)) {
            Some(token) => self.tokens.push(token),
            None => self.ended = true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "draft_model_tests.rs"]
mod tests;
