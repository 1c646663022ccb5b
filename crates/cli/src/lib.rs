//! The opengrid binary
