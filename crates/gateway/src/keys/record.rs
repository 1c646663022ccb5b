//! The list of keys. Pure: the time is handed in, in Unix seconds.

use serde::{Deserialize, Serialize};

use super::text::{Digest, KeyText};
use crate::limits::Limits;

/// Most keys of a node.
pub const KEYS_MAX: usize = 1_000;
/// Longest name of a key, in characters.
pub const NAME_CHARS_MAX: usize = 64;
const VERSION: u32 = 1;

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// `/v1/*`
    Inference,
    /// What the native API and `/metrics` tell.
    Read,
    /// Everything, changes of the node included: what the local token opens.
    Admin,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// All that is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Unique among the keys of a node.
    pub name: String,
    /// The beginning of the key, to recognise it.
    pub prefix: String,
    #[serde(with = "hexadecimal")]
    pub digest: Digest,
    pub scopes: Vec<Scope>,
    #[serde(flatten)]
    pub limits: Limits,
    pub created_unix_s: u64,
    /// `None`: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
}

impl KeyRecord {
    pub fn opens(&self, needed: Scope) -> bool {
        self.scopes.iter().any(|scope| *scope == Scope::Admin || *scope == needed)
    }

    pub fn is_expired(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s.is_some_and(|expires| expires <= now_unix_s)
    }
}

/// What a new key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// `None`: `key-1`, `key-2` and so on.
    pub name: Option<String>,
    /// Empty: inference.
    pub scopes: Vec<Scope>,
    pub limits: Limits,
    pub expires_unix_s: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("a key named `{0}` exists already: choose another name, or revoke it first")]
    NameTaken(String),
    #[error("`{0}` is no name for a key: take 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_`, `.` or `@`, not `og-…`")]
    BadName(String),
    #[error("there are {KEYS_MAX} keys already: revoke some first (`opengrid keys ls`)")]
    TooMany,
    #[error("no key is named `{0}` or begins with it: `opengrid keys ls` lists them")]
    Unknown(String),
}

/// The keys of a node, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    version: u32,
    keys: Vec<KeyRecord>,
}

impl Default for KeyList {
    fn default() -> Self {
        Self { version: VERSION, keys: Vec::new() }
    }
}

impl KeyList {
    /// # Errors
    /// Why the text holds no list of keys.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let list: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if list.version != VERSION {
            return Err(format!("it is of version {}, this program reads version {VERSION}", list.version));
        }
        if list.keys.len() > KEYS_MAX {
            return Err(format!("it holds {} keys, at most {KEYS_MAX} are read", list.keys.len()));
        }
        Ok(list)
    }

    pub fn keys(&self) -> &[KeyRecord] {
        &self.keys
    }

    pub fn into_keys(self) -> Vec<KeyRecord> {
        self.keys
    }

    /// Adds a key and returns it in clear, for the only time.
    ///
    /// # Errors
    /// [`KeyError`] when the name is taken or bad, or there are too many keys.
    pub fn create(&mut self, new: NewKey, now_unix_s: u64) -> Result<KeyText, KeyError> {
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let name = match new.name {
            Some(name) => self.check_name(name)?,
            None => self.free_name(),
        };
        let mut scopes = new.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() {
            scopes.push(Scope::Inference);
        }
        let key = KeyText::generate();
        self.keys.push(KeyRecord {
            name,
            prefix: key.shown(),
            digest: key.digest(),
            scopes,
            limits: new.limits,
            created_unix_s: now_unix_s,
            expires_unix_s: new.expires_unix_s,
        });
        Ok(key)
    }

    fn check_name(&self, name: String) -> Result<String, KeyError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        let fits = (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(legal);
        // A key given for a name by mistake must not be written down.
        if !fits || KeyText::is_meant_by(&name) {
            return Err(KeyError::BadName(name.chars().take(NAME_CHARS_MAX.min(9)).collect()));
        }
        if self.keys.iter().any(|key| key.name == name) { Err(KeyError::NameTaken(name)) } else { Ok(name) }
    }

    fn free_name(&self) -> String {
        let taken = |name: &String| self.keys.iter().any(|key| key.name == *name);
        let names = (1..=KEYS_MAX + 1).map(|number| format!("key-{number}"));
        names.into_iter().find(|name| !taken(name)).unwrap_or_default()
    }

    /// Removes the key that is named so, that begins so or that is `which`, and returns what was kept of it.
    ///
    /// # Errors
    /// [`KeyError::Unknown`]
    pub fn revoke(&mut self, which: &str) -> Result<KeyRecord, KeyError> {
        let digest = KeyText::parse(which).ok().map(|key| key.digest());
        let is_meant =
            |key: &KeyRecord| key.name == which || key.prefix == which || digest.is_some_and(|it| it == key.digest);
        match self.keys.iter().position(is_meant) {
            Some(at) => Ok(self.keys.remove(at)),
            None => Err(KeyError::Unknown(which.chars().take(NAME_CHARS_MAX.min(9)).collect())),
        }
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Digest;

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| D::Error::custom("a digest has 64 hexadecimal digits"))?;
        Ok(Digest(bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn named(name: &str) -> NewKey {
        NewKey { name: Some(name.into()), ..NewKey::default() }
    }

    #[test]
    fn what_is_kept_does_not_hold_the_key() {
        let mut list = KeyList::default();
        let key = list.create(named("laptop"), 5).unwrap();
        let json = serde_json::to_string(&list).unwrap();
        assert!(!json.contains(&key.expose()[9..]) && json.contains(&key.digest().to_string()));
        assert_eq!(KeyList::from_json(json.as_bytes()).unwrap(), list);
        assert_eq!(list.keys()[0].scopes, [Scope::Inference]);
    }

    #[test]
    fn names_are_unique_and_plain() {
        let mut list = KeyList::default();
        list.create(named("a"), 0).unwrap();
        assert_eq!(list.create(named("a"), 0), Err(KeyError::NameTaken("a".into())));
        for bad in ["", "a b", "ä", "og-abc", &"x".repeat(65), "\u{1b}[31m"] {
            assert!(matches!(list.create(named(bad), 0), Err(KeyError::BadName(_))), "{bad:?}");
        }
        list.create(NewKey::default(), 0).unwrap();
        list.create(NewKey::default(), 0).unwrap();
        let names: Vec<&str> = list.keys().iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["a", "key-1", "key-2"]);
    }

    #[test]
    fn a_key_is_revoked_by_name_beginning_or_itself() {
        let mut list = KeyList::default();
        let keys: Vec<KeyText> = ["a", "b", "c"].map(|name| list.create(named(name), 0).unwrap()).into();
        assert_eq!(list.revoke("a").unwrap().name, "a");
        assert_eq!(list.revoke(&keys[1].shown()).unwrap().name, "b");
        assert_eq!(list.revoke(keys[2].expose()).unwrap().name, "c");
        assert!(matches!(list.revoke("a"), Err(KeyError::Unknown(_))));
        assert!(list.keys().is_empty());
    }

    #[test]
    fn scopes_open_what_they_say() {
        let mut list = KeyList::default();
        let opens = |scopes: Vec<Scope>, list: &mut KeyList| {
            list.create(NewKey { scopes, ..NewKey::default() }, 0).unwrap();
            let key = list.keys().last().unwrap();
            [Scope::Inference, Scope::Read, Scope::Admin].map(|needed| key.opens(needed))
        };
        assert_eq!(opens(vec![Scope::Inference], &mut list), [true, false, false]);
        assert_eq!(opens(vec![Scope::Read], &mut list), [false, true, false]);
        assert_eq!(opens(vec![Scope::Read, Scope::Inference], &mut list), [true, true, false]);
        assert_eq!(opens(vec![Scope::Admin], &mut list), [true, true, true]);
    }

    #[test]
    fn a_key_expires_at_its_time() {
        let mut list = KeyList::default();
        list.create(NewKey { expires_unix_s: Some(10), ..NewKey::default() }, 0).unwrap();
        assert!(!list.keys()[0].is_expired(9) && list.keys()[0].is_expired(10));
    }

    #[test]
    fn other_files_are_refused() {
        for text in ["", "[]", "{}", r#"{"version":2,"keys":[]}"#, r#"{"version":1,"keys":[{"name":"x"}]}"#] {
            assert!(KeyList::from_json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
