//! Jinja as `transformers` sets it up, for templates that were written for Python.

use std::io;

use minijinja::{Environment, Error, ErrorKind, Output, State, Value, syntax::SyntaxConfig, value::Kwargs};

use crate::text::clock;

/// One unit is one instruction or 64 bytes.
const FUEL: u64 = 4_000_000;

/// As `transformers.utils.chat_template_utils` sets Jinja up.
pub fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(format_as_python);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| clock::strftime_utc(&format));
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Raised(pub String);

/// Python prints `None`, `True` and `False`.
fn format_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_none() {
        return out.write_str("None").map_err(Error::from);
    }
    match bool::try_from(value.clone()) {
        Ok(yes) if value.kind() == minijinja::value::ValueKind::Bool => {
            out.write_str(if yes { "True" } else { "False" }).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let mut out = Vec::new();
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    match indent {
        Some(width) => {
            let pad = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(pad.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonJson);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
        }
    }
    String::from_utf8(out).map(Value::from).map_err(|_| Error::new(ErrorKind::BadSerialization, "not UTF-8"))
}

/// `", "` and `": "` between things, as Python's `json.dumps` has it.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Turns Hugging Face's `{% generation %}` blocks (they mark the assistant's tokens for training) into plain ones.
pub fn without_generation_marks(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        let Some((inside, after)) = tag.split_once("%}") else {
            out.push_str("{%");
            out.push_str(tag);
            return out;
        };
        let keyword = inside.trim_matches(['-', '+']).trim();
        let replaced = match keyword {
            "generation" => inside.replace(keyword, "if true"),
            "endgeneration" => inside.replace(keyword, "endif"),
            _ => inside.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = after;
    }
    out + rest
}
