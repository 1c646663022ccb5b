//! The sizes of a BERT encoder, from the `config.json` beside its weights.

use serde::Deserialize;

use super::{ConvertError, limits};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    pub model_type: String,
    pub hidden_act: String,
    position_embedding_type: Option<String>,
    pub hidden_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    pub intermediate_size: u32,
    pub max_position_embeddings: u32,
    pub type_vocab_size: u32,
    pub vocab_size: u32,
    pub layer_norm_eps: f32,
}

impl Config {
    /// # Errors
    /// It is no configuration of a BERT encoder that llama.cpp computes.
    pub(super) fn parse(json: &[u8]) -> Result<Self, ConvertError> {
        if json.len() as u64 > limits::CONFIG_BYTES_MAX {
            return Err(ConvertError::Config(format!("over {} bytes", limits::CONFIG_BYTES_MAX)));
        }
        let config: Self = serde_json::from_slice(json).map_err(|error| ConvertError::Config(error.to_string()))?;
        let width = |size: u32| (1..=limits::WIDTH_MAX).contains(&size);
        let absolute = |kind: &String| kind == "absolute";
        let rules = [
            (config.model_type == "bert", "`model_type` is not \"bert\""),
            (config.hidden_act == "gelu", "`hidden_act` is not \"gelu\""),
            (config.position_embedding_type.as_ref().is_none_or(absolute), "positions are not absolute"),
            (width(config.hidden_size), "`hidden_size` is out of range"),
            ((1..=limits::LAYERS_MAX).contains(&config.num_hidden_layers), "`num_hidden_layers` is out of range"),
            (width(config.num_attention_heads), "`num_attention_heads` is out of range"),
            (
                config.hidden_size.is_multiple_of(config.num_attention_heads.max(1)),
                "`hidden_size` is no multiple of `num_attention_heads`",
            ),
            (width(config.intermediate_size), "`intermediate_size` is out of range"),
            (width(config.max_position_embeddings), "`max_position_embeddings` is out of range"),
            (width(config.type_vocab_size), "`type_vocab_size` is out of range"),
            (width(config.vocab_size), "`vocab_size` is out of range"),
            (config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0, "`layer_norm_eps` is out of range"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, why)) => Err(ConvertError::Config((*why).to_owned())),
            None => Ok(config),
        }
    }
}
