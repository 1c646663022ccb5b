//! The chunk tree of a model file: BLAKE3's own tree, cut at 1 MiB.
//!
//! A chunk's entry in the [`Manifest`] is the chaining value of its subtree; merged pairwise they give the plain BLAKE3
//! hash of the file (the BLAKE3 paper, section 2.1; `blake3::hazmat`). A file of one chunk has the plain hash as its
//! only entry, an empty file has no entry. So a manifest needs no signature: it proves itself against the root.

use std::ops::Range;

use blake3::{
    Hasher,
    hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use opengrid_protocol::{
    ModelRoot,
    content::Manifest,
    limits::{CHUNK_BYTES, FILE_BYTES_MAX},
};

/// Why a manifest or a chunk is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    #[error("the manifest is of a file of {found} bytes, {expected} were expected")]
    Size { expected: u64, found: u64 },
    #[error("the manifest lists {found} chunks, a file of {size} bytes has {expected}")]
    Count { size: u64, expected: u64, found: u64 },
    #[error("the manifest's chunks do not merge to the root {0}")]
    Root(ModelRoot),
    #[error("there is no chunk {index}: the file has {count}")]
    NoSuchChunk { index: u32, count: u64 },
    #[error("chunk {index} has {found} bytes, {expected} were expected")]
    Length { index: u32, expected: u64, found: u64 },
    #[error("chunk {index} is not what its hash says")]
    Chunk { index: u32 },
}

/// Chunks of a file of `size` bytes.
pub fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES)
}

/// The bytes of chunk `index` in a file of `size` bytes.
pub fn chunk_range(size: u64, index: u32) -> Option<Range<u64>> {
    let start = u64::from(index).checked_mul(CHUNK_BYTES).filter(|start| *start < size)?;
    Some(start..size.min(start + CHUNK_BYTES))
}

/// Builds the tree from a stream of bytes.
#[derive(Debug, Default)]
pub struct Builder {
    size: u64,
    chunks: Vec<[u8; 32]>,
    current: Option<Hasher>,
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // A full chunk is closed only when more follows: a file of one chunk is finalised as the root.
            if self.size.is_multiple_of(CHUNK_BYTES) {
                self.close();
            }
            let room = (CHUNK_BYTES - self.size % CHUNK_BYTES) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let start = self.size;
            self.current.get_or_insert_with(|| hasher_at(start)).update(now);
            self.size += now.len() as u64;
            bytes = later;
        }
    }

    fn close(&mut self) {
        if let Some(hasher) = self.current.take() {
            self.chunks.push(hasher.finalize_non_root());
        }
    }

    /// The root and the tree of all bytes given.
    pub fn finish(mut self) -> Tree {
        if self.size <= CHUNK_BYTES {
            let hash = self.current.take().unwrap_or_default().finalize();
            let chunks = if self.size == 0 { Vec::new() } else { vec![*hash.as_bytes()] };
            return Tree { root: ModelRoot(*hash.as_bytes()), manifest: Manifest { size: self.size, chunks } };
        }
        self.close();
        let root = merge(&self.chunks);
        Tree { root, manifest: Manifest { size: self.size, chunks: self.chunks } }
    }
}

fn hasher_at(offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

/// A manifest that was proven against its root; only such a one can judge chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: ModelRoot,
    manifest: Manifest,
}

impl Tree {
    /// The tree of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut builder = Builder::new();
        builder.update(bytes);
        builder.finish()
    }

    /// Checks that `manifest` is the tree of the file with this root and size. The size has to come from elsewhere (the
    /// catalogue): a root alone does not say at which level of the tree the entries stand.
    ///
    /// # Errors
    /// What does not fit.
    pub fn verify(manifest: Manifest, root: ModelRoot, size: u64) -> Result<Self, TreeError> {
        if manifest.size != size || size > FILE_BYTES_MAX {
            return Err(TreeError::Size { expected: size.min(FILE_BYTES_MAX), found: manifest.size });
        }
        let (expected, found) = (chunk_count(size), manifest.chunks.len() as u64);
        if expected != found {
            return Err(TreeError::Count { size, expected, found });
        }
        let merged = match manifest.chunks.as_slice() {
            [] => ModelRoot(*blake3::hash(b"").as_bytes()),
            [only] => ModelRoot(*only),
            chunks => merge(chunks),
        };
        if merged != root {
            return Err(TreeError::Root(root));
        }
        Ok(Self { root, manifest })
    }

    pub fn root(&self) -> ModelRoot {
        self.root
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn size(&self) -> u64 {
        self.manifest.size
    }

    pub fn chunk_count(&self) -> u32 {
        self.manifest.chunks.len() as u32
    }

    /// Checks the bytes of chunk `index`.
    ///
    /// # Errors
    /// Wrong index, length or content.
    pub fn verify_chunk(&self, index: u32, bytes: &[u8]) -> Result<(), TreeError> {
        let count = self.manifest.chunks.len() as u64;
        let (Some(range), Some(expected)) =
            (chunk_range(self.manifest.size, index), self.manifest.chunks.get(index as usize))
        else {
            return Err(TreeError::NoSuchChunk { index, count });
        };
        let length = range.end - range.start;
        if bytes.len() as u64 != length {
            return Err(TreeError::Length { index, expected: length, found: bytes.len() as u64 });
        }
        let mut hasher = hasher_at(range.start);
        hasher.update(bytes);
        let found = if count == 1 { *hasher.finalize().as_bytes() } else { hasher.finalize_non_root() };
        if found == *expected { Ok(()) } else { Err(TreeError::Chunk { index }) }
    }
}

/// Merges two or more chaining values layer by layer; an odd one out moves up.
fn merge(chunks: &[[u8; 32]]) -> ModelRoot {
    let mut layer = chunks.to_vec();
    while layer.len() > 2 {
        layer = layer
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                odd => odd[0],
            })
            .collect();
    }
    ModelRoot(*merge_subtrees_root(&layer[0], &layer[1], Mode::Hash).as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: usize = CHUNK_BYTES as usize;

    fn bytes(length: usize, seed: u8) -> Vec<u8> {
        (0..length)
            .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) ^ (at >> 8) as u8 ^ (at >> 16) as u8)
            .collect()
    }

    fn lengths() -> impl Strategy<Value = usize> {
        let edges = (0_usize..7, -2_i64..3)
            .prop_map(|(chunks, delta)| usize::try_from((chunks * CHUNK) as i64 + delta).unwrap_or(0));
        prop_oneof![edges, 0..6 * CHUNK, 0..5000_usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn roots_are_plain_blake3_hashes(length in lengths(), seed: u8, step in 1..3 * CHUNK) {
            let file = bytes(length, seed);
            let mut builder = Builder::new();
            file.chunks(step).for_each(|part| builder.update(part));
            let tree = builder.finish();
            prop_assert_eq!(tree.root().0, *blake3::hash(&file).as_bytes());
            prop_assert_eq!(tree.manifest().chunks.len() as u64, chunk_count(length as u64));
            let verified = Tree::verify(tree.manifest().clone(), tree.root(), length as u64).unwrap();
            for (index, chunk) in file.chunks(CHUNK).enumerate() {
                prop_assert_eq!(verified.verify_chunk(index as u32, chunk), Ok(()));
            }
        }

        #[test]
        fn changes_are_noticed(length in 1..4 * CHUNK, at: prop::sample::Index, flip in 1..=255_u8) {
            let mut file = bytes(length, 3);
            let tree = Tree::of(&file);
            let at = at.index(length);
            file[at] ^= flip;
            let index = at / CHUNK;
            let chunk = file.chunks(CHUNK).nth(index).unwrap();
            prop_assert_eq!(tree.verify_chunk(index as u32, chunk), Err(TreeError::Chunk { index: index as u32 }));
        }
    }

    #[test]
    fn lying_manifests_are_refused() {
        let size = 5 * CHUNK_BYTES + 7;
        let tree = Tree::of(&bytes(size as usize, 1));
        let with = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = tree.manifest().clone();
            change(&mut manifest);
            Tree::verify(manifest, tree.root(), size)
        };
        assert!(with(&|_| {}).is_ok());
        assert_eq!(with(&|m| m.chunks[2][0] ^= 1), Err(TreeError::Root(tree.root())));
        assert_eq!(with(&|m| m.chunks.swap(0, 1)), Err(TreeError::Root(tree.root())));
        assert!(matches!(with(&|m| m.chunks.truncate(5)), Err(TreeError::Count { expected: 6, found: 5, .. })));
        assert!(matches!(with(&|m| m.size += 1), Err(TreeError::Size { .. })));
    }

    #[test]
    fn a_higher_level_of_the_tree_does_not_pass_for_the_chunks() {
        let tree = Tree::of(&bytes(4 * CHUNK, 1));
        let pairs = tree.manifest().chunks.chunks(2);
        let chunks = pairs.map(|pair| merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)).collect();
        let forged = Manifest { size: 2 * CHUNK_BYTES, chunks };
        assert!(matches!(Tree::verify(forged, tree.root(), 4 * CHUNK_BYTES), Err(TreeError::Size { .. })));
    }

    #[test]
    fn chunks_of_the_wrong_place_or_length_are_refused() {
        let file = bytes(2 * CHUNK + 5, 9);
        let tree = Tree::of(&file);
        assert_eq!(tree.verify_chunk(3, &[]), Err(TreeError::NoSuchChunk { index: 3, count: 3 }));
        assert_eq!(tree.verify_chunk(1, &file[..CHUNK]), Err(TreeError::Chunk { index: 1 }));
        assert_eq!(tree.verify_chunk(2, &file[..4]), Err(TreeError::Length { index: 2, expected: 5, found: 4 }));
    }
}
