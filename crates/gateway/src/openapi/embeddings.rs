//! The bodies of `/v1/embeddings`.
#![allow(dead_code, reason = "described, not built")]

use serde::Deserialize;
use utoipa::ToSchema;

use super::generation::Input;

#[derive(ToSchema, Deserialize)]
#[schema(example = json!({"model": "all-minilm-l6-v2", "input": ["A lighthouse.", "A tower by the sea."]}))]
pub struct EmbeddingRequest {
    model: String,
    /// At most 2048 inputs and 300000 tokens.
    input: Input,
    encoding_format: Option<EncodingFormat>,
    /// Only the model's own number.
    dimensions: Option<i32>,
}

#[derive(ToSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    Float,
    /// Little-endian 32-bit floats.
    Base64,
}

#[derive(ToSchema, Deserialize)]
pub struct EmbeddingList {
    /// `list`
    object: String,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(ToSchema, Deserialize)]
pub struct Embedding {
    /// `embedding`
    object: String,
    index: u32,
    embedding: Vector,
}

/// Of length 1.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(ToSchema, Deserialize)]
pub struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}
