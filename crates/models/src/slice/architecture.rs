//! Which models may be cut. The list is earned: the `engine`'s `parity_tests` compare every cut of a model of each
//! architecture with the whole, to the bit. What the sources of llama.cpp 0.1.161 (`src/models/*.cpp`) say of an
//! architecture stands beside its rules.

use super::SliceError;
use crate::gguf::{Gguf, Value};

/// Architectures (`general.architecture`) that are cut.
pub const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "phi3"];

/// Keys under `<architecture>.` that may stay in a slice as they are, or whose list is cut. A key outside this list may
/// be one whose meaning depends on a layer's number in the whole model.
const KEYS: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// Tensors outside the layers that may occur. The last three belong to every layer.
pub(super) const TOKEN_TABLE: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";
const GLOBAL_TENSORS: &[&str] = &[
    TOKEN_TABLE,
    HEAD,
    "output_norm.weight",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// gemma3 with so many layers is the 27B model, whose attention has another scale that no key tells.
const GEMMA3_27B_LAYERS: u32 = 62;
/// gemma3: of so many layers one sees all, unless the file says otherwise.
const GEMMA3_PERIOD: u32 = 6;

/// How one model is cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rules {
    pub architecture: String,
    pub layers: u32,
    /// Width of a row.
    pub width: u64,
    /// By layer: whether it sees its window only. `None` where no layer's number decides.
    pub sliding: Option<Vec<bool>>,
    /// What the rows of tokens are multiplied with before the first layer.
    pub embedding_scale: f32,
}

impl Rules {
    /// # Errors
    /// Why no cut of this model is known to be right.
    pub fn of(gguf: &Gguf<'_>) -> Result<Self, SliceError> {
        let info = gguf.info()?;
        let architecture = info.architecture;
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(SliceError::Architecture(architecture));
        }
        check_keys(gguf, &architecture)?;
        check_tensors(gguf)?;
        let layers = u32::try_from(info.block_count).unwrap_or(u32::MAX);
        let width = info.embedding_length;
        let is_gemma = architecture == "gemma3";
        if is_gemma && layers >= GEMMA3_27B_LAYERS {
            let why = "its number of layers decides about the scale of its attention";
            return Err(SliceError::Unproven(why.to_owned()));
        }
        let sliding = if is_gemma { gemma3_sliding(gguf, layers)? } else { None };
        // llama.cpp multiplies the rows of tokens, and no others, with `sqrtf` of the width.
        let embedding_scale = if is_gemma { (width as f32).sqrt() } else { 1.0 };
        Ok(Self { architecture, layers, width, sliding, embedding_scale })
    }
}

fn check_keys(gguf: &Gguf<'_>, architecture: &str) -> Result<(), SliceError> {
    for (key, _) in gguf.metadata() {
        let Some(name) = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.')) else { continue };
        if !KEYS.contains(&name) {
            let name: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            return Err(SliceError::Unproven(format!("what `{architecture}.{name}` means for a part is not known")));
        }
    }
    Ok(())
}

fn check_tensors(gguf: &Gguf<'_>) -> Result<(), SliceError> {
    let unknown = |name: &&str| layer_of(name).is_none() && !GLOBAL_TENSORS.contains(name);
    match gguf.tensors().iter().map(|tensor| tensor.name).find(unknown) {
        Some(name) => {
            let name: String = name.chars().flat_map(char::escape_debug).collect();
            Err(SliceError::Unproven(format!("to which part its tensor `{name}` belongs is not known")))
        }
        None => Ok(()),
    }
}

/// The layer of a tensor, and the name of the tensor in it.
pub(super) fn layer_of(name: &str) -> Option<(u32, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number = layer.parse().ok()?;
    // One name only: no `+1`, no `01`.
    (u32::to_string(&number) == layer).then_some((number, rest))
}

/// `load_swa_pattern`: a list by layer, or a period: the last of so many layers sees all.
fn gemma3_sliding(gguf: &Gguf<'_>, layers: u32) -> Result<Option<Vec<bool>>, SliceError> {
    let window = gguf.get("gemma3.attention.sliding_window").and_then(|value| value.as_u64());
    if window.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let unknown = |why: &str| SliceError::Unproven(format!("its `sliding_window_pattern` is {why}"));
    let period = match gguf.get("gemma3.attention.sliding_window_pattern") {
        None => GEMMA3_PERIOD,
        Some(Value::Array(list)) => {
            let sliding = list.iter().map(|entry| entry.as_bool().or(entry.as_u64().map(|number| number != 0)));
            let sliding: Option<Vec<bool>> = sliding.collect();
            let sliding = sliding.filter(|sliding| sliding.len() as u64 == u64::from(layers));
            return sliding.map(Some).ok_or_else(|| unknown("no list with an entry for each layer"));
        }
        Some(value) => value
            .as_u64()
            .and_then(|period| u32::try_from(period).ok())
            .ok_or_else(|| unknown("neither a list nor a number"))?,
    };
    let is_sliding = |layer: u32| period == 0 || layer % period < period - 1;
    Ok(Some((0..layers).map(is_sliding).collect()))
}
