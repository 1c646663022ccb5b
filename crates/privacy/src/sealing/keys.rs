//! The worker's sealing keys: made, signed, rotated and forgotten; and its side of the handshake.

use std::{collections::HashSet, fmt};

use hpke::{Deserializable, OpModeR, Serializable};
use opengrid_protocol::{
    NodeId, Signed,
    limits::{CLOCK_SKEW_MS_MAX, SEALING_KEY_LIFE_MS, SEALING_KEY_OVERLAP_MS},
    sealing_key::SealingKey,
};
use zeroize::Zeroizing;

use super::{Aead, Kdf, Kem, SealError, ServerChannel, hello};

/// After this many hellos a key is rotated early, so that what is remembered against replays stays below 4 MiB a key.
pub const HELLOS_PER_KEY_MAX: usize = 65_536;

/// The current sealing key and, for [`SEALING_KEY_OVERLAP_MS`] after a rotation, the one before.
///
/// `now_ms` is Unix milliseconds throughout. Time passes only in calls: one that calls neither
/// [`current`](Self::current) nor [`accept`](Self::accept) for long calls [`forget_expired`](Self::forget_expired), or
/// old keys stay in memory.
pub struct KeyRing {
    node_secret: Zeroizing<[u8; 32]>,
    current: Key,
    previous: Option<Key>,
}

struct Key {
    record: SealingKey,
    signed: Signed,
    /// Overwritten when dropped.
    secret: <Kem as hpke::Kem>::PrivateKey,
    accepted_until_ms: u64,
    seen: HashSet<[u8; 16]>,
}

impl KeyRing {
    /// `node_secret` is the node's Ed25519 seed, with which keys are signed.
    ///
    /// # Panics
    /// When the operating system has no random numbers (as in all methods that may rotate).
    pub fn new(node_secret: [u8; 32], now_ms: u64) -> Self {
        let current = Key::new(&node_secret, now_ms);
        Self { node_secret: Zeroizing::new(node_secret), current, previous: None }
    }

    /// The signed [`SealingKey`] to give to gateways, rotated if it is due.
    pub fn current(&mut self, now_ms: u64) -> Signed {
        self.forget_expired(now_ms);
        self.current.signed.clone()
    }

    /// Rotates a key that is due and overwrites what is past its overlap. A clock that was set back rotates too, since
    /// gateways would refuse a key from the future.
    pub fn forget_expired(&mut self, now_ms: u64) {
        let from_the_future = self.current.record.issued_ms > now_ms.saturating_add(CLOCK_SKEW_MS_MAX);
        if self.current.record.expires_ms <= now_ms || from_the_future {
            self.rotate(now_ms);
        }
        self.previous.take_if(|key| key.accepted_until_ms <= now_ms);
    }

    /// Makes the channel of a gateway's hello. `gateway` is who the transport says is at the other end.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] asks the gateway to fetch the current key; all others are faults of the peer.
    pub fn accept(&mut self, hello: &[u8], gateway: NodeId, now_ms: u64) -> Result<ServerChannel, SealError> {
        self.forget_expired(now_ms);
        let hello = hello::Hello::parse(hello)?;
        let key = [Some(&mut self.current), self.previous.as_mut()]
            .into_iter()
            .flatten()
            .find(|key| key.record.key_id == hello.key_id && key.seen.len() < HELLOS_PER_KEY_MAX)
            .ok_or(SealError::UnknownKey)?;
        let channel = key.accept(&hello, gateway)?;
        if self.current.seen.len() >= HELLOS_PER_KEY_MAX {
            self.rotate(now_ms);
        }
        Ok(channel)
    }

    fn rotate(&mut self, now_ms: u64) {
        let mut last = std::mem::replace(&mut self.current, Key::new(&self.node_secret, now_ms));
        last.accepted_until_ms = last.record.expires_ms.min(now_ms).saturating_add(SEALING_KEY_OVERLAP_MS);
        self.previous = Some(last);
    }
}

impl Key {
    fn new(node_secret: &[u8; 32], now_ms: u64) -> Self {
        let (secret, public) = <Kem as hpke::Kem>::gen_keypair();
        let public = public.to_bytes().to_vec();
        let mut key_id = [0; 8];
        key_id.copy_from_slice(&blake3::hash(&public).as_bytes()[..8]);
        let expires_ms = now_ms.saturating_add(SEALING_KEY_LIFE_MS);
        let record = SealingKey { key_id, public, issued_ms: now_ms, expires_ms };
        let signed = Signed::seal(&record, node_secret);
        let accepted_until_ms = expires_ms.saturating_add(SEALING_KEY_OVERLAP_MS);
        Self { record, signed, secret, accepted_until_ms, seen: HashSet::new() }
    }

    fn accept(&mut self, hello: &hello::Hello<'_>, gateway: NodeId) -> Result<ServerChannel, SealError> {
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&blake3::hash(hello.encapsulated).as_bytes()[..16]);
        if self.seen.contains(&fingerprint) {
            return Err(SealError::Replayed);
        }
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(hello.encapsulated);
        let encapsulated = encapsulated.map_err(|_| SealError::HelloRefused)?;
        let info = hello::info(self.signed.signer, gateway, &self.record.key_id);
        let mut context = hpke::setup_receiver::<Aead, Kdf, Kem>(&OpModeR::Base, &self.secret, &encapsulated, &info)
            .map_err(|_| SealError::HelloRefused)?;
        context.open(hello.confirmation, &[]).map_err(|_| SealError::HelloRefused)?;
        self.seen.insert(fingerprint);
        ServerChannel::new(context)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.current.record.key_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sealing::ClientChannel;

    const GATEWAY: NodeId = NodeId([1; 32]);

    fn fill(key: &mut Key, count: usize) {
        key.seen = (0..count as u128).map(u128::to_le_bytes).collect();
    }

    /// A flood of hellos costs no more than bounded memory, and gateways go on with the next key.
    #[test]
    fn a_key_that_saw_too_many_hellos_is_rotated_early() {
        let mut ring = KeyRing::new([2; 32], 0);
        let first = ring.current(0);
        let hello = || ClientChannel::open(first.signer, &first.open(0).unwrap(), GATEWAY).unwrap().1;
        fill(&mut ring.current, HELLOS_PER_KEY_MAX - 1);
        ring.accept(&hello(), GATEWAY, 0).unwrap();
        assert_ne!(ring.current(0), first);
        assert_eq!(ring.accept(&hello(), GATEWAY, 0).unwrap_err(), SealError::UnknownKey);
        assert!(ring.previous.is_some());
        ring.forget_expired(SEALING_KEY_OVERLAP_MS);
        assert!(ring.previous.is_none(), "the overlap counts from the rotation");
    }
}
