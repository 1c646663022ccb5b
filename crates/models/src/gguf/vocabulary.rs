//! The part of a model that a gateway needs: metadata, tokenizer and template, without weights.

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
