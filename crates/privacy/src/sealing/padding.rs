//! Size buckets: a sealed frame of n bytes holds its length (4 bytes, little-endian), the plaintext, zeros and the tag.

use opengrid_protocol::limits::FRAME_BYTES_MAX;

use super::{SealError, TAG_BYTES};

const LENGTH_BYTES: usize = 4;
const SMALLEST: usize = 64;
/// Up to here buckets are powers of two, then multiples of this.
const STEP: usize = 4 * 1024;

/// Largest plaintext of one frame in bytes.
pub const PLAINTEXT_BYTES_MAX: usize = FRAME_BYTES_MAX - TAG_BYTES - LENGTH_BYTES;

const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(STEP));

/// The size of the sealed frame that carries `plaintext_bytes`: 64, 128, … 4,096, then multiples of 4,096.
pub fn frame_bytes(plaintext_bytes: usize) -> usize {
    bucket(plaintext_bytes.saturating_add(LENGTH_BYTES + TAG_BYTES))
}

fn bucket(bytes: usize) -> usize {
    if bytes <= STEP { bytes.max(SMALLEST).next_power_of_two() } else { bytes.div_ceil(STEP).saturating_mul(STEP) }
}

/// What gets encrypted: padded to its bucket less the tag, with room for the tag.
pub(super) fn pad(plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let size = plaintext.len();
    if size > PLAINTEXT_BYTES_MAX {
        return Err(SealError::TooLarge { size });
    }
    let frame = frame_bytes(size);
    let mut padded = Vec::with_capacity(frame);
    padded.extend_from_slice(&(size as u32).to_le_bytes());
    padded.extend_from_slice(plaintext);
    padded.resize(frame - TAG_BYTES, 0);
    Ok(padded)
}

/// Whether any frame has this size.
pub(super) fn check_frame(size: usize) -> Result<(), SealError> {
    let possible = (SMALLEST..=FRAME_BYTES_MAX).contains(&size) && bucket(size) == size;
    if possible { Ok(()) } else { Err(SealError::FrameSize { size }) }
}

/// The plaintext in a decrypted frame.
pub(super) fn unpad(mut padded: Vec<u8>) -> Result<Vec<u8>, SealError> {
    let (length, rest) = padded.split_first_chunk::<LENGTH_BYTES>().ok_or(SealError::Refused)?;
    let length = u32::from_le_bytes(*length) as usize;
    let canonical = length <= rest.len()
        && frame_bytes(length) == padded.len() + TAG_BYTES
        && rest[length..].iter().all(|byte| *byte == 0);
    if !canonical {
        return Err(SealError::Refused);
    }
    padded.copy_within(LENGTH_BYTES..LENGTH_BYTES + length, 0);
    padded.truncate(length);
    Ok(padded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_few_and_fit() {
        assert_eq!(
            [0, 44, 45, 108, 109, 4_076, 4_077, 8_172].map(frame_bytes),
            [64, 64, 128, 128, 256, 4_096, 8_192, 8_192]
        );
        assert_eq!(frame_bytes(PLAINTEXT_BYTES_MAX), FRAME_BYTES_MAX);
        assert!(frame_bytes(PLAINTEXT_BYTES_MAX + 1) > FRAME_BYTES_MAX);
        assert_eq!(frame_bytes(usize::MAX), usize::MAX);
    }

    #[test]
    fn padding_comes_off_again() {
        for size in (0..10_000).chain([PLAINTEXT_BYTES_MAX - 1, PLAINTEXT_BYTES_MAX]) {
            let plaintext = vec![7; size];
            let padded = pad(&plaintext).unwrap();
            check_frame(padded.len() + TAG_BYTES).unwrap();
            assert_eq!(unpad(padded).unwrap(), plaintext);
        }
        assert_eq!(pad(&vec![0; PLAINTEXT_BYTES_MAX + 1]), Err(SealError::TooLarge { size: PLAINTEXT_BYTES_MAX + 1 }));
    }

    #[test]
    fn lying_lengths_and_odd_sizes_are_refused() {
        for (at, value) in [(0, 45), (0, 200), (3, 255), (47, 1)] {
            let mut padded = pad(&[1, 2, 3]).unwrap();
            padded[at] = value;
            assert_eq!(unpad(padded), Err(SealError::Refused), "byte {at}");
        }
        assert_eq!(unpad(vec![0; 3]), Err(SealError::Refused));
        for size in [0, 16, 63, 65, 4_097, FRAME_BYTES_MAX + 4_096] {
            assert_eq!(check_frame(size), Err(SealError::FrameSize { size }));
        }
    }
}
