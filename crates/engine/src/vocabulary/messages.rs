//! What the node and a tokenizer child say to each other.

use std::path::PathBuf;

use opengrid_protocol::session::Token;
use serde::{Deserialize, Serialize};

use super::VocabularyInfo;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToTokenizer {
    /// The first message, once.
    Load {
        path: PathBuf,
    },
    Tokenize {
        text: String,
        add_special: bool,
        parse_special: bool,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromTokenizer {
    Loaded(Box<Loaded>),
    Tokens(Vec<Token>),
    /// The file or the text cannot be used; the child lives on after a text.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    pub info: VocabularyInfo,
    pub pieces: Pieces,
}

/// The bytes of all tokens, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// Where each piece ends in `bytes`.
    ends: Vec<u32>,
}

impl Pieces {
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Empty for ids out of range.
    pub fn get(&self, token: Token) -> &[u8] {
        let index = token as usize;
        let Some(end) = self.ends.get(index) else { return &[] };
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start as usize..*end as usize).unwrap_or_default()
    }

    /// As many pieces as tokens, each within the bytes.
    pub fn fits(&self, tokens: u32) -> bool {
        self.ends.len() == tokens as usize
            && self.ends.is_sorted()
            && self.ends.last().is_none_or(|end| *end as usize == self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_by_token() {
        let mut pieces = Pieces::default();
        for piece in [b"a".as_slice(), b"", b"bcd"] {
            pieces.push(piece);
        }
        assert_eq!([pieces.get(0), pieces.get(1), pieces.get(2), pieces.get(3)], [b"a".as_slice(), b"", b"bcd", b""]);
        assert!(pieces.fits(3));
        assert!(!pieces.fits(4));
        let lying = Pieces { bytes: vec![1], ends: vec![9] };
        assert!(!lying.fits(1));
        assert_eq!(lying.get(0), b"");
    }
}
