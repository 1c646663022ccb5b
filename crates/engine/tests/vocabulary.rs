//! The tokenizer child with the real model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use opengrid_engine::{TEXT_BYTES_MAX, Vocabulary, VocabularyError};

#[tokio::test]
async fn texts_become_tokens_and_pieces_become_the_text() {
    let vocabulary = vocabulary().await;
    let info = vocabulary.info().clone();
    assert_eq!((info.size, info.trained_context), (49_152, 8_192));
    assert_eq!(info.eos_text, "<|im_end|>");
    assert!(info.end_tokens.contains(&info.eos.unwrap()));
    assert!(info.chat_template.unwrap().contains("im_start"));

    let text = "Grüße, 世界! 🦊 fn main() {}\n";
    let tokens = vocabulary.tokenize(text, false, false).await.unwrap();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.piece(*token).to_vec()).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);

    let marked = vocabulary.tokenize("<|im_end|>", false, true).await.unwrap();
    assert_eq!(marked, [info.eos.unwrap()]);
    assert!(vocabulary.piece(marked[0]).is_empty(), "control tokens print nothing");
    let plain = vocabulary.tokenize("<|im_end|>", false, false).await.unwrap();
    assert!(plain.len() > 1, "what people write is never a control token");
    assert!(vocabulary.piece(u32::MAX).is_empty());
    assert!(vocabulary.tokenize("", false, false).await.unwrap().is_empty());
    vocabulary.shutdown().await;
    assert!(matches!(vocabulary.tokenize("x", false, false).await, Err(VocabularyError::ShutDown)));
}

/// What a gateway fetches: the header of the model with no tensors at all.
#[tokio::test]
async fn the_vocabulary_part_alone_tokenizes_like_the_whole_model() {
    use std::io::Read;
    let mut header = Vec::new();
    std::fs::File::open(model()).unwrap().take(4 << 20).read_to_end(&mut header).unwrap();
    // GGUF: magic and version in 8 bytes, then the number of tensors in 8.
    header[8..16].fill(0);
    let directory = tempfile::tempdir().unwrap();
    let part = directory.path().join("vocabulary.gguf");
    std::fs::write(&part, header).unwrap();
    let (whole, part) = (vocabulary().await, Vocabulary::start(program(), part).await.unwrap());
    assert_eq!(whole.info(), part.info());
    let text = "The quick brown fox — über 13 Hunde 🐕";
    let tokens = part.tokenize(text, true, true).await.unwrap();
    assert_eq!(tokens, whole.tokenize(text, true, true).await.unwrap());
    assert!(tokens.iter().all(|token| part.piece(*token) == whole.piece(*token)));
    whole.shutdown().await;
    part.shutdown().await;
}

/// No model at hand has such marks, so three unused ones of the default model are renamed.
#[tokio::test]
async fn the_marks_around_a_gap_are_found_by_their_names() {
    use std::io::Read;
    let mut header = Vec::new();
    std::fs::File::open(model()).unwrap().take(4 << 20).read_to_end(&mut header).unwrap();
    header[8..16].fill(0);
    let names = ["<issue_closed>", "<jupyter_text>", "<jupyter_code>"];
    for (old, new) in names.into_iter().zip(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]) {
        let at = header.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
        header[at..at + old.len()].copy_from_slice(new.as_bytes());
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gaps.gguf");
    std::fs::write(&file, header).unwrap();
    let (plain, gaps) = (vocabulary().await, Vocabulary::start(program(), file).await.unwrap());
    assert_eq!(plain.info().fill_in_middle, None);
    let mut expected = Vec::new();
    for name in names {
        expected.extend(plain.tokenize(name, false, true).await.unwrap());
    }
    assert_eq!(gaps.info().fill_in_middle.map(|marks| marks.to_vec()), Some(expected));
    plain.shutdown().await;
    gaps.shutdown().await;
}

#[tokio::test]
async fn a_dead_tokenizer_is_restarted_for_the_next_text() {
    let vocabulary = vocabulary().await;
    let before = vocabulary.tokenize("hello world", true, false).await.unwrap();
    let pid = vocabulary.child_pid().unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    assert!(matches!(vocabulary.tokenize("hello world", true, false).await, Err(VocabularyError::Died)));
    assert_eq!(vocabulary.tokenize("hello world", true, false).await.unwrap(), before);
    assert_ne!(vocabulary.child_pid(), Some(pid));
    vocabulary.shutdown().await;
}

#[tokio::test]
async fn absurd_texts_and_files_are_refused() {
    let vocabulary = vocabulary().await;
    let huge = "a".repeat(TEXT_BYTES_MAX + 1);
    assert!(matches!(vocabulary.tokenize(&huge, false, false).await, Err(VocabularyError::TextTooLong { .. })));
    vocabulary.shutdown().await;

    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.gguf");
    std::fs::write(&garbage, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    assert!(matches!(Vocabulary::start(program(), garbage).await, Err(VocabularyError::Load(_))));
    let missing = directory.path().join("missing.gguf");
    assert!(matches!(Vocabulary::start(program(), missing).await, Err(VocabularyError::Load(_))));
    let no_program = Vocabulary::start(directory.path().join("nothing"), model()).await;
    assert!(matches!(no_program, Err(VocabularyError::Start(_))));
}
