//! Fetching model files from peers: one stream a request, a small request and a bounded answer.

use serde::{Deserialize, Serialize};

use crate::ModelRoot;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentRequest {
    /// The size and chunk hashes of a file.
    Manifest { root: ModelRoot },
    /// The bytes of chunk `index` (all but the last have [`CHUNK_BYTES`](crate::limits::CHUNK_BYTES)).
    Chunk { root: ModelRoot, index: u32 },
}

/// The answer's header; for a chunk the raw bytes follow on the stream, as many as `bytes` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentResponse {
    Manifest(Manifest),
    Chunk { bytes: u32 },
    NotHere,
    Busy,
}

/// The chunk tree of a file: the BLAKE3 chaining values of its 1 MiB subtrees, left to right. They merge to the
/// file's BLAKE3 hash, so a manifest proves itself against the root and each chunk against the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub size: u64,
    pub chunks: Vec<[u8; 32]>,
}
