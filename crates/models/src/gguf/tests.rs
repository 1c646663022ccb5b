#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::{limits::*, write::Writer, *};
use crate::test_support::TinyModel;

fn parse(bytes: &[u8]) -> Result<Gguf<'_>, GgufError> {
    Gguf::parse(bytes, bytes.len() as u64)
}

fn tiny() -> Vec<u8> {
    TinyModel { embedding: 8, heads: 2, kv_heads: 1, feed_forward: 8, layers: 1, ..TinyModel::default() }.to_bytes()
}

/// Magic, version 3, and the counts.
fn preamble(tensors: u64, keys: u64) -> Vec<u8> {
    [&b"GGUF"[..], &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn a_tiny_model_reads_back() {
    let bytes = TinyModel::default().to_bytes();
    let gguf = parse(&bytes).unwrap();
    let info = gguf.info().unwrap();
    assert_eq!((info.architecture.as_str(), info.block_count, info.context_length), ("llama", 2, 256));
    assert_eq!((info.bos_token, info.eos_token, info.tokens), (Some(1), Some(2), 259 + 95));
    assert_eq!((info.quantisation.as_str(), info.tokenizer.as_deref()), ("F32", Some("llama")));
    // Two layers, two key-value heads of 8, keys and values, two bytes each.
    assert_eq!(info.kv_bytes_per_token, 2 * 2 * (8 + 8) * 2);
    assert_eq!(info.weight_bytes, info.parameters * 4);
    assert_eq!(gguf.tensors().len(), 3 + 2 * 9);
    assert_eq!(gguf.tensor("blk.1.ffn_down.weight").unwrap().dimensions, [64, 32, 1, 1]);
    let tokens: Vec<_> = gguf.get("tokenizer.ggml.tokens").unwrap().as_array().unwrap().iter().collect();
    assert_eq!(tokens[1].as_str(), Some("<s>"));
}

#[test]
fn models_with_the_same_tokens_are_told_from_others() {
    let hash = |bytes: &[u8]| tokens_hash(&parse(bytes).unwrap());
    let small = hash(&tiny());
    assert!(small.is_some());
    let other_weights = TinyModel { seed: 9, layers: 3, ..TinyModel::default() };
    assert_eq!(hash(&other_weights.to_bytes()), small, "whatever the weights");
    let with = |tokens: &[&str], merges: &[&str]| {
        let writer = Writer::new().string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", tokens);
        hash(&writer.strings("tokenizer.ggml.merges", merges).finish())
    };
    let one = with(&["a", "b", "ab"], &["a b"]);
    assert_eq!(one, with(&["a", "b", "ab"], &["a b"]));
    for other in [with(&["b", "a", "ab"], &["a b"]), with(&["a", "b", "ab"], &["b a"]), with(&["a", "b"], &[]), small] {
        assert_ne!(one, other);
    }
    assert_eq!(hash(&Writer::new().string("tokenizer.ggml.model", "no_vocab").finish()), None);
    let copied = TinyModel::default().to_bytes_with_tokens_of(&parse(&tiny()).unwrap());
    assert_eq!(hash(&copied), small);
}

#[test]
fn every_truncation_is_an_error_that_says_so() {
    let bytes = tiny();
    let header = parse(&bytes).unwrap().data_offset() as usize;
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length]).expect_err("a truncated file was accepted");
        assert!(matches!(error, GgufError::Truncated { .. }), "{length}: {error}");
        if length < header - 32 {
            let error = Gguf::parse(&bytes[..length], bytes.len() as u64).expect_err("half a header was accepted");
            let GgufError::HeaderIncomplete { needed, have } = error else { panic!("{length}: {error}") };
            assert!(needed > have && have == length as u64 && needed <= header as u64);
        }
    }
}

#[test]
fn a_header_alone_is_enough() {
    let bytes = tiny();
    let data_offset = parse(&bytes).unwrap().data_offset() as usize;
    assert!(Gguf::parse(&bytes[..data_offset], bytes.len() as u64).is_ok());
}

#[test]
fn other_formats_and_versions_are_named() {
    assert_eq!(parse(b"<htm").unwrap_err(), GgufError::NotGguf(*b"<htm"));
    let version = |version: u32| [&b"GGUF"[..], &version.to_le_bytes(), &[0; 16]].concat();
    assert_eq!(parse(&version(1)).unwrap_err(), GgufError::Version(1));
    assert_eq!(parse(&version(4)).unwrap_err(), GgufError::Version(4));
    assert_eq!(parse(&version(3_u32.swap_bytes())).unwrap_err(), GgufError::BigEndian);
    assert!(parse(&version(2)).is_ok());
}

#[test]
fn counts_beyond_the_limits_are_refused_at_once() {
    for (tensors, keys) in [(u64::MAX, 0), (0, u64::MAX), (TENSORS_MAX + 1, 0), (0, KEYS_MAX + 1)] {
        assert!(matches!(parse(&preamble(tensors, keys)).unwrap_err(), GgufError::OverLimit { .. }));
    }
    let with = |tail: Vec<u8>| Gguf::parse(&[preamble(0, 1), tail].concat(), u64::MAX).unwrap_err();
    let array = |kind: u32, count: u64| {
        [text("a"), 9_u32.to_le_bytes().to_vec(), kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat()
    };
    assert!(matches!(with((KEY_BYTES_MAX + 1).to_le_bytes().to_vec()), GgufError::OverLimit { .. }));
    assert!(matches!(with(array(4, ARRAY_ELEMENTS_MAX + 1)), GgufError::OverLimit { .. }));
    assert!(matches!(with(array(8, u64::MAX)), GgufError::OverLimit { .. }));
    assert!(matches!(with(array(12, ARRAY_ELEMENTS_MAX)), GgufError::HeaderIncomplete { .. }));
    let string = [text("a"), 8_u32.to_le_bytes().to_vec(), (STRING_BYTES_MAX + 1).to_le_bytes().to_vec()].concat();
    assert!(matches!(with(string), GgufError::OverLimit { .. }));
}

#[test]
fn headers_beyond_the_limit_are_refused_even_in_pieces() {
    let entry = |at: u32| [text(&format!("k{at}")), 8_u32.to_le_bytes().to_vec()].concat();
    let mut bytes = preamble(0, 9);
    for at in 0..8 {
        bytes.extend(entry(at));
        bytes.extend(text(&"x".repeat(STRING_BYTES_MAX as usize)));
    }
    bytes.extend(entry(8));
    bytes.extend(STRING_BYTES_MAX.to_le_bytes());
    let error = Gguf::parse(&bytes, 1 << 40).unwrap_err();
    assert!(matches!(error, GgufError::OverLimit { limit: HEADER_BYTES_MAX, .. }), "{error}");
}

#[test]
fn nested_arrays_unknown_types_and_doubles_are_refused() {
    let nested = [text("a"), 9_u32.to_le_bytes().to_vec(), 9_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    let error = parse(&[preamble(0, 1), nested].concat()).unwrap_err().to_string();
    assert!(error.contains("arrays of arrays"), "{error}");
    let unknown = [text("a"), 13_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    assert!(parse(&[preamble(0, 1), unknown].concat()).unwrap_err().to_string().contains("13 is no value type"));
    let error = parse(&Writer::new().u32("a", 1).u32("a", 2).finish()).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("twice"), "{error}");
    let error = parse(&Writer::new().u32("", 1).finish()).unwrap_err().to_string();
    assert!(error.contains("empty"), "{error}");
    let twice = Writer::new().tensor_f32("t", &[1], &[0.0]).tensor_f32("t", &[1], &[0.0]).finish();
    assert!(parse(&twice).unwrap_err().to_string().contains("twice"));
    let escaped = parse(&Writer::new().u32("\u{1b}[31m", 1).u32("\u{1b}[31m", 1).finish()).unwrap_err().to_string();
    assert!(!escaped.contains('\u{1b}'), "{escaped:?}");
}

/// One tensor info with the given fields before `data` bytes of data.
fn one_tensor(dimensions: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
    let mut bytes = preamble(1, 0);
    bytes.extend(text("t"));
    bytes.extend((dimensions.len() as u32).to_le_bytes());
    bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

#[test]
fn lying_tensors_are_refused() {
    let error = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert!(parse(&one_tensor(&[32, 2], 3, 0, 40)).is_ok());
    assert!(error(&one_tensor(&[32, 2], 3, 0, 39)).contains("truncated: the file has"));
    assert!(error(&one_tensor(&[32, 2], 3, 32, 40)).contains("pull it again"));
    assert!(error(&one_tensor(&[32, 2], 3, 16, 90)).contains("no multiple of 32"));
    assert!(error(&one_tensor(&[31, 2], 3, 0, 90)).contains("do not fit Q4_1 blocks"));
    assert!(error(&one_tensor(&[32, 2], 4, 0, 90)).contains("type 4 is unknown"));
    assert!(error(&one_tensor(&[32, 0], 0, 0, 90)).contains("is zero"));
    assert!(error(&one_tensor(&[1, 1, 1, 1, 1], 0, 0, 90)).contains("5 dimensions"));
    assert!(error(&one_tensor(&[1 << 40, 1 << 40], 0, 0, 90)).contains("63 bits"));
    assert!(error(&one_tensor(&[1 << 62], 28, 0, 90)).contains("beyond 64 bits"));
    assert!(error(&one_tensor(&[1], 0, !31, 90)).contains("beyond 64 bits"));
    let mut overlapping = Writer::new().tensor_f32("a", &[8], &[0.0; 8]).tensor_f32("b", &[8], &[0.0; 8]).finish();
    let second = overlapping.windows(8).rposition(|window| window == 32_u64.to_le_bytes()).unwrap();
    overlapping[second..second + 8].fill(0);
    assert!(error(&overlapping).contains("overlaps tensor"));
}

#[test]
fn alignment_must_be_a_sane_power_of_two() {
    for alignment in [0, 3, 33, ALIGNMENT_MAX * 2] {
        let error = parse(&Writer::new().u32("general.alignment", alignment).finish()).unwrap_err().to_string();
        assert!(error.contains("power of two"), "{error}");
    }
    let wrong = parse(&Writer::new().f32("general.alignment", 32.0).finish()).unwrap_err();
    assert!(matches!(wrong, GgufError::WrongType { .. }));
    assert_eq!(parse(&Writer::new().u32("general.alignment", 64).finish()).unwrap().alignment(), 64);
}

#[test]
fn what_a_language_model_needs_is_named_when_missing() {
    let info = |writer: Writer| parse(&writer.finish()).unwrap().info().unwrap_err().to_string();
    assert!(info(Writer::new()).contains("`general.architecture` is missing"));
    let llama = Writer::new().string("general.architecture", "llama");
    assert!(info(llama.clone()).contains("`llama.block_count` is missing"));
    assert!(info(llama.clone().string("llama.block_count", "two")).contains("holds a string"));
    assert!(info(llama.clone().u32("llama.block_count", u32::MAX)).contains("over the limit"));
    assert!(info(llama.entry("split.count", ValueType::U16, &[3, 0])).contains("one of 3 parts"));
}

#[test]
fn heads_may_differ_by_layer() {
    let writer = Writer::new()
        .string("general.architecture", "x")
        .u32("x.block_count", 3)
        .u32("x.context_length", 8)
        .u32("x.embedding_length", 64)
        .i32s("x.attention.head_count", &[4, 4, 8])
        .i32s("x.attention.head_count_kv", &[4, 0, 2]);
    let bytes = writer.finish();
    assert_eq!(parse(&bytes).unwrap().info().unwrap().kv_bytes_per_token, (4 * 32 + 2 * 16) * 2);
}

#[test]
fn the_vocabulary_part_says_the_same_without_tensors() {
    let bytes = tiny();
    let whole = parse(&bytes).unwrap();
    let header = &bytes[..whole.data_offset() as usize];
    let part = vocabulary_gguf(header, bytes.len() as u64).unwrap();
    let vocabulary = parse(&part).unwrap();
    assert!(vocabulary.tensors().is_empty());
    assert_eq!(vocabulary.metadata(), whole.metadata());
    assert_eq!(part.len() % 32, 0);
    assert_eq!(part, vocabulary_gguf(&bytes, bytes.len() as u64).unwrap());
    assert_eq!(part, vocabulary_gguf(&part, part.len() as u64).unwrap());
}

#[test]
fn files_are_read_as_far_as_their_header() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let many: Vec<String> = (0..200_000).map(|at| format!("token{at}")).collect();
    let writer = Writer::new().strings("tokenizer.ggml.tokens", &many);
    let bytes = writer.tensor_f32("t", &[1 << 20], &vec![0.5; 1 << 20]).finish();
    std::fs::write(&path, &bytes).unwrap();
    let header = file::Header::read(&path).unwrap();
    assert!(header.bytes.len() < bytes.len() / 2 + (2 << 20), "{} of {}", header.bytes.len(), bytes.len());
    assert_eq!(header.parse().unwrap().tensors().len(), 1);
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let error = file::Header::read(&path).unwrap_err().to_string();
    assert!(error.contains("m.gguf: truncated: the file has"), "{error}");
    assert!(file::Header::read(directory.path()).is_err());
}

/// The real model's header, for which ./test sets the variable.
fn real_header() -> (Vec<u8>, u64) {
    let path = std::env::var("OPENGRID_TEST_MODEL").expect("set OPENGRID_TEST_MODEL to the default model's GGUF file");
    let header = file::Header::read(path.as_ref()).unwrap();
    (header.bytes, header.file_size)
}

#[test]
fn the_default_model_is_what_its_makers_say() {
    let (bytes, size) = real_header();
    let info = Gguf::parse(&bytes, size).unwrap().info().unwrap();
    assert_eq!((info.architecture.as_str(), info.quantisation.as_str()), ("llama", "Q4_1"));
    assert_eq!((info.block_count, info.embedding_length, info.tokens), (30, 576, 49_152));
    assert_eq!((info.parameters, info.kv_bytes_per_token), (134_515_008, 30 * 3 * (64 + 64) * 2));
    assert!(info.chat_template.is_some_and(|template| template.contains("<|im_start|>")));
    let model = crate::Catalogue::built_in().unwrap().get(crate::catalogue::DEFAULT_MODEL).unwrap().clone();
    assert_eq!(u64::from(model.context), info.context_length);
}

fn never_panics(bytes: &[u8], size: u64) {
    if let Ok(gguf) = Gguf::parse(bytes, size) {
        let _ = gguf.info();
        for (_, value) in gguf.metadata() {
            if let Some(array) = value.as_array() {
                assert_eq!(array.iter().count() as u64, array.len());
            }
        }
        let part = vocabulary_gguf(bytes, size).expect("what parses has a vocabulary part");
        Gguf::parse(&part, part.len() as u64).expect("a vocabulary part parses");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400), keys in 0..4_u64, size: u64) {
        never_panics(&tail, size);
        never_panics(&[preamble(1, keys), tail].concat(), size);
    }

    #[test]
    fn mutated_models_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let mut bytes = tiny();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let size = bytes.len() as u64;
        never_panics(&bytes, size);
        never_panics(&bytes[..cut.index(bytes.len())], size);
    }
}

#[test]
fn mutations_of_the_real_header_never_panic() {
    let (bytes, size) = real_header();
    let strategy = (prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>()), 1..6), any::<bool>());
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    let result = proptest::test_runner::TestRunner::new(config).run(&strategy, |(changes, near_start)| {
        let mut mutated = bytes.clone();
        // The keys before the vocabulary are the first two kilobytes: half of the cases go there.
        let room = if near_start { 2048 } else { mutated.len() - 8 };
        for (at, value) in changes {
            let at = at.index(room);
            mutated[at..at + 8].copy_from_slice(&value);
        }
        never_panics(&mutated, size);
        Ok(())
    });
    result.unwrap();
}
