//! Catalogue, bounded GGUF reader, content store and downloads
