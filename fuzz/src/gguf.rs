use opengrid_models::{
    gguf::{Gguf, GgufError, vocabulary_gguf},
    slice,
};
use opengrid_protocol::{Layers, ModelRoot};

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
/// to the same metadata, slices that take bytes of the file alone and parse.
fn check(gguf: &Gguf<'_>, data: &[u8]) {
    check_slices(gguf);
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

fn check_slices(gguf: &Gguf<'_>) {
    let layers = gguf.info().map_or(0, |info| u32::try_from(info.block_count).unwrap_or(u32::MAX));
    let cuts = [(0, 1), (layers / 2, layers), (0, layers)];
    for layers in cuts.into_iter().filter_map(|(from, to)| Layers::new(from, to).ok()) {
        let Ok(plan) = slice::plan(gguf, ModelRoot([0; 32]), layers) else { continue };
        assert!(plan.source_ranges().iter().all(|range| range.start < range.end && range.end <= gguf.file_size()));
        let slice = Gguf::parse(&plan.file.header, plan.file.size()).expect("a slice is a gguf");
        assert_eq!(slice.data_offset(), plan.file.header.len() as u64);
        slice.info().expect("of a model");
    }
}
