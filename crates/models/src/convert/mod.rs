//! Weights in the form that their authors publish, made into GGUF. Pure: a [`Plan`] says which bytes of which file come
//! where, somebody else copies them. Equal input, equal bytes, so that the catalogue can pin the root of the result.

mod bert;
mod config;
mod safetensors;
mod vocabulary;

use std::ops::Range;

pub use bert::plan as plan_bert;
pub use safetensors::{Header, LENGTH_BYTES};

/// The bounds of what is read from outside.
pub mod limits {
    /// Bytes of a safetensors header; that of a model with 65,536 tensors is smaller.
    pub const HEADER_BYTES_MAX: u64 = 8 * 1024 * 1024;
    pub const TENSORS_MAX: usize = 65_536;
    pub const DIMENSIONS_MAX: usize = 8;
    /// Bytes of `config.json`.
    pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
    /// Bytes of `vocab.txt`.
    pub const VOCABULARY_BYTES_MAX: u64 = 16 * 1024 * 1024;
    pub const TOKENS_MAX: usize = 1 << 20;
    pub const LAYERS_MAX: u32 = 512;
    /// Of any size in `config.json`.
    pub const WIDTH_MAX: u32 = 1 << 20;
}

/// Why weights cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    #[error("the safetensors header: {0}")]
    Header(String),
    #[error("the tensor `{name}`: {why}")]
    Tensor { name: String, why: String },
    #[error("config.json: {0}")]
    Config(String),
    #[error("vocab.txt, line {line}: {why}")]
    Vocabulary { line: usize, why: String },
}

/// A GGUF in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything before the tensor data.
    pub header: Vec<u8>,
    /// Where each tensor's bytes lie in the weights file, in the order in which they follow the header, each filled up
    /// with zeros to a multiple of [`Plan::ALIGNMENT`].
    pub tensors: Vec<Range<u64>>,
}

impl Plan {
    /// Bytes.
    pub const ALIGNMENT: u64 = crate::gguf::write::ALIGNMENT as u64;

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        let padded = |range: &Range<u64>| (range.end - range.start).next_multiple_of(Self::ALIGNMENT);
        self.header.len() as u64 + self.tensors.iter().map(padded).sum::<u64>()
    }

    /// Hands the file to `take`, piece by piece; `read` fills its buffer from an offset of the weights file.
    ///
    /// # Errors
    /// The first one of `read` or `take`.
    pub fn write<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        const PIECE_BYTES: usize = 1024 * 1024;
        take(&self.header)?;
        let mut buffer = vec![0; PIECE_BYTES];
        for range in &self.tensors {
            let mut at = range.start;
            while at < range.end {
                let count = usize::try_from(range.end - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
                read(at, &mut buffer[..count])?;
                take(&buffer[..count])?;
                at += count as u64;
            }
            let length = range.end - range.start;
            let padding = (length.next_multiple_of(Self::ALIGNMENT) - length) as usize;
            take(&[0; Self::ALIGNMENT as usize][..padding])?;
        }
        Ok(())
    }
}

/// Text from a file, fit for an error message: escaped and short.
fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
