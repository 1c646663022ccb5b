//! BERT encoders with mean pooling, as the sentence-transformers publish them. Keys and names of tensors are those of
//! llama.cpp's own converter; weights stay F32, so the result computes what the original does.

use std::collections::BTreeSet;

use super::{ConvertError, Header, config::Config, printable, vocabulary::Vocabulary};
use crate::gguf::{Piece, Plan, write::Writer};

/// ggml's number of F32, and `general.file_type` of a file that has nothing else.
const F32: u32 = 0;
/// `LLAMA_POOLING_TYPE_MEAN`.
const POOLING_MEAN: u32 = 1;
/// Neither part of a sentence's embedding nor known to llama.cpp.
const LEFT_OUT: [&str; 3] = ["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"];

/// The GGUF of a model, from the header of its `model.safetensors`, its `config.json` and its `vocab.txt`.
///
/// # Errors
/// What is wrong with one of the three, or that they do not fit together.
pub fn plan(weights: &Header, config: &[u8], vocabulary: &[u8]) -> Result<Plan, ConvertError> {
    let config = Config::parse(config)?;
    let vocabulary = Vocabulary::parse(vocabulary)?;
    if vocabulary.tokens.len() != config.vocab_size as usize {
        let why = format!("{} tokens, config.json says {}", vocabulary.tokens.len(), config.vocab_size);
        return Err(ConvertError::Vocabulary { line: vocabulary.tokens.len(), why });
    }
    let mut layout = Layout { weights, writer: metadata(&config, &vocabulary), pieces: Vec::new() };
    let mut used = BTreeSet::from(LEFT_OUT.map(str::to_owned));
    for (source, target, shape) in tensors(&config) {
        layout.add(&source, &target, &shape)?;
        used.insert(source);
    }
    match weights.names().find(|name| !used.contains(*name)) {
        Some(name) => Err(tensor(name, "no BERT encoder has it".into())),
        None => Ok(Plan { header: layout.writer.finish(), pieces: layout.pieces }),
    }
}

struct Layout<'a> {
    weights: &'a Header,
    writer: Writer,
    pieces: Vec<Piece>,
}

impl Layout<'_> {
    fn add(&mut self, source: &str, target: &str, shape: &[u32]) -> Result<(), ConvertError> {
        let found = self.weights.get(source).ok_or_else(|| tensor(source, "it is missing".into()))?;
        if found.dtype != "F32" {
            return Err(tensor(source, format!("it is {}, only F32 is converted", found.dtype)));
        }
        if !found.shape.iter().copied().eq(shape.iter().map(|size| u64::from(*size))) {
            return Err(tensor(source, format!("it has the shape {:?}, config.json wants {shape:?}", found.shape)));
        }
        // ggml counts the fastest dimension first.
        let dimensions: Vec<u64> = found.shape.iter().rev().copied().collect();
        let bytes = found.range.end - found.range.start;
        self.writer = std::mem::take(&mut self.writer).tensor_apart(target, &dimensions, F32, bytes);
        self.pieces.push(Piece::Copy(found.range.clone()));
        Ok(())
    }
}

fn tensor(name: &str, why: String) -> ConvertError {
    ConvertError::Tensor { name: printable(name), why }
}

fn metadata(config: &Config, vocabulary: &Vocabulary) -> Writer {
    let [unknown, cls, sep, pad, mask] = vocabulary.special;
    Writer::new()
        .string("general.architecture", "bert")
        .string("general.type", "model")
        .u32("general.file_type", F32)
        .u32("bert.block_count", config.num_hidden_layers)
        .u32("bert.context_length", config.max_position_embeddings)
        .u32("bert.embedding_length", config.hidden_size)
        .u32("bert.feed_forward_length", config.intermediate_size)
        .u32("bert.attention.head_count", config.num_attention_heads)
        .f32("bert.attention.layer_norm_epsilon", config.layer_norm_eps)
        .bool("bert.attention.causal", false)
        .u32("bert.pooling_type", POOLING_MEAN)
        .u32("tokenizer.ggml.token_type_count", config.type_vocab_size)
        .string("tokenizer.ggml.model", "bert")
        .strings("tokenizer.ggml.tokens", &vocabulary.tokens)
        .i32s("tokenizer.ggml.token_type", &vocabulary.types)
        .u32("tokenizer.ggml.bos_token_id", cls)
        .u32("tokenizer.ggml.eos_token_id", sep)
        .u32("tokenizer.ggml.unknown_token_id", unknown)
        // The key has this spelling.
        .u32("tokenizer.ggml.seperator_token_id", sep)
        .u32("tokenizer.ggml.padding_token_id", pad)
        .u32("tokenizer.ggml.cls_token_id", cls)
        .u32("tokenizer.ggml.mask_token_id", mask)
        .bool("tokenizer.ggml.add_bos_token", true)
        .bool("tokenizer.ggml.add_eos_token", true)
}

type Row = (String, String, Vec<u32>);

/// Name there, name here and shape (slowest dimension first) of every tensor, in the order of the file.
fn tensors(config: &Config) -> Vec<Row> {
    let width = config.hidden_size;
    let mut rows = vec![
        row("embeddings.word_embeddings.weight", "token_embd.weight", &[config.vocab_size, width]),
        row("embeddings.token_type_embeddings.weight", "token_types.weight", &[config.type_vocab_size, width]),
        row("embeddings.position_embeddings.weight", "position_embd.weight", &[config.max_position_embeddings, width]),
    ];
    rows.extend(both("embeddings.LayerNorm", "token_embd_norm", &[width]));
    for layer in 0..config.num_hidden_layers {
        rows.extend(layer_tensors(layer, width, config.intermediate_size));
    }
    rows
}

fn layer_tensors(layer: u32, width: u32, inner: u32) -> impl Iterator<Item = Row> {
    let parts: [(&str, &str, Vec<u32>); 8] = [
        ("attention.self.query", "attn_q", vec![width, width]),
        ("attention.self.key", "attn_k", vec![width, width]),
        ("attention.self.value", "attn_v", vec![width, width]),
        ("attention.output.dense", "attn_output", vec![width, width]),
        ("attention.output.LayerNorm", "attn_output_norm", vec![width]),
        ("intermediate.dense", "ffn_up", vec![inner, width]),
        ("output.dense", "ffn_down", vec![width, inner]),
        ("output.LayerNorm", "layer_output_norm", vec![width]),
    ];
    parts.into_iter().flat_map(move |(source, target, shape)| {
        both(&format!("encoder.layer.{layer}.{source}"), &format!("blk.{layer}.{target}"), &shape)
    })
}

/// A weight and its bias, which is as long as the weight's slowest dimension.
fn both(source: &str, target: &str, shape: &[u32]) -> [Row; 2] {
    [
        row(&format!("{source}.weight"), &format!("{target}.weight"), shape),
        row(&format!("{source}.bias"), &format!("{target}.bias"), &shape[..1]),
    ]
}

fn row(source: &str, target: &str, shape: &[u32]) -> Row {
    (source.to_owned(), target.to_owned(), shape.to_vec())
}
