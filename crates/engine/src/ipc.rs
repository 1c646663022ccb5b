//! Frames between the node and its child processes: a big-endian `u32` length, then that many bytes of postcard.
//!
//! Both sides bound every frame: the child parses hostile model files, so the node trusts it no more than a peer.

use std::io::{self, Read, Write};

use bytes::{BufMut, Bytes, BytesMut};
use opengrid_protocol::codec;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::codec::LengthDelimitedCodec;

/// Largest frame to a child, in bytes: a prompt of 131,072 tokens, or a text to tokenize.
pub const TO_CHILD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest frame from an engine child, in bytes: one step of every slot, with 20 alternatives a token.
pub const FROM_ENGINE_BYTES_MAX: usize = 1024 * 1024;
/// Largest frame from a tokenizer child, in bytes: a whole vocabulary.
pub const FROM_TOKENIZER_BYTES_MAX: usize = 64 * 1024 * 1024;

const HEADER_BYTES: usize = 4;

/// `value` as one frame, header included.
pub fn frame<T: Serialize>(value: &T) -> Bytes {
    let body = codec::encode(value);
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + body.len());
    frame.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(&body);
    frame.freeze()
}

/// Splits a byte stream into frames of at most `bytes_max` on the tokio side.
pub fn frames(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(HEADER_BYTES).max_frame_length(bytes_max).new_codec()
}

/// Writes one frame in one system call where the pipe takes it.
///
/// # Errors
/// When the other side is gone.
pub fn write<T: Serialize>(output: &mut impl Write, value: &T) -> io::Result<()> {
    output.write_all(&frame(value))?;
    output.flush()
}

/// Reads one frame, waiting for it.
///
/// # Errors
/// At the end of the stream, and for frames that are over `bytes_max` or do not decode.
pub fn read<T: DeserializeOwned>(input: &mut impl Read, bytes_max: usize) -> io::Result<T> {
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header)?;
    let size = u32::from_be_bytes(header) as usize;
    if size > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {size} bytes is over {bytes_max}")));
    }
    let mut body = vec![0; size];
    input.read_exact(&mut body)?;
    codec::decode(&body, bytes_max).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_are_bounded() {
        let mut wire = Vec::new();
        write(&mut wire, &vec![1_u32, 2, 300]).unwrap();
        assert_eq!(read::<Vec<u32>>(&mut wire.as_slice(), 64).unwrap(), [1, 2, 300]);
        assert_eq!(read::<Vec<u32>>(&mut wire.as_slice(), 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read::<Vec<u32>>(&mut &wire[..5], 64).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn trailing_bytes_in_a_frame_are_refused() {
        let wire = [0, 0, 0, 2, 7, 7];
        assert_eq!(read::<u8>(&mut wire.as_slice(), 64).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
