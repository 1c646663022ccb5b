//! The keys as a running gateway sees them: read again when the file changes, each with its meter.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use super::{
    file,
    record::KeyRecord,
    text::{Digest, KeyText},
};
use crate::limits::{Limits, Meter};

/// How long a revoked key may still be taken. Asking the file system is cheap, but not free. New keys count at once.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub struct LiveKey {
    pub record: KeyRecord,
    /// `None` without limits.
    pub meter: Option<Arc<Meter>>,
}

/// Why a key does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("the API key is mistyped or cut off")]
    Malformed,
    #[error("the API key is unknown: it was revoked, or made by another node")]
    Unknown,
    #[error("the API key has expired")]
    Expired,
}

/// What tells one version of the file from the next.
type Stamp = (i128, u64, u64);

pub struct LiveKeys {
    path: Option<PathBuf>,
    /// For keys without limits of their own.
    defaults: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    keys: HashMap<Digest, Arc<LiveKey>>,
}

impl LiveKeys {
    /// The keys of a home; `None`: there are none.
    pub fn new(home: Option<&Path>, defaults: Limits) -> Self {
        Self { path: home.map(|home| home.join(file::FILE_NAME)), defaults, state: Mutex::default() }
    }

    /// The key that `text` is. Found by its hash, so that no comparison tells by its time how near a guess is.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn find(&self, text: &str) -> Result<Arc<LiveKey>, Rejected> {
        let digest = KeyText::parse(text).map_err(|_| Rejected::Malformed)?.digest();
        let key = self.current(&digest).ok_or(Rejected::Unknown)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
        if key.record.is_expired(now) { Err(Rejected::Expired) } else { Ok(key) }
    }

    fn current(&self, digest: &Digest) -> Option<Arc<LiveKey>> {
        let path = self.path.as_deref()?;
        let mut state = self.state.lock();
        let is_recent = state.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY);
        // A key that is unknown may have been made just now.
        if !is_recent || !state.keys.contains_key(digest) {
            self.look(path, &mut state);
        }
        state.keys.get(digest).cloned()
    }

    fn look(&self, path: &Path, state: &mut State) {
        state.looked = Some(Instant::now());
        let stamp = stamp(path);
        if stamp != state.stamp {
            state.stamp = stamp;
            self.read_again(path, state);
        }
    }

    /// A file that cannot be read opens nothing: a key that was revoked in it must not go on.
    fn read_again(&self, path: &Path, state: &mut State) {
        let records = file::read_path(path).map(super::KeyList::into_keys).unwrap_or_else(|error| {
            tracing::error!(%error, "no API key is accepted");
            Vec::new()
        });
        let before = std::mem::take(&mut state.keys);
        state.keys = records.into_iter().map(|record| (record.digest, self.live(record, &before))).collect();
    }

    /// What a key has left survives a change of another one.
    fn live(&self, record: KeyRecord, before: &HashMap<Digest, Arc<LiveKey>>) -> Arc<LiveKey> {
        let limits = record.limits.or(self.defaults);
        let known = before.get(&record.digest).and_then(|key| key.meter.clone());
        let meter = known.filter(|meter| meter.limits() == limits).or_else(|| Meter::new(limits));
        Arc::new(LiveKey { record, meter })
    }
}

/// `None` without a file.
#[cfg(unix)]
fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    // The time of the last change of content, name or permissions.
    let changed_ns = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    Some((changed_ns, metadata.len(), metadata.ino()))
}

/// `None` without a file.
#[cfg(not(unix))]
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((i128::try_from(modified.as_nanos()).ok()?, metadata.len(), 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::keys::{NewKey, change};

    #[test]
    fn changes_are_seen_within_the_interval() {
        let home = tempfile::tempdir().unwrap();
        let live = LiveKeys::new(Some(home.path()), Limits::default());
        let key = change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap();
        assert_eq!(live.find(key.expose()).unwrap().record.name, "key-1");
        change(home.path(), |list| list.revoke("key-1")).unwrap();
        std::thread::sleep(LOOK_EVERY);
        assert_eq!(live.find(key.expose()).err(), Some(Rejected::Unknown));
        assert_eq!(live.find("og-nonsense").err(), Some(Rejected::Malformed));
        assert_eq!(LiveKeys::new(None, Limits::default()).find(key.expose()).err(), Some(Rejected::Unknown));
    }

    #[test]
    fn a_damaged_file_opens_nothing() {
        let home = tempfile::tempdir().unwrap();
        let key = change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap();
        let live = LiveKeys::new(Some(home.path()), Limits::default());
        live.find(key.expose()).unwrap();
        std::fs::write(home.path().join(file::FILE_NAME), "{}").unwrap();
        std::thread::sleep(LOOK_EVERY);
        assert_eq!(live.find(key.expose()).err(), Some(Rejected::Unknown));
    }

    #[test]
    fn an_expired_key_is_told_so() {
        let home = tempfile::tempdir().unwrap();
        let new = NewKey { expires_unix_s: Some(1), ..NewKey::default() };
        let key = change(home.path(), |list| list.create(new, 0)).unwrap();
        let live = LiveKeys::new(Some(home.path()), Limits::default());
        assert_eq!(live.find(key.expose()).err(), Some(Rejected::Expired));
    }

    #[test]
    fn a_meter_survives_the_change_of_another_key() {
        let home = tempfile::tempdir().unwrap();
        let limits = Limits { requests_per_minute: NonZeroU32::new(1), tokens_per_minute: None };
        let new = NewKey { limits, ..NewKey::default() };
        let key = change(home.path(), |list| list.create(new, 0)).unwrap();
        let live = LiveKeys::new(Some(home.path()), Limits::default());
        live.find(key.expose()).unwrap().meter.as_ref().unwrap().take_request().unwrap();
        let other = change(home.path(), |list| list.create(NewKey::default(), 0)).unwrap();
        live.find(other.expose()).unwrap();
        assert!(live.find(key.expose()).unwrap().meter.as_ref().unwrap().take_request().is_err());
    }
}
