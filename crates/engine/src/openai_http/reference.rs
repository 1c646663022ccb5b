//! What our own vocabulary says, to compare an engine's with.

use std::fmt;

use opengrid_protocol::session::Token;

use crate::vocabulary::{Pieces, Vocabulary, VocabularyError};

/// Latin with accents, digits, spaces, code, three other scripts and a character outside the BMP: two vocabularies that
/// differ anywhere hardly agree here.
pub(super) const KNOWN_TEXT: &str = "The quick brown fox jumps over 13 lazy dogs, doesn't it?\n\n\
    Zażółć gęślą jaźń; übermäßig, naïve façade.  Two  spaces\tand a tab.\n\
    fn main() { let x = [1, 20, 300]; println!(\"{x:?}\"); }\n\
    Привет, мир! 東京は日本の首都です。 안녕하세요 🙂 1234567890 = 3.14159e-2\n";

/// Sizes, pieces and the tokens of a known text.
#[derive(Clone)]
pub struct Reference {
    pub(super) size: u32,
    pub(super) pieces: Pieces,
    pub(super) known_tokens: Vec<Token>,
}

impl Reference {
    /// # Errors
    /// When the tokenizer process fails.
    pub async fn of(vocabulary: &Vocabulary) -> Result<Self, VocabularyError> {
        let known_tokens = vocabulary.tokenize(KNOWN_TEXT, false, false).await?;
        Ok(Self { size: vocabulary.info().size, pieces: vocabulary.pieces().clone(), known_tokens })
    }

    /// A vocabulary of one token a byte, for tests without a model.
    pub fn of_bytes() -> Self {
        let mut pieces = Pieces::default();
        (0..=u8::MAX).for_each(|byte| pieces.push(&[byte]));
        Self { size: 256, pieces, known_tokens: KNOWN_TEXT.bytes().map(Token::from).collect() }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reference").field("size", &self.size).finish_non_exhaustive()
    }
}
