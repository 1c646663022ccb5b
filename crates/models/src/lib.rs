//! Catalogue, bounded GGUF reader, content store and downloads.
//!
//! Six ideas, each in its module:
//! - [`gguf`]: what a model file says about itself, read without trusting it. Pure.
//! - [`chunk_tree`]: a file is named by its BLAKE3 hash ([`ModelRoot`](opengrid_protocol::ModelRoot)); cut at 1 MiB,
//!   the same tree proves every chunk by itself. Pure.
//! - [`convert`]: other formats made into GGUF, always the same bytes. Pure.
//! - [`slice`]: contiguous layers of a model as a file of their own. Pure.
//! - [`catalogue`]: which models there are, what they hash to and where they can be had.
//! - [`store`] and [`download`]: one directory of proven files, shared by all nodes of this user, and the ways to fill
//!   it: peers, the hub, a package registry, a local file. [`serve`] is the other side of the peers' way.
//!
//! Whatever the source, the hash decides.

pub mod catalogue;
pub mod chunk_tree;
pub mod convert;
#[cfg(feature = "download")]
pub mod download;
pub mod gguf;
pub mod serve;
pub mod slice;
pub mod store;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;

pub use catalogue::{Catalogue, ModelEntry};
#[cfg(feature = "download")]
pub use download::{Fetcher, PeerSource};
pub use store::Store;
