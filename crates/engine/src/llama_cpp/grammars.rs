//! Grammars are compiled on the thread that reads frames, so that the steps of other answers do not wait for it.

use std::sync::{Arc, OnceLock};

use opengrid_grammar::{Constraint, Grammars, Words};
use opengrid_protocol::session::Token;

use super::{ffi::Model, messages::Generate};

/// The model's words, there before the first request is.
pub type SharedWords = Arc<OnceLock<Words>>;

/// Compiles for one model; what the vocabulary needs is built with the first grammar.
pub struct Compiler {
    words: SharedWords,
    grammars: Option<Grammars>,
}

impl Compiler {
    pub fn new(words: SharedWords) -> Self {
        Self { words, grammars: None }
    }

    /// `None` for a request without a grammar.
    ///
    /// # Errors
    /// What is wrong with the grammar, for the client.
    pub fn constraint(&mut self, generate: &Generate) -> Result<Option<Constraint>, String> {
        let Some(grammar) = &generate.grammar else { return Ok(None) };
        let prompt = (generate.prompt_tokens as usize).min(generate.tokens.len());
        let compiled = self.grammars()?.compile(grammar, &generate.tokens[prompt..]);
        compiled.map(Some).map_err(|error| format!("grammar: {error}"))
    }

    fn grammars(&mut self) -> Result<&Grammars, String> {
        if self.grammars.is_none() {
            let words = self.words.get().ok_or("no model is loaded")?;
            self.grammars = Some(Grammars::new(words).map_err(|error| format!("grammar: {error}"))?);
        }
        self.grammars.as_ref().ok_or_else(|| "no grammar can be used".to_owned())
    }
}

pub fn words(model: &Model) -> Words {
    let mut words = Words::default();
    let mut end_tokens: Vec<Token> = Vec::new();
    for token in 0..model.vocabulary_size() {
        let ends = model.ends_generation(token);
        let piece = model.piece(token);
        if ends || piece.is_empty() {
            words.push_control(&model.token_text(token).unwrap_or_default());
        } else {
            words.push(&piece);
        }
        if ends {
            end_tokens.push(token);
        }
    }
    words.set_end_tokens(&end_tokens);
    words
}
