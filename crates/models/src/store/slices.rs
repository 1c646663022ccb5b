//! Slices of models, made of whole files or of the chunks of them that are here, and those chunks for peers.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use opengrid_protocol::{Layers, ModelRoot, codec, content::Manifest};

use super::{Store, StoreError, failed, manifest_bytes_max, read_range, remove_if_there, temporary_file};
use crate::{
    chunk_tree::{Tree, chunk_range},
    gguf::{Gguf, GgufError, Piece, Plan, file::Header, limits::HEADER_BYTES_MAX},
    slice::{self, Embedding, Outline, RECIPE, SlicePlan},
};

/// A slice in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSlice {
    pub path: PathBuf,
    pub plan: SlicePlan,
    /// For the first slice: the token table in a file of its own, from its first byte.
    pub tokens: Option<(PathBuf, Embedding)>,
}

impl Store {
    /// What each layer of a model takes whose whole file is here.
    ///
    /// # Errors
    /// [`StoreError::NotHere`], [`StoreError::Slice`] for models that are not cut, or the disk fails.
    pub fn outline(&self, root: ModelRoot) -> Result<Outline, StoreError> {
        let blob = self.path(root).ok_or(StoreError::NotHere(root))?;
        outline(&blob, self.size(root)?, root)
    }

    /// Makes the slice of a model whose whole file is here; what was made before is used again.
    ///
    /// # Errors
    /// [`StoreError::NotHere`], [`StoreError::Slice`] for models that are not cut, or the disk fails.
    pub fn make_slice(&self, root: ModelRoot, layers: Layers) -> Result<StoredSlice, StoreError> {
        let blob = self.path(root).ok_or(StoreError::NotHere(root))?;
        let size = self.size(root)?;
        self.slice_of(root, layers, &blob, size)
    }

    /// Makes the slice of `layers` of the file of `size` bytes at `source`, of which only the bytes that
    /// [`SlicePlan::source_ranges`] names need to be there (and proven).
    pub(crate) fn slice_of(
        &self,
        root: ModelRoot,
        layers: Layers,
        source: &Path,
        size: u64,
    ) -> Result<StoredSlice, StoreError> {
        let plan = plan(source, size, root, layers)?;
        let path = self.slice_file(&format!("{root}-{}-{}-r{RECIPE}.gguf", layers.from(), layers.to()));
        self.make(&plan.file, source, &path)?;
        let tokens = match plan.is_first() {
            true => {
                let table = plan.embedding;
                let range = table.offset..table.offset + table.rows * table.row_bytes;
                let path = self.slice_file(&format!("{root}-tokens.bin"));
                self.make(&Plan { header: Vec::new(), pieces: vec![Piece::Copy(range)] }, source, &path)?;
                Some((path, Embedding { offset: 0, ..table }))
            }
            false => None,
        };
        Ok(StoredSlice { path, plan, tokens })
    }

    fn slice_file(&self, name: &str) -> PathBuf {
        self.directory.join("slices").join(name)
    }

    /// Nothing is done when the file is there: only whole ones come to be at `path`.
    fn make(&self, plan: &Plan, source: &Path, path: &Path) -> Result<(), StoreError> {
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() == plan.size()) {
            return Ok(());
        }
        self.check_room(plan.pieces.iter().filter(|piece| matches!(piece, Piece::Copy(_))).map(Piece::length).sum())?;
        let mut source_file = File::open(source).map_err(failed("open", source))?;
        let write_failed = |error| self.write_failed(path, plan.size(), error);
        let mut made = temporary_file(&self.directory.join("temporary")).map_err(write_failed)?;
        made.file.write_all(&plan.header).and_then(|()| made.file.set_len(plan.size())).map_err(write_failed)?;
        for (at, piece) in plan.placed() {
            // What is not written stays a hole, which reads as zeros.
            let Piece::Copy(range) = piece else { continue };
            made.file.seek(SeekFrom::Start(at)).map_err(write_failed)?;
            source_file.seek(SeekFrom::Start(range.start)).map_err(failed("read", source))?;
            copy(&mut source_file, &mut made.file, range.end - range.start, source, &write_failed)?;
        }
        made.persist(path).map_err(write_failed)
    }

    /// Removes what was made of the model; the bytes freed.
    pub(super) fn remove_slices(&self, root: ModelRoot) -> Result<u64, StoreError> {
        let directory = self.directory.join("slices");
        let entries = fs::read_dir(&directory).map_err(failed("read the directory", &directory))?;
        let prefix = format!("{root}-");
        let mut freed = 0;
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
            freed += entry.metadata().map_or(0, |metadata| metadata.len());
            remove_if_there(&entry.path())?;
        }
        Ok(freed)
    }

    /// The tree of a file of which some chunks are here.
    pub(super) fn parts_tree(&self, root: ModelRoot) -> Result<Tree, StoreError> {
        let not_here = || StoreError::NotHere(root);
        let path = self.partial_directory(root).join("manifest");
        let bytes = fs::read(&path).map_err(|_| not_here())?;
        let manifest: Manifest = codec::decode(&bytes, bytes.len()).map_err(|_| not_here())?;
        let size = manifest.size;
        if bytes.len() > manifest_bytes_max(size) {
            return Err(not_here());
        }
        // Its size was compared with the catalogue's before it was kept.
        Tree::verify(manifest, root, size).map_err(|_| not_here())
    }

    /// A chunk of a file of which some chunks are here; what is there is proven before it is given away.
    pub(super) fn read_part(&self, root: ModelRoot, index: u32) -> Result<Vec<u8>, StoreError> {
        let tree = self.parts_tree(root)?;
        let range = chunk_range(tree.size(), index).ok_or(StoreError::NoSuchChunk { root, index })?;
        let path = self.partial_directory(root).join("data");
        let bytes = read_range(&path, range.start, (range.end - range.start) as usize);
        let bytes = bytes.map_err(|_| StoreError::NotHere(root))?;
        tree.verify_chunk(index, &bytes).map_err(|_| StoreError::NotHere(root))?;
        Ok(bytes)
    }

    pub(super) fn partial_directory(&self, root: ModelRoot) -> PathBuf {
        self.directory.join("partial").join(root.to_string())
    }
}

/// Reads as much of the beginning as the header has.
pub(crate) fn plan(source: &Path, size: u64, root: ModelRoot, layers: Layers) -> Result<SlicePlan, StoreError> {
    let header = Header::read_of(source, size).map_err(super::gguf_failed)?;
    let planned = Gguf::parse(&header.bytes, size).map_err(slice::SliceError::from);
    planned.and_then(|gguf| slice::plan(&gguf, root, layers)).map_err(|source| StoreError::Slice { root, source })
}

/// What each layer of a model takes, by the header of its file.
pub(crate) fn outline(source: &Path, size: u64, root: ModelRoot) -> Result<Outline, StoreError> {
    let header = Header::read_of(source, size).map_err(super::gguf_failed)?;
    let parsed = Gguf::parse(&header.bytes, size).map_err(slice::SliceError::from);
    parsed.and_then(|gguf| slice::outline(&gguf, root)).map_err(|source| StoreError::Slice { root, source })
}

/// How many bytes of the beginning the header needs as far as is known from what is there; `None` when it is all there.
#[cfg_attr(not(feature = "download"), allow(dead_code, reason = "only downloads read half a header"))]
pub(crate) fn header_needs(source: &Path, size: u64, have: u64) -> Result<Option<u64>, StoreError> {
    let bytes = read_range(source, 0, have.min(HEADER_BYTES_MAX).min(size) as usize).map_err(failed("read", source))?;
    match Gguf::parse(&bytes, size).map(drop) {
        Ok(()) => Ok(None),
        Err(GgufError::HeaderIncomplete { needed, .. }) if needed <= HEADER_BYTES_MAX => Ok(Some(needed)),
        Err(error) => Err(StoreError::Gguf { path: source.to_owned(), source: error }),
    }
}

fn copy(
    from: &mut File,
    to: &mut File,
    bytes: u64,
    source: &Path,
    write_failed: &impl Fn(io::Error) -> StoreError,
) -> Result<(), StoreError> {
    let mut buffer = vec![0; super::READ_BYTES];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        from.read_exact(&mut buffer[..part]).map_err(failed("read", source))?;
        to.write_all(&buffer[..part]).map_err(write_failed)?;
        left -= part as u64;
    }
    Ok(())
}
