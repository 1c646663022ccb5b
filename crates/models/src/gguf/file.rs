//! Headers from disk. Blocking.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{Gguf, GgufError, ModelInfo, limits::HEADER_BYTES_MAX, tokens_hash};

const FIRST_READ_BYTES: u64 = 1024 * 1024;

/// Why a file's header cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Gguf { path: PathBuf, source: GgufError },
}

/// The first bytes of a file, as many as its header has (or a few more), and the file's size.
#[derive(Clone, Debug)]
pub struct Header {
    pub bytes: Vec<u8>,
    pub file_size: u64,
}

impl Header {
    /// Reads until the header is complete; at most [`HEADER_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// The file cannot be read or is no GGUF.
    pub fn read(path: &Path) -> Result<Self, GgufFileError> {
        let metadata = std::fs::metadata(path);
        let metadata = metadata.map_err(|source| GgufFileError::Io { path: path.to_owned(), source })?;
        Self::read_of(path, metadata.len())
    }

    /// As [`Header::read`] for the beginning of a file that will have `file_size` bytes.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn read_of(path: &Path, file_size: u64) -> Result<Self, GgufFileError> {
        let io = |source| GgufFileError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(io::Error::other("not a regular file")));
        }
        let mut header = Self { bytes: Vec::new(), file_size };
        let mut wanted = FIRST_READ_BYTES;
        loop {
            let more = wanted - header.bytes.len() as u64;
            (&mut file).take(more).read_to_end(&mut header.bytes).map_err(io)?;
            match Gguf::parse(&header.bytes, header.file_size).map(drop) {
                Err(GgufError::HeaderIncomplete { needed, .. }) if (header.bytes.len() as u64) == wanted => {
                    wanted = needed.max(wanted * 2).min(HEADER_BYTES_MAX);
                }
                Err(source) => return Err(GgufFileError::Gguf { path: path.to_owned(), source }),
                Ok(()) => return Ok(header),
            }
        }
    }

    /// # Errors
    /// As [`Gguf::parse`].
    pub fn parse(&self) -> Result<Gguf<'_>, GgufError> {
        Gguf::parse(&self.bytes, self.file_size)
    }
}

/// What the file at `path` says about itself.
///
/// # Errors
/// The file cannot be read, is no GGUF, or lacks what a language model needs.
pub fn read_info(path: &Path) -> Result<ModelInfo, GgufFileError> {
    let header = Header::read(path)?;
    let info = header.parse().and_then(|gguf| gguf.info());
    info.map_err(|source| GgufFileError::Gguf { path: path.to_owned(), source })
}

/// Whether two models have the same tokens under the same numbers.
///
/// # Errors
/// A file cannot be read or is no GGUF.
pub fn same_tokens(one: &Path, other: &Path) -> Result<bool, GgufFileError> {
    let hash = |path: &Path| {
        let header = Header::read(path)?;
        let gguf = header.parse().map_err(|source| GgufFileError::Gguf { path: path.to_owned(), source })?;
        Ok(tokens_hash(&gguf))
    };
    let (one, other) = (hash(one)?, hash(other)?);
    Ok(one.is_some() && one == other)
}
