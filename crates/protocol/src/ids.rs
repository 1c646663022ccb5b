//! A type for every identity.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Multihash (identity) and protobuf prefix of an Ed25519 public key: what libp2p's `PeerId` puts before the key.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A node, by its Ed25519 public key. Printed and parsed exactly as libp2p's `PeerId` (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

/// Why a text is no node id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdError {
    #[error("not base58: a node id looks like 12D3KooW…")]
    NotBase58,
    #[error("not an ed25519 peer id: a node id looks like 12D3KooW…")]
    NotEd25519,
    #[error("not 64 hexadecimal digits")]
    NotHex,
}

impl NodeId {
    /// The bytes of the libp2p `PeerId` (38 bytes).
    pub fn to_peer_id_bytes(self) -> Vec<u8> {
        [PEER_ID_PREFIX.as_slice(), &self.0].concat()
    }

    /// From the bytes of a libp2p `PeerId`.
    ///
    /// # Errors
    /// [`IdError::NotEd25519`] for hashed or other kinds of keys.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.strip_prefix(&PEER_ID_PREFIX).and_then(|key| key.try_into().ok()).map(Self).ok_or(IdError::NotEd25519)
    }

    /// The last eight characters, for tables and logs.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len().saturating_sub(8)..].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_peer_id_bytes()).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > 64 {
            return Err(IdError::NotBase58);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| IdError::NotBase58)?;
        Self::from_peer_id_bytes(&bytes)
    }
}

/// Exact weights: the BLAKE3 hash of the GGUF file, which is the root of its chunk tree. Printed as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelRoot(pub [u8; 32]);

impl fmt::Display for ModelRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ModelRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelRoot({self})")
    }
}

impl FromStr for ModelRoot {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut root = [0; 32];
        hex::decode_to_slice(text, &mut root).map_err(|_| IdError::NotHex)?;
        Ok(Self(root))
    }
}

/// One generation on a sealed channel; drawn by the gateway, unique on that channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_print_as_libp2p_peer_ids_and_parse_back() {
        let id = NodeId([7; 32]);
        assert!(id.to_string().starts_with("12D3KooW"), "{id}");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse::<NodeId>(), Err(IdError::NotEd25519));
        assert_eq!("0OIl".parse::<NodeId>(), Err(IdError::NotBase58));
    }

    #[test]
    fn model_roots_round_trip() {
        let root = ModelRoot([0xab; 32]);
        assert_eq!(root.to_string().parse(), Ok(root));
        assert_eq!("ab".parse::<ModelRoot>(), Err(IdError::NotHex));
    }
}
