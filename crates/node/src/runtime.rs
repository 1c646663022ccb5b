//! `runtime.json`: how the command line finds the node that runs on a data directory.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::identity::write_private;

pub const FILE_NAME: &str = "runtime.json";

/// Address and secret of a running node; readable by its owner only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub pid: u32,
    /// e.g. `http://127.0.0.1:8470`.
    pub api: String,
    /// Bearer token of everything that changes the node's state.
    pub token: String,
    pub peer_id: String,
    pub invite: String,
    /// The store that the node's downloads go to.
    #[serde(default)]
    pub models_dir: PathBuf,
    pub started_unix_ms: u64,
}

impl Runtime {
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, home: &Path) -> io::Result<()> {
        write_private(&home.join(FILE_NAME), &serde_json::to_vec_pretty(self)?)
    }

    /// The file goes when the node ends; what stays after a crash is seen by its pid.
    pub fn remove(home: &Path) {
        let _ = std::fs::remove_file(home.join(FILE_NAME));
    }
}
