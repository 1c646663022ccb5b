//! Known good addresses, kept over restarts: a JSON file that is replaced atomically.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use libp2p::{Multiaddr, PeerId};
use opengrid_protocol::NodeId;
use serde::{Deserialize, Serialize};

use crate::{address, config::PeerAddress};

const ENTRIES_MAX: usize = 256;
const ADDRESSES_PER_ENTRY_MAX: usize = 8;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Entry {
    node: String,
    addresses: Vec<String>,
}

/// Peers of the last run, those first that were connected last. An unreadable file is an empty cache: it only saves
/// time, and is rewritten anyway.
pub(crate) fn load(path: &Path) -> Vec<(PeerId, Vec<Multiaddr>)> {
    match read(path) {
        Ok(entries) => entries.iter().take(ENTRIES_MAX).filter_map(checked).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the peer cache cannot be read: starting without it");
            Vec::new()
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn checked(entry: &Entry) -> Option<(PeerId, Vec<Multiaddr>)> {
    let node: NodeId = entry.node.parse().ok()?;
    let parse = |text: &String| address::parse(&PeerAddress { node: Some(node), address: text.clone() }).ok();
    let addresses: Vec<_> =
        entry.addresses.iter().take(ADDRESSES_PER_ENTRY_MAX).filter_map(parse).map(|(_, address)| address).collect();
    Some((address::peer_id(node)?, addresses)).filter(|(_, addresses)| !addresses.is_empty())
}

/// Writes a new file beside the old one and moves it there, so that a crash leaves one of the two.
pub(crate) fn save(path: &Path, peers: &[(PeerId, Vec<Multiaddr>)]) -> io::Result<()> {
    let entries: Vec<Entry> = peers
        .iter()
        .take(ENTRIES_MAX)
        .map(|(peer, addresses)| Entry {
            node: peer.to_string(),
            addresses: addresses.iter().take(ADDRESSES_PER_ENTRY_MAX).map(ToString::to_string).collect(),
        })
        .collect();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    fs::write(&name, serde_json::to_vec_pretty(&entries)?)?;
    fs::rename(&name, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_round_trips_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/peers.json");
        let address: Multiaddr = "/ip4/198.51.100.7/tcp/4470".parse().unwrap();
        let peers: Vec<_> = (0..=u8::MAX)
            .chain(0..9)
            .map(|byte| (address::peer_id(NodeId([byte; 32])).unwrap(), vec![address.clone(); 20]))
            .collect();
        save(&path, &peers).unwrap();
        let loaded = load(&path);
        assert_eq!(loaded.len(), ENTRIES_MAX);
        assert_eq!(loaded[3], (peers[3].0, vec![address; ADDRESSES_PER_ENTRY_MAX]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "the new file was moved");
    }

    #[test]
    fn nonsense_is_an_empty_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        assert!(load(&path).is_empty());
        for text in ["{", "[{\"node\":\"x\",\"addresses\":[\"/ip4/1.2.3.4/tcp/1\"]}]", "[[[["] {
            fs::write(&path, text).unwrap();
            assert!(load(&path).is_empty(), "{text}");
        }
    }
}
