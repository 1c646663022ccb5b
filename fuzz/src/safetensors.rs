use opengrid_models::{
    convert::{Header, LENGTH_BYTES, plan_bert},
    gguf::{Gguf, Piece},
};

/// Four parts between zero bytes: the header's JSON, the bytes of data that follow it in decimal digits, `config.json`
/// and `vocab.txt`. What is not refused is a plan that reads inside the file and makes a GGUF that parses.
pub fn safetensors(data: &[u8]) {
    let mut parts = data.splitn(4, |byte| *byte == 0);
    let [json, size, config, vocabulary] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let size: u64 = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let size = size.saturating_add((LENGTH_BYTES + json.len()) as u64);
    if let Some(Ok(bytes)) = data.first_chunk::<LENGTH_BYTES>().map(|length| Header::json_bytes(*length, size)) {
        assert!(bytes + LENGTH_BYTES as u64 <= size, "a header inside the file");
    }
    let Ok(header) = Header::parse(json, size) else { return };
    let Ok(plan) = plan_bert(&header, config, vocabulary) else { return };
    assert_eq!(plan_bert(&header, config, vocabulary).as_ref(), Ok(&plan), "equal input, equal bytes");
    let inside = |piece: &Piece| matches!(piece, Piece::Copy(range) if range.start <= range.end && range.end <= size);
    assert!(plan.pieces.iter().all(inside));
    let gguf = Gguf::parse(&plan.header, plan.size()).expect("what is made is a gguf");
    assert_eq!(gguf.data_offset(), plan.header.len() as u64);
    let places = gguf.tensors().iter().map(|tensor| tensor.bytes);
    assert!(places.eq(plan.pieces.iter().map(Piece::length)));
    gguf.info().expect("of a model");
}
