//! One function per target: it takes any bytes and panics if, and only if, an invariant breaks. `fuzz_targets/` runs
//! them under libFuzzer, `tests/replay.rs` over the committed corpus and its mutations, on stable Rust.
//!
//! A new target is a function here, a line in [`TARGETS`], three lines in `fuzz_targets/`, a `[[bin]]` in `Cargo.toml`
//! and a few seeds in `corpus/NAME/`; `tests/replay.rs` fails if the parts do not match.

mod catalogue;
mod cells;
mod frames;
mod gguf;
mod grammars;
mod invites;
mod records;
mod safetensors;
mod sampling;
mod sealed;
mod sessions;

pub use catalogue::catalogue;
pub use cells::cells;
pub use frames::frames;
pub use gguf::gguf;
pub use grammars::grammars;
pub use invites::invites;
pub use records::signed_records;
pub use safetensors::safetensors;
pub use sampling::sampling;
pub use sealed::sealed_frames;
pub use sessions::session_messages;

/// A target's name, also that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("frames", frames),
    ("session_messages", session_messages),
    ("invites", invites),
    ("signed_records", signed_records),
    ("sealed_frames", sealed_frames),
    ("sampling", sampling),
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("grammars", grammars),
    ("catalogue", catalogue),
    ("cells", cells),
];
