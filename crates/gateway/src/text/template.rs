//! Chat templates: the Jinja source in a GGUF, rendered as Hugging Face's `apply_chat_template` renders it.
//!
//! A template comes from a stranger's file. It sees the messages and nothing else, its work is bounded by fuel (which
//! bounds its memory, too) and its output by [`PROMPT_BYTES_MAX`].

use std::{collections::HashMap, io, sync::Arc};

use minijinja::{Environment, Error, ErrorKind, Output, State, Value, syntax::SyntaxConfig, value::Kwargs};
use parking_lot::Mutex;

use super::clock;

/// Largest template source, in bytes.
const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Largest rendered prompt, in bytes.
const PROMPT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// One unit is one instruction or 64 bytes.
const FUEL: u64 = 4_000_000;
/// Compiled templates that are kept.
const CACHE_ENTRIES_MAX: usize = 64;
/// For models without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

/// Why messages do not become a prompt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template itself is at fault.
    #[error("this model's chat template does not work: {0}; use /v1/completions, or another model")]
    Broken(String),
    /// The template says that it cannot render such messages.
    #[error("this model's chat template refuses these messages: {0}")]
    Refused(String),
    #[error("the prompt is over {PROMPT_BYTES_MAX} bytes: send less")]
    TooLarge,
}

/// One message, its content already flattened to text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
    pub name: Option<String>,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles `source`, or ChatML without one.
    ///
    /// # Errors
    /// [`TemplateError::Broken`] with the line at fault.
    pub fn compile(source: Option<&str>) -> Result<Self, TemplateError> {
        let source = source.unwrap_or(CHATML);
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Broken(format!("it is over {SOURCE_BYTES_MAX} bytes")));
        }
        let mut environment = environment().map_err(|error| broken(&error))?;
        environment.add_template_owned("chat", without_generation_marks(source)).map_err(|error| broken(&error))?;
        Ok(Self { environment })
    }

    /// The prompt, with the beginning of the assistant's turn at its end.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub fn render(&self, messages: &[Message], bos: &str, eos: &str) -> Result<String, TemplateError> {
        let context = Value::from_pairs([
            ("messages", messages.iter().map(Message::to_value).collect::<Value>()),
            ("add_generation_prompt", Value::from(true)),
            ("bos_token", Value::from(bos)),
            ("eos_token", Value::from(eos)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        let mut prompt = BoundedText(Vec::new());
        let template = self.environment.get_template("chat").map_err(|error| broken(&error))?;
        template.render_captured_to(context, &mut prompt).map_err(|error| classify(&error))?;
        String::from_utf8(prompt.0).map_err(|_| TemplateError::Broken("its output is not UTF-8".into()))
    }
}

impl Message {
    fn to_value(&self) -> Value {
        let pairs = [("role", self.role.as_str()), ("content", self.content.as_str())];
        Value::from_pairs(pairs.into_iter().chain(self.name.as_deref().map(|name| ("name", name))))
    }
}

/// Compiled templates by their source.
#[derive(Default)]
pub struct TemplateCache(Mutex<HashMap<Option<Box<str>>, Arc<ChatTemplate>>>);

impl TemplateCache {
    /// # Errors
    /// [`TemplateError::Broken`]; failures are not remembered.
    pub fn get(&self, source: Option<&str>) -> Result<Arc<ChatTemplate>, TemplateError> {
        let key = source.map(Box::from);
        if let Some(template) = self.0.lock().get(&key) {
            return Ok(template.clone());
        }
        let template = Arc::new(ChatTemplate::compile(source)?);
        let mut cache = self.0.lock();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.clear();
        }
        cache.insert(key, template.clone());
        Ok(template)
    }
}

/// As `transformers.utils.chat_template_utils` sets Jinja up.
fn environment() -> Result<Environment<'static>, Error> {
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
struct Raised(String);

fn broken(error: &Error) -> TemplateError {
    TemplateError::Broken(shorten(&error.to_string()))
}

fn classify(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Refused(shorten(message));
        }
        if let Some(io_error) = current.downcast_ref::<io::Error>()
            && io_error.kind() == io::ErrorKind::FileTooLarge
        {
            return TemplateError::TooLarge;
        }
        cause = current.source();
    }
    broken(error)
}

fn shorten(message: &str) -> String {
    message.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

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

/// Refuses to grow over [`PROMPT_BYTES_MAX`].
struct BoundedText(Vec<u8>);

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PROMPT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns Hugging Face's `{% generation %}` blocks (they mark the assistant's tokens for training) into plain ones.
fn without_generation_marks(source: &str) -> String {
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

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
