//! [`frame`]s over an asynchronous byte stream.

use std::io;

use opengrid_protocol::frame::{self, FrameError, HEADER_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error(transparent)]
    Oversized(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The next frame; `None` at a clean end of the stream. Memory grows with what really arrives.
///
/// # Errors
/// [`WireError::Oversized`] before anything is read of a frame over `limit`.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R, limit: usize) -> Result<Option<Vec<u8>>, WireError> {
    let mut length = [0; HEADER_BYTES];
    match reader.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let size = frame::body_bytes(length, limit)?;
    let mut frame = Vec::with_capacity(size.min(16 * 1024));
    let read = reader.take(size as u64).read_to_end(&mut frame).await?;
    if read < size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(frame))
}

/// Writes one frame in one call, unflushed.
///
/// # Errors
/// Those of the stream.
pub async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, body: &[u8]) -> Result<(), WireError> {
    writer.write_all(&frame::encode(body, u32::MAX as usize)?).await?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_round_trip_and_end_cleanly() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sender = tokio::spawn(async move {
            for size in [0, 1, 1000] {
                write_frame(&mut a, &vec![7; size]).await.unwrap();
            }
        });
        for size in [0, 1, 1000] {
            assert_eq!(read_frame(&mut b, 1000).await.unwrap(), Some(vec![7; size]));
        }
        assert_eq!(read_frame(&mut b, 1000).await.unwrap(), None);
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn oversized_and_cut_frames_are_refused() {
        let mut oversized: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1];
        assert!(matches!(read_frame(&mut oversized, 1000).await, Err(WireError::Oversized(_))));
        let mut cut: &[u8] = &[5, 0, 0, 0, 1, 2];
        assert!(matches!(read_frame(&mut cut, 1000).await, Err(WireError::Io(_))));
    }
}
