#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::{
    gguf::{Gguf, Piece, Value},
    test_support::TinyBert,
};

fn header_of(weights: &[u8]) -> Result<Header, ConvertError> {
    let size = weights.len() as u64;
    let json = Header::json_bytes(*weights.first_chunk().unwrap(), size)? as usize;
    Header::parse(&weights[LENGTH_BYTES..LENGTH_BYTES + json], size)
}

/// The weights file around `json` and `data`.
fn file(json: &str, data: usize) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn the_gguf_has_every_tensor_byte_for_byte_and_what_llama_cpp_wants_to_know() {
    let bert = TinyBert::new(3);
    let bytes = bert.to_gguf();
    assert_eq!(bytes, bert.to_gguf(), "deterministic");
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    assert_eq!(gguf.tensors().len(), 5 + 2 * 16);
    let source = header_of(&bert.weights).unwrap();
    let pairs = [
        ("encoder.layer.1.output.dense.weight", "blk.1.ffn_down.weight", [48, 32, 1, 1]),
        ("encoder.layer.0.attention.output.LayerNorm.bias", "blk.0.attn_output_norm.bias", [32, 1, 1, 1]),
        ("embeddings.word_embeddings.weight", "token_embd.weight", [32, 57, 1, 1]),
    ];
    for (there, here, dimensions) in pairs {
        let tensor = gguf.tensor(here).unwrap();
        let (start, range) = ((gguf.data_offset() + tensor.offset) as usize, &source.get(there).unwrap().range);
        assert_eq!(tensor.dimensions, dimensions, "{here}");
        assert_eq!(
            bytes[start..start + tensor.bytes as usize],
            bert.weights[range.start as usize..range.end as usize],
            "{here}"
        );
    }
    let info = gguf.info().unwrap();
    assert_eq!((info.architecture.as_str(), info.context_length, info.embedding_length), ("bert", 64, 32));
    assert_eq!((info.bos_token, info.eos_token, info.add_bos), (Some(2), Some(3), Some(true)));
    assert_eq!(gguf.get("bert.pooling_type"), Some(Value::U32(1)));
    assert_eq!(gguf.get("bert.attention.causal"), Some(Value::Bool(false)));
    let tokens = gguf.get("tokenizer.ggml.tokens").unwrap().as_array().unwrap();
    let tokens: Vec<_> = tokens.iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    assert_eq!(tokens[..7], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u{2581}a", "a"]);
}

#[test]
fn a_plan_knows_its_size() {
    let bert = TinyBert::new(1);
    let plan = plan_bert(&header_of(&bert.weights).unwrap(), &bert.config, &bert.vocabulary).unwrap();
    assert_eq!(plan.size(), bert.to_gguf().len() as u64);
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let tensor = |offsets: &str| format!(r#"{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {offsets}}}}}"#);
    let cases = [
        (file("{}", 4), "0 bytes in 4"),
        (file("[]", 0), "object of tensors"),
        (file("{", 0), "EOF"),
        (file(&tensor("[0, 4]"), 4), "do not hold"),
        (file(&tensor("[8, 0]"), 8), "should follow"),
        (file(&tensor("[4, 12]"), 12), "should follow"),
        (file(&tensor("[0, 8]"), 4), "8 bytes in 4"),
        (file(&tensor("[0, 18446744073709551615]"), 4), "bytes of data"),
        (file(&tensor("[0, -1]"), 4), "invalid value"),
        (file(&tensor("[0, 8]").replace("F32", "Q9"), 8), "unknown"),
        (file(&tensor("[0, 8]").replace("[2]", "[4611686018427387904, 2]"), 8), "do not hold"),
        (file(&tensor("[0, 8]").replace("[2]", "[1,1,1,1,1,1,1,1,2]"), 8), "9 dimensions"),
        (file(&format!("{}{}", "[".repeat(200), "]".repeat(200)), 0), "object of tensors"),
        ([u64::MAX.to_le_bytes().to_vec(), vec![0; 20]].concat(), "at most 20"),
    ];
    for (bytes, expected) in cases {
        let error = header_of(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected}");
    }
    let one = r#"{"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}"#;
    let error = header_of(&file(&format!(r#"{{"a": {one}, "a": {one}}}"#), 0)).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn weights_that_do_not_fit_the_config_are_refused_by_name() {
    let bert = TinyBert::new(1);
    let header = header_of(&bert.weights).unwrap();
    let refused = |from: &str, to: &str| {
        let config = String::from_utf8(bert.config.clone()).unwrap();
        assert!(config.contains(from));
        plan_bert(&header, config.replace(from, to).as_bytes(), &bert.vocabulary).unwrap_err().to_string()
    };
    assert!(refused(r#""hidden_size": 32"#, r#""hidden_size": 36"#).contains("has the shape"));
    assert!(refused(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#).contains("layer.2"));
    assert!(refused(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 1"#).contains("no BERT encoder has it"));
    assert!(refused(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 4000000000"#).contains("out of range"));
    assert!(refused(r#""num_attention_heads": 4"#, r#""num_attention_heads": 0"#).contains("out of range"));
    assert!(refused("gelu", "relu").contains("hidden_act"));
    assert!(refused("1e-12", "NaN").contains("config.json"));
    assert!(refused(r#""vocab_size": 57"#, r#""vocab_size": 58"#).contains("57 tokens"));
    assert!(refused(r#""type_vocab_size": 2,"#, "").contains("missing field"));
}

#[test]
fn vocabularies_are_checked_line_by_line() {
    let bert = TinyBert::new(1);
    let header = header_of(&bert.weights).unwrap();
    let refused = |from: &str, to: &str| {
        let vocabulary = String::from_utf8(bert.vocabulary.clone()).unwrap();
        plan_bert(&header, &bert.config, vocabulary.replace(from, to).as_bytes()).unwrap_err().to_string()
    };
    assert!(refused("##b\n", "##a\n").contains("line 9: `##a` is empty, holds a zero or is there twice"));
    assert!(refused("##b\n", "\n").contains("line 9"));
    assert!(refused("[CLS]", "[XYZ]").contains("no line is `[CLS]`"));
    let twice = refused("##b\n", "##\u{2581}c\n");
    assert!(twice.contains("line 10"), "two tokens become the same piece: {twice}");
    assert!(plan_bert(&header, &bert.config, b"\xff").is_err());
    let dos = String::from_utf8(bert.vocabulary.clone()).unwrap().replace('\n', "\r\n");
    let same = plan_bert(&header, &bert.config, &bert.vocabulary);
    assert_eq!(plan_bert(&header, &bert.config, dos.as_bytes()), same, "line ends of another system");
}

proptest! {
    #[test]
    fn no_header_breaks_the_reader(json in "[\\[\\]{}:,\"0-9aF32dtypeshadta_o]{0,200}", size in 0_u64..1_000) {
        let _ = Header::parse(json.as_bytes(), size);
    }

    #[test]
    fn damaged_files_are_errors_or_plans_within_the_file(at in 8_usize..3_000, byte: u8) {
        let mut weights = TinyBert::new(1).weights;
        weights[at] = byte;
        if let Ok(header) = header_of(&weights) {
            let bert = TinyBert::new(1);
            if let Ok(plan) = plan_bert(&header, &bert.config, &bert.vocabulary) {
                prop_assert!(plan.pieces.iter().all(|piece| matches!(piece, Piece::Copy(range) if range.end <= weights.len() as u64)));
            }
        }
    }
}
