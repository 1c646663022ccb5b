//! BERT's tokenizer (Devlin et al. 2018, as `BertTokenizer` of Hugging Face does it). Pure. llama.cpp's own differs
//! where it matters: it keeps one letter of a Korean syllable and drops the vowel signs of Indic scripts.

use std::collections::HashMap;

use icu_normalizer::DecomposingNormalizerBorrowed;
use icu_properties::{
    CodePointMapData, CodePointMapDataBorrowed,
    props::{GeneralCategory, GeneralCategoryGroup},
};
use opengrid_protocol::session::Token;

/// What llama.cpp's files put before a token that begins a word; the others continue one.
const WORD_BEGINS: char = '\u{2581}';
/// Longer words are unknown, whatever their parts.
const WORD_CHARS_MAX: usize = 100;
const CATEGORIES: CodePointMapDataBorrowed<'static, GeneralCategory> = CodePointMapData::<GeneralCategory>::new();

/// What is done to a text before it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Normalising {
    pub lowercase: bool,
    pub strip_accents: bool,
}

#[derive(Debug)]
pub struct WordPiece {
    begins: HashMap<String, Token>,
    continues: HashMap<String, Token>,
    unknown: Token,
    normalising: Normalising,
    /// Of the longest piece.
    piece_bytes_max: usize,
}

impl WordPiece {
    /// `tokens` are the ordinary ones, with [`WORD_BEGINS`] where they begin a word.
    pub fn new(tokens: impl Iterator<Item = (Token, String)>, unknown: Token, normalising: Normalising) -> Self {
        let (mut begins, mut continues, mut piece_bytes_max) = (HashMap::new(), HashMap::new(), 0);
        for (token, text) in tokens {
            let (map, piece) = match text.strip_prefix(WORD_BEGINS) {
                Some(piece) => (&mut begins, piece.to_owned()),
                None => (&mut continues, text),
            };
            piece_bytes_max = piece_bytes_max.max(piece.len());
            map.insert(piece, token);
        }
        Self { begins, continues, unknown, normalising, piece_bytes_max }
    }

    /// The tokens of `text`, none of them special but the unknown one.
    pub fn tokenize(&self, text: &str) -> Vec<Token> {
        let mut tokens = Vec::with_capacity(text.len() / 4);
        let normal = self.normalise(text);
        for part in normal.split(char::is_whitespace) {
            let mut rest = part;
            while let Some(first) = rest.chars().next() {
                let word = match rest.find(is_punctuation) {
                    Some(0) => first.len_utf8(),
                    found => found.unwrap_or(rest.len()),
                };
                self.push_word(&rest[..word], &mut tokens);
                rest = &rest[word..];
            }
        }
        tokens
    }

    fn normalise(&self, text: &str) -> String {
        let clean = text.chars().filter(|c| !is_dropped(*c));
        let spaced = clean.flat_map(|c| {
            let around = is_chinese(c).then_some(' ');
            around.into_iter().chain([c]).chain(around)
        });
        let stripped: String = if self.normalising.strip_accents {
            let is_kept = |c: &char| CATEGORIES.get(*c) != GeneralCategory::NonspacingMark;
            DecomposingNormalizerBorrowed::new_nfd().normalize_iter(spaced).filter(is_kept).collect()
        } else {
            spaced.collect()
        };
        // Letter by letter: a sigma at the end of a Greek word is one like the others.
        if self.normalising.lowercase { stripped.chars().flat_map(char::to_lowercase).collect() } else { stripped }
    }

    /// The longest pieces from the left; a word with a part that is none is unknown as a whole.
    fn push_word(&self, word: &str, tokens: &mut Vec<Token>) {
        let before = tokens.len();
        let mut rest = word;
        let mut pieces = &self.begins;
        while !rest.is_empty() && word.chars().nth(WORD_CHARS_MAX).is_none() {
            let ends =
                rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= self.piece_bytes_max);
            let ends: Vec<usize> = ends.collect();
            let longest = ends.iter().rev().find_map(|end| Some((*end, *pieces.get(rest.get(..*end)?)?)));
            let Some((end, token)) = longest else { break };
            tokens.push(token);
            rest = &rest[end..];
            pieces = &self.continues;
        }
        if !rest.is_empty() {
            tokens.truncate(before);
            tokens.push(self.unknown);
        }
    }
}

/// Zero, the replacement character, control and format characters, private ones.
fn is_dropped(c: char) -> bool {
    let category = CATEGORIES.get(c);
    let is_control = GeneralCategoryGroup::Other.contains(category) && category != GeneralCategory::Unassigned;
    c == '\u{fffd}' || (is_control && !matches!(c, '\t' | '\n' | '\r'))
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || GeneralCategoryGroup::Punctuation.contains(CATEGORIES.get(c))
}

/// The blocks of Chinese characters, each of which is a word; the bounds are those of the reference.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x2_0000..=0x2_a6df | 0x2_a700..=0x2_b73f | 0x2_b740..=0x2_b81f
        | 0x2_b920..=0x2_ceaf | 0xf900..=0xfaff | 0x2_f800..=0x2_fa1f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECES: [&str; 12] = ["▁un", "aff", "able", "▁,", "▁a", "b", "▁ᄒ", "ᅡ", "ᆫ", "▁下", "▁द", "ि"];
    const UNKNOWN: Token = 99;

    fn cut(text: &str, lowercase: bool) -> Vec<Token> {
        let tokens = (0..).zip(PIECES.map(str::to_owned));
        WordPiece::new(tokens, UNKNOWN, Normalising { lowercase, strip_accents: lowercase }).tokenize(text)
    }

    #[test]
    fn words_are_cut_into_the_longest_pieces() {
        assert_eq!(cut("unaffable", true), [0, 1, 2]);
        assert_eq!(cut(" unaff,\tA\u{300}b\n", true), [0, 1, 3, 4, 5], "spaces, punctuation, accents, case");
        assert_eq!(cut("able", true), [UNKNOWN], "a continuation begins no word");
        assert_eq!(cut("unaffx un", true), [UNKNOWN, 0], "all of the word is unknown");
        assert_eq!(cut("A", false), [UNKNOWN]);
        assert!(cut("", true).is_empty());
    }

    #[test]
    fn scripts_keep_what_distinguishes_their_words() {
        assert_eq!(cut("한", true), [6, 7, 8], "all letters of a syllable");
        assert_eq!(cut("दि", true), [10, 11], "a vowel sign");
        assert_eq!(cut("下下a", true), [9, 9, 4], "each Chinese character is a word");
        assert_eq!(cut("a\u{200b}b\u{0}\u{fffd}", true), [4, 5], "what nobody sees is dropped");
    }

    #[test]
    fn words_without_end_are_unknown() {
        assert_eq!(cut(&format!("a{}", "b".repeat(99)), true).len(), 100);
        assert_eq!(cut(&format!("a{}", "b".repeat(100)), true), [UNKNOWN]);
        assert_eq!(cut(&"a".repeat(1_000_000), true), [UNKNOWN], "in no time");
    }

    proptest! {
        #[test]
        fn every_text_is_cut_into_known_tokens(text: String) {
            for token in cut(&text, true) {
                prop_assert!(token == UNKNOWN || (token as usize) < PIECES.len());
            }
        }
    }
}
