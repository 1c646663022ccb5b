//! The header of a safetensors file (<https://github.com/huggingface/safetensors>): the length of a JSON object (8
//! bytes, little-endian), the object, then the bytes of all tensors without gaps.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::{ConvertError, limits, printable};

/// Bytes before the JSON object.
pub const LENGTH_BYTES: usize = 8;
const METADATA: &str = "__metadata__";

/// The tensors of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    tensors: BTreeMap<String, Tensor>,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub dtype: String,
    /// Elements per dimension, slowest first.
    pub shape: Vec<u64>,
    /// Bytes of the file.
    pub range: Range<u64>,
}

impl Header {
    /// Bytes of the JSON object, from the first 8 bytes of a file of `file_size` bytes.
    ///
    /// # Errors
    /// It is over the limit or longer than the file.
    pub fn json_bytes(length: [u8; LENGTH_BYTES], file_size: u64) -> Result<u64, ConvertError> {
        let bytes = u64::from_le_bytes(length);
        let room = file_size.saturating_sub(LENGTH_BYTES as u64);
        if bytes > limits::HEADER_BYTES_MAX || bytes > room {
            let limit = limits::HEADER_BYTES_MAX.min(room);
            return Err(header(format!("{bytes} bytes long, at most {limit} are possible; is it another format?")));
        }
        Ok(bytes)
    }

    /// Reads the JSON object of a file of `file_size` bytes.
    ///
    /// # Errors
    /// It is malformed, over a limit, or its tensors overlap, leave gaps or lie outside the file.
    pub fn parse(json: &[u8], file_size: u64) -> Result<Self, ConvertError> {
        if json.len() as u64 > limits::HEADER_BYTES_MAX {
            return Err(header(format!("over {} bytes", limits::HEADER_BYTES_MAX)));
        }
        let Entries(entries) = serde_json::from_slice(json).map_err(|error| header(error.to_string()))?;
        let data = (LENGTH_BYTES + json.len()) as u64;
        let end = file_size.checked_sub(data).ok_or_else(|| header("longer than the file".into()))?;
        check_layout(&entries, end)?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in entries {
            let tensor = entry.checked(&name, data)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(header(format!("the tensor `{}` is there twice", printable(&name))));
            }
        }
        Ok(Self { tensors })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn header(why: String) -> ConvertError {
    ConvertError::Header(why)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    /// From the end of the header.
    data_offsets: [u64; 2],
}

impl Entry {
    fn checked(self, name: &str, data: u64) -> Result<Tensor, ConvertError> {
        let wrong = |why: String| ConvertError::Tensor { name: printable(name), why };
        if self.shape.len() > limits::DIMENSIONS_MAX {
            return Err(wrong(format!("{} dimensions, at most {}", self.shape.len(), limits::DIMENSIONS_MAX)));
        }
        let element = element_bytes(&self.dtype)
            .ok_or_else(|| wrong(format!("the type `{}` is unknown to this program", printable(&self.dtype))))?;
        let bytes = self.shape.iter().try_fold(element, |bytes, size| bytes.checked_mul(*size));
        let [start, end] = self.data_offsets;
        if end.checked_sub(start) != bytes {
            return Err(wrong(format!("bytes {start}..{end} do not hold {:?} of {}", self.shape, self.dtype)));
        }
        Ok(Tensor { dtype: self.dtype, shape: self.shape, range: data + start..data + end })
    }
}

fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}

/// Every byte of the data belongs to exactly one tensor.
fn check_layout(entries: &[(String, Entry)], end: u64) -> Result<(), ConvertError> {
    let mut spans: Vec<([u64; 2], &str)> = entries.iter().map(|(name, e)| (e.data_offsets, name.as_str())).collect();
    spans.sort_unstable();
    let mut at = 0;
    for ([start, until], name) in spans {
        if start != at || until < start {
            let why = format!("it lies at {start}..{until}, where {at} should follow");
            return Err(ConvertError::Tensor { name: printable(name), why });
        }
        at = until;
    }
    if at == end { Ok(()) } else { Err(header(format!("tensors of {at} bytes in {end} bytes of data"))) }
}

struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() >= limits::TENSORS_MAX {
                        return Err(de::Error::custom(format_args!("more than {} tensors", limits::TENSORS_MAX)));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
