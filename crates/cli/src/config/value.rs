//! Values: read from TOML or from the text of a variable or flag, always bounded by their [`Kind`].

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::{check::Check, schema::Kind};

/// Longest text of one value, in bytes.
const TEXT_BYTES_MAX: usize = 2_048;
/// Most entries of a list.
const LIST_LEN_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<String>),
}

impl Value {
    pub fn path(path: &Path) -> Self {
        Self::Text(path.display().to_string())
    }

    /// Reads what stands in the file; relative paths start at `base`.
    pub fn from_toml(kind: Kind, value: &DeValue<'_>, base: &Path) -> Result<Self, String> {
        match (kind, value) {
            (Kind::Bool, DeValue::Boolean(value)) => Ok(Self::Bool(*value)),
            (Kind::Integer { min, max }, DeValue::Integer(number)) => {
                let digits = number.as_str();
                let value = i64::from_str_radix(digits, number.radix()).map_err(|_| out_of_bounds(digits, min, max))?;
                bounded(value, min, max)
            }
            (Kind::List(check) | Kind::TextOrList(check), DeValue::Array(items)) => {
                if items.len() > LIST_LEN_MAX {
                    return Err(format!("{} entries are too many; at most {LIST_LEN_MAX}", items.len()));
                }
                let texts = items.iter().map(|item| {
                    let value = item.get_ref();
                    value
                        .as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| format!("the list holds {}; it takes texts in quotes", describe(value)))
                });
                list(texts.collect::<Result<_, _>>()?, check)
            }
            (Kind::List(_), _) | (Kind::Bool | Kind::Integer { .. }, _) => Err(wrong_type(kind, value)),
            (_, DeValue::String(text)) => Self::from_text(kind, text, base),
            _ => Err(wrong_type(kind, value)),
        }
    }

    /// Reads the text of a variable or flag; relative paths start at `base`.
    pub fn from_text(kind: Kind, text: &str, base: &Path) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX * LIST_LEN_MAX {
            return Err(format!("too long: {} bytes", text.len()));
        }
        match kind {
            Kind::Bool => match text {
                "true" | "1" | "yes" | "on" => Ok(Self::Bool(true)),
                "false" | "0" | "no" | "off" => Ok(Self::Bool(false)),
                _ => Err(format!("takes true or false, not `{}`", clip(text))),
            },
            Kind::Integer { min, max } => match text.parse() {
                Ok(value) => bounded(value, min, max),
                Err(_) => Err(format!("takes a whole number from {min} to {max}, not `{}`", clip(text))),
            },
            Kind::Choice(choices) => choice(text, choices),
            Kind::Text(check) => {
                checked(text, check)?;
                Ok(Self::Text(text.to_owned()))
            }
            Kind::Path => path(text, base),
            Kind::List(check) | Kind::TextOrList(check) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                list(parts.map(str::to_owned).collect(), check)
            }
        }
    }

    /// As the [`Config`](super::Config) reads it.
    pub fn to_toml(&self) -> toml::Value {
        match self {
            Self::Bool(value) => toml::Value::Boolean(*value),
            Self::Integer(value) => toml::Value::Integer(*value),
            Self::Text(text) => toml::Value::String(text.clone()),
            Self::List(items) => toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect()),
        }
    }
}

fn bounded(value: i64, min: i64, max: i64) -> Result<Value, String> {
    if (min..=max).contains(&value) {
        return Ok(Value::Integer(value));
    }
    Err(out_of_bounds(&value.to_string(), min, max))
}

fn out_of_bounds(value: &str, min: i64, max: i64) -> String {
    format!("{} is out of bounds; it takes {min} to {max}", clip(value))
}

fn choice(text: &str, choices: &[&str]) -> Result<Value, String> {
    if choices.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let known = choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", ");
    Err(format!("`{}` is none of {known}", clip(text)))
}

fn path(text: &str, base: &Path) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Text(String::new()));
    }
    if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
        return Err("no usable path".to_owned());
    }
    let joined = base.join(PathBuf::from(text));
    Ok(Value::path(&std::path::absolute(&joined).unwrap_or(joined)))
}

fn list(items: Vec<String>, check: Check) -> Result<Value, String> {
    if items.len() > LIST_LEN_MAX {
        return Err(format!("{} entries are too many; at most {LIST_LEN_MAX}", items.len()));
    }
    for item in &items {
        checked(item, check)?;
    }
    Ok(Value::List(items))
}

fn checked(text: &str, check: Check) -> Result<(), String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("too long: {} bytes of at most {TEXT_BYTES_MAX}", text.len()));
    }
    check(text)
}

fn wrong_type(kind: Kind, value: &DeValue<'_>) -> String {
    let wanted = match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer { min, max } => format!("a whole number from {min} to {max}"),
        Kind::Choice(_) | Kind::Text(_) | Kind::Path => "a text in quotes".to_owned(),
        Kind::List(_) => "a list of texts, as [\"…\", \"…\"]".to_owned(),
        Kind::TextOrList(_) => "a text in quotes or a list of them".to_owned(),
    };
    format!("takes {wanted}, not {}", describe(value))
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{}\"", clip(text)),
        DeValue::Integer(number) => format!("the number {}", clip(number.as_str())),
        DeValue::Float(number) => format!("the number {}", clip(number.as_str())),
        DeValue::Boolean(value) => format!("{value}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Keeps errors to one line of bounded length.
pub fn clip(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut clipped: String = text.chars().take(60).map(clean).collect();
    if text.chars().nth(60).is_some() {
        clipped.push('…');
    }
    clipped
}
