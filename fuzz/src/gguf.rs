use opengrid_models::gguf::{Gguf, GgufError, vocabulary_gguf};

/// The bytes as a whole file, and as the beginning of a longer one.
pub fn gguf(data: &[u8]) {
    let size = data.len() as u64;
    let whole = Gguf::parse(data, size);
    assert!(!matches!(whole, Err(GgufError::HeaderIncomplete { .. })), "a whole file is truncated, not incomplete");
    if let Ok(gguf) = whole {
        check(&gguf, data);
    }
    match Gguf::parse(data, size + (1 << 30)) {
        Ok(gguf) => check(&gguf, data),
        Err(GgufError::HeaderIncomplete { needed, have }) => assert!(have == size && needed > have),
        Err(_) => {}
    }
}

/// What parses keeps its promises: tensors inside the file, arrays as long as they say, a vocabulary part that parses
/// to the same metadata.
fn check(gguf: &Gguf<'_>, data: &[u8]) {
    let _ = gguf.info();
    for tensor in gguf.tensors() {
        assert!(gguf.data_offset() + tensor.offset + tensor.bytes <= gguf.file_size());
    }
    for array in gguf.metadata().iter().filter_map(|(_, value)| value.as_array()) {
        assert_eq!(array.iter().count() as u64, array.len());
    }
    let part = vocabulary_gguf(data, gguf.file_size()).expect("what parses has a vocabulary part");
    let vocabulary = Gguf::parse(&part, part.len() as u64).expect("a vocabulary part parses");
    assert!(vocabulary.tensors().is_empty());
    let keys = |gguf: &Gguf<'_>| gguf.metadata().iter().map(|(key, _)| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&vocabulary), keys(gguf));
}
