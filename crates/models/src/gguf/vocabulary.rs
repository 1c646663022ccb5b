//! The part of a model that a gateway needs: metadata, tokenizer and template, without weights; and whether two models
//! have the same tokens.

use super::{Gguf, GgufError, MAGIC};

/// A GGUF with the metadata of the model whose file begins with `header` and no tensors; llama.cpp loads it with
/// `vocab_only`. The same header always gives the same bytes.
///
/// # Errors
/// What [`Gguf::parse`] finds; [`GgufError::HeaderIncomplete`] says how many bytes are needed.
pub fn vocabulary_gguf(header: &[u8], file_size: u64) -> Result<Vec<u8>, GgufError> {
    let gguf = Gguf::parse(header, file_size)?;
    let mut bytes = Vec::with_capacity(gguf.metadata_bytes.len() + 64);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&gguf.version.to_le_bytes());
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    bytes.extend_from_slice(&(gguf.entries.len() as u64).to_le_bytes());
    bytes.extend_from_slice(gguf.metadata_bytes);
    bytes.resize(bytes.len().next_multiple_of(gguf.alignment as usize), 0);
    Ok(bytes)
}

/// What says which text a token is, and how texts are cut into tokens.
const TOKEN_KEYS: [&str; 3] = ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"];

/// Equal where models have the same tokens under the same numbers; `None` for a file without any.
pub fn tokens_hash(gguf: &Gguf<'_>) -> Option<[u8; 32]> {
    gguf.get("tokenizer.ggml.tokens")?;
    let mut hasher = blake3::Hasher::new_derive_key("opengrid 2026 tokens of a model");
    for key in TOKEN_KEYS {
        let bytes = gguf.get(key).map(|value| value.encoded().1).unwrap_or_default();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    Some(*hasher.finalize().as_bytes())
}
