//! The commented default file, and `config show`.

use std::fmt::Write;

use serde_json::json;

use super::{
    Effective, Origin,
    schema::{KEYS, SECTIONS},
};

/// The fully commented `config.toml`: uncommented, it says what is the default anyway.
pub fn default_text() -> String {
    let mut text = String::from(
        "# Settings of this OpenGrid node. Every line that is commented out shows the default.\n\
         # Flags beat the environment (OPENGRID_<TABLE>_<KEY>, e.g. OPENGRID_API_LISTEN; lists with commas), which\n\
         # beats this file. `opengrid config show` prints what is in force, and where it comes from.\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(text, "\n# {about}\n[{section}]\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let help = key.help.replace('\n', "\n# ");
            let _ = write!(text, "\n# {help}\n#{} = {}\n", key.name, key.default);
        }
    }
    text
}

impl Effective {
    /// TOML with the origin of every value behind it.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for entry in &self.entries {
            let (table, name) = entry.key.split_once('.').unwrap_or(("", &entry.key));
            if table != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{table}]");
                section = table;
            }
            // The home is no key of the file: as a comment, the output can be used as one.
            let mark = if entry.key == "node.home" { "# " } else { "" };
            let line = format!("{mark}{name} = {}", entry.value.to_toml());
            let _ = writeln!(text, "{line:<44} # {}", entry.origin);
        }
        text
    }

    /// `{"api.listen": {"value": …, "origin": "file", "at": "…/config.toml line 7"}, …}`.
    pub fn show_json(&self) -> serde_json::Value {
        let rows = self.entries.iter().map(|entry| {
            let (origin, at) = match &entry.origin {
                Origin::Default => ("default", None),
                Origin::File { path, line } => ("file", Some(format!("{} line {line}", path.display()))),
                Origin::Env(name) => ("env", Some(name.clone())),
                Origin::Flag(flag) => ("flag", Some((*flag).to_owned())),
            };
            (entry.key.clone(), json!({ "value": entry.value.to_toml(), "origin": origin, "at": at }))
        });
        serde_json::Value::Object(rows.collect())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                write!(f, "file, {} line {line}", name.display())
            }
            Self::Env(name) => write!(f, "env, {name}"),
            Self::Flag(flag) => write!(f, "flag, {flag}"),
        }
    }
}
