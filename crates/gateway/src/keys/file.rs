//! `keys.json` in a node's home: readable by its owner only, replaced in one step, changed by one process at a time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
};

use fs4::FileExt;
use opengrid_node::identity::write_private;

use super::record::{KeyError, KeyList};

/// Name of the file in the home.
pub const FILE_NAME: &str = "keys.json";
const LOCK_NAME: &str = "keys.lock";
/// 1,000 keys take less than half of it.
const BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is no file of keys ({why}): put it right, or delete it and make new keys", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The keys of `home`; none without a file.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read(home: &Path) -> Result<KeyList, KeyFileError> {
    read_path(&home.join(FILE_NAME))
}

pub(super) fn read_path(path: &Path) -> Result<KeyList, KeyFileError> {
    match read_bounded(path) {
        Ok(text) => KeyList::from_json(&text).map_err(|why| KeyFileError::Damaged { path: path.to_owned(), why }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(KeyList::default()),
        Err(source) => Err(KeyFileError::Read { path: path.to_owned(), source }),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // A pipe would be waited for, and with it every request.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(io::Error::other(format!("it is over {BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Changes the keys of `home`, which is made if it is missing. A running node sees the change by itself. Waits while another
/// process changes them.
///
/// # Errors
/// Those of [`read`], of `edit` and of writing.
pub fn change<T>(home: &Path, edit: impl FnOnce(&mut KeyList) -> Result<T, KeyError>) -> Result<T, KeyFileError> {
    let path = home.join(FILE_NAME);
    let failed = |source| KeyFileError::Write { path: path.clone(), source };
    let _lock = lock(home).map_err(failed)?;
    let mut list = read_path(&path)?;
    let edited = edit(&mut list)?;
    let text = serde_json::to_vec_pretty(&list).map_err(|error| failed(error.into()))?;
    write_private(&path, &text).map_err(failed)?;
    Ok(edited)
}

fn lock(home: &Path) -> io::Result<File> {
    let mut directory = std::fs::DirBuilder::new();
    directory.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut directory, 0o700);
    directory.create(home)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(home.join(LOCK_NAME))?;
    FileExt::lock(&file)?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys::NewKey;

    #[test]
    fn the_file_is_the_owner_s_only_and_whole() {
        let home = tempfile::tempdir().unwrap();
        assert!(read(home.path()).unwrap().keys().is_empty());
        change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap();
        assert_eq!(read(home.path()).unwrap().keys().len(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(home.path().join(FILE_NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(FILE_NAME)).unwrap();
        let refused = read(home.path()).err().unwrap().to_string();
        assert!(refused.contains("no regular file"), "{refused}");
    }

    #[test]
    fn changes_at_once_are_not_lost() {
        let home = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap());
            }
        });
        assert_eq!(read(home.path()).unwrap().keys().len(), 8);
    }

    #[test]
    fn a_failed_change_leaves_the_file_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap();
        assert!(matches!(change(home.path(), |list| list.revoke("none")), Err(KeyFileError::Key(_))));
        assert_eq!(read(home.path()).unwrap().keys().len(), 1);
        std::fs::write(home.path().join(FILE_NAME), "{").unwrap();
        let error = change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap_err();
        assert!(matches!(error, KeyFileError::Damaged { .. }));
        assert_eq!(std::fs::read(home.path().join(FILE_NAME)).unwrap(), b"{");
    }
}
