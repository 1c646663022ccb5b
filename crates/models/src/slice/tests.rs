#![allow(clippy::unwrap_used)]

use opengrid_protocol::{Layers, ModelRoot};
use proptest::prelude::*;

use super::*;
use crate::{
    gguf::{Gguf, Value, write::Writer},
    test_support::TinyModel,
};

const ROOT: ModelRoot = ModelRoot([7; 32]);
const LAYERS: u32 = 5;

fn model() -> Vec<u8> {
    TinyModel { layers: LAYERS, ..TinyModel::default() }.to_bytes()
}

fn layers(from: u32, to: u32) -> Layers {
    Layers::new(from, to).unwrap()
}

fn cut(file: &[u8], from: u32, to: u32) -> Result<SlicePlan, SliceError> {
    plan(&Gguf::parse(file, file.len() as u64).unwrap(), ROOT, layers(from, to))
}

fn made(file: &[u8], plan: &SlicePlan) -> Vec<u8> {
    let mut slice = Vec::new();
    let read = |at: u64, buffer: &mut [u8]| {
        buffer.copy_from_slice(&file[at as usize..at as usize + buffer.len()]);
        Ok::<_, std::convert::Infallible>(())
    };
    let Ok(()) = plan.file.write(read, |part| {
        slice.extend_from_slice(part);
        Ok(())
    });
    slice
}

fn data<'f>(file: &'f [u8], name: &str) -> Option<&'f [u8]> {
    let gguf = Gguf::parse(file, file.len() as u64).unwrap();
    let tensor = gguf.tensor(name)?;
    let start = (gguf.data_offset() + tensor.offset) as usize;
    Some(&file[start..start + tensor.bytes as usize])
}

#[test]
fn every_cut_holds_its_layers_under_new_numbers_byte_for_byte() {
    let file = model();
    for (from, to) in (0..LAYERS).flat_map(|from| (from + 1..=LAYERS).map(move |to| (from, to))) {
        let plan = cut(&file, from, to).unwrap();
        let slice = made(&file, &plan);
        assert_eq!(slice.len() as u64, plan.file.size());
        let gguf = Gguf::parse(&slice, slice.len() as u64).unwrap();
        assert_eq!(gguf.get("llama.block_count"), Some(Value::U32(to - from)));
        for part in ["attn_q.weight", "ffn_down.weight", "attn_norm.weight"] {
            for layer in from..to {
                let (old, new) = (format!("blk.{layer}.{part}"), format!("blk.{}.{part}", layer - from));
                assert_eq!(data(&slice, &new), data(&file, &old), "{from}..{to}: {new}");
            }
        }
        assert!(gguf.tensor(&format!("blk.{}.attn_q.weight", to - from)).is_none());
        assert_eq!(data(&slice, "output_norm.weight"), data(&file, "output_norm.weight"));
        assert_eq!((plan.is_first(), plan.is_last()), (from == 0, to == LAYERS));
        assert_eq!(data(&slice, "output.weight"), data(&file, "output.weight").filter(|_| plan.is_last()));
        let is_empty = data(&slice, "token_embd.weight").unwrap().iter().all(|byte| *byte == 0);
        assert!(is_empty, "a table that nobody reads");
        let tokenizer = gguf.get("tokenizer.ggml.model").and_then(|value| value.as_str());
        assert_eq!(tokenizer, Some(if plan.is_last() { "llama" } else { "no_vocab" }));
    }
}

#[test]
fn a_head_that_is_the_token_table_goes_into_the_last_slice() {
    let file = {
        let whole = model();
        let gguf = Gguf::parse(&whole, whole.len() as u64).unwrap();
        let mut writer = Writer::new();
        for (key, value) in gguf.metadata() {
            let (kind, bytes) = value.encoded();
            writer = writer.entry(key, kind, &bytes);
        }
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.name != "output.weight") {
            let dimensions = if tensor.dimensions[1] == 1 { &tensor.dimensions[..1] } else { &tensor.dimensions[..2] };
            writer = writer.tensor(tensor.name, dimensions, tensor.kind.number, data(&whole, tensor.name).unwrap());
        }
        writer.finish()
    };
    let last = made(&file, &cut(&file, 3, LAYERS).unwrap());
    assert_eq!(data(&last, "token_embd.weight"), data(&file, "token_embd.weight"));
    let first = cut(&file, 0, 3).unwrap();
    let table = first.embedding;
    let (start, end) = (table.offset as usize, (table.offset + table.rows * table.row_bytes) as usize);
    assert_eq!(Some(&file[start..end]), data(&file, "token_embd.weight"));
}

#[test]
fn a_slice_is_made_without_the_bytes_of_the_others() {
    let file = model();
    for (from, to) in [(0, 2), (2, 4), (4, 5), (1, 5)] {
        let plan = cut(&file, from, to).unwrap();
        let ranges = plan.source_ranges();
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "ascending and apart: {ranges:?}");
        let mut sparse = vec![0xee; file.len()];
        for range in &ranges {
            let range = range.start as usize..range.end as usize;
            sparse[range.clone()].copy_from_slice(&file[range]);
        }
        assert_eq!(made(&sparse, &plan), made(&file, &plan));
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(bytes < file.len() as u64 * 9 / 10, "{from}..{to} needs {bytes} of {} bytes", file.len());
        let planned_again = super::plan(&Gguf::parse(&sparse, file.len() as u64).unwrap(), ROOT, plan.layers);
        assert_eq!(planned_again.as_ref(), Ok(&plan));
    }
}

fn with(change: impl FnOnce(Writer) -> Writer) -> Vec<u8> {
    let tiny = model();
    let gguf = Gguf::parse(&tiny, tiny.len() as u64).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        let (kind, bytes) = value.encoded();
        writer = writer.entry(key, kind, &bytes);
    }
    change(writer).tensor_f32("token_embd.weight", &[32, 4], &[0.0; 128]).finish()
}

#[test]
fn what_no_test_has_proven_is_refused_in_plain_words() {
    let refused = |file: Vec<u8>| cut(&file, 0, 1).unwrap_err().to_string();
    let key = refused(with(|writer| writer.u32("llama.leading_dense_block_count", 2)));
    assert!(key.contains("leading_dense_block_count") && key.contains("Serve it whole"), "{key}");
    let list = refused(with(|writer| writer.i32s("llama.attention.sliding_window_pattern", &[1, 0, 1])));
    assert!(list.contains("3 entries for 5 layers"), "{list}");
    let tensor = refused(with(|writer| writer.tensor_f32("cls.weight", &[1], &[0.0])));
    assert!(tensor.contains("`cls.weight`"), "{tensor}");
    let layer = refused(with(|writer| writer.tensor_f32("blk.5.attn_q.weight", &[1], &[0.0])));
    assert!(layer.contains("layer 5"), "{layer}");
    let odd = refused(with(|writer| writer.tensor_f32("blk.+1.attn_q.weight", &[1], &[0.0])));
    assert!(odd.contains("blk.+1"), "{odd}");
    let other = Writer::new()
        .string("general.architecture", "gemma2")
        .u32("gemma2.context_length", 8)
        .u32("gemma2.embedding_length", 8)
        .u32("gemma2.block_count", 4);
    let other = refused(other.finish());
    assert!(other.contains("`gemma2`") && other.contains("qwen3"), "{other}");
    let beyond = cut(&model(), 3, 6).unwrap_err();
    assert_eq!(beyond, SliceError::NoSuchLayers { from: 3, to: 6, count: 5 });
}

#[test]
fn lists_by_layer_are_cut() {
    let file = with(|writer| writer.i32s("llama.attention.sliding_window_pattern", &[1, 2, 3, 4, 5]));
    let slice = made(&file, &cut(&file, 1, 3).unwrap());
    let gguf = Gguf::parse(&slice, slice.len() as u64).unwrap();
    let list = gguf.get("llama.attention.sliding_window_pattern").unwrap().as_array().unwrap();
    assert_eq!(list.iter().collect::<Vec<_>>(), [Value::I32(2), Value::I32(3)]);
    assert_eq!(gguf.get("opengrid.slice.from"), Some(Value::U32(1)));
}

proptest! {
    #[test]
    fn damaged_headers_never_make_a_plan_that_reads_outside(at: prop::sample::Index, byte: u8, from in 0_u32..5) {
        let mut file = model();
        let header = Gguf::parse(&file, file.len() as u64).unwrap().data_offset() as usize;
        file[at.index(header)] = byte;
        let Ok(gguf) = Gguf::parse(&file, file.len() as u64) else { return Ok(()) };
        if let Ok(plan) = plan(&gguf, ROOT, layers(from, 5)) {
            prop_assert!(plan.source_ranges().iter().all(|range| range.end <= file.len() as u64));
            let slice = made(&file, &plan);
            prop_assert!(Gguf::parse(&slice, slice.len() as u64).is_ok());
        }
    }
}
