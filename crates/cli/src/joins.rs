//! Invites that `opengrid join` keeps for the next `opengrid up`: `joins.json` in the home, newest last.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use opengrid_protocol::invite::Invite;

const FILE: &str = "joins.json";
const JOINS_MAX: usize = 16;
const BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinsError {
    #[error("cannot read {path}: {source}; delete it and join again")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is damaged ({why}): delete it and join again")]
    Damaged { path: PathBuf, why: String },
}

/// The kept invites, oldest first.
///
/// # Errors
/// When the file is there but holds something else.
pub fn read(home: &Path) -> Result<Vec<String>, JoinsError> {
    let path = home.join(FILE);
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(JoinsError::Read { path, source }),
    };
    let damaged = |why: String| JoinsError::Damaged { path: path.clone(), why };
    let invites: Vec<String> = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    for invite in &invites {
        Invite::from_text(invite).map_err(|error| damaged(error.to_string()))?;
    }
    Ok(invites)
}

/// Keeps `invite` as the newest; one invite per node, the oldest go beyond 16. Returns how many are kept.
///
/// # Errors
/// When the file cannot be read or written.
pub fn remember(home: &Path, invite: &str) -> Result<usize, JoinsError> {
    let node = |text: &str| Invite::from_text(text).ok().map(|invite| invite.node);
    let mut invites = read(home)?;
    invites.retain(|kept| node(kept) != node(invite));
    invites.push(invite.to_owned());
    let surplus = invites.len().saturating_sub(JOINS_MAX);
    invites.drain(..surplus);
    write(home, &invites)?;
    Ok(invites.len())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > BYTES_MAX {
        return Err(io::Error::other(format!("it is over {BYTES_MAX} bytes")));
    }
    fs::read_to_string(path)
}

fn write(home: &Path, invites: &[String]) -> Result<(), JoinsError> {
    let path = home.join(FILE);
    let fresh = home.join(format!("{FILE}.{}", std::process::id()));
    let store = || {
        fs::create_dir_all(home)?;
        fs::write(&fresh, serde_json::to_vec_pretty(invites)?)?;
        fs::rename(&fresh, &path)
    };
    store().map_err(|source| JoinsError::Write { path: path.clone(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::NodeId;

    use super::*;

    fn invite(node: u8, port: u8) -> String {
        Invite { node: NodeId([node; 32]), addresses: vec![vec![port]], private: false }.to_text()
    }

    #[test]
    fn the_newest_invite_of_a_node_wins_and_the_number_is_bounded() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(read(home.path()).unwrap(), Vec::<String>::new());
        remember(home.path(), &invite(1, 1)).unwrap();
        remember(home.path(), &invite(2, 1)).unwrap();
        assert_eq!(remember(home.path(), &invite(1, 9)).unwrap(), 2);
        assert_eq!(read(home.path()).unwrap(), [invite(2, 1), invite(1, 9)]);
        for node in 10..40 {
            remember(home.path(), &invite(node, 1)).unwrap();
        }
        assert_eq!(read(home.path()).unwrap().len(), JOINS_MAX);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        for text in ["{", "[\"grid1x\"]", "[1]"] {
            fs::write(home.path().join(FILE), text).unwrap();
            assert!(matches!(read(home.path()), Err(JoinsError::Damaged { .. })), "{text}");
        }
    }
}
