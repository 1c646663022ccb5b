//! The first message of a channel: version (1 byte), key id (8), encapsulated key (1,120), tag of an empty message (16).

use opengrid_protocol::NodeId;

use super::{SealError, TAG_BYTES};

pub(super) const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"opengrid/sealing/1";
const KEY_ID_BYTES: usize = 8;
/// ML-KEM-768 ciphertext and X25519 public key.
const ENCAPSULATED_BYTES: usize = 1_120;
/// Size of every hello, in bytes.
pub const HELLO_BYTES: usize = 1 + KEY_ID_BYTES + ENCAPSULATED_BYTES + TAG_BYTES;

/// The parts of a hello, none of them checked yet.
pub(super) struct Hello<'a> {
    pub key_id: [u8; KEY_ID_BYTES],
    pub encapsulated: &'a [u8],
    pub confirmation: &'a [u8],
}

impl<'a> Hello<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, SealError> {
        let (version, rest) = bytes.split_first().ok_or(SealError::HelloSize(0))?;
        if *version != VERSION {
            return Err(SealError::HelloVersion(*version));
        }
        if bytes.len() != HELLO_BYTES {
            return Err(SealError::HelloSize(bytes.len()));
        }
        let (key_id, rest) = rest.split_first_chunk().ok_or(SealError::HelloSize(bytes.len()))?;
        let (encapsulated, confirmation) = rest.split_at(ENCAPSULATED_BYTES);
        Ok(Self { key_id: *key_id, encapsulated, confirmation })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [&[VERSION], self.key_id.as_slice(), self.encapsulated, self.confirmation].concat()
    }
}

/// HPKE's `info`: who talks to whom under which key. All parts have fixed lengths.
pub(super) fn info(worker: NodeId, gateway: NodeId, key_id: &[u8; KEY_ID_BYTES]) -> Vec<u8> {
    [DOMAIN, &worker.0, &gateway.0, key_id].concat()
}
