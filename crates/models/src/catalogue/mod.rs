//! Which models there are: the catalogue of this program and, over it, the user's own.

mod parse;
mod write;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use opengrid_protocol::ModelRoot;
use serde::{Deserialize, Serialize};

/// The catalogue that this program was built with.
const BUILT_IN: &str = include_str!("../../catalogue.toml");
/// The user's catalogue in the models directory.
pub const FILE_NAME: &str = "catalogue.toml";
/// The model that a new user gets.
pub const DEFAULT_MODEL: &str = "smollm2-135m";
/// Largest catalogue file in bytes.
pub const CATALOGUE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most models in one catalogue file.
pub const MODELS_MAX: usize = 4_096;
/// Most sources of one model.
pub const SOURCES_MAX: usize = 16;

/// Why a catalogue is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {size} bytes are over the limit of {CATALOGUE_BYTES_MAX}")]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{origin}, line {line}: {why}")]
    Invalid { origin: String, line: usize, why: String },
}

/// How heavy a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SizeClass {
    /// Below 1 billion parameters.
    Tiny,
    /// Below 5.
    Small,
    /// Below 40.
    Medium,
    Large,
}

/// One model: exact weights, where to get them, how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelEntry {
    pub id: String,
    pub name: String,
    /// SPDX expression.
    pub licence: String,
    pub class: SizeClass,
    pub task: Task,
    /// Tokens that the model was trained to hold.
    pub context: u32,
    /// Unix seconds.
    pub created: u64,
    pub template: TemplateSource,
    pub file: FileEntry,
    pub sources: Vec<Source>,
}

/// The file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileEntry {
    pub name: String,
    /// Bytes.
    pub size: u64,
    #[serde(with = "hex::serde")]
    pub sha256: [u8; 32],
    /// The BLAKE3 hash, by which the grid names the model.
    #[serde(serialize_with = "as_text")]
    pub blake3: ModelRoot,
}

/// Where the chat template comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateSource {
    /// `tokenizer.chat_template` of the file.
    Gguf,
    /// This Jinja text.
    Inline(String),
}

/// A place outside the grid where the file can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Source {
    /// A file of a repository on the hub.
    Hub { repo: String, revision: String, path: String, convert: Option<Conversion> },
    /// A member of a wheel in a package registry.
    Package { registry: Registry, name: String, version: String, member: String, convert: Option<Conversion> },
}

impl Source {
    /// What makes the GGUF of the file that is there; `None` where that is the GGUF itself.
    pub fn convert(&self) -> Option<Conversion> {
        match self {
            Self::Hub { convert, .. } | Self::Package { convert, .. } => *convert,
        }
    }
}

/// From which format a file is converted. The hashes are those of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conversion {
    /// A BERT encoder with mean pooling: `model.safetensors`, with `config.json` and `vocab.txt` beside it.
    Bert,
}

/// What a model does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Continues texts.
    #[default]
    Generation,
    /// Turns texts into vectors.
    Embedding,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Generation => "generation",
            Self::Embedding => "embedding",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    /// Reached through `pip` as the machine has it set up.
    Pypi,
}

impl ModelEntry {
    pub fn root(&self) -> ModelRoot {
        self.file.blake3
    }

    /// The entry in the catalogue's form; [`Catalogue::from_toml`] reads it back.
    pub fn to_toml(&self) -> String {
        write::to_toml(self)
    }
}

/// Models by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    models: BTreeMap<String, ModelEntry>,
}

impl Catalogue {
    /// The catalogue of this program alone.
    ///
    /// # Errors
    /// Never, unless the program was built with a broken catalogue (a test checks it).
    pub fn built_in() -> Result<Self, CatalogueError> {
        Self::from_toml(BUILT_IN, "the built-in catalogue")
    }

    /// The built-in catalogue and, over it, `catalogue.toml` in `directory` if there is one.
    ///
    /// # Errors
    /// The user's file cannot be read or has a mistake; the message names file, line and mistake.
    pub fn load(directory: &Path) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::built_in()?;
        if let Some(text) = read_bounded(&directory.join(FILE_NAME))? {
            let own = Self::from_toml(&text, &directory.join(FILE_NAME).display().to_string())?;
            catalogue.models.extend(own.models);
        }
        Ok(catalogue)
    }

    /// Reads a catalogue; `origin` names it in errors.
    ///
    /// # Errors
    /// The first mistake and its line.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, CatalogueError> {
        let models = parse::parse(text, origin)?;
        Ok(Self { models: models.into_iter().map(|model| (model.id.clone(), model)).collect() })
    }

    pub fn get(&self, id: &str) -> Option<&ModelEntry> {
        self.models.get(id)
    }

    /// The entry with these exact weights.
    pub fn by_root(&self, root: ModelRoot) -> Option<&ModelEntry> {
        self.models.values().find(|model| model.root() == root)
    }

    /// All entries, by id.
    pub fn models(&self) -> impl Iterator<Item = &ModelEntry> {
        self.models.values()
    }

    /// The id most like `id`, for error messages.
    pub fn nearest(&self, id: &str) -> Option<&str> {
        parse::nearest(id, self.models.keys().map(String::as_str))
    }

    /// Adds `model` to the user's catalogue in `directory` (replacing an entry of the same id) and returns the whole
    /// catalogue. Comments in that file are kept unless an entry is replaced.
    ///
    /// # Errors
    /// The entry breaks a rule, or the file cannot be read or written.
    pub fn add_to_user_file(directory: &Path, model: &ModelEntry) -> Result<Self, CatalogueError> {
        write::add(directory, model)?;
        Self::load(directory)
    }
}

fn read_bounded(path: &Path) -> Result<Option<String>, CatalogueError> {
    let failed = |source| CatalogueError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > CATALOGUE_BYTES_MAX => {
            Err(CatalogueError::TooLarge { path: path.to_owned(), size: metadata.len() })
        }
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn as_text<S: serde::Serializer>(root: &ModelRoot, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(root)
}
