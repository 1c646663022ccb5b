//! Files with a wrong hash are kept apart for whoever wants to look, the newest few only.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

const FILES_MAX: usize = 4;

/// Moves `path` into `directory` and returns where it is now.
pub(super) fn keep(directory: &Path, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let parent = path.parent().and_then(|parent| parent.file_name()).and_then(|name| name.to_str()).unwrap_or("");
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // Twelve characters of the root are enough to know a file by; the time in front sorts them.
    let known_by: String = if name == "data" { parent } else { name }.chars().take(12).collect();
    let kept = directory.join(format!("{now_ms:015}-{}-{known_by}.gguf", std::process::id()));
    fs::rename(path, &kept)?;
    drop_oldest(directory);
    Ok(kept)
}

fn drop_oldest(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let surplus = files.len().saturating_sub(FILES_MAX);
    for path in &files[..surplus] {
        let _ = fs::remove_file(path);
    }
}
