//! What earns an architecture its place in `opengrid_models::slice::ARCHITECTURES`: the slices of a model, one behind
//! the other, give the logits of the whole model to the bit, at every cut, in chunks, amid other sessions.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs::File, io::Write, path::Path};

use opengrid_models::{
    gguf::{Gguf, file::Header},
    slice::{self, SlicePlan},
    test_support::{Architecture, TinyModel},
};
use opengrid_protocol::{Layers, ModelRoot};
use tempfile::TempDir;

use super::ffi::{BatchToken, Context, ContextOptions, Model, ModelOptions, Span, TokenTable};

const SLOTS: u16 = 4;
const BATCH: u32 = 512;

fn context(model: &Model, rows_out: bool) -> Context<'_> {
    let options = ContextOptions {
        slots: SLOTS,
        context_tokens: 256,
        threads: 1,
        batch: BATCH,
        outputs: BATCH,
        flash_attention: false,
        rows_out,
        is_stage: true,
    };
    Context::new(model, options).unwrap()
}

fn load(path: &Path) -> Model {
    Model::load(path, ModelOptions::default()).unwrap()
}

/// What several sessions compute in one step: of each slot, tokens from a position on.
type Step = Vec<(usize, usize, Vec<u32>)>;

/// Sessions of different lengths that begin at different steps, prefill in uneven chunks and decode amid each other.
fn steps(vocabulary: u32, length: usize) -> Vec<Step> {
    const CHUNKS: [usize; 6] = [7, 13, 1, 3, 1, 9];
    let token = |slot: usize, at: usize| ((slot * 131 + at * 29 + at * at) as u32) % vocabulary;
    let mut at = [0_usize; SLOTS as usize];
    let mut steps = Vec::new();
    for round in 0.. {
        if at.iter().all(|at| *at == length) {
            break;
        }
        let mut step = Step::new();
        for slot in 0..usize::from(SLOTS) {
            let chunk = CHUNKS[(round + slot * 2) % CHUNKS.len()].min(length - at[slot]);
            if round < slot || chunk == 0 || (round + slot) % 5 == 4 {
                continue;
            }
            step.push((slot, at[slot], (at[slot]..at[slot] + chunk).map(|at| token(slot, at)).collect()));
            at[slot] += chunk;
        }
        if !step.is_empty() {
            steps.push(step);
        }
    }
    steps
}

/// The logits of every token of every step.
fn whole(path: &Path, steps: &[Step]) -> Vec<Vec<f32>> {
    let model = load(path);
    let mut context = context(&model, false);
    let mut logits = Vec::new();
    for step in steps {
        let batch: Vec<BatchToken> = step
            .iter()
            .flat_map(|(slot, from, tokens)| {
                tokens.iter().enumerate().map(move |(at, token)| BatchToken {
                    token: *token,
                    position: from + at,
                    slot: *slot,
                    output: true,
                })
            })
            .collect();
        context.decode(&batch).unwrap();
        logits.extend((0..batch.len()).map(|index| context.logits(index).unwrap().to_vec()));
    }
    logits
}

struct Slices {
    files: Vec<std::path::PathBuf>,
    first: SlicePlan,
    _directory: TempDir,
}

/// Cuts the model before each of `cuts`.
fn slices(path: &Path, cuts: &[u32]) -> Slices {
    let header = Header::read(path).unwrap();
    let gguf = header.parse().unwrap();
    let layers = u32::try_from(gguf.info().unwrap().block_count).unwrap();
    let ends: Vec<u32> = std::iter::once(0).chain(cuts.iter().copied()).chain([layers]).collect();
    let directory = tempfile::tempdir().unwrap();
    let plan = |from, to| slice::plan(&gguf, ModelRoot([0; 32]), Layers::new(from, to).unwrap()).unwrap();
    let files = ends
        .windows(2)
        .map(|pair| {
            let file = directory.path().join(format!("{}.gguf", pair[0]));
            write(&plan(pair[0], pair[1]), path, &file);
            file
        })
        .collect();
    Slices { files, first: plan(0, ends[1]), _directory: directory }
}

fn write(plan: &SlicePlan, from: &Path, to: &Path) {
    use std::io::{Read, Seek, SeekFrom};
    let mut source = File::open(from).unwrap();
    let mut file = File::create(to).unwrap();
    let read = |at: u64, buffer: &mut [u8]| {
        source.seek(SeekFrom::Start(at))?;
        source.read_exact(buffer)
    };
    plan.file.write(read, |part| file.write_all(part)).unwrap();
}

/// The logits of every token, through the slices one behind the other.
fn sliced(model: &Path, slices: &Slices, steps: &[Step]) -> Vec<Vec<f32>> {
    let table = slices.first.embedding;
    let sizes = [table.offset, table.width, table.rows, table.row_bytes];
    let mut table = TokenTable::new(File::open(model).unwrap(), sizes, table.kind, table.scale).unwrap();
    let models: Vec<Model> = slices.files.iter().map(|path| load(path)).collect();
    let last = models.len() - 1;
    let mut contexts: Vec<Context<'_>> =
        models.iter().enumerate().map(|(at, model)| context(model, at != last)).collect();
    let mut logits = Vec::new();
    for step in steps {
        let spans: Vec<Span> = step
            .iter()
            .map(|(slot, from, tokens)| Span { slot: *slot, from: *from, rows: tokens.len(), outputs: tokens.len() })
            .collect();
        let mut rows = Vec::new();
        step.iter().for_each(|(_, _, tokens)| table.look_up(tokens, &mut rows).unwrap());
        for context in &mut contexts {
            context.decode_rows(&spans, &rows).unwrap();
            rows = context.rows_out().to_vec();
        }
        let count: usize = spans.iter().map(|span| span.rows).sum();
        logits.extend((0..count).map(|index| contexts[last].logits(index).unwrap().to_vec()));
    }
    logits
}

/// The largest difference of any logit; 0 only where all are equal.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs
        .map(|(a, b)| if a.to_bits() == b.to_bits() { 0.0 } else { (a - b).abs().max(f32::MIN_POSITIVE) })
        .fold(0.0, f32::max)
}

fn vocabulary(path: &Path) -> u32 {
    let header = Header::read(path).unwrap();
    let info = header.parse().and_then(|gguf: Gguf<'_>| gguf.info()).unwrap();
    u32::try_from(info.tokens).unwrap()
}

/// What a cut that is wrong by a little would do: the comparison must see it.
#[test]
fn wrong_cuts_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, TinyModel { layers: 6, ..TinyModel::default() }.to_bytes()).unwrap();
    let steps = steps(vocabulary(&path), 30);
    let expected = whole(&path, &steps);
    let right = slices(&path, &[2, 4]);
    assert_eq!(difference(&sliced(&path, &right, &steps), &expected), 0.0);
    let with = |files: [usize; 3], scale: f32| {
        let mut wrong = slices(&path, &[2, 4]);
        wrong.files = files.iter().map(|at| wrong.files[*at].clone()).collect();
        wrong.first.embedding.scale *= scale;
        difference(&sliced(&path, &wrong, &steps), &expected)
    };
    assert!(with([1, 0, 2], 1.0) > 0.0, "layers shifted");
    assert!(with([0, 0, 2], 1.0) > 0.0, "layers twice");
    assert!(with([0, 1, 2], 1.01) > 0.0, "another scale");
    let mut skipped = slices(&path, &[2, 4]);
    skipped.files.remove(1);
    assert!(difference(&sliced(&path, &skipped, &steps), &expected) > 0.0, "layers left out");
}

fn check(path: &Path, cuts: &[u32], steps: &[Step], expected: &[Vec<f32>]) {
    assert!(expected.iter().flatten().all(|logit| logit.is_finite()));
    let found = sliced(path, &slices(path, cuts), steps);
    assert_eq!(difference(&found, expected), 0.0, "{} cut at {cuts:?}", path.display());
}

fn check_every_cut(path: &Path, length: usize) {
    let layers = u32::try_from(Header::read(path).unwrap().parse().unwrap().info().unwrap().block_count).unwrap();
    let steps = steps(vocabulary(path), length);
    let expected = whole(path, &steps);
    for cut in 1..layers {
        check(path, &[cut], &steps, &expected);
    }
    let every: Vec<u32> = (1..layers).collect();
    check(path, &every, &steps, &expected);
}

#[test]
fn every_architecture_that_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let mut cut = BTreeSet::new();
    for architecture in Architecture::ALL {
        for quantised in [false, true] {
            // More layers than gemma3's period, and no multiple of it.
            let model = TinyModel { architecture, quantised, layers: 8, seed: 3, ..TinyModel::default() };
            let path = directory.path().join(format!("{architecture:?}-{quantised}.gguf"));
            std::fs::write(&path, model.to_bytes()).unwrap();
            check_every_cut(&path, 60);
        }
        cut.insert(architecture.name());
    }
    assert_eq!(cut, slice::ARCHITECTURES.iter().copied().collect(), "the list is what is proven here");
}

#[test]
fn the_default_model() {
    let path = std::env::var("OPENGRID_TEST_MODEL").unwrap();
    check_every_cut(Path::new(&path), 24);
}

/// Rows that only this session has.
fn some_rows(width: usize, seed: u32, count: usize) -> Vec<f32> {
    (0..width * count).map(|at| ((at as u32 * 2_654_435_761_u32.wrapping_add(seed)) >> 8) as f32 / 8e6 - 1.0).collect()
}

/// The cells of `count` rows, moved to another context and another slot, where others were before: what follows is the
/// same to the bit. False where they cannot be moved.
fn moves(path: &Path, count: usize) -> bool {
    let slices = slices(path, &[3, 6]);
    let model = load(&slices.files[1]);
    let width = model.embedding_width() as usize;
    let (mut from, mut to) = (context(&model, true), context(&model, true));
    let layout = from.learn_layout().unwrap();
    assert_eq!(to.learn_layout(), Ok(layout.clone()));
    let span = |slot, from, rows| Span { slot, from, rows, outputs: rows };
    let amid = [span(0, 0, 9), span(2, 0, count), span(3, 0, 4)];
    from.decode_rows(&amid, &some_rows(width, 1, 13 + count)).unwrap();
    to.decode_rows(&[span(1, 0, 30)], &some_rows(width, 2, 30)).unwrap();
    to.truncate(1, 0);
    let Some(cells) = from.slot_cells(&layout, 2, count).unwrap() else { return false };
    assert_eq!(layout.check(&cells), Ok(count as u32));
    to.fill_slot(&layout, 1, &cells).unwrap();
    assert_eq!(to.slot_cells(&layout, 1, count), Ok(Some(cells)));
    for (at, rows) in [(count, 3), (count + 3, 1), (count - 1, 2)] {
        let next = some_rows(width, at as u32, rows);
        from.truncate(2, at);
        to.truncate(1, at);
        from.decode_rows(&[span(2, at, rows)], &next).unwrap();
        let expected = from.rows_out().to_vec();
        to.decode_rows(&[span(1, at, rows)], &next).unwrap();
        assert_eq!(difference(&[to.rows_out().to_vec()], &[expected]), 0.0, "{} from {at}", path.display());
    }
    true
}

#[test]
fn caches_move_between_contexts_and_slots() {
    let directory = tempfile::tempdir().unwrap();
    for architecture in Architecture::ALL {
        let model = TinyModel { architecture, layers: 8, seed: 3, ..TinyModel::default() };
        let path = directory.path().join(format!("{architecture:?}.gguf"));
        std::fs::write(&path, model.to_bytes()).unwrap();
        // A window that passed over cells leaves out what a cut back would need.
        assert_eq!(moves(&path, 60), architecture.name() != "gemma3", "{architecture:?}");
        assert!(moves(&path, 3), "{architecture:?}");
    }
}

#[test]
fn the_cache_of_the_default_model_moves() {
    assert!(moves(Path::new(&std::env::var("OPENGRID_TEST_MODEL").unwrap()), 100));
}
