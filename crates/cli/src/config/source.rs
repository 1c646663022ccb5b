//! Collects the settings from their sources, each value with its origin.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, ConfigError, FILE_NAME,
    schema::{self, ALIASES, KEYS, Key, SECTIONS},
    value::{Value, clip},
};

/// Largest settings file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File {
        path: PathBuf,
        line: usize,
    },
    /// The variable's name.
    Env(String),
    Flag(&'static str),
}

/// One setting in force.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `api.listen`.
    pub key: String,
    pub(super) value: Value,
    pub origin: Origin,
}

impl Entry {
    pub(super) fn new(key: &str, value: Value, origin: Origin) -> Self {
        Self { key: key.to_owned(), value, origin }
    }
}

impl Origin {
    fn place(&self) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::File { path, line } => format!("{} line {line}", path.display()),
            Self::Env(name) => name.clone(),
            Self::Flag(flag) => (*flag).to_owned(),
        }
    }

    pub(super) fn error(&self, what: String) -> ConfigError {
        ConfigError::Setting { place: self.place(), what }
    }
}

/// The environment's variables that begin with `OPENGRID_`.
pub fn our_variables(
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut ours = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with("OPENGRID_")) else { continue };
        let value = value.into_string().map_err(|_| ConfigError::Setting {
            place: clip(name),
            what: "is not valid UTF-8; set it again".to_owned(),
        })?;
        ours.push((name.to_owned(), value));
    }
    ours.sort();
    Ok(ours)
}

/// One value per entry of [`KEYS`], in that order.
pub struct Settings {
    values: Vec<(Value, Origin)>,
    models_dir: PathBuf,
}

impl Settings {
    /// `models_dir` is what an empty `models.dir` stands for.
    pub fn defaults(models_dir: &Path) -> Result<Self, ConfigError> {
        let parse = |key: &Key| {
            let parsed = DeValue::parse(key.default).map_err(|error| error.to_string());
            parsed
                .and_then(|value| Value::from_toml(key.kind, value.get_ref(), Path::new("")))
                .map(|value| (value, Origin::Default))
                .map_err(|error| ConfigError::Schema(format!("{}: {error}", key.path())))
        };
        let values = KEYS.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { values, models_dir: models_dir.to_owned() })
    }

    /// Reads `config.toml` in `home`, if it is there.
    pub fn read_file(&mut self, home: &Path) -> Result<(), ConfigError> {
        let path = home.join(FILE_NAME);
        match read_bounded(&path)? {
            Some(text) => self.read_text(&text, &path),
            None => Ok(()),
        }
    }

    pub fn read_text(&mut self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: line_of(text, offset) };
        let document = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            at(offset).error(format!("not valid TOML: {}", one_line(error.message())))
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        for (section, table) in document.get_ref() {
            let place = at(section.span().start);
            let name = section.get_ref().as_ref();
            let table = self::table(name, table, &place)?;
            for (key, value) in table {
                let place = at(key.span().start);
                let key = known(name, key.get_ref(), &place)?;
                let value = Value::from_toml(key.kind, value.get_ref(), base)
                    .map_err(|what| place.error(format!("`{}` in [{name}]: {what}", key.name)))?;
                self.put(key, value, place);
            }
        }
        Ok(())
    }

    pub fn read_env(&mut self, variables: &[(String, String)]) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let origin = Origin::Env(name.clone());
            if let Some((_, path)) = ALIASES.iter().find(|(alias, _)| alias == name) {
                if !text.is_empty() {
                    self.set_text(path, text, origin)?;
                }
            } else if let Some(key) = KEYS.iter().find(|key| key.variable() == *name) {
                self.set_text(&key.path(), text, origin)?;
            } else if claims_a_section(name) {
                let names: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let hint = nearest(name, names.iter().map(String::as_str));
                return Err(origin.error(format!("unknown setting{hint}")));
            }
        }
        Ok(())
    }

    /// Sets `path` (as `api.listen`) to the text of a variable or flag.
    pub fn set_text(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let key = path.split_once('.').and_then(|(section, name)| schema::find(section, name));
        let key = key.ok_or_else(|| ConfigError::Schema(format!("no setting `{path}`")))?;
        let current = std::env::current_dir().unwrap_or_default();
        let value = Value::from_text(key.kind, text, &current).map_err(|what| origin.error(what))?;
        self.put(key, value, origin);
        Ok(())
    }

    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut document = toml::Table::new();
        for (key, value) in self.resolved() {
            let section = document.entry(key.section).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = section.as_table_mut() {
                section.insert(key.name.to_owned(), value.to_toml());
            }
        }
        document.try_into().map_err(|error: toml::de::Error| ConfigError::Schema(one_line(error.message())))
    }

    pub fn into_entries(self) -> Vec<Entry> {
        let origins = self.values.iter().map(|(_, origin)| origin.clone());
        self.resolved().zip(origins).map(|((key, value), origin)| Entry::new(&key.path(), value, origin)).collect()
    }

    /// The values with what the empty ones stand for.
    fn resolved(&self) -> impl Iterator<Item = (&'static Key, Value)> {
        KEYS.iter().zip(&self.values).map(|(key, (value, _))| {
            let empty_dir = key.path() == "models.dir" && *value == Value::Text(String::new());
            (key, if empty_dir { Value::path(&self.models_dir) } else { value.clone() })
        })
    }

    fn put(&mut self, key: &Key, value: Value, origin: Origin) {
        let index = KEYS.iter().position(|known| known.section == key.section && known.name == key.name);
        if let Some(slot) = index.and_then(|index| self.values.get_mut(index)) {
            *slot = (value, origin);
        }
    }
}

fn read_bounded(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), action: "read", source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let what = format!("larger than {FILE_BYTES_MAX} bytes; no settings file is");
        return Err(ConfigError::Setting { place: path.display().to_string(), what });
    }
    Ok(Some(text))
}

fn table<'a, 'i>(name: &str, value: &'a Spanned<DeValue<'i>>, place: &Origin) -> Result<&'a DeTable<'i>, ConfigError> {
    if SECTIONS.iter().any(|(section, _)| *section == name) {
        let table = value.get_ref().as_table();
        return table.ok_or_else(|| place.error(format!("`{name}` is a table; write [{name}] on a line of its own")));
    }
    let shown = clip(name);
    if value.get_ref().is_table() {
        let hint = nearest(name, SECTIONS.iter().map(|(section, _)| *section));
        return Err(place.error(format!("unknown table [{shown}]{hint}")));
    }
    let homes: Vec<&str> = KEYS.iter().filter(|key| key.name == name).map(|key| key.section).collect();
    let hint = match homes.first() {
        Some(section) => format!("; put it under [{section}]"),
        None => nearest(name, KEYS.iter().map(|key| key.name)),
    };
    Err(place.error(format!("unknown key `{shown}` outside of any table{hint}")))
}

fn known(section: &str, name: &str, place: &Origin) -> Result<&'static Key, ConfigError> {
    if let Some(key) = schema::find(section, name) {
        return Ok(key);
    }
    if (section, name) == ("node", "home") {
        let what = "`home` cannot be set in the file that lies in it; use --home DIR or OPENGRID_HOME";
        return Err(place.error(what.to_owned()));
    }
    let here = nearest(name, KEYS.iter().filter(|key| key.section == section).map(|key| key.name));
    let elsewhere = KEYS.iter().find(|key| key.name == name).map(|key| format!("; it belongs to [{}]", key.section));
    let hint = elsewhere.unwrap_or(here);
    Err(place.error(format!("unknown key `{}` in [{section}]{hint}", clip(name))))
}

/// Whether a variable looks like a setting: other `OPENGRID_*` variables belong to other parts of the project.
fn claims_a_section(variable: &str) -> bool {
    let rest = variable.strip_prefix("OPENGRID_").unwrap_or_default();
    SECTIONS.iter().any(|(section, _)| {
        rest.strip_prefix(section.to_ascii_uppercase().as_str()).is_some_and(|rest| rest.starts_with('_'))
    })
}

/// `; did you mean …?` with the nearest name; empty where nothing is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let name: String = name.chars().take(64).collect();
    let similar = known.map(|candidate| (strsim::jaro_winkler(&name, candidate), candidate));
    let best = similar.filter(|(score, _)| *score >= 0.7).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, candidate)| format!("; did you mean `{candidate}`?")).unwrap_or_default()
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}
