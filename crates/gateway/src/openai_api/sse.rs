//! Server-sent events: `data: {json}` and a blank line.

use bytes::Bytes;
use serde::Serialize;

pub const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";
pub const DONE: &[u8] = b"data: [DONE]\n\n";
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// Appends one event with an `event:` line.
pub fn write_named(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    for part in ["event: ", name, "\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    write(out, value);
}

/// Appends one event.
pub fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    // Our own types serialise; a map with other keys than strings would be a bug that tests see.
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        return;
    }
    out.extend_from_slice(b"\n\n");
}

pub fn event(value: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(256);
    write(&mut out, value);
    out.into()
}
