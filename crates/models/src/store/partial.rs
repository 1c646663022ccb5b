//! What a download has so far. It survives restarts and changes of source.
//!
//! Without a chunk tree (`manifest`) the data is a prefix of the file, to be proven at the end. With one, chunks come in
//! any order; what is there is proven chunk by chunk when the download goes on, so no record of it can be wrong.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use opengrid_protocol::{ModelRoot, codec, content::Manifest, limits::CHUNK_BYTES};
use sha2::{Digest, Sha256};

use super::{FileLock, Store, StoreError, failed, gguf_failed, manifest_bytes_max, read_through};
use crate::{
    catalogue::FileEntry,
    chunk_tree::{Builder, Tree, chunk_range},
    gguf::file::Header,
};

/// An unfinished file and the lock on it.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    directory: PathBuf,
    root: ModelRoot,
    size: u64,
    file: File,
    tree: Option<Tree>,
    /// With a tree: which chunks are there and proven.
    have: Vec<bool>,
    /// With a tree: which chunks the download is about; all of them unless [`Partial::want`] said otherwise.
    wanted: Option<Vec<bool>>,
    /// Without a tree: how much of the beginning is there.
    prefix: u64,
    _lock: FileLock,
}

impl Store {
    /// Opens (or begins) the download of `file`. Reads what is there, at the speed of the disk.
    ///
    /// # Errors
    /// The disk fails, or has no room for the rest.
    pub fn partial(&self, file: &FileEntry, lock: FileLock) -> Result<Partial, StoreError> {
        let partial = self.open_partial(file, lock)?;
        self.check_room(partial.missing_bytes())?;
        Ok(partial)
    }

    /// As [`Store::partial`], of which only some chunks are wanted.
    ///
    /// # Errors
    /// The disk fails.
    pub fn open_partial(&self, file: &FileEntry, lock: FileLock) -> Result<Partial, StoreError> {
        let (root, size) = (file.blake3, file.size);
        let directory = self.partial_directory(root);
        fs::create_dir_all(&directory).map_err(|source| self.write_failed(&directory, size, source))?;
        let path = directory.join("data");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let data = open.map_err(|source| self.write_failed(&path, size, source))?;
        let length = data.metadata().map_err(failed("look at", &path))?.len();
        let mut partial = Partial {
            store: self.clone(),
            directory,
            root,
            size,
            file: data,
            tree: None,
            have: Vec::new(),
            wanted: None,
            prefix: length,
            _lock: lock,
        };
        if length > size {
            partial.restart()?;
        }
        if let Some(tree) = partial.saved_tree() {
            partial.use_tree(tree)?;
        }
        Ok(partial)
    }
}

impl Partial {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn tree(&self) -> Option<&Tree> {
        self.tree.as_ref()
    }

    /// Bytes that are there, of those that are wanted.
    pub fn done_bytes(&self) -> u64 {
        self.wanted_bytes().saturating_sub(self.missing_bytes())
    }

    /// Bytes that the download is about.
    pub fn wanted_bytes(&self) -> u64 {
        let Some(wanted) = &self.wanted else { return self.size };
        self.bytes_of(wanted.iter().enumerate().filter(|(_, wanted)| **wanted).map(|(index, _)| index as u32))
    }

    fn bytes_of(&self, chunks: impl Iterator<Item = u32>) -> u64 {
        chunks.filter_map(|index| chunk_range(self.size, index)).map(|range| range.end - range.start).sum()
    }

    /// From now on the download is about the chunks of these ranges of bytes alone. Needs a tree.
    ///
    /// # Errors
    /// The disk has no room for what is missing of them.
    pub fn want(&mut self, ranges: &[Range<u64>]) -> Result<(), StoreError> {
        let mut wanted = vec![false; self.have.len()];
        for range in ranges.iter().filter(|range| range.start < range.end.min(self.size)) {
            let (first, last) = (range.start / CHUNK_BYTES, (range.end - 1) / CHUNK_BYTES);
            let (first, last) = (first as usize, (last as usize).min(wanted.len().saturating_sub(1)));
            wanted[first.min(last)..=last].fill(true);
        }
        self.wanted = Some(wanted);
        self.store.check_room(self.missing_bytes())
    }

    fn is_wanted(&self, index: usize) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.get(index).copied().unwrap_or(false))
    }

    /// Where the bytes lie that are there.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn missing_bytes(&self) -> u64 {
        if self.tree.is_none() {
            return self.size.saturating_sub(self.prefix);
        }
        self.bytes_of(self.missing_chunks())
    }

    /// Chunks that are wanted and not there yet. Meaningful with a tree only.
    pub fn missing_chunks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.have.len()).filter(|&index| self.is_missing(index)).map(|index| index as u32)
    }

    fn is_missing(&self, index: usize) -> bool {
        !self.have[index] && self.is_wanted(index)
    }

    /// The first stretch of bytes that is missing.
    pub fn first_gap(&self) -> Option<Range<u64>> {
        if self.tree.is_none() {
            return Some(self.prefix..self.size).filter(|gap| !gap.is_empty());
        }
        let first = (0..self.have.len()).find(|&index| self.is_missing(index))?;
        let chunks = (first..self.have.len()).take_while(|&index| self.is_missing(index)).count();
        let start = chunk_range(self.size, first as u32)?.start;
        let end = chunk_range(self.size, (first + chunks - 1) as u32)?.end;
        Some(start..end)
    }

    /// Takes a proven tree; from now on every chunk is checked as it comes. Chunks that are there are checked now.
    ///
    /// # Errors
    /// The disk fails.
    pub fn use_tree(&mut self, tree: Tree) -> Result<(), StoreError> {
        let mut have = vec![false; tree.chunk_count() as usize];
        self.wanted = None;
        let length = self.file.metadata().map_err(failed("look at", &self.directory))?.len();
        for (index, have) in have.iter_mut().enumerate() {
            let Some(range) = chunk_range(self.size, index as u32).filter(|range| range.end <= length) else { break };
            let bytes = self.read(range)?;
            *have = tree.verify_chunk(index as u32, &bytes).is_ok();
        }
        let path = self.directory.join("manifest");
        if !path.is_file() {
            self.store.write_file(&path, &codec::encode(tree.manifest()))?;
        }
        self.tree = Some(tree);
        self.have = have;
        Ok(())
    }

    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = self.file.seek(SeekFrom::Start(range.start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(failed("read", &self.directory))?;
        Ok(bytes)
    }

    /// Stores a chunk that was proven against [`Partial::tree`].
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn write_chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(range) = chunk_range(self.size, index) else {
            return Err(StoreError::NoSuchChunk { root: self.root, index });
        };
        self.write_at(range.start, bytes)?;
        if let Some(have) = self.have.get_mut(index as usize) {
            *have = true;
        }
        Ok(())
    }

    /// Appends to the prefix; bytes beyond the file's size are refused by the caller.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_at(self.prefix, bytes)?;
        self.prefix += bytes.len() as u64;
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| self.store.write_failed(&self.directory, self.missing_bytes(), source))
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// The disk fails.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(failed("empty", &self.directory))?;
        self.prefix = 0;
        self.have.fill(false);
        Ok(())
    }

    /// Begins anew without a tree: the next [`Partial::append`] writes the first byte.
    ///
    /// # Errors
    /// The disk fails.
    pub fn overwrite(&mut self) -> Result<(), StoreError> {
        (self.tree, self.wanted) = (None, None);
        super::remove_if_there(&self.directory.join("manifest"))?;
        self.restart()
    }

    fn saved_tree(&self) -> Option<Tree> {
        let path = self.directory.join("manifest");
        let limit = manifest_bytes_max(self.size);
        if fs::metadata(&path).ok()?.len() > limit as u64 {
            return None;
        }
        let manifest: Manifest = codec::decode(&fs::read(&path).ok()?, limit).ok()?;
        Tree::verify(manifest, self.root, self.size).ok()
    }

    /// A directory beside the data for a source's own files; removed with the download.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self) -> Result<PathBuf, StoreError> {
        let path = self.directory.join("scratch");
        let made = fs::remove_dir_all(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        made.and_then(|()| fs::create_dir_all(&path)).map_err(failed("make the directory", &path))?;
        Ok(path)
    }

    /// Proves the whole file (both hashes, then its GGUF header) and moves it into the store.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a hash is wrong (the file is in the quarantine, this download starts anew),
    /// [`StoreError::Gguf`] when the right file is no model, or the disk fails.
    pub fn finish(&mut self, file: &FileEntry, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let path = self.directory.join("data");
        self.file.sync_all().map_err(|source| self.store.write_failed(&path, 0, source))?;
        let (tree, sha256) = hashes(&path, progress)?;
        if tree.root() != self.root {
            let (wanted, found) = (self.root.to_string(), tree.root().to_string());
            return Err(self.refuse(&path, wanted, found));
        }
        if sha256 != file.sha256 {
            let (wanted, found) = (hex::encode(file.sha256), hex::encode(sha256));
            return Err(self.refuse(&path, format!("sha256 {wanted}"), format!("sha256 {found}")));
        }
        Header::read(&path).map_err(gguf_failed)?;
        self.store.save_tree(&tree)?;
        let place = self.store.blob(self.root);
        fs::rename(&path, &place).map_err(failed("move into the store", &place))?;
        super::temporary::sync_directory_of(&place);
        self.store.cache(tree);
        let _ = fs::remove_dir_all(&self.directory);
        Ok(())
    }

    fn refuse(&mut self, path: &Path, wanted: String, found: String) -> StoreError {
        let error = self.store.refuse(path, wanted, found);
        let reopened = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        match reopened {
            Ok(file) => {
                self.file = file;
                self.prefix = 0;
                self.have.fill(false);
                error
            }
            Err(source) => self.store.write_failed(path, self.size, source),
        }
    }
}

/// Tree and SHA-256 in one pass.
pub(super) fn hashes(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(Tree, [u8; 32]), StoreError> {
    let (mut builder, mut sha256) = (Builder::new(), Sha256::new());
    read_through(path, progress, |part| {
        builder.update(part);
        sha256.update(part);
        Ok(())
    })?;
    Ok((builder.finish(), sha256.finalize().into()))
}
