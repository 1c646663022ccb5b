//! A vocabulary as the grammar sees it: the bytes of ordinary tokens, the names of control tokens.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use opengrid_protocol::session::Token;

use crate::GrammarError;

/// A longer token is never allowed by a grammar, in bytes.
const WORD_BYTES_MAX: usize = 250;

/// The tokens in order of their ids, in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct Words {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    end_tokens: Vec<Token>,
}

impl Words {
    /// The next token prints these bytes.
    pub fn push(&mut self, piece: &[u8]) {
        if piece.len() <= WORD_BYTES_MAX {
            self.bytes.extend_from_slice(piece);
        }
        self.ends.push(self.bytes.len() as u32);
    }

    /// The next token prints nothing; text never matches it, `<name>` and `<[id]>` in a grammar do.
    pub fn push_control(&mut self, name: &str) {
        if name.len() < WORD_BYTES_MAX {
            self.bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            self.bytes.extend_from_slice(name.as_bytes());
        }
        self.ends.push(self.bytes.len() as u32);
    }

    /// The tokens that end an answer; others than known ids are left out.
    pub fn set_end_tokens(&mut self, tokens: &[Token]) {
        let count = self.ends.len();
        self.end_tokens = tokens.iter().copied().filter(|token| (*token as usize) < count).collect();
    }

    pub(crate) fn word(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..self.ends[index] as usize]
    }

    pub(crate) fn environment(&self) -> Result<TokEnv, GrammarError> {
        let Some(end) = self.end_tokens.first() else {
            return Err(GrammarError::Invalid("the vocabulary has no token that ends an answer".into()));
        };
        let words: Vec<Vec<u8>> = (0..self.ends.len()).map(|index| self.word(index).to_vec()).collect();
        let trie = TokTrie::from(&TokRxInfo::new(self.ends.len() as u32, *end), &words);
        Ok(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&self.end_tokens))))
    }
}
