//! Invites: a short bech32m string (BIP 350) that tells where a grid can be joined.

use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};
use serde::{Deserialize, Serialize};

use crate::{
    NodeId,
    codec::{self, DecodeError},
    limits::{ADDRESS_BYTES_MAX, INVITE_ADDRESSES_MAX},
};

const PREFIX: &str = "grid";
const VERSION: u8 = 1;
const TEXT_BYTES_MAX: usize = 1_023;

/// A node and the addresses at which it can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    pub node: NodeId,
    /// Multiaddresses in binary form, without the trailing `/p2p/…`.
    pub addresses: Vec<Vec<u8>>,
    /// The grid is private: a key file is needed besides the invite.
    pub private: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InviteError {
    #[error("not an invite: it starts with `grid1`; copy the whole line that `opengrid invite` prints")]
    NotAnInvite,
    #[error("the invite is damaged (checksum): copy the whole line that `opengrid invite` prints")]
    Damaged,
    #[error("the invite is of version {0}, this program reads version 1: update it")]
    Version(u8),
    #[error("the invite does not decode: {0}")]
    Decode(#[from] DecodeError),
}

impl Invite {
    /// The text, which [`from_text`](Self::from_text) reads. Addresses that are too long are left out, and then the
    /// last ones, until there are at most [`INVITE_ADDRESSES_MAX`] and Bech32m's 1,023 characters.
    pub fn to_text(&self) -> String {
        let mut fitting = self.clone();
        fitting.addresses.retain(|address| address.len() <= ADDRESS_BYTES_MAX);
        fitting.addresses.truncate(INVITE_ADDRESSES_MAX);
        loop {
            let bytes = [vec![VERSION], codec::encode(&fitting)].concat();
            match bech32::encode::<Bech32m>(Hrp::parse_unchecked(PREFIX), &bytes) {
                Ok(text) => return text,
                Err(_) if fitting.addresses.pop().is_some() => {}
                Err(_) => return String::new(),
            }
        }
    }

    /// Reads an invite; surrounding white space is fine.
    ///
    /// # Errors
    /// What is wrong, in words for the person who pasted it.
    pub fn from_text(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if !text.to_ascii_lowercase().starts_with("grid1") || text.len() > TEXT_BYTES_MAX {
            return Err(InviteError::NotAnInvite);
        }
        let checked = CheckedHrpstring::new::<Bech32m>(text).map_err(|_| InviteError::Damaged)?;
        let bytes: Vec<u8> = checked.byte_iter().collect();
        let (version, body) = bytes.split_first().ok_or(InviteError::Damaged)?;
        if *version != VERSION {
            return Err(InviteError::Version(*version));
        }
        let invite: Self = codec::decode(body, TEXT_BYTES_MAX)?;
        if invite.addresses.len() > INVITE_ADDRESSES_MAX {
            return Err(DecodeError::Invalid("too many addresses").into());
        }
        if invite.addresses.iter().any(|address| address.len() > ADDRESS_BYTES_MAX) {
            return Err(DecodeError::Invalid("an address is too long").into());
        }
        Ok(invite)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn invite(addresses: usize) -> Invite {
        Invite { node: NodeId([9; 32]), addresses: vec![vec![4; 40]; addresses], private: true }
    }

    #[test]
    fn invites_round_trip_and_shrink_to_fit() {
        let text = invite(2).to_text();
        assert!(text.starts_with("grid1"), "{text}");
        assert_eq!(Invite::from_text(&format!("  {text}\n")), Ok(invite(2)));
        let shrunk = Invite::from_text(&invite(INVITE_ADDRESSES_MAX).to_text()).unwrap();
        assert!((1..INVITE_ADDRESSES_MAX).contains(&shrunk.addresses.len()));
    }

    #[test]
    fn damage_is_told_apart_from_nonsense() {
        let mut text = invite(1).to_text();
        let last = text.pop().unwrap();
        text.push(if last == 'q' { 'p' } else { 'q' });
        assert_eq!(Invite::from_text(&text), Err(InviteError::Damaged));
        assert_eq!(Invite::from_text("hello"), Err(InviteError::NotAnInvite));
        assert_eq!(Invite::from_text(""), Err(InviteError::NotAnInvite));
    }
}
