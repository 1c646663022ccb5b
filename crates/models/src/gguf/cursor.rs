//! Bounded little-endian reads that know where in the file they are.

use super::{GgufError, printable};

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    file_size: u64,
}

impl<'a> Cursor<'a> {
    /// `bytes` begin a file of `file_size` bytes; bytes beyond the file's size do not count.
    pub(super) fn new(bytes: &'a [u8], file_size: u64) -> Self {
        let within = bytes.len().min(usize::try_from(file_size).unwrap_or(usize::MAX));
        Self { bytes: &bytes[..within], position: 0, file_size }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// What was read since `from`.
    pub(super) fn since(&self, from: usize) -> &'a [u8] {
        self.bytes.get(from..self.position).unwrap_or_default()
    }

    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let left = (self.bytes.len() - self.position) as u64;
        if count > left {
            return Err(self.short_of(count, what));
        }
        let start = self.position;
        self.position += count as usize;
        Ok(&self.bytes[start..self.position])
    }

    fn short_of(&self, count: u64, what: &str) -> GgufError {
        let offset = self.position as u64;
        let needed = offset.saturating_add(count);
        if needed > self.file_size {
            return GgufError::Truncated { what: what.to_owned(), offset, needed, size: self.file_size };
        }
        if needed > super::limits::HEADER_BYTES_MAX {
            let limit = super::limits::HEADER_BYTES_MAX;
            return GgufError::OverLimit { what: format!("the header ({what})"), offset, count: needed, limit };
        }
        GgufError::HeaderIncomplete { needed, have: self.bytes.len() as u64 }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A 64-bit count of at most `limit`.
    pub(super) fn count(&mut self, what: &str, limit: u64) -> Result<u64, GgufError> {
        let offset = self.position as u64;
        let count = self.u64(what)?;
        if count > limit {
            return Err(GgufError::OverLimit { what: what.to_owned(), offset, count, limit });
        }
        Ok(count)
    }

    /// A length-prefixed string of at most `limit` bytes, as it stands in the file.
    pub(super) fn string(&mut self, what: &str, limit: u64) -> Result<&'a [u8], GgufError> {
        let length = self.count(what, limit)?;
        self.take(length, what)
    }

    /// A string that must be UTF-8.
    pub(super) fn text(&mut self, what: &str, limit: u64) -> Result<&'a str, GgufError> {
        let offset = self.position as u64;
        let bytes = self.string(what, limit)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let start = printable(&String::from_utf8_lossy(&bytes[..bytes.len().min(64)]));
            GgufError::Invalid { what: what.to_owned(), offset, why: format!("`{start}` is not utf-8") }
        })
    }
}
