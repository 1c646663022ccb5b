//! llama-server streams no chunk for a token that ends within a UTF-8 character; the next chunk carries the bytes of all,
//! the id of the last and the count. From these the missing ids follow: no guess, since another split of the same bytes
//! into as many tokens is looked for, too, and found wanting.

use std::collections::HashMap;

use opengrid_protocol::session::Token;

use super::Reference;

/// Tokens that one chunk can lack: a character has at most four bytes, a cluster some more.
const MISSING_MAX: u32 = 16;
const BYTES_MAX: usize = 256;

/// The tokens whose bytes are no text by themselves.
pub struct Gaps {
    ids: HashMap<Box<[u8]>, Vec<Token>>,
    longest: usize,
}

impl Gaps {
    pub fn of(reference: &Reference) -> Self {
        let mut ids: HashMap<Box<[u8]>, Vec<Token>> = HashMap::new();
        for token in 0..reference.size {
            let piece = reference.pieces.get(token);
            if std::str::from_utf8(piece).is_err() {
                ids.entry(piece.into()).or_default().push(token);
            }
        }
        let longest = ids.keys().map(|piece| piece.len()).max().unwrap_or(0);
        Self { ids, longest }
    }

    /// The `missing` tokens before one with the bytes `last`, of which `bytes` are all. `None` where that cannot be told.
    pub fn fill(&self, bytes: &[u8], missing: u32, last: &[u8]) -> Option<Vec<Token>> {
        let bytes = bytes.strip_suffix(last)?;
        if missing > MISSING_MAX || bytes.len() > BYTES_MAX {
            return None;
        }
        // Per number of tokens and position: how many splits of the rest there are, at most two are told apart.
        let mut ways = vec![vec![0_u8; bytes.len() + 1]; missing as usize + 1];
        ways[0][bytes.len()] = 1;
        for count in 1..=missing as usize {
            for at in 0..bytes.len() {
                let more = self
                    .steps(bytes, at)
                    .map(|(ids, end)| ways[count - 1][end].saturating_mul(u8::try_from(ids.len()).unwrap_or(u8::MAX)));
                ways[count][at] = more.fold(0, u8::saturating_add);
            }
        }
        (ways[missing as usize][0] == 1).then(|| self.walk(bytes, &ways))
    }

    /// The tokens that begin at `at`, and where they end.
    fn steps<'a>(&'a self, bytes: &'a [u8], at: usize) -> impl Iterator<Item = (&'a [Token], usize)> {
        let ends = at + 1..=bytes.len().min(at + self.longest);
        ends.filter_map(move |end| Some((self.ids.get(&bytes[at..end])?.as_slice(), end)))
    }

    fn walk(&self, bytes: &[u8], ways: &[Vec<u8>]) -> Vec<Token> {
        let (mut at, mut tokens) = (0, Vec::new());
        for left in (0..ways.len() - 1).rev() {
            let Some((ids, end)) = self.steps(bytes, at).find(|(_, end)| ways[left][*end] > 0) else { break };
            tokens.extend(ids.first());
            at = end;
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::Pieces;

    fn gaps(pieces: &[&[u8]]) -> Gaps {
        let mut all = Pieces::default();
        pieces.iter().for_each(|piece| all.push(piece));
        Gaps::of(&Reference { size: pieces.len() as u32, pieces: all, known_tokens: Vec::new() })
    }

    #[test]
    fn the_only_split_is_found() {
        let gaps = gaps(&[b"a", b" \xF0\x9F", b"\x98", b"\x80", b"\xF0\x9F\x98", b"\xF0", b"\x9F\x98"]);
        let smile = " \u{1F600}".as_bytes();
        assert_eq!(gaps.fill(smile, 2, b"\x80"), Some(vec![1, 2]));
        assert_eq!(gaps.fill(&smile[1..], 1, b"\x80"), Some(vec![4]));
        assert_eq!(gaps.fill(&smile[1..], 2, b"\x80"), Some(vec![5, 6]));
    }

    #[test]
    fn two_splits_or_none_are_no_answer() {
        let twice = gaps(&[b"\xF0", b"\x9F\x98", b"\xF0\x9F", b"\x98", b"\x80"]);
        let smile = "\u{1F600}".as_bytes();
        assert_eq!(twice.fill(smile, 2, b"\x80"), None, "two splits");
        assert_eq!(twice.fill(smile, 1, b"\x80"), None, "none of one token");
        assert_eq!(twice.fill(b"abc", 1, b"\x80"), None, "the last token is another");
        assert_eq!(twice.fill(smile, 1_000_000, b"\x80"), None);
        assert_eq!(gaps(&[b"\xF0", b"\xF0", b"\x80"]).fill(b"\xF0\x80", 1, b"\x80"), None, "two ids of the same bytes");
    }
}
