use opengrid_protocol::frame::{self, FrameDecoder, FrameError};

const LIMIT: usize = 300;

/// The first byte says in what pieces the rest comes; the frames are the same as when it comes at once, and they
/// encode to what came.
pub fn frames(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let (found, end) = decode(stream.chunks(usize::from(*piece).max(1)));
    let at_once = decode(std::iter::once(stream));
    assert_eq!((&found, &end), (&at_once.0, &at_once.1));
    let encoded: Vec<u8> =
        found.iter().flat_map(|body| frame::encode(body, LIMIT).expect("within the limit")).collect();
    assert!(stream.starts_with(&encoded));
    let rest = &stream[encoded.len()..];
    match rest.first_chunk().map(|header| u32::from_le_bytes(*header)) {
        None => assert_eq!(end, Ok(rest.is_empty())),
        Some(size) if size as usize > LIMIT => {
            assert_eq!(end, Err(FrameError::TooLarge { size: size.into(), limit: LIMIT }));
        }
        Some(size) => {
            assert!(rest.len() < frame::HEADER_BYTES + size as usize, "a whole frame was left");
            assert_eq!(end, Ok(false));
        }
    }
}

/// The frames, and whether the stream may end there.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Result<bool, FrameError>) {
    let (mut decoder, mut found) = (FrameDecoder::new(LIMIT), vec![]);
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(body)) => found.push(body),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
    }
    let ended = decoder.is_between_frames();
    (found, Ok(ended))
}
