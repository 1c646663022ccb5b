//! What a model file says about itself, in the words of people and schedulers.

use serde::Serialize;

use super::{Gguf, GgufError, Value, file_type_name};
use crate::catalogue::Task;

/// Most layers whose heads are looked at one by one.
const LAYERS_MAX: u64 = 4_096;
const F16_BYTES: u64 = 2;

/// The facts of one model file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// `llama`, `qwen2`, … (`general.architecture`).
    pub architecture: String,
    pub task: Task,
    pub name: Option<String>,
    pub licence: Option<String>,
    /// Tokens that the model was trained to hold.
    pub context_length: u64,
    /// Layers.
    pub block_count: u64,
    pub embedding_length: u64,
    /// Entries of the vocabulary.
    pub tokens: u64,
    /// `gpt2` (BPE), `llama` (SentencePiece), …
    pub tokenizer: Option<String>,
    pub bos_token: Option<u64>,
    pub eos_token: Option<u64>,
    /// Whether prompts get a BOS in front, where the file says.
    pub add_bos: Option<bool>,
    /// The Jinja template of chats.
    #[serde(skip)]
    pub chat_template: Option<String>,
    /// `Q4_1`, `Q4_K_M`, …; of the file type where it is given, else of the type that takes most bytes.
    pub quantisation: String,
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of keys and values that one token takes in an F16 cache, over all layers.
    pub kv_bytes_per_token: u64,
    pub file_bytes: u64,
}

pub(super) fn collect(gguf: &Gguf<'_>) -> Result<ModelInfo, GgufError> {
    refuse_splits(gguf)?;
    let architecture = text(gguf, "general.architecture")?
        .filter(|name| !name.is_empty())
        .ok_or_else(|| missing("general.architecture"))?;
    let of_arch = |key: &str| format!("{architecture}.{key}");
    let block_count = required(gguf, &of_arch("block_count"))?;
    if block_count > LAYERS_MAX {
        let what = of_arch("block_count");
        return Err(GgufError::OverLimit { what, offset: 0, count: block_count, limit: LAYERS_MAX });
    }
    let embedding_length = required(gguf, &of_arch("embedding_length"))?;
    Ok(ModelInfo {
        task: task(gguf, &architecture)?,
        name: text(gguf, "general.name")?,
        licence: text(gguf, "general.license")?,
        context_length: required(gguf, &of_arch("context_length"))?,
        block_count,
        embedding_length,
        tokens: gguf.get("tokenizer.ggml.tokens").and_then(|value| value.as_array()).map_or(0, |array| array.len()),
        tokenizer: text(gguf, "tokenizer.ggml.model")?,
        bos_token: number(gguf, "tokenizer.ggml.bos_token_id")?,
        eos_token: number(gguf, "tokenizer.ggml.eos_token_id")?,
        add_bos: gguf.get("tokenizer.ggml.add_bos_token").and_then(|value| value.as_bool()),
        chat_template: text(gguf, "tokenizer.chat_template")?,
        quantisation: quantisation(gguf)?,
        parameters: sum(gguf.tensors().iter().map(|tensor| tensor.elements)),
        weight_bytes: sum(gguf.tensors().iter().map(|tensor| tensor.bytes)),
        kv_bytes_per_token: kv_bytes_per_token(gguf, &architecture, block_count, embedding_length)?,
        file_bytes: gguf.file_size(),
        architecture,
    })
}

/// Encoders look both ways and say how their outputs become one vector (`llama_pooling_type`: mean, cls, last).
fn task(gguf: &Gguf<'_>, architecture: &str) -> Result<Task, GgufError> {
    let pools = matches!(number(gguf, &format!("{architecture}.pooling_type"))?, Some(1..=3));
    let causal = gguf.get(&format!("{architecture}.attention.causal")).and_then(|value| value.as_bool());
    Ok(if pools && causal == Some(false) { Task::Embedding } else { Task::Generation })
}

fn refuse_splits(gguf: &Gguf<'_>) -> Result<(), GgufError> {
    match number(gguf, "split.count")? {
        Some(count) if count > 1 => {
            let why = format!("this is one of {count} parts; join them with `llama-gguf-split --merge` first");
            Err(GgufError::Invalid { what: "split.count".into(), offset: 0, why })
        }
        _ => Ok(()),
    }
}

fn quantisation(gguf: &Gguf<'_>) -> Result<String, GgufError> {
    if let Some(name) = number(gguf, "general.file_type")?.and_then(file_type_name).filter(|name| *name != "guessed") {
        return Ok(name.to_owned());
    }
    let mut by_type = std::collections::BTreeMap::<&str, u64>::new();
    for tensor in gguf.tensors() {
        let bytes = by_type.entry(tensor.kind.name).or_default();
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    let largest = by_type.iter().max_by_key(|(_, bytes)| **bytes);
    Ok(largest.map_or_else(|| "none".to_owned(), |(name, _)| (*name).to_owned()))
}

/// Sum over layers of key-value heads times the lengths of a key and a value. Heads may be given per layer.
fn kv_bytes_per_token(gguf: &Gguf<'_>, arch: &str, layers: u64, embedding: u64) -> Result<u64, GgufError> {
    let heads = per_layer(gguf, &format!("{arch}.attention.head_count"), layers)?;
    let Some(heads) = heads else { return Ok(0) };
    let kv_heads =
        per_layer(gguf, &format!("{arch}.attention.head_count_kv"), layers)?.unwrap_or_else(|| heads.clone());
    let key_length = number(gguf, &format!("{arch}.attention.key_length"))?;
    let value_length = number(gguf, &format!("{arch}.attention.value_length"))?;
    Ok(sum(heads.iter().zip(&kv_heads).map(|(heads, kv_heads)| {
        let default = embedding.checked_div(*heads).unwrap_or(0);
        let lengths = key_length.unwrap_or(default).saturating_add(value_length.unwrap_or(default));
        kv_heads.saturating_mul(lengths).saturating_mul(F16_BYTES)
    })))
}

/// One number for all layers or an array with one for each.
fn per_layer(gguf: &Gguf<'_>, key: &str, layers: u64) -> Result<Option<Vec<u64>>, GgufError> {
    let Some(value) = gguf.get(key) else { return Ok(None) };
    let wrong =
        || GgufError::WrongType { key: key.to_owned(), expected: "number or one per layer", found: value.type_name() };
    if let Some(number) = value.as_u64() {
        return Ok(Some(vec![number; layers as usize]));
    }
    let array = value.as_array().filter(|array| array.len() >= layers).ok_or_else(wrong)?;
    let numbers: Option<Vec<u64>> = array.iter().take(layers as usize).map(|element| element.as_u64()).collect();
    numbers.map(Some).ok_or_else(wrong)
}

fn text(gguf: &Gguf<'_>, key: &str) -> Result<Option<String>, GgufError> {
    typed(gguf, key, "utf-8 string", |value| value.as_str().map(str::to_owned))
}

fn number(gguf: &Gguf<'_>, key: &str) -> Result<Option<u64>, GgufError> {
    typed(gguf, key, "number that is not negative", |value| value.as_u64())
}

fn required(gguf: &Gguf<'_>, key: &str) -> Result<u64, GgufError> {
    number(gguf, key)?.ok_or_else(|| missing(key))
}

fn typed<T>(
    gguf: &Gguf<'_>,
    key: &str,
    expected: &'static str,
    convert: impl Fn(&Value<'_>) -> Option<T>,
) -> Result<Option<T>, GgufError> {
    let Some(value) = gguf.get(key) else { return Ok(None) };
    let wrong = || GgufError::WrongType { key: super::printable(key), expected, found: value.type_name() };
    convert(&value).ok_or_else(wrong).map(Some)
}

fn missing(key: &str) -> GgufError {
    GgufError::Missing { key: super::printable(key) }
}

fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
