//! Slices: contiguous layers of a model as a GGUF of their own, which stock llama.cpp loads and computes to the bit as
//! it computes them in the whole model (`SLICES.md`, "Proven by a spike"; ADR 0014).
//!
//! The slice of a model and a range of layers is a function of the model's file: anybody can make it again from the
//! file's bytes. Which of them are needed says [`SlicePlan::source_ranges`]; nobody has to hold the others.
//!
//! - Layer `i + k` of the model is layer `k` of the slice; lists with an entry for each layer are cut.
//! - Every slice but the last has no vocabulary, no head, and a token table of 32 rows of zeros.
//! - Rows come in as embeddings. Those of tokens are looked up by [`SlicePlan::embedding`], beside llama.cpp.
//!
//! A slice that llama.cpp loads may still be wrong: rules that depend on a layer's number or on their count know nothing
//! of a cut. So only what [`architecture`] lists is cut, and each entry of that list is proven by the parity tests of
//! the `engine` crate. Pure.

mod architecture;
mod metadata;
mod plan;

pub use architecture::ARCHITECTURES;
pub use plan::{Embedding, Outline, SlicePlan, outline, plan};

use crate::gguf::GgufError;

/// Named in every slice and in what nodes say of theirs: raise it when [`plan`] makes other bytes.
pub const RECIPE: u32 = 1;

/// Why a model is not cut, or not so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(
        "models of the architecture `{0}` are not cut into slices: no test has shown that the parts compute what the \
         whole does. Serve it whole (these are cut: {list})",
        list = ARCHITECTURES.join(", ")
    )]
    Architecture(String),
    #[error("this model is not cut into slices: {0}. Serve it whole")]
    Unproven(String),
    #[error("the model has {count} layers, there are no layers {from}..{to}")]
    NoSuchLayers { from: u32, to: u32, count: u32 },
}

#[cfg(test)]
mod tests;
