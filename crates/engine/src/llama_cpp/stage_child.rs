//! The engine child of a slice: rows (or tokens) in, rows (or drawn tokens) out, as many sessions a step as wait.

use std::{
    fs::File,
    io::{self, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    time::Instant,
};

use bytes::Bytes;
use opengrid_grammar::Constraint;
use opengrid_protocol::{
    limits::GUESSES_MAX,
    session::{Token, Usage},
};

use super::{
    Mode,
    answer::Answer,
    child::{self, Incoming, SPEEDS_EVERY, WORKSPACE_BYTES, step_limits},
    draft_model::DraftModel,
    ffi::{BatchToken, Context, ContextOptions, Model, Span, TokenTable},
    messages::{DraftState, FromEngine, Generate, JobEvent, Load, Progress, Ready, ToEngine},
    pace::Pace,
    self_test::Subject,
    speeds::Speeds,
    stage_cells::Moves,
    stage_head::{Head, Pricing},
};
use crate::{
    drafts::Source,
    gathering::Gathering,
    ipc, sandbox,
    spans::{Chunk, Fed, FeedError, Part, Spans, guesses_at_once},
    stage::{Input, Lap, Next, StageSlice},
};

/// Rows in one frame at most, in bytes: so much is sealed and sent as one piece.
const ROWS_BYTES_MAX: usize = 960 * 1024;
/// Frames are written together up to this many bytes.
const WRITE_BYTES: usize = 64 * 1024;
/// Rows of guesses under way at most, in bytes: a link that is full of them is slow for what comes in their place.
const GUESSES_BYTES_MAX: usize = 1 << 20;

/// # Errors
/// Why this slice cannot be served, for people.
pub fn prepare<'m>(
    load: &Load,
    slice: &StageSlice,
    model: &'m Model,
    draft: Option<Result<&'m Model, String>>,
    table: Option<io::Result<File>>,
    sandbox: String,
) -> Result<(Server<'m>, Ready), String> {
    let (is_first, is_last) = (slice.is_first(), slice.is_last());
    let part = Part { is_first, layers: slice.layers.count() as usize, of: slice.layer_count as usize };
    let table = match (&slice.table, table) {
        (Some(table), Some(file)) if is_first => {
            let file = file.map_err(|error| format!("{}: {error}", table.path.display()))?;
            let sizes = [table.offset, table.width, table.rows, table.row_bytes];
            Some(TokenTable::new(file, sizes, table.kind, table.scale)?)
        }
        _ if is_first => return Err("the first stage needs the model's token table".to_owned()),
        _ => None,
    };
    let width = model.embedding_width();
    if slice.table.as_ref().is_some_and(|table| table.width != u64::from(width)) {
        return Err("the token table is not this model's".to_owned());
    }
    if model.architecture_number("block_count") != Some(u64::from(slice.layers.count())) {
        return Err(format!("the file does not hold the layers {}", slice.layers));
    }
    let fit = child::fit(load, model, slice.weight_bytes)?;
    let options = ContextOptions {
        slots: fit.slots,
        context_tokens: fit.context_tokens,
        threads: load.threads,
        batch: load.batch_tokens,
        outputs: load.batch_tokens,
        flash_attention: load.mode == Mode::Fast,
        rows_out: !is_last,
        is_stage: true,
    };
    let mut probe = Probe { context: Context::new(model, options)?, width: width as usize };
    let (measured, inexact) = child::measure(load, &mut probe, usize::from(fit.slots), u32::MAX)?;
    let mut context = probe.context;
    let layout = match context.learn_layout() {
        Ok(layout) => Some(layout),
        Err(why) => {
            eprintln!("caches of sessions cannot be moved: {why}");
            None
        }
    };
    let taken_bytes = fit.kv_bytes + WORKSPACE_BYTES + if load.gpu_layers == 0 { slice.weight_bytes } else { 0 };
    let beside = draft.map(|model| DraftModel::beside(&context, load, model?, fit, taken_bytes));
    let (draft, draft_state) = match beside {
        None => (None, None),
        Some(Ok((draft, state))) => (draft, Some(state)),
        // Without it the layers are as good as before.
        Some(Err(why)) => (None, Some(DraftState::LeftOut(why))),
    };
    let mut server = Server {
        spans: Spans::new(usize::from(fit.slots), fit.context_tokens as usize, part),
        pace: Pace::new(if load.gpu_layers > 0 { 1 } else { context.levels() }),
        moves: Moves::new(layout, usize::from(fit.slots)),
        context,
        draft,
        next_slot: 0,
        table,
        is_last,
        width: width as usize,
        batch_max: load.batch_tokens as usize,
        prefill_max: load.prefill_chunk.unwrap_or(load.batch_tokens).clamp(1, load.batch_tokens) as usize,
        context_tokens: fit.context_tokens as usize,
        speeds: measured.speeds(),
        speeds_told: Instant::now(),
        gathering: Gathering::default(),
        waiting: (0..fit.slots).map(|_| Vec::new()).collect(),
        heads: (0..fit.slots).map(|_| None).collect(),
        events: Vec::new(),
        rows: Vec::new(),
        scratch: Vec::new(),
    };
    if load.gpu_layers == 0 {
        // The known rows have been through all buffers: what they hold of the cache is given back.
        server.context.release_cache();
    }
    let ready = Ready {
        measured,
        inexact,
        slots: fit.slots,
        context_tokens: fit.context_tokens,
        vocabulary_size: model.vocabulary_size(),
        embedding_width: None,
        row_width: width,
        weight_bytes: slice.weight_bytes,
        kv_bytes: fit.kv_bytes,
        cells: server.moves.layout.clone(),
        draft: draft_state,
        sandbox,
    };
    Ok((server, ready))
}

/// The stage under test: each token of the known sequence stands for a row.
struct Probe<'m> {
    context: Context<'m>,
    width: usize,
}

impl Subject for Probe<'_> {
    fn cut(&mut self, slot: usize, keep: usize) {
        self.context.truncate(slot, keep);
    }

    fn compute(&mut self, batch: &[BatchToken]) -> Result<(), String> {
        let mut spans: Vec<Span> = Vec::new();
        for entry in batch {
            match spans.last_mut() {
                Some(span) if span.slot == entry.slot => {
                    span.rows += 1;
                    span.outputs += usize::from(entry.output);
                }
                _ => spans.push(Span {
                    slot: entry.slot,
                    from: entry.position,
                    rows: 1,
                    outputs: usize::from(entry.output),
                }),
            }
        }
        let rows: Vec<f32> = batch.iter().flat_map(|entry| known_row(entry.token, self.width)).collect();
        self.context.decode_rows(&spans, &rows)
    }

    fn output(&mut self, index: usize) -> Option<&[f32]> {
        if self.context.rows_out().is_empty() {
            return self.context.logits(index).map(|logits| &*logits);
        }
        self.context.rows_out().chunks_exact(self.width).nth(index)
    }
}

/// Numbers in -1..1, the same on every machine.
fn known_row(token: Token, width: usize) -> impl Iterator<Item = f32> {
    let mut hash = blake3::Hasher::new().update(&token.to_le_bytes()).finalize_xof();
    (0..width).map(move |_| {
        let mut bytes = [0; 2];
        hash.fill(&mut bytes);
        f32::from(i16::from_le_bytes(bytes)) / 32_768.0
    })
}

/// What waits to be computed, of one slot: tokens of the first stage are rows already.
type Waiting = Vec<f32>;

pub struct Server<'m> {
    pub(super) spans: Spans,
    gathering: Gathering,
    pub(super) context: Context<'m>,
    pub(super) moves: Moves,
    draft: Option<DraftModel<'m>>,
    /// Whose draft is worked on next in spare time.
    next_slot: usize,
    pace: Pace,
    table: Option<TokenTable>,
    is_last: bool,
    width: usize,
    batch_max: usize,
    prefill_max: usize,
    pub(super) context_tokens: usize,
    speeds: Speeds,
    speeds_told: Instant,
    /// By slot.
    waiting: Vec<Waiting>,
    heads: Vec<Option<Head>>,
    events: Vec<JobEvent>,
    rows: Vec<f32>,
    scratch: Vec<f32>,
}

impl Server<'_> {
    /// # Errors
    /// When the parent's stream is broken or llama.cpp fails during a step.
    pub fn serve(mut self, inbox: &Receiver<Incoming>, output: &mut File) -> io::Result<()> {
        loop {
            if self.spans.idle() && self.moves.idle() && !self.draft_ahead().map_err(io::Error::other)? {
                let Ok(message) = inbox.recv() else { return Ok(()) };
                self.handle(message, output)?;
            }
            loop {
                match inbox.try_recv() {
                    Ok(message) => self.handle(message, output)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            if self.spans.idle() {
                self.gathering.rest();
            } else if self.moves.idle() && self.spans.gathering() && self.gather(inbox, output)? {
                self.write_events(output)?;
                continue;
            }
            self.step().map_err(io::Error::other)?;
            self.export_next().map_err(io::Error::other)?;
            let pieces = self.moves.pieces().into_iter();
            self.events.extend(pieces.map(|(id, progress)| JobEvent { id, progress }));
            self.write_events(output)?;
            self.tell_speeds(output)?;
        }
    }

    /// One frame for each event, since a frame is bounded; one write for many of them.
    fn write_events(&mut self, output: &mut File) -> io::Result<()> {
        let mut frames = Vec::new();
        for event in self.events.drain(..) {
            frames.extend_from_slice(&ipc::frame(&FromEngine::Events(vec![event])));
            if frames.len() >= WRITE_BYTES {
                output.write_all(&frames)?;
                frames.clear();
            }
        }
        output.write_all(&frames)
    }

    /// Waits for one of the sessions that are due. False where that takes too long: the step goes without them.
    fn gather(&mut self, inbox: &Receiver<Incoming>, output: &mut File) -> io::Result<bool> {
        let patience = self.gathering.patience(Instant::now(), self.spans.gathers_all());
        match inbox.recv_timeout(patience) {
            Ok(message) => self.handle(message, output).map(|()| true),
            Err(RecvTimeoutError::Timeout) => {
                self.spans.stop_gathering();
                Ok(false)
            }
            // The loop sees it.
            Err(RecvTimeoutError::Disconnected) => Ok(true),
        }
    }

    fn tell_speeds(&mut self, output: &mut File) -> io::Result<()> {
        if self.speeds_told.elapsed() < SPEEDS_EVERY {
            return Ok(());
        }
        self.speeds_told = Instant::now();
        ipc::write(output, &FromEngine::Speeds(self.speeds))
    }

    pub(super) fn emit(&mut self, id: u64, progress: Progress) {
        self.events.push(JobEvent { id, progress });
    }

    fn handle(&mut self, incoming: Incoming, output: &mut File) -> io::Result<()> {
        match incoming {
            Incoming::Generate(generate, constraint) if self.is_last => match constraint {
                Ok(constraint) => self.open_head(*generate, constraint),
                Err(why) => self.emit(generate.id, Progress::Invalid(why)),
            },
            Incoming::Other(ToEngine::Open { id }) if !self.is_last => self.open(id),
            Incoming::Other(ToEngine::Feed { id, lap, from, input }) => self.feed(id, lap, from as usize, input)?,
            Incoming::Other(ToEngine::Gather { id, gathers }) => self.spans.gather(id, gathers),
            Incoming::Other(ToEngine::Export { id, until, tag }) => self.moves.ask(id, until as usize, tag),
            Incoming::Other(ToEngine::Import { id, cells, last }) => self.import(id, &cells, last),
            Incoming::Other(ToEngine::Cancel { id }) => self.close(id),
            Incoming::Other(ToEngine::Ping { nonce }) => return ipc::write(output, &FromEngine::Pong { nonce }),
            Incoming::Other(ToEngine::ProbeSandbox) => {
                return ipc::write(output, &FromEngine::SandboxProbe(sandbox::probe()));
            }
            _ => return Err(io::Error::other("a message out of turn")),
        }
        Ok(())
    }

    fn open(&mut self, id: u64) {
        match self.spans.open(id) {
            Some(slot) => {
                self.context.truncate(slot, 0);
                self.waiting[slot].clear();
            }
            None => self.emit(id, Progress::Invalid("no place is free".to_owned())),
        }
    }

    fn open_head(&mut self, generate: Generate, constraint: Option<Box<Constraint>>) {
        match Answer::new(&generate, constraint, self.context_tokens) {
            Err(finish) => self.emit(generate.id, Progress::Finished(finish, Usage::default())),
            Ok((answer, tokens_max)) => {
                self.open(generate.id);
                if let Some(slot) = self.spans.slot(generate.id) {
                    if let Some(draft) = &mut self.draft {
                        draft.forget(slot);
                    }
                    let text = generate.tokens;
                    let usage = Usage { prefilled_tokens: text.len() as u32, ..Usage::default() };
                    self.heads[slot] = Some(Head {
                        answer,
                        known: text.len(),
                        text,
                        lap: 0,
                        opened: Instant::now(),
                        drafting: None,
                        tokens_max,
                        usage,
                    });
                }
            }
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(slot) = self.spans.close(id) {
            self.moves.forget(id, slot);
            self.waiting[slot].clear();
            self.heads[slot] = None;
        }
    }

    fn feed(&mut self, id: u64, lap: Lap, from: usize, input: Input) -> io::Result<()> {
        let mut rows = Vec::new();
        match (input, &mut self.table) {
            (Input::Tokens(tokens), Some(table)) => table.look_up(&tokens, &mut rows)?,
            (Input::Rows(bytes), None) => {
                rows.extend(bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)));
            }
            _ => return Err(io::Error::other("input of the wrong kind")),
        }
        let count = rows.len() / self.width;
        match self.spans.feed(id, lap, from, count) {
            Ok(fed) => {
                self.moves.goes_without(fed.slot);
                self.cut(fed).map_err(io::Error::other)?;
                self.waiting[fed.slot].extend(rows);
            }
            // A session that was closed a moment ago; guesses behind one that missed a moment ago.
            Err(FeedError::NoSession | FeedError::Old) => {}
            Err(error) => {
                self.close(id);
                self.emit(id, Progress::Invalid(error.to_string()));
            }
        }
        Ok(())
    }

    fn cut(&mut self, fed: Fed) -> Result<(), String> {
        if let Some(keep) = fed.cut_to
            && !self.context.truncate(fed.slot, keep)
        {
            return Err("the cache cannot be cut back".to_owned());
        }
        self.waiting[fed.slot].truncate(fed.waiting_kept * self.width);
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let limits = step_limits(self.speeds, self.batch_max, self.prefill_max);
        let chunks = self.spans.plan(limits, guesses_at_once(self.speeds.decode));
        if chunks.is_empty() {
            return Ok(());
        }
        self.gathering.stepped(started);
        self.rows.clear();
        let mut spans = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            self.rows.extend(self.waiting[chunk.slot].drain(..chunk.rows * self.width));
            let outputs = self.heads[chunk.slot].as_ref().map_or(chunk.rows, |head| head.outputs(chunk));
            spans.push(Span { slot: chunk.slot, from: chunk.from, rows: chunk.rows, outputs });
        }
        let count = self.rows.len() / self.width;
        self.context.use_threads(self.pace.level(count));
        self.context.decode_rows(&spans, &self.rows)?;
        self.pace.record(count, started.elapsed());
        if let [_] = chunks[..] {
            self.speeds.record(count, started.elapsed());
        }
        self.spans.computed(&chunks);
        if self.is_last { self.draw(&spans) } else { self.pass_on(&chunks) }
    }

    /// A piece of the draft model's work, in spare time: catches up with texts that it is to guess from, and guesses behind
    /// the guesses under way. False when there is none.
    fn draft_ahead(&mut self) -> Result<bool, String> {
        let Some(draft) = &mut self.draft else { return Ok(false) };
        let slots = self.heads.len();
        for slot in (self.next_slot..self.next_slot + slots).map(|slot| slot % slots) {
            let Some(head) = &self.heads[slot] else { continue };
            let Some(drafting) = head.drafting.as_ref().filter(|drafting| drafting.wants_model()) else { continue };
            if self.spans.is_crowded(head.answer.id) {
                continue;
            }
            let mut text = head.text();
            if drafting.last_source() == Source::Text {
                text.in_flight = &[];
            }
            // The token that is drawn behind guesses that all come true, and as many guesses again.
            if draft.advance(slot, text, text.in_flight.len() + 1)? {
                self.next_slot = slot + 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn pass_on(&mut self, chunks: &[Chunk]) -> Result<(), String> {
        let rows_max = rows_max(self.width);
        let mut out = self.context.rows_out();
        for chunk in chunks {
            let Some(id) = self.spans.id(chunk.slot) else { continue };
            let (mine, others) = out.split_at_checked(chunk.rows * self.width).ok_or("rows are missing")?;
            out = others;
            for (part, rows) in mine.chunks(rows_max * self.width).enumerate() {
                let bytes: Vec<u8> = rows.iter().flat_map(|number| number.to_le_bytes()).collect();
                let from = (chunk.from + part * rows_max) as u32;
                let lap = self.spans.lap(chunk.slot);
                self.events.push(JobEvent { id, progress: Progress::Rows { lap, from, rows: Bytes::from(bytes) } });
            }
        }
        Ok(())
    }

    /// Draws what can be drawn of every session whose last tokens came.
    fn draw(&mut self, spans: &[Span]) -> Result<(), String> {
        let mut end = 0;
        for span in spans {
            end += span.rows;
            if span.outputs == 0 {
                continue;
            }
            let Some(mut head) = self.heads[span.slot].take() else { continue };
            let id = head.answer.id;
            let first_output = end - span.outputs;
            let drawn = head.draw(&mut self.context, first_output, span.outputs, &mut self.scratch)?;
            if !drawn.tokens.is_empty() {
                let pricing = self.pricing(id);
                let feed = match drawn.end {
                    Some(_) => Next { lap: head.lap, from: head.known as u32 - 1, ..Next::default() },
                    None => head.next(&drawn, &pricing, span.slot, self.draft.as_mut())?,
                };
                self.emit(id, Progress::Drawn { tokens: drawn.tokens, feed });
            }
            if drawn.begins
                && let Some(fed) = self.spans.begin_lap(span.slot, head.lap, head.known - 1)
            {
                self.cut(fed)?;
            }
            match drawn.end {
                Some(Ok(finish)) => {
                    self.emit(id, Progress::Finished(finish, head.usage));
                    self.close(id);
                }
                Some(Err(why)) => {
                    self.emit(id, Progress::Invalid(why));
                    self.close(id);
                }
                None => self.heads[span.slot] = Some(head),
            }
        }
        Ok(())
    }
}

/// Rows of one frame.
fn rows_max(width: usize) -> usize {
    (ROWS_BYTES_MAX / (width * size_of::<f32>())).max(1)
}

impl Server<'_> {
    fn pricing(&self, id: u64) -> Pricing {
        let fit = (GUESSES_BYTES_MAX / (self.width * size_of::<f32>())).clamp(1, GUESSES_MAX);
        Pricing {
            guesses_max: if self.spans.is_crowded(id) { 0 } else { fit },
            sessions: self.spans.open_count(),
            row_s: 1.0 / f64::from(self.speeds.decode),
            prefill_row_s: 1.0 / f64::from(self.speeds.prefill),
            stages: self.spans.stages(),
        }
    }
}
