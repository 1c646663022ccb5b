//! The engine child: loads the model, then steps. One thread computes, one reads frames; nothing else runs but ggml's
//! pool.

use std::{
    fs::File,
    io::{self, Stdin},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    time::{Duration, Instant},
};

use opengrid_grammar::Constraint;
use opengrid_protocol::{
    beacon::Class,
    session::{Finish, Usage},
};

use super::{
    Mode,
    answer::{Answer, Draw},
    budget, draft_model, encoder,
    ffi::{BatchToken, Context, ContextOptions, Model, ModelOptions},
    grammars::{self, Compiler, SharedWords},
    messages::{FromEngine, Generate, JobEvent, Load, Measured, Progress, Ready, ToEngine},
    pace::Pace,
    self_test,
    speeds::Speeds,
    stage_child,
};
use crate::{
    batching::{Batcher, Chunk, Job, StepLimits},
    child::end_at_once,
    ipc, sandbox,
};

/// Prefill beside decoding streams may hold them up for so long, in seconds.
const STALL_S: f32 = 0.2;
const PREFILL_AMID_DECODING_MIN: usize = 16;
const INBOX: usize = 256;
/// How often speeds are told amid work; they are told at its end, too.
pub(super) const SPEEDS_EVERY: Duration = Duration::from_secs(1);
/// Room for graphs, threads and the allocator beside weights and cache, in bytes.
pub(super) const WORKSPACE_BYTES: u64 = 128 * 1024 * 1024;

/// # Errors
/// When the parent's stream is broken or llama.cpp fails during a step: the parent restarts the child.
pub fn run(mut input: Stdin, mut output: File) -> io::Result<()> {
    let ToEngine::Load(load) = ipc::read(&mut input, ipc::TO_CHILD_BYTES_MAX)? else {
        return Err(io::Error::other("the first message is not Load"));
    };
    // Opened before the sandbox closes: a stage loads its slice and a draft model afterwards, and needs no other path.
    let table = load.stage.as_ref().and_then(|stage| stage.table.as_ref()).map(|table| File::open(&table.path));
    let files: Vec<&Path> = [&load.model_path]
        .into_iter()
        .chain(load.draft.iter().map(|draft| &draft.path))
        .map(PathBuf::as_path)
        .collect();
    let sandbox = sandbox::enter(&files, load.devices);
    let (sender, inbox) = sync_channel(INBOX);
    let words = SharedWords::default();
    let compiler = Compiler::new(words.clone());
    std::thread::Builder::new()
        .name("ipc".to_owned())
        .stack_size(opengrid_grammar::STACK_BYTES)
        .spawn(move || read_frames(input, &sender, compiler))?;
    let refuse = |output: &mut File, why: String| {
        let _ = ipc::write(output, &FromEngine::LoadFailed(why.clone()));
        io::Error::other(why)
    };
    let model = load_model(&load).map_err(|why| refuse(&mut output, why))?;
    if model.is_encoder() {
        let (encoder, ready) = encoder::prepare(&load, &model, sandbox).map_err(|why| refuse(&mut output, why))?;
        ipc::write(&mut output, &FromEngine::Ready(Box::new(ready.clone())))?;
        return encoder::Server::new(encoder, &load, &ready).serve(&inbox, &mut output);
    }
    if let Some(slice) = &load.stage {
        let draft = load.draft.as_ref().filter(|_| slice.is_last());
        let draft = draft.map(|draft| draft_model::load(&load, draft, &model)).transpose();
        let draft = draft.map_err(|why| refuse(&mut output, why))?;
        let draft = draft.as_ref().map(|draft| draft.as_ref().map_err(Clone::clone));
        let prepared = stage_child::prepare(&load, slice, &model, draft, table, sandbox);
        let (stage, ready) = prepared.map_err(|why| refuse(&mut output, why))?;
        // The others have no vocabulary, and llama.cpp aborts when it is asked for one.
        if slice.is_last() {
            let _ = words.set(grammars::words(&model));
        }
        ipc::write(&mut output, &FromEngine::Ready(Box::new(ready)))?;
        return stage.serve(&inbox, &mut output);
    }
    let (context, ready) = prepare(&load, &model, sandbox).map_err(|why| refuse(&mut output, why))?;
    let _ = words.set(grammars::words(&model));
    ipc::write(&mut output, &FromEngine::Ready(Box::new(ready.clone())))?;
    let mut engine = Stepper {
        batcher: Batcher::new(usize::from(ready.slots)),
        pace: Pace::new(if load.gpu_layers > 0 { 1 } else { context.levels() }),
        context,
        batch_max: load.batch_tokens as usize,
        prefill_max: load.prefill_chunk.unwrap_or(load.batch_tokens).clamp(1, load.batch_tokens) as usize,
        speeds: ready.measured.speeds(),
        speeds_told: Instant::now(),
        context_tokens: ready.context_tokens as usize,
        waiting: Vec::new(),
        queue_told: Vec::new(),
        running: (0..ready.slots).map(|_| None).collect(),
        events: Vec::new(),
        batch: Vec::new(),
        scratch: Vec::new(),
    };
    engine.serve(&inbox, &mut output)
}

/// A frame, and a request's grammar ready for use.
pub(super) enum Incoming {
    Generate(Box<Generate>, Result<Option<Box<Constraint>>, String>),
    Other(ToEngine),
}

/// The parent's end is this process's end, even in the middle of a step.
fn read_frames(mut input: Stdin, sender: &SyncSender<Incoming>, mut compiler: Compiler) {
    while let Ok(message) = ipc::read(&mut input, ipc::TO_CHILD_BYTES_MAX) {
        let incoming = match message {
            ToEngine::Generate(generate) => {
                let constraint = compiler.constraint(&generate);
                Incoming::Generate(generate, constraint.map(|constraint| constraint.map(Box::new)))
            }
            other => Incoming::Other(other),
        };
        if sender.send(incoming).is_err() {
            break;
        }
    }
    end_at_once();
}

fn load_model(load: &Load) -> Result<Model, String> {
    let options = ModelOptions { vocabulary_only: false, repack: load.mode == Mode::Fast, gpu_layers: load.gpu_layers };
    let model = Model::load(&load.model_path, options)?;
    match model.unsupported() {
        Some(why) => Err(why.to_owned()),
        None => Ok(model),
    }
}

/// What memory there is for.
pub(super) fn fit(load: &Load, model: &Model, weight_bytes: u64) -> Result<budget::Fit, String> {
    let host_weights = if load.gpu_layers == 0 { weight_bytes } else { 0 };
    let left = load.memory_available_bytes.checked_sub(host_weights.saturating_add(WORKSPACE_BYTES));
    let fit = budget::fit(budget::Wish {
        slots: load.slots,
        context_tokens: load.context_tokens,
        trained_context: model.trained_context(),
        kv_bytes_per_token: model.kv_bytes_per_token(),
        kv_budget_bytes: load.kv_budget_bytes.min(left.unwrap_or(0)),
    });
    fit.map_err(|missing| {
        let over = (host_weights + WORKSPACE_BYTES).saturating_sub(load.memory_available_bytes);
        format!("{} bytes of memory are missing for the weights and the smallest KV cache", missing + over)
    })
}

fn prepare<'m>(load: &Load, model: &'m Model, sandbox: String) -> Result<(Context<'m>, Ready), String> {
    let weight_bytes = model.weight_bytes();
    let vocabulary_size = model.vocabulary_size();
    if vocabulary_size == 0 {
        return Err("the vocabulary is empty".to_owned());
    }
    let fit = fit(load, model, weight_bytes)?;
    let options = ContextOptions {
        slots: fit.slots,
        context_tokens: fit.context_tokens,
        threads: load.threads,
        batch: load.batch_tokens,
        outputs: (self_test::COMPARED as u32 * 2).max(u32::from(fit.slots)),
        flash_attention: load.mode == Mode::Fast,
        rows_out: false,
        is_stage: false,
    };
    let mut context = Context::new(model, options)?;
    let (measured, inexact) = measure(load, &mut context, usize::from(fit.slots), vocabulary_size)?;
    if load.gpu_layers == 0 {
        let warm_up = BatchToken { token: 0, position: 0, slot: 0, output: true };
        context.decode(&[warm_up])?;
        context.truncate(0, 0);
        context.release_cache();
    }
    let ready = Ready {
        measured,
        inexact,
        slots: fit.slots,
        context_tokens: fit.context_tokens,
        vocabulary_size,
        embedding_width: None,
        row_width: model.embedding_width(),
        weight_bytes,
        kv_bytes: fit.kv_bytes,
        cells: None,
        draft: None,
        sandbox,
    };
    Ok((context, ready))
}

pub(super) fn measure(
    load: &Load,
    context: &mut impl self_test::Subject,
    slots: usize,
    vocabulary: u32,
) -> Result<(Measured, Option<String>), String> {
    if let Some(known) = load.known {
        let inexact = load.mode == Mode::Exact && known.class == Class::Approximate;
        return Ok((known, inexact.then(|| "an earlier self-test failed".to_owned())));
    }
    let exact = load.mode == Mode::Exact && load.gpu_layers == 0;
    self_test::run(context, slots, vocabulary, exact.then_some(load.model_identity.as_slice()))
}

struct Stepper<'m> {
    batcher: Batcher,
    context: Context<'m>,
    pace: Pace,
    /// Tokens of a step at most, and of prefill among them.
    batch_max: usize,
    prefill_max: usize,
    speeds: Speeds,
    speeds_told: Instant,
    context_tokens: usize,
    /// Of jobs that wait for a slot.
    waiting: Vec<Answer>,
    /// Of those that wait: the place told last.
    queue_told: Vec<(u64, u32)>,
    /// By slot.
    running: Vec<Option<Answer>>,
    /// Of this step; written in one piece.
    events: Vec<JobEvent>,
    batch: Vec<BatchToken>,
    scratch: Vec<f32>,
}

/// How much may go into one step.
pub(super) fn step_limits(speeds: Speeds, batch: usize, prefill: usize) -> StepLimits {
    let tolerable = ((speeds.prefill * STALL_S) as usize).max(PREFILL_AMID_DECODING_MIN);
    StepLimits { batch, prefill, prefill_amid_decoding: tolerable.min(prefill) }
}

impl Stepper<'_> {
    fn serve(&mut self, inbox: &Receiver<Incoming>, output: &mut File) -> io::Result<()> {
        loop {
            if self.batcher.idle() {
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
            self.admit();
            self.step().map_err(io::Error::other)?;
            if !self.events.is_empty() {
                ipc::write(output, &FromEngine::Events(std::mem::take(&mut self.events)))?;
            }
            self.tell_speeds(output)?;
        }
    }

    fn handle(&mut self, incoming: Incoming, output: &mut File) -> io::Result<()> {
        let message = match incoming {
            Incoming::Generate(generate, constraint) => {
                match constraint {
                    Ok(constraint) => self.enqueue(*generate, constraint),
                    Err(why) => self.emit(generate.id, Progress::Invalid(why)),
                }
                return Ok(());
            }
            Incoming::Other(message) => message,
        };
        match message {
            ToEngine::Load(_)
            | ToEngine::Generate(_)
            | ToEngine::Embed(_)
            | ToEngine::Open { .. }
            | ToEngine::Gather { .. }
            | ToEngine::Feed { .. }
            | ToEngine::Export { .. }
            | ToEngine::Import { .. } => Err(io::Error::other("a message out of turn")),
            ToEngine::Ping { nonce } => ipc::write(output, &FromEngine::Pong { nonce }),
            ToEngine::ProbeSandbox => ipc::write(output, &FromEngine::SandboxProbe(sandbox::probe())),
            ToEngine::Cancel { id } => {
                self.cancel(id);
                Ok(())
            }
        }
    }

    fn cancel(&mut self, id: u64) {
        self.waiting.retain(|answer| answer.id != id);
        if let Some(slot) = self.batcher.cancel(id) {
            self.running[slot] = None;
        }
    }

    fn enqueue(&mut self, generate: Generate, constraint: Option<Box<Constraint>>) {
        match Answer::new(&generate, constraint, self.context_tokens) {
            Err(finish) => self.emit(generate.id, Progress::Finished(finish, Usage::default())),
            Ok((answer, tokens_max)) => {
                self.waiting.push(answer);
                let Generate { id, client, tokens, tier, .. } = generate;
                self.batcher.enqueue(Job { id, client, tokens, tokens_max, tier });
            }
        }
    }

    fn emit(&mut self, id: u64, progress: Progress) {
        self.events.push(JobEvent { id, progress });
    }

    fn admit(&mut self) {
        for admission in self.batcher.admit() {
            if self.queue_told.iter().any(|(id, _)| *id == admission.id) {
                self.emit(admission.id, Progress::Queued(0));
            }
            let at = self.waiting.iter().position(|answer| answer.id == admission.id);
            self.running[admission.slot] = at.map(|at| self.waiting.swap_remove(at));
            if !self.context.truncate(admission.slot, admission.keep) {
                self.batcher.cleared(admission.slot);
            }
        }
        self.tell_queue();
    }

    /// Tells each waiting job its place when that is nearer than the one told before.
    fn tell_queue(&mut self) {
        let queue: Vec<u64> = self.batcher.waiting().collect();
        let mut told = Vec::with_capacity(queue.len());
        for (place, id) in (1..).zip(queue) {
            let before = self.queue_told.iter().find(|(other, _)| *other == id).map(|(_, place)| *place);
            if before.is_none_or(|before| place < before) {
                self.emit(id, Progress::Queued(place));
            }
            told.push((id, before.map_or(place, |before| before.min(place))));
        }
        self.queue_told = told;
    }

    fn tell_speeds(&mut self, output: &mut File) -> io::Result<()> {
        if self.speeds_told.elapsed() < SPEEDS_EVERY && !self.batcher.idle() {
            return Ok(());
        }
        self.speeds_told = Instant::now();
        ipc::write(output, &FromEngine::Speeds(self.speeds))
    }

    fn step(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let chunks = self.batcher.plan(step_limits(self.speeds, self.batch_max, self.prefill_max));
        if chunks.is_empty() {
            return Ok(());
        }
        self.batch.clear();
        for chunk in &chunks {
            let tokens = self.batcher.tokens(chunk.slot);
            self.batch.extend((chunk.from..chunk.to).map(|position| BatchToken {
                token: tokens[position],
                position,
                slot: chunk.slot,
                output: chunk.output && position + 1 == chunk.to,
            }));
        }
        self.decode()?;
        self.batcher.computed(&chunks);
        self.draw(&chunks)?;
        // Steps that mix streams or prefill and decoding measure neither.
        if let [_] = chunks[..] {
            self.speeds.record(self.batch.len(), started.elapsed());
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<(), String> {
        let tokens = self.batch.len();
        self.context.use_threads(self.pace.level(tokens));
        let started = Instant::now();
        self.context.decode(&self.batch)?;
        self.pace.record(tokens, started.elapsed());
        Ok(())
    }

    /// Draws the next token of every slot whose logits are there.
    fn draw(&mut self, chunks: &[Chunk]) -> Result<(), String> {
        let mut end = 0;
        for chunk in chunks {
            end += chunk.to - chunk.from;
            if !chunk.output {
                continue;
            }
            let logits = self.context.logits(end - 1).ok_or("llama.cpp gave no logits")?;
            let Some(answer) = self.running[chunk.slot].as_mut() else { continue };
            let id = answer.id;
            let end = match answer.draw(logits, &mut self.scratch) {
                Err(why) => Some(Err(why)),
                Ok(Draw::End(finish)) => Some(Ok(finish)),
                Ok(Draw::Token(token, complete)) => {
                    let full = self.batcher.push(chunk.slot, token.token);
                    self.emit(id, Progress::Token(token));
                    complete.map(Ok).or(full.then_some(Ok(Finish::Length)))
                }
            };
            if let Some(end) = end {
                self.running[chunk.slot] = None;
                let usage = self.batcher.finish(chunk.slot);
                self.emit(id, end.map_or_else(Progress::Invalid, |finish| Progress::Finished(finish, usage)));
            }
        }
        Ok(())
    }
}
