//! A WordPiece vocabulary (`vocab.txt`, one token a line) as llama.cpp wants it.

use std::collections::BTreeSet;

use super::{ConvertError, limits, printable};

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
/// Marks the beginning of a word, as in SentencePiece; WordPiece marks the continuation (`##`).
const WORD_BEGINS: char = '\u{2581}';
const CONTINUES: &str = "##";

/// The tokens that BERT gives a meaning.
pub(super) const SPECIAL: [&str; 5] = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vocabulary {
    /// In the order of their ids.
    pub tokens: Vec<String>,
    pub types: Vec<i32>,
    /// Ids of [`SPECIAL`], in that order.
    pub special: [u32; 5],
}

impl Vocabulary {
    /// # Errors
    /// Not UTF-8, over a limit, a token twice, or a special one missing.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ConvertError> {
        let error = |line, why: String| ConvertError::Vocabulary { line, why };
        if text.len() as u64 > limits::VOCABULARY_BYTES_MAX {
            return Err(error(1, format!("over {} bytes", limits::VOCABULARY_BYTES_MAX)));
        }
        let text = std::str::from_utf8(text).map_err(|_| error(1, "it is not utf-8".into()))?;
        let mut seen = BTreeSet::new();
        let (mut tokens, mut types, mut special) = (Vec::new(), Vec::new(), [None; 5]);
        for (at, token) in text.trim_end_matches('\n').split('\n').enumerate() {
            let token = token.strip_suffix('\r').unwrap_or(token);
            if at >= limits::TOKENS_MAX {
                return Err(error(at + 1, format!("more than {} tokens", limits::TOKENS_MAX)));
            }
            let meaning = SPECIAL.iter().position(|name| *name == token);
            if let Some(meaning) = meaning {
                special[meaning] = u32::try_from(at).ok();
            }
            let piece = if meaning.is_some() { token.to_owned() } else { piece(token) };
            if token.is_empty() || token.contains('\0') || !seen.insert(piece.clone()) {
                let why = format!("`{}` is empty, holds a zero or is there twice", printable(token));
                return Err(error(at + 1, why));
            }
            tokens.push(piece);
            types.push(if meaning.is_some() { CONTROL } else { NORMAL });
        }
        let lines = tokens.len();
        let missing = |at: usize| error(lines, format!("no line is `{}`", SPECIAL[at]));
        let mut ids = [0; 5];
        for (at, id) in ids.iter_mut().enumerate() {
            *id = special[at].ok_or_else(|| missing(at))?;
        }
        Ok(Self { tokens, types, special: ids })
    }
}

fn piece(token: &str) -> String {
    match token.strip_prefix(CONTINUES) {
        Some(rest) => rest.to_owned(),
        None => format!("{WORD_BEGINS}{token}"),
    }
}
