//! API keys: who may ask, for what and how much.
//!
//! Pure: [`text`] (what a key looks like, and its digest), [`record`] (the list of keys and what may be done with it).
//! Around them: [`file`] (`keys.json` in the home), [`live`] (the keys as a running gateway sees them).

mod file;
pub(crate) mod live;
mod record;
mod text;

pub use file::{FILE_NAME, KeyFileError, change, read};
pub use record::{KEYS_MAX, KeyError, KeyList, KeyRecord, NAME_CHARS_MAX, NewKey, Scope};
pub use text::{Digest, KeyText, MalformedKey, PREFIX};
