//! Chat templates: the Jinja source in a GGUF, rendered as Hugging Face's `apply_chat_template` renders it.
//!
//! A template comes from a stranger's file. It sees the messages and tools and nothing else, its work is bounded by fuel (which
//! bounds its memory, too) and its output by [`PROMPT_BYTES_MAX`].

mod abilities;
mod environment;
mod message;

use std::{
    collections::HashMap,
    io,
    sync::{Arc, OnceLock},
};

use minijinja::{Environment, Error, Value, value::Serde};
use parking_lot::Mutex;

use self::environment::{Raised, environment, without_generation_marks};
pub use self::{
    abilities::Abilities,
    message::{Call, Message, Role},
};
use super::tools::{Tool, dialect::Dialect};

/// Largest template source, in bytes.
const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Largest rendered prompt, in bytes.
const PROMPT_BYTES_MAX: usize = 32 * 1024 * 1024;
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

/// What a template is rendered with.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub messages: &'a [Message],
    pub tools: &'a [Tool],
    pub bos: &'a str,
    pub eos: &'a str,
    /// An object: further variables. They come after our own.
    pub variables: Option<&'a serde_json::Value>,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// How the model writes tool calls, as far as the template tells.
    pub dialect: Option<Dialect>,
    /// The model thinks aloud between `<think>` and `</think>`.
    pub thinks: bool,
    abilities: OnceLock<Abilities>,
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
        let (dialect, thinks) = (Dialect::of(source), source.contains("<think>") || source.contains("</think>"));
        Ok(Self { environment, dialect, thinks, abilities: OnceLock::new() })
    }

    /// The prompt, with the beginning of the assistant's turn at its end.
    ///
    /// # Errors
    /// [`TemplateError`]
    pub fn render(&self, scene: &Scene) -> Result<String, TemplateError> {
        let tools: Vec<serde_json::Value> = scene.tools.iter().map(Tool::to_json).collect();
        let own = [
            ("messages", scene.messages.iter().map(Message::to_value).collect::<Value>()),
            ("add_generation_prompt", Value::from(true)),
            ("bos_token", Value::from(scene.bos)),
            ("eos_token", Value::from(scene.eos)),
            ("tools", if tools.is_empty() { Value::from(()) } else { Value::from(Serde(&tools)) }),
            ("documents", Value::from(())),
        ];
        let further = scene.variables.and_then(serde_json::Value::as_object).into_iter().flatten();
        let further = further.filter(|(name, _)| own.iter().all(|(own, _)| own != name));
        let further = further.map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let context = Value::from_pairs(further.chain(own.iter().cloned()));
        let mut prompt = BoundedText(Vec::new());
        let template = self.environment.get_template("chat").map_err(|error| broken(&error))?;
        template.render_captured_to(context, &mut prompt).map_err(|error| classify(&error))?;
        String::from_utf8(prompt.0).map_err(|_| TemplateError::Broken("its output is not UTF-8".into()))
    }

    /// Found out on first use, by rendering.
    pub fn abilities(&self) -> Abilities {
        *self.abilities.get_or_init(|| Abilities::of(self))
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

#[cfg(test)]
mod tests;
