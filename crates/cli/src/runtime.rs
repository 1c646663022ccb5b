//! What a running node leaves in its home for the other commands: `runtime.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use opengrid_node::runtime::FILE_NAME;
pub use opengrid_node::runtime::Runtime;

const BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    #[error("no node runs with the home {home}: start one with `opengrid up`{hint}")]
    NotRunning { home: String, hint: String },
    #[error("cannot read {path}: {source}; it belongs to the user who runs the node")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is no runtime file ({why}): stop the node, delete the file and start the node again")]
    Malformed { path: PathBuf, why: String },
}

/// What the node of `home` wrote.
///
/// # Errors
/// [`RuntimeError::NotRunning`] also when the file is there but its process is gone.
pub fn read(home: &Path) -> Result<Runtime, RuntimeError> {
    let path = home.join(FILE_NAME);
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_running(home)),
        Err(source) => return Err(RuntimeError::Unreadable { path, source }),
    };
    let malformed = |why: String| RuntimeError::Malformed { path: path.clone(), why };
    let runtime: Runtime = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    if is_alive(runtime.pid) { Ok(runtime) } else { Err(not_running(home)) }
}

fn not_running(home: &Path) -> RuntimeError {
    let hint = if std::env::var_os("OPENGRID_HOME").is_some() {
        ", or name another with --home".into()
    } else {
        ", or name its home with --home or its API with --api".into()
    };
    RuntimeError::NotRunning { home: home.display().to_string(), hint }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > BYTES_MAX {
        return Err(io::Error::other(format!("it is over {BYTES_MAX} bytes")));
    }
    fs::read_to_string(path)
}

/// Whether a process of this id exists. A process that ended but was not waited for counts as gone.
#[cfg(target_os = "linux")]
pub fn is_alive(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => false,
    }
}

/// Other systems cannot tell without unsafe code; a request to a dead node fails soon enough.
#[cfg(not(target_os = "linux"))]
pub fn is_alive(_pid: u32) -> bool {
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(home: &Path, pid: u32) {
        let text = format!(
            r#"{{"pid":{pid},"api":"http://127.0.0.1:1","token":"t","peer_id":"p","invite":"grid1","models_dir":"/m","started_unix_ms":1,"new":0}}"#
        );
        fs::write(home.join(FILE_NAME), text).unwrap();
    }

    #[test]
    fn a_live_process_is_found_and_a_dead_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(read(home.path()), Err(RuntimeError::NotRunning { .. })));
        write(home.path(), std::process::id());
        assert_eq!(read(home.path()).unwrap().token, "t");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        write(home.path(), child.id());
        child.wait().unwrap();
        assert!(matches!(read(home.path()), Err(RuntimeError::NotRunning { .. })));
    }

    #[test]
    fn nonsense_is_told_apart_from_absence() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(read(home.path()), Err(RuntimeError::Malformed { .. })));
        fs::write(home.path().join(FILE_NAME), vec![b' '; BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(read(home.path()), Err(RuntimeError::Unreadable { .. })));
    }
}
