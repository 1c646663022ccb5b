//! Files that are written beside their place and renamed into it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A new file that is removed unless it is persisted.
pub(crate) struct Temporary {
    pub(crate) file: File,
    path: PathBuf,
    persisted: bool,
}

/// Makes a file of a name that no other process uses in `directory`.
pub(crate) fn temporary_file(directory: &Path) -> io::Result<Temporary> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let path = directory.join(format!(".{}-{number}-{}.tmp", std::process::id(), now.as_nanos()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    Ok(Temporary { file, path, persisted: false })
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the bytes durable and moves the file to `place`, over what is there.
    pub(crate) fn persist(mut self, place: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, place)?;
        self.persisted = true;
        sync_directory_of(place);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.persisted {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a rename durable, where the platform can.
pub(crate) fn sync_directory_of(place: &Path) {
    if let Some(directory) = place.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = directory.sync_all();
    }
}

/// Removes what processes left that were killed while writing.
pub(super) fn remove_leftovers(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > LEFTOVER_AGE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
