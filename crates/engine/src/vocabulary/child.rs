//! The tokenizer child: llama.cpp's tokenizers on the vocabulary part of a model, one text at a time.

use std::{
    fs::File,
    io::{self, Stdin},
    path::Path,
};

use opengrid_protocol::session::Token;

use super::{
    VOCABULARY_TOKENS_MAX, VocabularyInfo,
    messages::{FromTokenizer, Loaded, Pieces, ToTokenizer},
    wordpiece::{Normalising, WordPiece},
};
use crate::{
    ipc,
    llama_cpp::ffi::{Model, ModelOptions},
    sandbox::{self, Devices},
};

/// # Errors
/// When the parent's stream is broken or the file is no vocabulary.
pub fn run(mut input: Stdin, mut output: File) -> io::Result<()> {
    let ToTokenizer::Load { path } = ipc::read(&mut input, ipc::TO_CHILD_BYTES_MAX)? else {
        return Err(io::Error::other("the first message is not Load"));
    };
    let sandbox = sandbox::enter(&[&path], Devices::None);
    let model = match load(&path) {
        Ok((model, pieces)) => {
            let info = describe(&model, sandbox);
            ipc::write(&mut output, &FromTokenizer::Loaded(Box::new(Loaded { info, pieces })))?;
            model
        }
        Err(why) => return ipc::write(&mut output, &FromTokenizer::Failed(why)),
    };
    serve(&Tokenizer { wordpiece: wordpiece(&model), model }, &mut input, &mut output)
}

/// llama.cpp's, but for models of BERT's kind.
struct Tokenizer {
    model: Model,
    wordpiece: Option<WordPiece>,
}

impl Tokenizer {
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, String> {
        match &self.wordpiece {
            Some(wordpiece) if !parse_special => {
                let (first, last) = if add_special { (self.model.bos(), self.model.sep()) } else { (None, None) };
                Ok(first.into_iter().chain(wordpiece.tokenize(text)).chain(last).collect())
            }
            _ => self.model.tokenize(text, add_special, parse_special),
        }
    }
}

fn wordpiece(model: &Model) -> Option<WordPiece> {
    /// llama.cpp's default for such files.
    const UNKNOWN: Token = 100;
    if !model.is_wordpiece() {
        return None;
    }
    let flag = |name: &str| Some(model.metadata(&format!("tokenizer.ggml.normalizer.{name}"))? == "true");
    let lowercase = flag("lowercase").unwrap_or(true);
    let normalising = Normalising { lowercase, strip_accents: flag("strip_accents").unwrap_or(lowercase) };
    let ordinary = (0..model.vocabulary_size()).filter(|token| !model.is_control(*token));
    let tokens = ordinary.filter_map(|token| Some((token, model.token_text(token)?)));
    let unknown = model.metadata("tokenizer.ggml.unknown_token_id").and_then(|id| id.parse().ok());
    Some(WordPiece::new(tokens, unknown.unwrap_or(UNKNOWN), normalising))
}

fn serve(tokenizer: &Tokenizer, input: &mut Stdin, output: &mut File) -> io::Result<()> {
    loop {
        let message = match ipc::read(input, ipc::TO_CHILD_BYTES_MAX) {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let ToTokenizer::Tokenize { text, add_special, parse_special } = message else {
            return Err(io::Error::other("a second Load"));
        };
        let answer = match tokenizer.tokenize(&text, add_special, parse_special) {
            Ok(tokens) => FromTokenizer::Tokens(tokens),
            Err(why) => FromTokenizer::Failed(why),
        };
        ipc::write(output, &answer)?;
    }
}

fn load(path: &Path) -> Result<(Model, Pieces), String> {
    let model = Model::load(path, ModelOptions { vocabulary_only: true, ..ModelOptions::default() })?;
    let size = model.vocabulary_size();
    if size == 0 || size > VOCABULARY_TOKENS_MAX {
        return Err(format!("a vocabulary of {size} tokens, 1 to {VOCABULARY_TOKENS_MAX} are possible"));
    }
    let mut pieces = Pieces::default();
    for token in 0..size {
        pieces.push(&model.piece(token));
    }
    Ok((model, pieces))
}

fn describe(model: &Model, sandbox: String) -> VocabularyInfo {
    let size = model.vocabulary_size();
    let text = |token: Option<u32>| token.and_then(|token| model.token_text(token)).unwrap_or_default();
    VocabularyInfo {
        size,
        bos: model.bos(),
        eos: model.eos(),
        fill_in_middle: model.fill_in_middle(),
        end_tokens: (0..size).filter(|token| model.ends_generation(*token)).collect(),
        adds_bos: model.adds_bos(),
        bos_text: text(model.bos()),
        eos_text: text(model.eos()),
        chat_template: model.chat_template(),
        trained_context: model.trained_context(),
        sandbox,
    }
}
