//! How many files (and so connections) this process may have open.

/// Where the system does not say.
const UNKNOWN: u64 = 1_024;
/// More is never needed.
const WANTED: u64 = 65_536;

/// Raises the soft limit as far as allowed and returns it.
#[cfg(unix)]
pub fn raise() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(WANTED);
    if soft >= wanted {
        return soft;
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() { wanted } else { soft.max(UNKNOWN) }
}

#[cfg(not(unix))]
pub fn raise() -> u64 {
    WANTED.max(UNKNOWN)
}
