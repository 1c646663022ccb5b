//! A writer of GGUF version 3, for tools and tests.

use super::{MAGIC, ValueType};

const VERSION: u32 = 3;
/// Of tensors in what [`Writer`] makes, in bytes.
pub const ALIGNMENT: usize = 32;

/// Collects metadata and tensors; [`Writer::finish`] lays them out.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
    /// Bytes of tensors that the caller puts behind [`Writer::finish`]; `data` stays empty then.
    data_apart: u64,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn string(self, key: &str, value: &str) -> Self {
        self.entry(key, ValueType::String, &string(value.as_bytes()))
    }

    #[must_use]
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, ValueType::U32, &value.to_le_bytes())
    }

    #[must_use]
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.entry(key, ValueType::F32, &value.to_le_bytes())
    }

    #[must_use]
    pub fn bool(self, key: &str, value: bool) -> Self {
        self.entry(key, ValueType::Bool, &[u8::from(value)])
    }

    #[must_use]
    pub fn strings<S: AsRef<[u8]>>(self, key: &str, values: &[S]) -> Self {
        let encoded: Vec<u8> = values.iter().flat_map(|value| string(value.as_ref())).collect();
        self.array(key, ValueType::String, values.len(), &encoded)
    }

    #[must_use]
    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let encoded: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, ValueType::F32, values.len(), &encoded)
    }

    #[must_use]
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let encoded: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, ValueType::I32, values.len(), &encoded)
    }

    #[must_use]
    pub fn bools(self, key: &str, values: &[bool]) -> Self {
        let encoded: Vec<u8> = values.iter().map(|value| u8::from(*value)).collect();
        self.array(key, ValueType::Bool, values.len(), &encoded)
    }

    /// A value whose encoding the caller vouches for.
    #[must_use]
    pub fn entry(mut self, key: &str, kind: ValueType, encoded: &[u8]) -> Self {
        self.keys += 1;
        self.metadata.extend(string(key.as_bytes()));
        self.metadata.extend((kind as u32).to_le_bytes());
        self.metadata.extend_from_slice(encoded);
        self
    }

    fn array(self, key: &str, kind: ValueType, count: usize, encoded: &[u8]) -> Self {
        let head = [&(kind as u32).to_le_bytes()[..], &(count as u64).to_le_bytes(), encoded].concat();
        self.entry(key, ValueType::Array, &head)
    }

    /// An F32 tensor; `dimensions` fastest first.
    #[must_use]
    pub fn tensor_f32(self, name: &str, dimensions: &[u64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dimensions, 0, &data)
    }

    /// A tensor of the ggml type `kind` in its encoded form.
    #[must_use]
    pub fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.info(name, dimensions, kind, offset)
    }

    /// A tensor of `bytes` bytes that the caller writes behind what [`Writer::finish`] returns, in the same order, each
    /// filled up to a multiple of [`ALIGNMENT`]. Not to be mixed with [`Writer::tensor`].
    #[must_use]
    pub fn tensor_apart(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: u64) -> Self {
        let offset = self.data_apart;
        self.data_apart += bytes.next_multiple_of(ALIGNMENT as u64);
        self.info(name, dimensions, kind, offset)
    }

    fn info(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors += 1;
        self.infos.extend(string(name.as_bytes()));
        self.infos.extend((dimensions.len() as u32).to_le_bytes());
        self.infos.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self
    }

    /// The file.
    pub fn finish(mut self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.append(&mut self.metadata);
        bytes.append(&mut self.infos);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.append(&mut self.data);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}
