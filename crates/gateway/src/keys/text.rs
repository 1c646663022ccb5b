//! What a key looks like: `og-`, then 256 random bits and a checksum of 32 bits in Base58.

use std::fmt;

/// Tells our keys from other texts in an `Authorization` header, and lets secret scanners find them.
pub const PREFIX: &str = "og-";

const SECRET_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
/// Base58 needs at most 50 digits for 36 bytes.
const TEXT_BYTES_MAX: usize = PREFIX.len() + 50;
/// Characters of a key that are kept to recognise it: 35 of its 256 bits.
const SHOWN_CHARS: usize = PREFIX.len() + 6;

/// A key's hash at rest. The key is 256 random bits, so a fast hash cannot be searched any more than a slow one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// A key in clear. It exists where it is made and where it is checked, and is never written down.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

/// The text begins as a key and is none: mistyped or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API key is mistyped or cut off: its checksum does not fit")]
pub struct MalformedKey;

impl KeyText {
    pub fn generate() -> Self {
        Self::of(rand::random())
    }

    fn of(secret: [u8; SECRET_BYTES]) -> Self {
        let bytes = [secret.as_slice(), &checksum(&secret)].concat();
        Self(format!("{PREFIX}{}", bs58::encode(bytes).into_string()))
    }

    /// Whether `text` means to be one of our keys.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// # Errors
    /// [`MalformedKey`]
    pub fn parse(text: &str) -> Result<Self, MalformedKey> {
        let digits = text.strip_prefix(PREFIX).filter(|_| text.len() <= TEXT_BYTES_MAX).ok_or(MalformedKey)?;
        let bytes = bs58::decode(digits).into_vec().map_err(|_| MalformedKey)?;
        let (secret, sum) = bytes.split_first_chunk::<SECRET_BYTES>().ok_or(MalformedKey)?;
        if sum != checksum(secret) {
            return Err(MalformedKey);
        }
        Ok(Self(text.to_owned()))
    }

    pub fn digest(&self) -> Digest {
        Digest(blake3::derive_key("OpenGrid 2026 API key at rest", self.0.as_bytes()))
    }

    /// The beginning, by which a person recognises the key.
    pub fn shown(&self) -> String {
        self.0.chars().take(SHOWN_CHARS).collect()
    }

    /// The key in clear, to be shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn checksum(secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = blake3::derive_key("OpenGrid 2026 API key checksum", secret);
    [a, b, c, d]
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyText({}…)", self.shown())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_long_and_says_what_it_is() {
        let key = KeyText::generate();
        assert!(key.expose().starts_with("og-") && (45..=TEXT_BYTES_MAX).contains(&key.expose().len()));
        assert_ne!(key, KeyText::generate());
        assert_eq!(KeyText::parse(key.expose()).unwrap().digest(), key.digest());
        assert_eq!(format!("{key:?}").len(), "KeyText(og-123456…)".len(), "a log never shows it");
    }

    /// Keys that were handed out must stay valid.
    #[test]
    fn the_format_is_pinned() {
        let key = KeyText::of([7; 32]);
        assert_eq!(key.expose(), "og-46WPtSJH9Mc1rNbRaWo6k2v6Bm8dc1FuCFxS2n6gFo7HvtkAN");
        assert_eq!(key.digest().to_string(), "7ca75fd0deecd256073c5594628b61132a87b3442d09603cbd9ffe2d2e1927a0");
    }

    proptest! {
        #[test]
        fn every_key_parses(secret: [u8; 32]) {
            let key = KeyText::of(secret);
            prop_assert_eq!(KeyText::parse(key.expose()), Ok(key.clone()));
        }

        #[test]
        fn what_is_mistyped_is_seen(secret: [u8; 32], at in 0..40usize, to in "[1-9A-HJ-NP-Za-km-z]") {
            let key = KeyText::of(secret);
            let mut text = key.expose().to_owned();
            let at = PREFIX.len() + at;
            text.replace_range(at..=at, &to);
            prop_assume!(text != key.expose());
            prop_assert_eq!(KeyText::parse(&text), Err(MalformedKey));
            prop_assert_eq!(KeyText::parse(&key.expose()[..at]), Err(MalformedKey));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,80}") {
            let _ = KeyText::parse(&text);
            let _ = KeyText::parse(&format!("og-{text}"));
        }
    }
}
