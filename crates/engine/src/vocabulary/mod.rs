//! The text side of a model: tokenizer and pieces, without weights. The tokenizer parses hostile files and texts in C++,
//! so it runs in a sandboxed child process of its own; pieces are kept on this side.

mod child;
mod messages;
mod wordpiece;

use std::{io, path::PathBuf, time::Duration};

use opengrid_protocol::session::Token;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::timeout};

use self::messages::{FromTokenizer, Loaded, ToTokenizer};
use crate::{
    child::TOKENIZER_COMMAND,
    ipc,
    process::{ChildProcess, Launch},
};

pub(crate) use child::run as run_child;
pub(crate) use messages::Pieces;

/// Longest text to tokenize at once, in bytes.
pub const TEXT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest vocabulary.
const VOCABULARY_TOKENS_MAX: u32 = 1 << 20;
const LOAD_TIME_MAX: Duration = Duration::from_secs(60);
const TOKENIZE_TIME_MAX: Duration = Duration::from_secs(30);

/// What a vocabulary says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VocabularyInfo {
    /// Tokens are `0..size`.
    pub size: u32,
    pub bos: Option<Token>,
    pub eos: Option<Token>,
    /// The marks before the text in front of a gap, before the text behind it and before what fills it, where the model
    /// was trained to fill gaps.
    pub fill_in_middle: Option<[Token; 3]>,
    /// Every token that ends a generation, ascending.
    pub end_tokens: Vec<Token>,
    /// Whether prompts get a BOS in front.
    pub adds_bos: bool,
    /// Empty where there is no such token.
    pub bos_text: String,
    pub eos_text: String,
    /// The GGUF's own Jinja template.
    pub chat_template: Option<String>,
    /// Tokens that the model was trained to hold; 0 where the file does not say.
    pub trained_context: u32,
    /// What confines the tokenizer process, for people.
    pub sandbox: String,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    #[error("the tokenizer process does not start: {0}")]
    Start(io::Error),
    #[error("the vocabulary cannot be loaded: {0}")]
    Load(String),
    #[error("a text of {bytes} bytes is over the limit of {TEXT_BYTES_MAX}")]
    TextTooLong { bytes: usize },
    #[error("the tokenizer process died; it is restarted for the next text")]
    Died,
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
    #[error("the vocabulary is shut down")]
    ShutDown,
}

/// A loaded vocabulary. Shared by many tasks; texts are tokenized one after the other.
pub struct Vocabulary {
    program: PathBuf,
    gguf: PathBuf,
    info: VocabularyInfo,
    pieces: Pieces,
    tokenizer: Mutex<Tokenizer>,
}

enum Tokenizer {
    Running(Box<ChildProcess>),
    Dead,
    ShutDown,
}

impl Vocabulary {
    /// Starts a tokenizer on `gguf`: a whole model or its vocabulary part alone.
    ///
    /// # Errors
    /// When the process does not start or the file is no vocabulary.
    pub async fn start(program: PathBuf, gguf: PathBuf) -> Result<Self, VocabularyError> {
        let gguf = std::path::absolute(gguf).map_err(VocabularyError::Start)?;
        let (process, loaded) = launch(&program, &gguf).await?;
        let Loaded { info, pieces } = loaded;
        let tokenizer = Mutex::new(Tokenizer::Running(Box::new(process)));
        Ok(Self { program, gguf, info, pieces, tokenizer })
    }

    pub fn info(&self) -> &VocabularyInfo {
        &self.info
    }

    /// The bytes that a token prints; empty for control tokens and ids out of range.
    pub fn piece(&self, token: Token) -> &[u8] {
        self.pieces.get(token)
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Token ids of `text`. `add_special` adds what the model wants around a prompt (BOS); `parse_special` turns texts
    /// like `<|im_end|>` into their control tokens: only for templates, never for what people wrote.
    ///
    /// # Errors
    /// [`VocabularyError::Died`] heals itself with the next call.
    pub async fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, VocabularyError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(VocabularyError::TextTooLong { bytes: text.len() });
        }
        let request = ToTokenizer::Tokenize { text: text.to_owned(), add_special, parse_special };
        let mut tokenizer = self.tokenizer.lock().await;
        let mut process = match std::mem::replace(&mut *tokenizer, Tokenizer::Dead) {
            Tokenizer::Running(process) => process,
            Tokenizer::Dead => Box::new(self.relaunch().await?),
            Tokenizer::ShutDown => {
                *tokenizer = Tokenizer::ShutDown;
                return Err(VocabularyError::ShutDown);
            }
        };
        // Cancelled here, the process is dropped (and so killed): no answer can meet the wrong question.
        match timeout(TOKENIZE_TIME_MAX, ask(&mut process, &request)).await {
            Ok(Ok(answer)) => {
                *tokenizer = Tokenizer::Running(process);
                self.tokens(answer)
            }
            Ok(Err(_)) | Err(_) => {
                let end = process.kill().await;
                tracing::warn!(%end, "the tokenizer process died");
                Err(VocabularyError::Died)
            }
        }
    }

    fn tokens(&self, answer: FromTokenizer) -> Result<Vec<Token>, VocabularyError> {
        match answer {
            FromTokenizer::Tokens(tokens) if tokens.iter().all(|token| *token < self.info.size) => Ok(tokens),
            FromTokenizer::Failed(why) => Err(VocabularyError::Text(why)),
            _ => Err(VocabularyError::Died),
        }
    }

    async fn relaunch(&self) -> Result<ChildProcess, VocabularyError> {
        let (process, loaded) = launch(&self.program, &self.gguf).await?;
        if loaded.info != self.info || loaded.pieces != self.pieces {
            return Err(VocabularyError::Load("the file has changed since it was first read".to_owned()));
        }
        Ok(process)
    }

    /// The tokenizer's process id, while it runs and tokenizes nothing.
    pub fn child_pid(&self) -> Option<u32> {
        match &*self.tokenizer.try_lock().ok()? {
            Tokenizer::Running(process) => process.id(),
            _ => None,
        }
    }

    /// Ends the process; pieces stay readable.
    pub async fn shutdown(&self) {
        let before = std::mem::replace(&mut *self.tokenizer.lock().await, Tokenizer::ShutDown);
        if let Tokenizer::Running(process) = before {
            process.end().await;
        }
    }
}

async fn ask(process: &mut ChildProcess, request: &ToTokenizer) -> io::Result<FromTokenizer> {
    process.input.send(&ipc::frame(request)).await?;
    process.output.receive().await
}

async fn launch(program: &std::path::Path, gguf: &std::path::Path) -> Result<(ChildProcess, Loaded), VocabularyError> {
    let launch = Launch {
        program,
        command: TOKENIZER_COMMAND,
        environment: &[],
        keep_environment: false,
        frame_bytes_max: ipc::FROM_TOKENIZER_BYTES_MAX,
    };
    let mut process = ChildProcess::spawn(&launch).map_err(VocabularyError::Start)?;
    let request = ToTokenizer::Load { path: gguf.to_owned() };
    let answer = timeout(LOAD_TIME_MAX, ask(&mut process, &request)).await;
    match answer {
        Ok(Ok(FromTokenizer::Loaded(loaded))) if consistent(&loaded) => Ok((process, *loaded)),
        Ok(Ok(FromTokenizer::Failed(why))) => {
            process.end().await;
            Err(VocabularyError::Load(why))
        }
        Ok(Ok(_)) => Err(VocabularyError::Load(format!("the process talks nonsense: {}", process.kill().await))),
        Ok(Err(_)) => Err(VocabularyError::Load(format!("the process died: {}", process.end().await))),
        Err(_) => Err(VocabularyError::Load(format!("the process takes too long: {}", process.kill().await))),
    }
}

fn consistent(Loaded { info, pieces }: &Loaded) -> bool {
    let mut tokens = info.end_tokens.iter().chain(&info.bos).chain(&info.eos);
    pieces.fits(info.size) && tokens.all(|token| *token < info.size)
}
