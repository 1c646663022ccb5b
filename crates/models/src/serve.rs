//! The answering side of file transfers between peers. Blocking, bounded by its caller: at most one chunk in memory a
//! call.

use opengrid_protocol::content::{ContentRequest, ContentResponse};

use crate::store::{Store, StoreError};

/// The answer to one request and, for a chunk, the bytes that follow it. Failures of this disk are logged and look
/// like [`ContentResponse::NotHere`] to the peer.
pub fn answer(store: &Store, request: &ContentRequest) -> (ContentResponse, Vec<u8>) {
    let result = match *request {
        ContentRequest::Manifest { root } => {
            store.manifest(root).map(|manifest| (ContentResponse::Manifest(manifest), Vec::new()))
        }
        ContentRequest::Chunk { root, index } => {
            store.read_chunk(root, index).map(|bytes| (ContentResponse::Chunk { bytes: bytes.len() as u32 }, bytes))
        }
    };
    result.unwrap_or_else(|error| {
        if !matches!(error, StoreError::NotHere(_) | StoreError::NoSuchChunk { .. }) {
            tracing::warn!(%error, "cannot serve a file to a peer");
        }
        (ContentResponse::NotHere, Vec::new())
    })
}
