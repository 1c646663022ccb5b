//! The node's key and the lock on its data directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use fs4::FileExt;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    #[error("{path}: {source}; choose another directory with --home")]
    Io { path: PathBuf, source: io::Error },
    #[error("another node (pid {pid}) uses {home}: stop it with `opengrid down`, or choose another --home")]
    InUse { pid: String, home: PathBuf },
    #[error("{0} is no node key (32 bytes): move it away to start as a new node")]
    BadKey(PathBuf),
}

/// Held while the node runs; the operating system releases it even after `kill -9`.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

/// Creates the directory (private to the user) and takes its lock.
///
/// # Errors
/// [`HomeError::InUse`] names the process that holds it.
pub fn lock_home(home: &Path) -> Result<HomeLock, HomeError> {
    let io_error = |source| HomeError::Io { path: home.to_owned(), source };
    create_private_dir(home).map_err(io_error)?;
    let path = home.join("node.lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|source| HomeError::Io { path: path.clone(), source })?;
    if FileExt::try_lock(&file).is_err() {
        let mut pid = String::new();
        let _ = file.take(20).read_to_string(&mut pid);
        return Err(HomeError::InUse { pid: pid.trim().to_owned(), home: home.to_owned() });
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .and_then(|()| file.sync_data());
    written.map_err(|source| HomeError::Io { path, source })?;
    Ok(HomeLock { _file: file })
}

/// The node's secret key, made on first use.
///
/// # Errors
/// See [`HomeError`].
pub fn load_or_create_key(home: &Path) -> Result<[u8; 32], HomeError> {
    let path = home.join("node.key");
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| HomeError::BadKey(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key: [u8; 32] = rand::random();
            write_private(&path, &key).map_err(|source| HomeError::Io { path, source })?;
            Ok(key)
        }
        Err(source) => Err(HomeError::Io { path, source }),
    }
}

/// Replaces a file in one step; only the user may read it.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let key = load_or_create_key(home.path()).unwrap();
        assert_eq!(load_or_create_key(home.path()).unwrap(), key);
        std::fs::write(home.path().join("node.key"), b"short").unwrap();
        assert!(matches!(load_or_create_key(home.path()), Err(HomeError::BadKey(_))));
    }

    #[test]
    fn a_second_lock_names_the_holder() {
        let home = tempfile::tempdir().unwrap();
        let lock = lock_home(home.path()).unwrap();
        let error = lock_home(home.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(lock);
        lock_home(home.path()).unwrap();
    }
}
