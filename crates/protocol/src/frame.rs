//! Frames on a byte stream: the length of the body (4 bytes, little-endian), then the body.

/// Bytes before each body.
pub const HEADER_BYTES: usize = 4;

/// Why a byte stream holds no further frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    #[error("a frame of {size} bytes is over the limit of {limit}")]
    TooLarge { size: u64, limit: usize },
}

/// The frame around `body`.
///
/// # Errors
/// When the body is over `limit`, or over 2^32 - 1 bytes.
pub fn encode(body: &[u8], limit: usize) -> Result<Vec<u8>, FrameError> {
    let too_large = FrameError::TooLarge { size: body.len() as u64, limit };
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= limit).ok_or(too_large)?;
    Ok([&length.to_le_bytes(), body].concat())
}

/// The length of the body that follows `header`.
///
/// # Errors
/// When it is over `limit`.
pub fn body_bytes(header: [u8; HEADER_BYTES], limit: usize) -> Result<usize, FrameError> {
    let size = u32::from_le_bytes(header);
    usize::try_from(size).ok().filter(|size| *size <= limit).ok_or(FrameError::TooLarge { size: size.into(), limit })
}

/// Cuts a byte stream, in whatever pieces it comes, into frames. Holds what was pushed and not yet returned: push
/// what one read gives, then take all frames, and it holds less than one frame and one read.
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that were returned already.
    taken: usize,
    /// A length over the limit came: where the next frame starts is unknown from then on.
    broken: Option<u64>,
}

impl FrameDecoder {
    /// `limit` is the largest body in bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, buffer: Vec::new(), taken: 0, broken: None }
    }

    /// Adds bytes of the stream. After an error they are ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's body, `None` until more bytes come.
    ///
    /// # Errors
    /// A length over the limit, as soon as its 4 bytes are there and before anything is reserved for it; the same
    /// error ever after.
    #[allow(clippy::should_implement_trait, reason = "a stream that is not done is no iterator's end")]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        if let Some(size) = self.broken {
            return Err(FrameError::TooLarge { size, limit: self.limit });
        }
        let Some((header, rest)) = self.buffer[self.taken..].split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let size = match body_bytes(*header, self.limit) {
            Ok(size) => size,
            Err(error) => {
                self.broken = Some(u32::from_le_bytes(*header).into());
                self.buffer = Vec::new();
                self.taken = 0;
                return Err(error);
            }
        };
        let Some(body) = rest.get(..size).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.taken += HEADER_BYTES + size;
        Ok(Some(body))
    }

    /// Whether the stream may end here, that is, between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.broken.is_none() && self.taken == self.buffer.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut FrameDecoder) -> Result<Vec<Vec<u8>>, FrameError> {
        std::iter::from_fn(|| decoder.next().transpose()).collect()
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            pieces in prop::collection::vec(1usize..30, 1..50),
        ) {
            let stream = bodies.iter().map(|body| encode(body, 40).unwrap()).collect::<Vec<_>>().concat();
            let mut decoder = FrameDecoder::new(40);
            let (mut found, mut rest) = (vec![], stream.as_slice());
            for size in pieces.iter().cycle() {
                let (piece, later) = rest.split_at((*size).min(rest.len()));
                decoder.push(piece);
                found.extend(all(&mut decoder).unwrap());
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(decoder.is_between_frames());
            prop_assert_eq!(found, bodies);
        }

        #[test]
        fn lengths_over_the_limit_are_refused_at_once_and_for_good(size in 41u32.., before in 0usize..3) {
            let mut decoder = FrameDecoder::new(40);
            for _ in 0..before {
                decoder.push(&encode(b"fine", 40).unwrap());
            }
            decoder.push(&size.to_le_bytes());
            let error = FrameError::TooLarge { size: size.into(), limit: 40 };
            for _ in 0..before {
                prop_assert_eq!(decoder.next(), Ok(Some(b"fine".to_vec())));
            }
            prop_assert_eq!(decoder.next(), Err(error));
            decoder.push(&encode(b"fine", 40).unwrap());
            prop_assert!(decoder.next().is_err() && decoder.buffer.capacity() == 0);
            prop_assert!(!decoder.is_between_frames());
        }
    }

    #[test]
    fn a_promised_body_reserves_nothing_before_it_comes() {
        let mut decoder = FrameDecoder::new(u32::MAX as usize);
        decoder.push(&u32::MAX.to_le_bytes());
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.buffer.capacity() < 64 && !decoder.is_between_frames());
    }

    #[test]
    fn bodies_over_the_limit_are_not_encoded() {
        assert_eq!(encode(&[0; 41], 40), Err(FrameError::TooLarge { size: 41, limit: 40 }));
        assert_eq!(encode(&[], 0), Ok(vec![0; 4]));
    }
}
