//! Sealing and opening frames, and the gateway's side of the handshake.

use std::fmt;

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce, Tag};
use hpke::{Deserializable, OpModeS, Serializable, aead::AeadTag, inout::InOutBuf};
use opengrid_protocol::{NodeId, sealing_key::SealingKey};
use zeroize::Zeroizing;

use super::{Aead, Kdf, Kem, ReceiveContext, SealError, SendContext, TAG_BYTES, error_from, hello, padding};

const BACKWARD: &[u8] = b"opengrid/sealing/1/worker-to-gateway";

/// The gateway's end of a channel.
pub struct ClientChannel {
    sealer: Sealer,
    opener: Opener,
}

impl ClientChannel {
    /// Starts a channel to `worker`, whose `key` came out of a checked `Signed` record, and returns the hello to send
    /// first. `gateway` is this node, as the worker will see it.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    ///
    /// # Panics
    /// When the operating system has no random numbers.
    pub fn open(worker: NodeId, key: &SealingKey, gateway: NodeId) -> Result<(Self, Vec<u8>), SealError> {
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&key.public).map_err(|_| SealError::BadKey)?;
        let info = hello::info(worker, gateway, &key.key_id);
        let (encapsulated, mut context) =
            hpke::setup_sender::<Aead, Kdf, Kem>(&OpModeS::Base, &public, &info).map_err(|_| SealError::BadKey)?;
        let confirmation = context.seal(&[], &[]).map_err(|error| error_from(error, SealError::BadKey))?;
        let backward = Backward::export(|label, key| context.export(label, key))?;
        let encapsulated = encapsulated.to_bytes();
        let hello = hello::Hello { key_id: key.key_id, encapsulated: &encapsulated, confirmation: &confirmation };
        let channel = Self {
            sealer: Sealer(SealKey::Forward(Box::new(context))),
            opener: Opener { key: OpenKey::Backward(backward), broken: false },
        };
        Ok((channel, hello.to_bytes()))
    }

    /// The two halves, for a task that writes and one that reads.
    pub fn into_split(self) -> (Sealer, Opener) {
        (self.sealer, self.opener)
    }
}

/// The worker's end of a channel; [`KeyRing::accept`](super::KeyRing::accept) makes it.
pub struct ServerChannel {
    sealer: Sealer,
    opener: Opener,
}

impl ServerChannel {
    /// Takes over a context whose hello was confirmed.
    pub(super) fn new(context: ReceiveContext) -> Result<Self, SealError> {
        let backward = Backward::export(|label, key| context.export(label, key))?;
        Ok(Self {
            sealer: Sealer(SealKey::Backward(backward)),
            opener: Opener { key: OpenKey::Forward(Box::new(context)), broken: false },
        })
    }

    /// The two halves, for a task that writes and one that reads.
    pub fn into_split(self) -> (Sealer, Opener) {
        (self.sealer, self.opener)
    }
}

/// The writing half. Keys are overwritten when it is dropped.
pub struct Sealer(SealKey);

impl Sealer {
    /// The next frame, of [`frame_bytes`](padding::frame_bytes) bytes. Frames must arrive in this order.
    ///
    /// # Errors
    /// [`SealError::TooLarge`] (the channel stays usable) or [`SealError::Exhausted`].
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut frame = padding::pad(plaintext)?;
        let buffer = InOutBuf::from(frame.as_mut_slice());
        let tag: [u8; TAG_BYTES] = match &mut self.0 {
            SealKey::Forward(context) => {
                let tag =
                    context.seal_inout_detached(buffer, &[]).map_err(|error| error_from(error, SealError::Broken))?;
                tag.to_bytes().into()
            }
            SealKey::Backward(key) => key.seal(buffer)?,
        };
        frame.extend_from_slice(&tag);
        Ok(frame)
    }
}

/// The reading half. Keys are overwritten when it is dropped.
pub struct Opener {
    key: OpenKey,
    broken: bool,
}

impl Opener {
    /// The plaintext of the next frame.
    ///
    /// # Errors
    /// Any means that the channel is to be given up: nothing opens after a frame that did not.
    pub fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, SealError> {
        if self.broken {
            return Err(SealError::Broken);
        }
        let opened = self.open_next(frame);
        self.broken = opened.is_err();
        opened
    }

    fn open_next(&mut self, frame: &[u8]) -> Result<Vec<u8>, SealError> {
        padding::check_frame(frame.len())?;
        let (body, tag) = frame.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Refused)?;
        let mut body = body.to_vec();
        let buffer = InOutBuf::from(body.as_mut_slice());
        match &mut self.key {
            OpenKey::Forward(context) => {
                let tag = AeadTag::<Aead>::from_bytes(tag).map_err(|_| SealError::Refused)?;
                context
                    .open_inout_detached(buffer, &[], &tag)
                    .map_err(|error| error_from(error, SealError::Refused))?;
            }
            OpenKey::Backward(key) => key.open(buffer, tag)?,
        }
        padding::unpad(body)
    }
}

enum SealKey {
    Forward(Box<SendContext>),
    Backward(Backward),
}

enum OpenKey {
    Forward(Box<ReceiveContext>),
    Backward(Backward),
}

/// The exported key from worker to gateway; frame n has the nonce n. Both sides derive the same one.
struct Backward {
    cipher: ChaCha20Poly1305,
    /// `None` after the last number.
    next: Option<u64>,
}

impl Backward {
    fn export<E>(export: impl FnOnce(&[u8], &mut [u8]) -> Result<(), E>) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        export(BACKWARD, key.as_mut_slice()).map_err(|_| SealError::Broken)?;
        Ok(Self { cipher: ChaCha20Poly1305::new((&*key).into()), next: Some(0) })
    }

    fn nonce(&self) -> Result<(u64, Nonce), SealError> {
        let number = self.next.ok_or(SealError::Exhausted)?;
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Ok((number, nonce))
    }

    fn seal(&mut self, buffer: InOutBuf<'_, '_, u8>) -> Result<[u8; TAG_BYTES], SealError> {
        let (number, nonce) = self.nonce()?;
        let tag = self.cipher.encrypt_inout_detached(&nonce, &[], buffer).map_err(|_| SealError::Broken)?;
        self.next = number.checked_add(1);
        Ok(tag.into())
    }

    fn open(&mut self, buffer: InOutBuf<'_, '_, u8>, tag: &[u8; TAG_BYTES]) -> Result<(), SealError> {
        let (number, nonce) = self.nonce()?;
        let tag = Tag::from(*tag);
        self.cipher.decrypt_inout_detached(&nonce, &[], buffer, &tag).map_err(|_| SealError::Refused)?;
        self.next = number.checked_add(1);
        Ok(())
    }
}

macro_rules! no_secrets_in_debug {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).finish_non_exhaustive()
            }
        }
    )*};
}

no_secrets_in_debug!(ClientChannel, ServerChannel, Sealer, Opener);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn backward(next: u64) -> Backward {
        Backward { cipher: ChaCha20Poly1305::new(&[9; 32].into()), next: Some(next) }
    }

    #[test]
    fn the_last_number_is_used_and_none_after_it() {
        let mut sealer = Sealer(SealKey::Backward(backward(u64::MAX - 1)));
        let mut opener = Opener { key: OpenKey::Backward(backward(u64::MAX - 1)), broken: false };
        for text in [b"one before the last", b"the last ever sent!"] {
            assert_eq!(opener.open(&sealer.seal(text).unwrap()).unwrap(), text);
        }
        assert_eq!(sealer.seal(b"one too many"), Err(SealError::Exhausted));
        assert_eq!(opener.open(&[0; 64]), Err(SealError::Exhausted));
    }
}
