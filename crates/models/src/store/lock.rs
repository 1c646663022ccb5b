//! One process at a time works on a model; the operating system frees the lock when that process dies.

use std::fs::{File, OpenOptions, TryLockError};

use opengrid_protocol::ModelRoot;

use super::{Store, StoreError};

/// Held while a file is downloaded or removed; freed on drop.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl Store {
    /// The lock of `root`, or `None` while somebody else holds it.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn try_lock(&self, root: ModelRoot) -> Result<Option<FileLock>, StoreError> {
        let path = self.directory.join("locks").join(format!("{root}.lock"));
        let failed = |source| StoreError::Io { action: "lock", path: path.clone(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FileLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}
