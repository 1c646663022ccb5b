//! Is this engine batch-invariant on this machine, and how fast is it? Run in the child on the loaded model.
//!
//! A fixed token sequence is computed three ways: in one piece, in uneven chunks, and token by token amid another
//! sequence. Where the logits of its last positions agree to the bit, the engine is exact and their hash names its
//! class; see `SLICES.md`, "Batch invariance".

use std::time::{Duration, Instant};

use opengrid_protocol::{beacon::Class, session::Token};

use super::{
    ffi::{BatchToken, Context},
    messages::Measured,
};

/// Tokens of the known sequence; chunks on both sides of the row counts at which kernels change.
const SEQUENCE: usize = 40;
/// Its last positions, compared and computed one by one in the third run.
pub const COMPARED: usize = 8;
const CHUNKS: [usize; 4] = [13, 3, 1, 23];
/// Decode steps that are timed at most, and for how long.
const TIMED_STEPS: usize = 12;
const TIMED_MS_MAX: u128 = 250;
const NEIGHBOUR_SLOT: usize = 1;

type Rows = Vec<Vec<f32>>;

/// What is tested: a whole model, or a stage of one, which takes a row made up for each token and gives rows or logits.
pub trait Subject {
    fn cut(&mut self, slot: usize, keep: usize);

    /// # Errors
    /// When llama.cpp fails.
    fn compute(&mut self, batch: &[BatchToken]) -> Result<(), String>;

    /// What came out for entry `index` of the last batch, which was marked as output.
    fn output(&mut self, index: usize) -> Option<&[f32]>;
}

impl Subject for Context<'_> {
    fn cut(&mut self, slot: usize, keep: usize) {
        self.truncate(slot, keep);
    }

    fn compute(&mut self, batch: &[BatchToken]) -> Result<(), String> {
        self.decode(batch)
    }

    fn output(&mut self, index: usize) -> Option<&[f32]> {
        self.logits(index).map(|logits| &*logits)
    }
}

/// Class and speed, with the reason when it is not exact. The cache is empty afterwards.
///
/// # Errors
/// When llama.cpp fails.
pub fn run(
    context: &mut impl Subject,
    slots: usize,
    vocabulary: u32,
    identity: Option<&[u8]>,
) -> Result<(Measured, Option<String>), String> {
    let tokens = known_tokens(vocabulary, 0);
    let one_piece = prefill(context, &tokens, &[SEQUENCE])?;
    let started = Instant::now();
    let chunked = prefill(context, &tokens, &CHUNKS)?;
    let prefill_time = started.elapsed();
    let decode = time_decode(context, &tokens)?;
    let (class, inexact) = match identity {
        None => (Class::Approximate, None),
        Some(identity) => {
            let mixed = decode_amid_others(context, &tokens, slots, vocabulary)?;
            classify(identity, &one_piece, &[("chunked prefill", chunked), ("decoding amid others", mixed)])
        }
    };
    for slot in 0..slots {
        context.cut(slot, 0);
    }
    let per_second = |count: usize, time: Duration| count as f32 / time.as_secs_f32().max(1e-6);
    let measured = Measured {
        class,
        decode_tokens_per_s: per_second(decode.0, decode.1),
        prefill_tokens_per_s: per_second(SEQUENCE, prefill_time),
    };
    Ok((measured, inexact))
}

/// The same tokens on every machine: any vocabulary has its first ids.
fn known_tokens(vocabulary: u32, salt: u32) -> Vec<Token> {
    let hash = |index: u32| {
        let bytes = blake3::hash(&[salt.to_le_bytes(), index.to_le_bytes()].concat());
        u32::from_le_bytes(bytes.as_bytes()[..4].try_into().unwrap_or_default())
    };
    (0..SEQUENCE as u32).map(|index| hash(index) % vocabulary.max(1)).collect()
}

fn entry(tokens: &[Token], position: usize, slot: usize) -> BatchToken {
    BatchToken { token: tokens[position], position, slot, output: position + COMPARED >= SEQUENCE }
}

fn prefill(context: &mut impl Subject, tokens: &[Token], chunks: &[usize]) -> Result<Rows, String> {
    context.cut(0, 0);
    let mut rows = Rows::new();
    let mut from = 0;
    for chunk in chunks {
        let batch: Vec<BatchToken> = (from..from + chunk).map(|position| entry(tokens, position, 0)).collect();
        context.compute(&batch)?;
        collect(context, &batch, 0, &mut rows);
        from += chunk;
    }
    Ok(rows)
}

fn collect(context: &mut impl Subject, batch: &[BatchToken], slot: usize, rows: &mut Rows) {
    for (index, _) in batch.iter().enumerate().filter(|(_, token)| token.slot == slot && token.output) {
        rows.extend(context.output(index).map(<[f32]>::to_vec));
    }
}

/// Prefills all but the last positions beside a neighbour's first, then decodes the rest one by one while the
/// neighbour is prefilled in pieces.
fn decode_amid_others(
    context: &mut impl Subject,
    tokens: &[Token],
    slots: usize,
    vocabulary: u32,
) -> Result<Rows, String> {
    let neighbour = known_tokens(vocabulary, 1);
    for slot in 0..slots.min(2) {
        context.cut(slot, 0);
    }
    let mut rows = Rows::new();
    let mut neighbour_at = 0;
    let start = SEQUENCE - COMPARED;
    let pieces = std::iter::once((0, start)).chain((start..SEQUENCE).map(|position| (position, position + 1)));
    for (step, (from, to)) in pieces.enumerate() {
        let mut batch: Vec<BatchToken> = (from..to).map(|position| entry(tokens, position, 0)).collect();
        if slots > 1 {
            let until = (neighbour_at + 1 + step % 3 * 4).min(SEQUENCE);
            batch.extend((neighbour_at..until).map(|position| entry(&neighbour, position, NEIGHBOUR_SLOT)));
            neighbour_at = until;
        }
        context.compute(&batch)?;
        collect(context, &batch, 0, &mut rows);
    }
    Ok(rows)
}

/// Steps of one stream and the time they took, after what [`prefill`] left in slot 0.
fn time_decode<S: Subject>(context: &mut S, tokens: &[Token]) -> Result<(usize, Duration), String> {
    let step = |context: &mut S, index: usize| {
        context.compute(&[BatchToken { token: tokens[index], position: SEQUENCE + index, slot: 0, output: true }])
    };
    step(context, 0)?;
    let started = Instant::now();
    let mut steps = 0;
    while steps < TIMED_STEPS && started.elapsed().as_millis() < TIMED_MS_MAX {
        steps += 1;
        step(context, steps)?;
        context.output(0);
    }
    Ok((steps, started.elapsed()))
}

fn classify(identity: &[u8], known: &Rows, others: &[(&str, Rows)]) -> (Class, Option<String>) {
    let bits = |row: &Vec<f32>| row.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>();
    let finite = known.len() == COMPARED && known.iter().flatten().all(|logit| logit.is_finite());
    if !finite {
        return (Class::Approximate, Some("the known-answer run gives no finite logits".to_owned()));
    }
    for (way, rows) in others {
        if rows.len() != known.len() || known.iter().zip(rows).any(|(a, b)| bits(a) != bits(b)) {
            return (Class::Approximate, Some(format!("{way} gives other logits than prefill in one piece")));
        }
    }
    let mut hasher = blake3::Hasher::new_derive_key("opengrid 2026 engine class");
    hasher.update(&(identity.len() as u64).to_le_bytes()).update(identity);
    for logit in known.iter().flatten() {
        hasher.update(&logit.to_bits().to_le_bytes());
    }
    let mut name = [0; 16];
    name.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    (Class::Exact(name), None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rows(last: f32) -> Rows {
        let mut rows = vec![vec![1.0, 2.0]; COMPARED];
        rows[COMPARED - 1][1] = last;
        rows
    }

    #[test]
    fn the_class_names_logits_and_model() {
        let class = |identity: &[u8], last| classify(identity, &rows(last), &[("x", rows(last))]).0;
        assert_eq!(class(b"a", 3.0), class(b"a", 3.0));
        assert_ne!(class(b"a", 3.0), class(b"b", 3.0));
        assert_ne!(class(b"a", 3.0), class(b"a", 3.0000002));
    }

    #[test]
    fn one_bit_makes_it_approximate() {
        let next = f32::from_bits(3.0_f32.to_bits() + 1);
        let (class, why) = classify(b"a", &rows(3.0), &[("same", rows(3.0)), ("decoding", rows(next))]);
        assert_eq!(class, Class::Approximate);
        assert!(why.unwrap().starts_with("decoding"));
        assert_eq!(classify(b"a", &rows(f32::NAN), &[]).0, Class::Approximate);
    }

    #[test]
    fn known_tokens_never_change() {
        assert_eq!(&known_tokens(49_152, 0)[..3], &known_tokens(49_152, 0)[..3]);
        assert!(known_tokens(7, 1).iter().all(|token| *token < 7));
        assert_eq!(CHUNKS.iter().sum::<usize>(), SEQUENCE);
    }
}
