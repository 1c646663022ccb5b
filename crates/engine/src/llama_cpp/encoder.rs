//! The engine child of an embedding model: texts in, vectors of length 1 out, as many texts a step as fit.

use std::{
    fs::File,
    io,
    sync::mpsc::{Receiver, TryRecvError},
    time::Instant,
};

use opengrid_protocol::{beacon::Class, limits::EMBEDDING_WIDTH_MAX, session::Token};

use super::{
    Mode,
    child::{Incoming, SPEEDS_EVERY, WORKSPACE_BYTES},
    ffi::{Encoder, EncoderOptions, Model},
    messages::{Embed, FromEngine, JobEvent, Load, Measured, Progress, Ready, ToEngine},
    pace::Pace,
    speeds::Speeds,
};
use crate::{
    encoding::{Done, Encodings, Room, normalise},
    ipc, sandbox,
};

/// Texts a step at most; llama.cpp's own limit is 256 sequences.
const TEXTS_MAX: u32 = 64;
/// What the self-test encodes, in tokens: alone, and in the company of others.
const KNOWN_TOKENS: [usize; 3] = [24, 5, 40];
/// A text's vector in company may differ from the one alone by the rounding of sums, no more.
const COSINE_MIN: f32 = 0.9999;

/// # Errors
/// Why this model cannot be served, for people.
pub fn prepare<'m>(load: &Load, model: &'m Model, sandbox: String) -> Result<(Encoder<'m>, Ready), String> {
    let (vocabulary_size, width) = (model.vocabulary_size(), model.embedding_width());
    if vocabulary_size == 0 {
        return Err("the vocabulary is empty".to_owned());
    }
    if width == 0 || width > EMBEDDING_WIDTH_MAX {
        return Err(format!("its vectors have {width} numbers, at most {EMBEDDING_WIDTH_MAX} are possible"));
    }
    let weight_bytes = model.weight_bytes();
    let host_weights = if load.gpu_layers == 0 { weight_bytes } else { 0 };
    let needed = host_weights.saturating_add(WORKSPACE_BYTES);
    if needed > load.memory_available_bytes {
        return Err(format!("{} bytes of memory are missing for the weights", needed - load.memory_available_bytes));
    }
    let trained = model.trained_context();
    let context_tokens = if trained == 0 { load.context_tokens } else { trained.min(load.context_tokens) };
    let options = EncoderOptions {
        sequences: TEXTS_MAX,
        tokens: load.batch_tokens.max(context_tokens),
        threads: load.threads,
        flash_attention: load.mode == Mode::Fast,
    };
    let mut encoder = Encoder::new(model, options)?;
    let measured = match load.known {
        Some(known) => known,
        None => measure(&mut encoder, vocabulary_size, context_tokens as usize)?,
    };
    let ready = Ready {
        measured,
        inexact: None,
        slots: load.slots,
        context_tokens,
        vocabulary_size,
        embedding_width: Some(width),
        row_width: width,
        weight_bytes,
        kv_bytes: 0,
        cells: None,
        draft: None,
        sandbox,
    };
    Ok((encoder, ready))
}

/// The speed, after a proof that the model computes: each of some texts has a direction, which its company does not
/// change. Sums over a step's texts are rounded in another order, so the class is approximate.
fn measure(encoder: &mut Encoder<'_>, vocabulary: u32, context: usize) -> Result<Measured, String> {
    let text = |length: usize| -> Vec<Token> {
        (0..length.min(context)).map(|at| (at as u32).wrapping_mul(2_654_435_761) % vocabulary).collect()
    };
    let texts = KNOWN_TOKENS.map(text);
    let together: Vec<&[Token]> = texts.iter().map(Vec::as_slice).collect();
    let alone: Vec<Vec<f32>> =
        together.iter().map(|text| encode(encoder, &[text])).collect::<Result<Vec<_>, _>>()?.concat();
    let started = Instant::now();
    let in_company = encode(encoder, &together)?;
    let seconds = started.elapsed().as_secs_f32().max(1e-6);
    for (one, other) in alone.iter().zip(&in_company) {
        // 0 without a direction.
        let cosine: f32 = one.iter().zip(other).map(|(a, b)| a * b).sum();
        if cosine < COSINE_MIN {
            return Err(format!("it gives no vectors, or they depend on what is computed beside (cosine {cosine})"));
        }
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let tokens_per_s = tokens as f32 / seconds;
    Ok(Measured { class: Class::Approximate, decode_tokens_per_s: tokens_per_s, prefill_tokens_per_s: tokens_per_s })
}

/// A vector of length 1 for each text; an empty one where the model gives none that has a direction.
fn encode(encoder: &mut Encoder<'_>, texts: &[&[Token]]) -> Result<Vec<Vec<f32>>, String> {
    let mut vectors = encoder.encode(texts)?;
    for vector in &mut vectors {
        if !normalise(vector) {
            vector.clear();
        }
    }
    Ok(vectors)
}

pub struct Server<'m> {
    encoder: Encoder<'m>,
    encodings: Encodings,
    room: Room,
    context_tokens: usize,
    pace: Pace,
    speeds: Speeds,
    speeds_told: Instant,
}

impl<'m> Server<'m> {
    pub fn new(encoder: Encoder<'m>, load: &Load, ready: &Ready) -> Self {
        let context_tokens = ready.context_tokens as usize;
        Self {
            pace: Pace::new(if load.gpu_layers > 0 { 1 } else { encoder.levels() }),
            encoder,
            encodings: Encodings::default(),
            room: Room { texts: TEXTS_MAX as usize, tokens: context_tokens.max(load.batch_tokens as usize) },
            context_tokens,
            speeds: ready.measured.speeds(),
            speeds_told: Instant::now(),
        }
    }

    /// # Errors
    /// When the parent's stream is broken or llama.cpp fails during a step.
    pub fn serve(&mut self, inbox: &Receiver<Incoming>, output: &mut File) -> io::Result<()> {
        loop {
            if self.encodings.idle() {
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
            for Done { id, vectors } in self.step().map_err(io::Error::other)? {
                // One frame each: a frame is bounded, and a request's vectors are.
                let progress = if vectors.iter().any(Vec::is_empty) {
                    Progress::Invalid("the model gives no vector for a text".to_owned())
                } else {
                    Progress::Embedded(vectors)
                };
                ipc::write(output, &FromEngine::Events(vec![JobEvent { id, progress }]))?;
            }
            self.tell_speeds(output)?;
        }
    }

    fn handle(&mut self, incoming: Incoming, output: &mut File) -> io::Result<()> {
        match incoming {
            Incoming::Other(ToEngine::Embed(embed)) => self.enqueue(*embed, output),
            Incoming::Other(ToEngine::Cancel { id }) => {
                self.encodings.cancel(id);
                Ok(())
            }
            Incoming::Other(ToEngine::Ping { nonce }) => ipc::write(output, &FromEngine::Pong { nonce }),
            Incoming::Other(ToEngine::ProbeSandbox) => ipc::write(output, &FromEngine::SandboxProbe(sandbox::probe())),
            Incoming::Generate(..)
            | Incoming::Other(
                ToEngine::Load(_)
                | ToEngine::Generate(_)
                | ToEngine::Open { .. }
                | ToEngine::Gather { .. }
                | ToEngine::Feed { .. }
                | ToEngine::Export { .. }
                | ToEngine::Import { .. },
            ) => Err(io::Error::other("a message out of turn")),
        }
    }

    fn enqueue(&mut self, Embed { id, texts }: Embed, output: &mut File) -> io::Result<()> {
        let fits = |text: &Vec<Token>| (1..=self.context_tokens).contains(&text.len());
        if !texts.is_empty() && texts.iter().all(fits) {
            self.encodings.enqueue(id, texts);
            return Ok(());
        }
        let progress = Progress::Invalid("a text is empty or over the context".to_owned());
        ipc::write(output, &FromEngine::Events(vec![JobEvent { id, progress }]))
    }

    fn step(&mut self) -> Result<Vec<Done>, String> {
        let texts = self.encodings.plan(self.room);
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = texts.iter().map(|text| text.len()).sum();
        self.encoder.use_threads(self.pace.level(tokens));
        let started = Instant::now();
        let vectors = encode(&mut self.encoder, &texts)?;
        self.pace.record(tokens, started.elapsed());
        self.speeds.record(tokens, started.elapsed());
        // There is one speed: nothing is decoded token by token.
        self.speeds.decode = self.speeds.prefill;
        Ok(self.encodings.computed(vectors))
    }

    fn tell_speeds(&mut self, output: &mut File) -> io::Result<()> {
        if self.speeds_told.elapsed() < SPEEDS_EVERY && !self.encodings.idle() {
            return Ok(());
        }
        self.speeds_told = Instant::now();
        ipc::write(output, &FromEngine::Speeds(self.speeds))
    }
}
