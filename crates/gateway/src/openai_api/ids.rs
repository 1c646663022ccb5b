//! Names that occur once.

/// `prefix` and 32 random hexadecimal digits.
pub fn fresh(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>())
}
