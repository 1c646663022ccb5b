//! A GGUF that is made of parts of another file: what comes where. Pure; somebody else copies the bytes.

use std::ops::Range;

/// The bytes of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes of the source file.
    Copy(Range<u64>),
    /// So many zeros: a tensor that the loader asks for and nobody reads. A hole where the file system has them.
    Zeros(u64),
}

impl Piece {
    /// Bytes, without what fills it up to the alignment.
    pub fn length(&self) -> u64 {
        match self {
            Self::Copy(range) => range.end - range.start,
            Self::Zeros(length) => *length,
        }
    }
}

/// A GGUF in the making. Equal plans, equal files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything before the tensor data.
    pub header: Vec<u8>,
    /// The tensors in the order in which they follow the header, each filled up with zeros to a multiple of
    /// [`Plan::ALIGNMENT`].
    pub pieces: Vec<Piece>,
}

impl Plan {
    /// Bytes.
    pub const ALIGNMENT: u64 = super::write::ALIGNMENT as u64;

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.placed().last().map_or(self.header.len() as u64, |(at, piece)| at + padded(piece))
    }

    /// Where in the new file each piece begins.
    pub fn placed(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.pieces.iter().scan(self.header.len() as u64, |next, piece| {
            let at = *next;
            *next += padded(piece);
            Some((at, piece))
        })
    }

    /// Hands the file to `take`, part by part; `read` fills its buffer from an offset of the source file.
    ///
    /// # Errors
    /// The first one of `read` or `take`.
    pub fn write<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        const PART_BYTES: usize = 1024 * 1024;
        take(&self.header)?;
        let mut buffer = vec![0; PART_BYTES];
        for piece in &self.pieces {
            let mut left = piece.length();
            let mut at = if let Piece::Copy(range) = piece { range.start } else { 0 };
            while left > 0 {
                let part = usize::try_from(left).map_or(PART_BYTES, |left| left.min(PART_BYTES));
                match piece {
                    Piece::Copy(_) => read(at, &mut buffer[..part])?,
                    Piece::Zeros(_) => buffer[..part].fill(0),
                }
                take(&buffer[..part])?;
                at += part as u64;
                left -= part as u64;
            }
            let padding = (padded(piece) - piece.length()) as usize;
            take(&[0; Self::ALIGNMENT as usize][..padding])?;
        }
        Ok(())
    }
}

fn padded(piece: &Piece) -> u64 {
    piece.length().next_multiple_of(Plan::ALIGNMENT)
}
