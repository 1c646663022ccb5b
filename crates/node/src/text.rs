//! The text side of models for this node's gateway: a tokenizer process per model in use, and the template.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use opengrid_engine::{Vocabulary, VocabularyError};
use opengrid_protocol::session::Token;
use tokio_util::task::TaskTracker;

use crate::handle::{GridError, TextModel};

/// What a vocabulary file says besides the vocabulary.
#[derive(Debug)]
pub struct Headers {
    pub chat_template: Option<String>,
    pub trained_context: u32,
    pub embedding_width: u32,
}

pub struct NodeText {
    vocabulary: Arc<Vocabulary>,
    tasks: TaskTracker,
    headers: Headers,
    /// Of the longest piece: bounds from below how many tokens a text has, without tokenizing it.
    piece_bytes_max: usize,
}

impl NodeText {
    /// # Errors
    /// [`GridError::Internal`] when the tokenizer process does not come up.
    pub async fn start(
        program: PathBuf,
        vocabulary_file: PathBuf,
        headers: Headers,
        tasks: TaskTracker,
    ) -> Result<Self, GridError> {
        let vocabulary = Vocabulary::start(program, vocabulary_file)
            .await
            .map_err(|error| GridError::Internal(format!("the tokenizer does not start: {error}")))?;
        let longest = (0..vocabulary.info().size).map(|token| vocabulary.piece(token).len()).max();
        let piece_bytes_max = longest.unwrap_or(1).max(1);
        Ok(Self { vocabulary: Arc::new(vocabulary), tasks, headers, piece_bytes_max })
    }
}

impl NodeText {
    fn text_error(&self, error: VocabularyError) -> GridError {
        match error {
            VocabularyError::TextTooLong { bytes } => GridError::ContextOverflow {
                limit: self.headers.trained_context,
                needed: u32::try_from(bytes / PIECE_BYTES_TYPICAL).unwrap_or(u32::MAX),
            },
            VocabularyError::Text(why) => GridError::Invalid(why),
            error => GridError::Internal(format!("tokenizer: {error}")),
        }
    }
}

/// Bytes of text that a token stands for, roughly: texts that are too long to count are estimated by it.
const PIECE_BYTES_TYPICAL: usize = 4;

#[async_trait]
impl TextModel for NodeText {
    async fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, GridError> {
        let tokens_min = u32::try_from(text.len() / self.piece_bytes_max).unwrap_or(u32::MAX);
        if tokens_min > self.headers.trained_context {
            return Err(GridError::ContextOverflow { limit: self.headers.trained_context, needed: tokens_min });
        }
        let (vocabulary, text) = (self.vocabulary.clone(), text.to_owned());
        // In a task of its own: a client that hangs up meanwhile must not cost the others the tokenizer process.
        let work = async move {
            match vocabulary.tokenize(&text, add_special, parse_special).await {
                // It died between two texts, not over this one: a new process takes it.
                Err(VocabularyError::Died) => vocabulary.tokenize(&text, add_special, parse_special).await,
                tokens => tokens,
            }
        };
        match self.tasks.spawn(work).await {
            Ok(tokens) => tokens.map_err(|error| self.text_error(error)),
            Err(error) => Err(GridError::Internal(format!("tokenizer: {error}"))),
        }
    }

    fn piece(&self, token: Token) -> &[u8] {
        self.vocabulary.piece(token)
    }

    fn vocabulary_size(&self) -> u32 {
        self.vocabulary.info().size
    }

    fn end_tokens(&self) -> &[Token] {
        &self.vocabulary.info().end_tokens
    }

    fn fill_in_middle(&self) -> Option<[Token; 3]> {
        self.vocabulary.info().fill_in_middle
    }

    fn chat_template(&self) -> Option<&str> {
        self.headers.chat_template.as_deref()
    }

    fn bos_text(&self) -> &str {
        &self.vocabulary.info().bos_text
    }

    fn eos_text(&self) -> &str {
        &self.vocabulary.info().eos_text
    }

    fn adds_bos(&self) -> bool {
        self.vocabulary.info().adds_bos
    }

    fn trained_context(&self) -> u32 {
        self.headers.trained_context
    }

    fn embedding_width(&self) -> u32 {
        self.headers.embedding_width
    }
}
