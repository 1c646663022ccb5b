//! The sealed channel between a gateway and a worker: what relays carry and cannot read.
//!
//! The worker publishes a [`SealingKey`](opengrid_protocol::sealing_key::SealingKey), signed with its node key
//! ([`KeyRing::current`]). The gateway opens a [`ClientChannel`] to it and sends the *hello*; the worker's
//! [`KeyRing::accept`] makes the [`ServerChannel`] of it. Both split into a [`Sealer`] and an [`Opener`].
//!
//! - **Handshake**: HPKE base mode ([RFC 9180](https://www.rfc-editor.org/rfc/rfc9180)) with the KEM X-Wing (ML-KEM-768
//!   and X25519: safe while either is), HKDF-SHA256 and ChaCha20-Poly1305. `info` binds both node ids and the key id.
//!   The hello ends with an empty sealed message, so that a mismatch shows at once. A hello is accepted once.
//! - **Frames**: gateway to worker under the HPKE context, back under a key exported from it (RFC 9180, section 9.8).
//!   Every frame's nonce is its position, so one that was changed, repeated, moved, left out or taken from another
//!   channel or direction does not open; after that the opener opens nothing more.
//! - **Padding**: a frame shows only its size bucket ([`frame_bytes`]).
//! - **Forward secrecy**: an hour. Whoever steals a worker's memory can open what was sealed to the keys that are in it:
//!   the current one, and for five minutes the one before. Rotated keys are overwritten.
//! - **Not here**: the gateway proves nothing about itself (base mode). Its node id is what the transport (Noise or
//!   TLS) authenticated; the caller passes it in.

mod channel;
mod hello;
mod keys;
mod padding;

use hpke::{HpkeError, aead, kdf, kem};
use opengrid_protocol::limits::FRAME_BYTES_MAX;

pub use channel::{ClientChannel, Opener, Sealer, ServerChannel};
pub use hello::HELLO_BYTES;
pub use keys::{HELLOS_PER_KEY_MAX, KeyRing};
pub use padding::{PLAINTEXT_BYTES_MAX, frame_bytes};

type Aead = aead::ChaCha20Poly1305;
type Kdf = kdf::HkdfSha256;
type Kem = kem::XWing;
type SendContext = hpke::aead::AeadCtxS<Aead, Kdf, Kem>;
type ReceiveContext = hpke::aead::AeadCtxR<Aead, Kdf, Kem>;

/// Bytes that authentication adds to a frame.
const TAG_BYTES: usize = 16;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealError {
    #[error("a hello has {HELLO_BYTES} bytes, this one {0}")]
    HelloSize(usize),
    #[error("the hello is of version {0}, this program speaks version 1: update the older one")]
    HelloVersion(u8),
    /// The gateway fetches the worker's current key and tries again.
    #[error("the hello names a sealing key that is not known here, or not any more: fetch the current one")]
    UnknownKey,
    #[error("the hello was used before")]
    Replayed,
    #[error("the hello does not open: sealed for another worker, or not by the gateway that sent it")]
    HelloRefused,
    #[error("the worker's sealing key is no X-Wing public key")]
    BadKey,
    #[error("{size} bytes do not fit a frame: the limit is {PLAINTEXT_BYTES_MAX}")]
    TooLarge { size: usize },
    #[error("no sealed frame has {size} bytes (the limit is {FRAME_BYTES_MAX})")]
    FrameSize { size: usize },
    #[error("the frame does not open: changed, repeated, or out of order")]
    Refused,
    #[error("an earlier frame did not open: the channel is broken, start another")]
    Broken,
    #[error("the channel has carried 2^64 frames: start another")]
    Exhausted,
}

/// `otherwise` for everything that is not the end of the sequence numbers.
fn error_from(error: HpkeError, otherwise: SealError) -> SealError {
    if error == HpkeError::MessageLimitReached { SealError::Exhausted } else { otherwise }
}
