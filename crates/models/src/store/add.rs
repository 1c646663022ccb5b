//! A local file into the store.

use std::{
    io::{self, Write},
    path::Path,
};

use opengrid_protocol::{ModelRoot, limits::FILE_BYTES_MAX};
use sha2::{Digest, Sha256};

use super::{Store, StoreError, failed, gguf_failed, read_through, temporary_file};
use crate::{
    chunk_tree::Builder,
    gguf::{ModelInfo, file::Header},
};

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub root: ModelRoot,
    pub sha256: [u8; 32],
    /// Bytes.
    pub size: u64,
    pub info: ModelInfo,
    /// It was in the store already.
    pub known: bool,
}

impl Store {
    /// Copies the GGUF at `path` into the store; what is hashed is what is kept, so a later change of the original does
    /// no harm. `progress` gets bytes done and bytes in all.
    ///
    /// # Errors
    /// The file is no language model in GGUF, it cannot be read, or the disk is full.
    pub fn add_file(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Added, StoreError> {
        let header = Header::read(path).map_err(gguf_failed)?;
        let gguf = |source| StoreError::Gguf { path: path.to_owned(), source };
        let info = header.parse().and_then(|parsed| parsed.info()).map_err(gguf)?;
        if header.file_size > FILE_BYTES_MAX {
            return Err(failed("add", path)(io::Error::other("the file is over 1 TiB")));
        }
        self.check_room(header.file_size)?;
        let (mut builder, mut sha256) = (Builder::new(), Sha256::new());
        let write_failed = |source| self.write_failed(&self.directory, header.file_size, source);
        let mut copy = temporary_file(&self.directory.join("temporary")).map_err(write_failed)?;
        let size = read_through(path, progress, |part| {
            builder.update(part);
            sha256.update(part);
            copy.file.write_all(part).map_err(write_failed)
        })?;
        // The file may have changed between the look at its header and the copy.
        Header::read(copy.path()).map_err(gguf_failed)?;
        let tree = builder.finish();
        let root = tree.root();
        let known = self.contains(root);
        if !known {
            self.save_tree(&tree)?;
            copy.persist(&self.blob(root)).map_err(write_failed)?;
        }
        Ok(Added { root, sha256: sha256.finalize().into(), size, info, known })
    }
}
