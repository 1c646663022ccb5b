//! The keys of a slice.

use opengrid_protocol::{Layers, ModelRoot};

use super::{RECIPE, SliceError, architecture::Rules};
use crate::gguf::{Gguf, Value, ValueType, write::Writer};

/// Rows of the token table of a slice without a vocabulary: llama.cpp's head over it costs next to nothing.
pub(super) const NO_VOCABULARY_ROWS: u32 = 32;

/// The keys in the model's order, changed where the cut demands it, and behind them what the slice is.
pub(super) fn write(
    gguf: &Gguf<'_>,
    rules: &Rules,
    root: ModelRoot,
    layers: Layers,
    is_last: bool,
) -> Result<Writer, SliceError> {
    let key = |name: &str| format!("{}.{name}", rules.architecture);
    let (block_count, vocab_size) = (key("block_count"), key("vocab_size"));
    let (pattern, window) = (key("attention.sliding_window_pattern"), key("attention.sliding_window"));
    let sliding = rules.sliding.as_deref().map(|sliding| cut(sliding, layers));
    // Without a layer that slides, llama.cpp takes a window for a mistake and aborts.
    let no_window = sliding.is_some_and(|sliding| !sliding.contains(&true));
    let mut writer = Writer::new();
    for (name, value) in gguf.metadata() {
        let no_vocabulary = !is_last && (name.starts_with("tokenizer.") || *name == vocab_size);
        // The slice has the alignment of its writer.
        let is_rewritten =
            *name == block_count || (*name == pattern && sliding.is_some()) || (*name == window && no_window);
        if no_vocabulary || is_rewritten || *name == "general.alignment" {
            continue;
        }
        writer = copy(writer, rules, name, value, layers)?;
    }
    writer = writer.u32(&block_count, layers.count());
    if let Some(sliding) = sliding.filter(|_| !no_window) {
        writer = writer.bools(&pattern, sliding);
    }
    if !is_last {
        writer = writer.string("tokenizer.ggml.model", "no_vocab").u32(&vocab_size, NO_VOCABULARY_ROWS);
    }
    Ok(writer
        .string("opengrid.slice.model", &root.to_string())
        .u32("opengrid.slice.from", layers.from())
        .u32("opengrid.slice.to", layers.to())
        .u32("opengrid.slice.of", rules.layers)
        .u32("opengrid.slice.recipe", RECIPE))
}

/// The entries of the slice's layers.
fn cut<T>(list: &[T], layers: Layers) -> &[T] {
    list.get(layers.from() as usize..layers.to() as usize).unwrap_or_default()
}

/// A list under the architecture's name has an entry for each layer.
fn copy(writer: Writer, rules: &Rules, name: &str, value: &Value<'_>, layers: Layers) -> Result<Writer, SliceError> {
    let is_of_architecture = name.strip_prefix(rules.architecture.as_str()).is_some_and(|rest| rest.starts_with('.'));
    let Value::Array(list) = value else {
        let (kind, bytes) = value.encoded();
        return Ok(writer.entry(name, kind, &bytes));
    };
    if !is_of_architecture {
        let (kind, bytes) = value.encoded();
        return Ok(writer.entry(name, kind, &bytes));
    }
    if list.len() != u64::from(rules.layers) {
        let why = format!("the list `{name}` has {} entries for {} layers", list.len(), rules.layers);
        return Err(SliceError::Unproven(why));
    }
    let cut = list.iter().skip(layers.from() as usize).take(layers.count() as usize);
    let elements: Vec<u8> = cut.flat_map(|element| element.encoded().1).collect();
    let head = [&(list.kind() as u32).to_le_bytes()[..], &u64::from(layers.count()).to_le_bytes(), &elements].concat();
    Ok(writer.entry(name, ValueType::Array, &head))
}
