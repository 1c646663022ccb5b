//! Weights in the form that their authors publish, made into GGUF. Pure: a [`Plan`](crate::gguf::Plan) says
//! which bytes of which file come where, somebody else copies them. Equal input, equal bytes, so that the catalogue can pin the root of the result.

mod bert;
mod config;
mod safetensors;
mod vocabulary;

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

/// Text from a file, fit for an error message: escaped and short.
fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
