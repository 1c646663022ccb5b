//! A pure, bounded reader of GGUF versions 2 and 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! It works over bytes that somebody else read and borrows from them: strings and arrays are never copied, so a header
//! of N bytes costs at most a small multiple of its number of keys and tensors. Everything is checked before it is
//! believed: counts against [`limits`], lengths against what is there, tensors against the size of the file.
//!
//! [`Gguf::parse`] is the way in, [`Gguf::info`] says what a person or a scheduler wants to know,
//! [`vocabulary_gguf`] makes the file that a gateway needs, and [`file`] reads headers from disk.

mod cursor;
pub mod file;
mod info;
mod plan;
mod tensor;
mod types;
mod value;
mod vocabulary;
pub mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use cursor::Cursor;
pub use info::ModelInfo;
pub use plan::{Piece, Plan};
pub use tensor::Tensor;
pub use types::{GgmlType, file_type_name};
pub use value::{Array, Value, ValueType};
pub use vocabulary::{tokens_hash, vocabulary_gguf};

/// The bounds of a header. llama.cpp's own are wider (1 GiB strings); no model in the wild comes near these.
pub mod limits {
    /// Bytes of everything before the tensor data.
    pub const HEADER_BYTES_MAX: u64 = 128 * 1024 * 1024;
    pub const KEYS_MAX: u64 = 65_536;
    pub const KEY_BYTES_MAX: u64 = 65_535;
    pub const STRING_BYTES_MAX: u64 = 16 * 1024 * 1024;
    pub const ARRAY_ELEMENTS_MAX: u64 = 4 * 1024 * 1024;
    pub const TENSORS_MAX: u64 = 65_536;
    /// ggml keeps names in 64 bytes, the last one zero.
    pub const TENSOR_NAME_BYTES_MAX: u64 = 63;
    pub const DIMENSIONS_MAX: u32 = 4;
    pub const ALIGNMENT_MAX: u32 = 1024 * 1024;
}

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
const ALIGNMENT_DEFAULT: u32 = 32;

/// Why bytes are no GGUF that this program accepts. Offsets are bytes from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    #[error("not a gguf file: it starts with {0:02x?} instead of `GGUF`; is it another format or an error page?")]
    NotGguf([u8; 4]),
    #[error("gguf version {0} is not supported (2 and 3 are): convert the file with a current llama.cpp")]
    Version(u32),
    #[error("the file is big-endian: get the little-endian file of this model")]
    BigEndian,
    /// Only ever returned when the file is longer than the bytes given: read more and parse again.
    #[error("the header needs at least {needed} bytes, {have} were read")]
    HeaderIncomplete { needed: u64, have: u64 },
    #[error(
        "truncated: the file has {size} of at least {needed} bytes (wanted by {what} at byte {offset}); pull it again"
    )]
    Truncated { what: String, offset: u64, needed: u64, size: u64 },
    #[error("{what} at byte {offset}: {count} is over the limit of {limit}; the file is damaged or hostile")]
    OverLimit { what: String, offset: u64, count: u64, limit: u64 },
    #[error("{what} at byte {offset}: {why}; the file is damaged, pull it again")]
    Invalid { what: String, offset: u64, why: String },
    #[error("the key `{key}` is missing: this gguf is no language model that llama.cpp can load")]
    Missing { key: String },
    #[error("the key `{key}` holds a {found}, not a {expected}")]
    WrongType { key: String, expected: &'static str, found: &'static str },
}

/// A parsed header. Borrows keys, strings and arrays from the bytes.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    version: u32,
    file_size: u64,
    entries: Vec<(&'a str, Value<'a>)>,
    index: BTreeMap<&'a str, usize>,
    tensors: Vec<Tensor<'a>>,
    alignment: u32,
    data_offset: u64,
    /// The encoded key-value section, byte for byte.
    metadata_bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads the header in `bytes`, the beginning (or all) of a file of `file_size` bytes.
    ///
    /// # Errors
    /// [`GgufError::HeaderIncomplete`] when the file has more bytes than were given and the header goes on there; the
    /// first rule that is broken otherwise.
    pub fn parse(bytes: &'a [u8], file_size: u64) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes, file_size);
        let version = preamble(&mut cursor)?;
        let tensor_count = cursor.count("the number of tensors", limits::TENSORS_MAX)?;
        let key_count = cursor.count("the number of keys", limits::KEYS_MAX)?;
        let metadata_from = cursor.position();
        let (entries, index) = metadata(&mut cursor, key_count)?;
        let metadata_bytes = cursor.since(metadata_from);
        let alignment = alignment(&entries, &index)?;
        let tensors = tensor::read_all(&mut cursor, tensor_count)?;
        let header_bytes = cursor.position() as u64;
        let data_offset = header_bytes.next_multiple_of(u64::from(alignment));
        tensor::check_layout(&tensors, alignment, data_offset, file_size)?;
        Ok(Self { version, file_size, entries, index, tensors, alignment, data_offset, metadata_bytes })
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of the whole file, as given to [`Gguf::parse`].
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Keys and values in the file's order.
    pub fn metadata(&self) -> &[(&'a str, Value<'a>)] {
        &self.entries
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.index.get(key).map(|at| self.entries[*at].1)
    }

    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Bytes; a power of two.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Where the tensor data begins; tensor offsets count from here.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Name, architecture, sizes, tokenizer and template, in one owned value.
    ///
    /// # Errors
    /// A key that a language model needs is missing or of the wrong type.
    pub fn info(&self) -> Result<ModelInfo, GgufError> {
        info::collect(self)
    }
}

fn preamble(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if magic != MAGIC {
        return Err(GgufError::NotGguf(magic));
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if version & 0xffff == 0 && version != 0 => Err(GgufError::BigEndian),
        version => Err(GgufError::Version(version)),
    }
}

type Metadata<'a> = (Vec<(&'a str, Value<'a>)>, BTreeMap<&'a str, usize>);

fn metadata<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Metadata<'a>, GgufError> {
    let mut entries = Vec::new();
    let mut index = BTreeMap::new();
    for at in 0..count as usize {
        let offset = cursor.position() as u64;
        let key = cursor.text("a key", limits::KEY_BYTES_MAX)?;
        if key.is_empty() {
            return Err(GgufError::Invalid { what: format!("key {at}"), offset, why: "it is empty".into() });
        }
        if index.insert(key, at).is_some() {
            let why = "the key is there twice".into();
            return Err(GgufError::Invalid { what: format!("key `{}`", printable(key)), offset, why });
        }
        entries.push((key, value::read(cursor, key)?));
    }
    Ok((entries, index))
}

fn alignment(entries: &[(&str, Value<'_>)], index: &BTreeMap<&str, usize>) -> Result<u32, GgufError> {
    const KEY: &str = "general.alignment";
    let Some(at) = index.get(KEY) else { return Ok(ALIGNMENT_DEFAULT) };
    let value = entries[*at].1;
    let Value::U32(alignment) = value else {
        return Err(GgufError::WrongType { key: KEY.into(), expected: "u32", found: value.type_name() });
    };
    if !alignment.is_power_of_two() || alignment > limits::ALIGNMENT_MAX {
        let why = format!("{alignment} is no power of two up to {}", limits::ALIGNMENT_MAX);
        return Err(GgufError::Invalid { what: KEY.into(), offset: 0, why });
    }
    Ok(alignment)
}

/// Text from a file, fit for an error message: escaped and short.
fn printable(text: &str) -> String {
    let mut short: String = text.chars().take(48).flat_map(char::escape_debug).collect();
    if text.chars().nth(48).is_some() {
        short.push('…');
    }
    short
}
