//! The content-addressed store of model files: one directory, shared by all nodes of this user and safe for several
//! processes at once.
//!
//! ```text
//! blobs/<root>.gguf          whole, proven files; only ever renamed into place
//! manifests/<root>           their chunk trees (a cache: made again from the blob when missing)
//! vocabularies/<root>.gguf   metadata and tokenizer without weights, for gateways
//! partial/<root>/            what a download has so far
//! slices/                    layers of models as files of their own, made of the above
//! quarantine/                files whose hash was wrong, the newest few
//! locks/<root>.lock          held by the one process that downloads or removes a file
//! temporary/                 files being written; leftovers are removed after a day
//! ```
//!
//! Every method blocks on the disk: async callers use `spawn_blocking`.

mod add;
mod lock;
mod partial;
mod quarantine;
pub(crate) mod slices;
mod temporary;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

pub use add::Added;
pub use lock::FileLock;
use opengrid_protocol::{ModelRoot, codec, content::Manifest};
pub use partial::Partial;
pub use slices::StoredSlice;
pub(crate) use temporary::temporary_file;

use crate::{
    chunk_tree::{Builder, Tree, chunk_count, chunk_range},
    gguf::{GgufError, file::GgufFileError, file::Header, vocabulary_gguf},
};

/// Where the store lies unless said otherwise.
pub const DIRECTORY_VARIABLE: &str = "OPENGRID_MODELS";
/// Chunk trees kept in memory.
const TREES_CACHED_MAX: usize = 16;
const LISTED_MAX: usize = 10_000;
const READ_BYTES: usize = 1024 * 1024;

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the disk of {path} is full ({needed} more bytes are needed, {free} are free): make room and run it again, what is there is kept"
    )]
    DiskFull { path: PathBuf, needed: u64, free: u64 },
    #[error("the model {0} is not in the store")]
    NotHere(ModelRoot),
    #[error("{path}: {source}")]
    Gguf { path: PathBuf, source: GgufError },
    #[error("{path} is not what its hash says (wanted {wanted}, found {found}); it was moved to {kept}, pull it again")]
    Corrupt { path: PathBuf, wanted: String, found: String, kept: PathBuf },
    #[error("chunk {index} of {root} was damaged on this disk: run `opengrid doctor`")]
    DamagedChunk { root: ModelRoot, index: u32 },
    #[error("{root} has no chunk {index}")]
    NoSuchChunk { root: ModelRoot, index: u32 },
    #[error("no directory for models is known on this system: set {DIRECTORY_VARIABLE}")]
    NoDirectory,
    #[error("{source}")]
    Slice { root: ModelRoot, source: crate::slice::SliceError },
    #[error("the model {0} is being downloaded or removed by another process")]
    Locked(ModelRoot),
}

/// A file of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    pub root: ModelRoot,
    /// Bytes.
    pub size: u64,
    pub path: PathBuf,
    pub modified: Option<SystemTime>,
}

/// A handle on the store's directory; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    trees: Arc<Mutex<BTreeMap<ModelRoot, Arc<Tree>>>>,
}

impl Store {
    /// `$OPENGRID_MODELS`, else `opengrid/models` in the platform's data directory.
    ///
    /// # Errors
    /// [`StoreError::NoDirectory`] where the platform has none.
    pub fn default_directory() -> Result<PathBuf, StoreError> {
        if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).filter(|value| !value.is_empty()) {
            return Ok(directory.into());
        }
        let base = directories::BaseDirs::new().ok_or(StoreError::NoDirectory)?;
        Ok(base.data_dir().join("opengrid").join("models"))
    }

    /// Opens the store, making its directories.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        for part in ["blobs", "manifests", "vocabularies", "partial", "slices", "quarantine", "locks", "temporary"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(|source| StoreError::Io {
                action: "make the directory",
                path,
                source,
            })?;
        }
        temporary::remove_leftovers(&directory.join("temporary"));
        Ok(Self { directory: directory.to_owned(), trees: Arc::default() })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn contains(&self, root: ModelRoot) -> bool {
        self.blob(root).is_file()
    }

    /// The whole file, where it is here.
    pub fn path(&self, root: ModelRoot) -> Option<PathBuf> {
        Some(self.blob(root)).filter(|path| path.is_file())
    }

    /// All whole files, by root. Names that are no roots are passed over.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let blobs = self.directory.join("blobs");
        let entries = fs::read_dir(&blobs).map_err(failed("read the directory", &blobs))?;
        let mut models: Vec<StoredModel> =
            entries.flatten().take(LISTED_MAX).filter_map(|entry| stored(&entry)).collect();
        models.sort_by_key(|model| model.root);
        Ok(models)
    }

    /// The proven chunk tree of a file that is here. Made from the file (at the speed of the disk) when it is missing.
    ///
    /// # Errors
    /// [`StoreError::NotHere`], [`StoreError::Corrupt`], or the disk fails.
    pub fn tree(&self, root: ModelRoot) -> Result<Arc<Tree>, StoreError> {
        let size = self.size(root)?;
        if let Some(tree) = self.cached(root) {
            return Ok(tree);
        }
        let tree = match self.saved_tree(root, size) {
            Some(tree) => tree,
            None => self.rebuilt_tree(root)?,
        };
        Ok(self.cache(tree))
    }

    /// The manifest that peers ask for: of a file that is here, or some chunks of it.
    ///
    /// # Errors
    /// As [`Store::tree`].
    pub fn manifest(&self, root: ModelRoot) -> Result<Manifest, StoreError> {
        match self.tree(root) {
            Err(StoreError::NotHere(_)) => self.parts_tree(root).map(|tree| tree.manifest().clone()),
            tree => tree.map(|tree| tree.manifest().clone()),
        }
    }

    /// The bytes of chunk `index`, checked: a damaged disk never makes this node lie to peers.
    ///
    /// # Errors
    /// Not here, no such chunk, damaged, or the disk fails.
    pub fn read_chunk(&self, root: ModelRoot, index: u32) -> Result<Vec<u8>, StoreError> {
        let tree = match self.tree(root) {
            Err(StoreError::NotHere(_)) => return self.read_part(root, index),
            tree => tree?,
        };
        let range = chunk_range(tree.size(), index).ok_or(StoreError::NoSuchChunk { root, index })?;
        let path = self.blob(root);
        let bytes =
            read_range(&path, range.start, (range.end - range.start) as usize).map_err(failed("read", &path))?;
        tree.verify_chunk(index, &bytes).map_err(|_| StoreError::DamagedChunk { root, index })?;
        Ok(bytes)
    }

    /// The vocabulary part of a model: from the store, or made from the whole file when that is here.
    ///
    /// # Errors
    /// [`StoreError::NotHere`] when neither is; the disk fails.
    pub fn vocabulary_path(&self, root: ModelRoot) -> Result<PathBuf, StoreError> {
        let path = self.vocabulary(root);
        if path.is_file() {
            return Ok(path);
        }
        let blob = self.path(root).ok_or(StoreError::NotHere(root))?;
        let header = Header::read(&blob).map_err(gguf_failed)?;
        self.write_vocabulary(root, &header.bytes, header.file_size)
    }

    /// Writes the vocabulary part from the beginning of a file whose chunks the caller has proven.
    ///
    /// # Errors
    /// The header is no complete GGUF header, or the disk fails.
    pub fn write_vocabulary(&self, root: ModelRoot, header: &[u8], file_size: u64) -> Result<PathBuf, StoreError> {
        let path = self.vocabulary(root);
        let bytes =
            vocabulary_gguf(header, file_size).map_err(|source| StoreError::Gguf { path: self.blob(root), source })?;
        self.write_file(&path, &bytes)?;
        Ok(path)
    }

    /// Removes a model: the file, its tree, its vocabulary and what a download of it left. Returns the bytes freed.
    ///
    /// # Errors
    /// [`StoreError::NotHere`]; [`StoreError::Locked`] while a process downloads it; the disk fails.
    pub fn remove(&self, root: ModelRoot) -> Result<u64, StoreError> {
        let lock = self.try_lock(root)?.ok_or(StoreError::Locked(root))?;
        let blob = self.blob(root);
        let freed = fs::metadata(&blob).map(|metadata| metadata.len());
        let partial = self.partial_directory(root);
        let had_partial = partial.is_dir();
        let of_slices = self.remove_slices(root)?;
        self.trees().remove(&root);
        for path in [self.manifest_path(root), self.vocabulary(root), blob.clone()] {
            remove_if_there(&path)?;
        }
        if had_partial {
            fs::remove_dir_all(&partial).map_err(failed("remove", &partial))?;
        }
        drop(lock);
        match freed {
            Ok(bytes) => Ok(bytes + of_slices),
            Err(_) if had_partial || of_slices > 0 => Ok(of_slices),
            Err(_) => Err(StoreError::NotHere(root)),
        }
    }

    /// Reads a whole file and compares its hash; a damaged one is moved to the quarantine. `progress` gets bytes done
    /// and bytes in all.
    ///
    /// # Errors
    /// [`StoreError::NotHere`], [`StoreError::Corrupt`], or the disk fails.
    pub fn verify(&self, root: ModelRoot, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let path = self.path(root).ok_or(StoreError::NotHere(root))?;
        let tree = hash_tree(&path, progress)?;
        if tree.root() == root {
            return self.save_tree(&tree);
        }
        Err(self.refuse(&path, root.to_string(), tree.root().to_string()))
    }

    /// Moves a file with a wrong hash to the quarantine and makes the error that says so.
    fn refuse(&self, path: &Path, wanted: String, found: String) -> StoreError {
        match quarantine::keep(&self.directory.join("quarantine"), path) {
            Ok(kept) => StoreError::Corrupt { path: path.to_owned(), wanted, found, kept },
            Err(source) => StoreError::Io { action: "move to the quarantine", path: path.to_owned(), source },
        }
    }

    fn size(&self, root: ModelRoot) -> Result<u64, StoreError> {
        let path = self.blob(root);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NotHere(root)),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }

    fn saved_tree(&self, root: ModelRoot, size: u64) -> Option<Tree> {
        let path = self.manifest_path(root);
        let limit = manifest_bytes_max(size);
        if fs::metadata(&path).ok()?.len() > limit as u64 {
            return None;
        }
        let manifest: Manifest = codec::decode(&fs::read(&path).ok()?, limit).ok()?;
        Tree::verify(manifest, root, size).ok()
    }

    fn rebuilt_tree(&self, root: ModelRoot) -> Result<Tree, StoreError> {
        let path = self.blob(root);
        let tree = hash_tree(&path, &mut |_, _| {})?;
        if tree.root() != root {
            return Err(self.refuse(&path, root.to_string(), tree.root().to_string()));
        }
        self.save_tree(&tree)?;
        Ok(tree)
    }

    fn save_tree(&self, tree: &Tree) -> Result<(), StoreError> {
        self.write_file(&self.manifest_path(tree.root()), &codec::encode(tree.manifest()))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = |source| self.write_failed(path, bytes.len() as u64, source);
        let mut file = temporary_file(&self.directory.join("temporary")).map_err(failed)?;
        io::Write::write_all(&mut file.file, bytes).and_then(|()| file.persist(path)).map_err(failed)
    }

    /// A write error in plain words; a full disk with numbers.
    pub(crate) fn write_failed(&self, path: &Path, needed: u64, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                let free = fs4::available_space(&self.directory).unwrap_or(0);
                StoreError::DiskFull { path: self.directory.clone(), needed, free }
            }
            _ => StoreError::Io { action: "write", path: path.to_owned(), source },
        }
    }

    /// Says beforehand that `needed` more bytes will not fit.
    pub(crate) fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        match fs4::available_space(&self.directory) {
            Ok(free) if free < needed => Err(StoreError::DiskFull { path: self.directory.clone(), needed, free }),
            _ => Ok(()),
        }
    }

    fn trees(&self) -> std::sync::MutexGuard<'_, BTreeMap<ModelRoot, Arc<Tree>>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, root: ModelRoot) -> Option<Arc<Tree>> {
        self.trees().get(&root).cloned()
    }

    fn cache(&self, tree: Tree) -> Arc<Tree> {
        let tree = Arc::new(tree);
        let mut trees = self.trees();
        if trees.len() >= TREES_CACHED_MAX {
            trees.pop_first();
        }
        trees.insert(tree.root(), Arc::clone(&tree));
        tree
    }

    fn blob(&self, root: ModelRoot) -> PathBuf {
        self.directory.join("blobs").join(format!("{root}.gguf"))
    }

    fn manifest_path(&self, root: ModelRoot) -> PathBuf {
        self.directory.join("manifests").join(root.to_string())
    }

    fn vocabulary(&self, root: ModelRoot) -> PathBuf {
        self.directory.join("vocabularies").join(format!("{root}.gguf"))
    }
}

/// Largest encoded manifest of a file of `size` bytes.
pub fn manifest_bytes_max(size: u64) -> usize {
    usize::try_from(chunk_count(size).saturating_mul(32).saturating_add(32)).unwrap_or(usize::MAX)
}

fn stored(entry: &fs::DirEntry) -> Option<StoredModel> {
    let path = entry.path();
    let root = path.file_name()?.to_str()?.strip_suffix(".gguf")?.parse().ok()?;
    let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
    Some(StoredModel { root, size: metadata.len(), path, modified: metadata.modified().ok() })
}

fn hash_tree(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Tree, StoreError> {
    let mut builder = Builder::new();
    read_through(path, progress, |part| {
        builder.update(part);
        Ok(())
    })?;
    Ok(builder.finish())
}

/// Hands the whole file to `take`, a megabyte at a time.
fn read_through(
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
    mut take: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let total = file.metadata().map_err(failed("look at", path))?.len();
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", path)(error)),
        };
        take(&buffer[..count])?;
        done += count as u64;
        progress(done, total.max(done));
    }
}

fn read_range(path: &Path, start: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

fn gguf_failed(error: GgufFileError) -> StoreError {
    match error {
        GgufFileError::Io { path, source } => StoreError::Io { action: "read", path, source },
        GgufFileError::Gguf { path, source } => StoreError::Gguf { path, source },
    }
}
