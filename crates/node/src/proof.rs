//! Whether a file of the store is still what its hash says: looked at before it is served, and remembered by size and
//! time of change, so that an unchanged file is read once.

use std::{fs, io, path::Path, time::UNIX_EPOCH};

use opengrid_models::{Store, store::StoreError};
use opengrid_protocol::ModelRoot;

use crate::identity::write_private;

/// Proves the file of `root`; a damaged one goes to the quarantine.
///
/// # Errors
/// Damaged, not here, or unreadable.
pub fn prove(store: &Store, root: ModelRoot) -> Result<(), StoreError> {
    let path = store.path(root).ok_or(StoreError::NotHere(root))?;
    let note = store.directory().join("cache").join(format!("{root}.proven"));
    let present = fingerprint(&path).ok();
    if present.is_some() && present == fs::read_to_string(&note).ok() {
        return Ok(());
    }
    store.verify(root, &mut |_, _| {})?;
    if let Some(present) = present
        && let Some(directory) = note.parent()
    {
        // Without the note the file is read again next time.
        let _ = fs::create_dir_all(directory).and_then(|()| write_private(&note, present.as_bytes()));
    }
    Ok(())
}

fn fingerprint(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    Ok(format!("{} bytes, changed {} ns", metadata.len(), modified.as_nanos()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_models::test_support::TinyModel;

    use super::*;

    #[test]
    fn a_damaged_file_is_found_and_an_unchanged_one_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiny.gguf");
        fs::write(&file, TinyModel::default().to_bytes()).unwrap();
        let store = Store::open(&dir.path().join("models")).unwrap();
        let root = store.add_file(&file, &mut |_, _| {}).unwrap().root;
        prove(&store, root).unwrap();
        assert!(store.directory().join("cache").join(format!("{root}.proven")).exists());
        prove(&store, root).unwrap();
        let blob = store.path(root).unwrap();
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
        assert!(matches!(prove(&store, root), Err(StoreError::Corrupt { .. })));
        assert!(!store.contains(root), "kept apart");
    }
}
